"""Names of types in signatures: of arrays, and of models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import tf_keras

    class KerasModel(tf_keras.Model):
        """A `tf_keras.Model`, as type checkers see it: tf_keras itself carries no types.

        Shapes begin with the batch, as in `[batch, height, width, channels]`. What is not declared
        here has the type that the checker gives `tf_keras.Model`.
        """

        name: str
        layers: list[Any]
        trainable: bool
        input_shape: Any
        output_shape: Any

        def __call__(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any: ...
        def compile(self, *args: Any, **kwargs: Any) -> None: ...
        def count_params(self) -> int: ...
        def evaluate(self, *args: Any, **kwargs: Any) -> Any: ...
        def fit(self, *args: Any, **kwargs: Any) -> tf_keras.callbacks.History: ...
        def get_layer(self, name: str | None = None, index: int | None = None) -> Any: ...
        def get_weights(self) -> list[npt.NDArray[Any]]: ...
        def load_weights(self, *args: Any, **kwargs: Any) -> Any: ...
        def predict(self, *args: Any, **kwargs: Any) -> npt.NDArray[Any]: ...
        def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None: ...
        def save_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None: ...
        def set_weights(self, weights: Any) -> None: ...
        def summary(self, *args: Any, **kwargs: Any) -> None: ...

else:
    KerasModel = Any  # annotations are resolved without loading TensorFlow


Array: TypeAlias = npt.NDArray[Any]
Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
FloatArray: TypeAlias = npt.NDArray[np.floating]  # of any precision
IntArray: TypeAlias = npt.NDArray[np.integer]  # of any width
