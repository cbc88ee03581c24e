"""The exponential moving average of the weights, which is what is evaluated and saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from mobilenet.models.graph import variables

_NOT_WEIGHTS = (
    "low",
    "high",
    "absmax",
    "optimizer_step",
)  # variables of quantizers, which follow the data


class Average(tf.Module):
    """Shadows of a model's weights and batch-norm statistics.

    A weight that is exactly zero has been pruned, and its average is zero with it.

    Args:
        model: any model, wrapped or plain.
        decay: share of the shadow that stays at each step, lowered to (1 + step) / (10 + step)
            early on (tf.train.ExponentialMovingAverage's `num_updates`); 0 keeps no shadows.
    """

    def __init__(self, model: Any, decay: float) -> None:
        super().__init__(name="average")
        self.decay = decay
        self.weights = (
            [w for w in model.weights if w.dtype.is_floating and not _internal(w)] if decay else []
        )
        self.shadows = [
            variables.state_variable(tf.convert_to_tensor(weight), "shadow")
            for weight in self.weights
        ]

    def update(self, step: tf.Tensor, pruned: bool = True) -> None:
        """Moves the shadows towards the weights after the update number `step` (from 1).

        Args:
            step: int64.
            pruned: weights may have become zero; the check costs a tenth of a step, so stages that
                do not prune skip it.
        """
        move = _move_and_zero if pruned else _move
        count = tf.cast(step, tf.float32)
        share = 1.0 - tf.minimum(self.decay, (1.0 + count) / (10.0 + count))
        for shadow, weight in zip(self.shadows, self.weights, strict=True):
            variables.update(shadow, move, [weight, share])

    def assign(self) -> None:
        """Puts the averages in the model for good."""
        for shadow, weight in zip(self.shadows, self.weights, strict=True):
            weight.assign(shadow)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it."""
        own = [weight.numpy() for weight in self.weights]
        self.assign()
        try:
            yield
        finally:
            for weight, value in zip(self.weights, own, strict=True):
                weight.assign(value)


def _internal(weight: Any) -> bool:
    return str(weight.name.split(":")[0]).endswith(_NOT_WEIGHTS)


def _move(shadow: Any, weight: Any, share: tf.Tensor) -> None:
    shadow.assign_sub(tf.cast(share, shadow.dtype) * (shadow - weight))


def _move_and_zero(shadow: Any, weight: Any, share: tf.Tensor) -> None:
    moved = shadow + tf.cast(share, shadow.dtype) * (weight - shadow)
    shadow.assign(tf.where(tf.equal(weight, 0), tf.zeros_like(moved), moved))
