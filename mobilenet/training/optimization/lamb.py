"""The optimizer LAMB, which tf_keras does not have."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

_Optimizer: Any = tf_keras.optimizers.Optimizer


@tf_keras.saving.register_keras_serializable("mobilenet")
class Lamb(_Optimizer):
    """Adam whose update of each variable has the variable's norm (You et al., arXiv 1904.00962).

    With large batches a layer whose update is large against its weights limits the rate of all
    layers under Adam. Here w -= rate * |w| / |u| * u, where u is Adam's update plus the weight
    decay; the ratio is 1 where one of the norms is 0.

    Args:
        learning_rate: a number or a schedule.
        beta_1: decay of the mean gradient.
        beta_2: decay of the mean squared gradient.
        epsilon: added to the root of that.
        weight_decay: added to the update, times the weight: inside of the norm, as in the paper.
            (Keras 3 decays outside of it.)
        **kwargs: of `tf_keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float | None = None,
        name: str = "Lamb",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, weight_decay=weight_decay, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def build(self, var_list: Any) -> None:
        """Creates the moments of the variables."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._built = True
        self._momentums, self._velocities = (
            [self.add_variable_from_reference(v, name) for v in var_list] for name in ("m", "v")
        )

    def update_step(self, gradient: Any, variable: Any) -> None:
        """Updates one variable."""
        dtype = variable.dtype
        rate = tf.cast(self.learning_rate, dtype)
        step = tf.cast(self.iterations + 1, dtype)
        index = self._index_dict[self._var_key(variable)]
        mean, square = self._momentums[index], self._velocities[index]
        gradient = tf.convert_to_tensor(gradient)
        mean.assign_add((gradient - mean) * (1 - self.beta_1))
        square.assign_add((tf.square(gradient) - square) * (1 - self.beta_2))
        corrected = mean / (1 - tf.pow(tf.cast(self.beta_1, dtype), step))
        root = tf.sqrt(square / (1 - tf.pow(tf.cast(self.beta_2, dtype), step)))
        update = corrected / (root + self.epsilon)
        if self.weight_decay and self._use_weight_decay(variable):
            update += tf.cast(self.weight_decay, dtype) * variable
        norm, own = tf.norm(update), tf.norm(variable)
        ratio = tf.where((norm > 0) & (own > 0), tf.math.divide_no_nan(own, norm), 1.0)
        variable.assign_sub(rate * ratio * update)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing: the decay is part of each update."""

    def get_config(self) -> dict[str, Any]:
        """The arguments, as JSON values."""
        config: dict[str, Any] = super().get_config()
        return config | {
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }
