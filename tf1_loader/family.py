"""The loader of a family: a config goes in, a model comes out, as in tensorflow/models
`research/mobilenet/tf1_loader`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from mobilenet.configs.archs import MobileNetConfig

Shape = Sequence[int | None] | None


class Loader(Protocol):
    """The type of the loaders of all families."""

    def __call__(
        self,
        checkpoint_path: str | os.PathLike[str],
        config: MobileNetConfig | None = None,
        *,
        input_shape: Shape = None,
        use_ema: bool = True,
    ) -> Any: ...


def make_loader(name: str, model: str, *kinds: type[MobileNetConfig]) -> Loader:
    """The function `name`, which loads `model` for configs of `kinds`."""

    def load(
        checkpoint_path: str | os.PathLike[str],
        config: MobileNetConfig | None = None,
        *,
        input_shape: Shape = None,
        use_ema: bool = True,
    ) -> Any:
        from mobilenet.tf1_loader.loading import load_family

        return load_family(checkpoint_path, config, kinds, input_shape, use_ema)

    load.__name__ = load.__qualname__ = name
    load.__doc__ = f"""{model} with a TF1 checkpoint's weights, as a tf_keras model.

    Arguments and errors are those of `load_tf1_checkpoint`; without a config the architecture is
    detected from names and shapes, and one of another family is refused.
    """
    return load
