"""The one mechanism of pruning: masks, multiplied into the kernels after every optimizer step.

A rule says when a mask changes and how. tfmot's wrapper masks inside the layer's call instead, so
that between the optimizer and the next forward pass the weights are dense, a checkpoint by step is
dense, and 16-bit policies round the master weights; its threshold is a full sort. Here the step
ends with masked weights, and the threshold is found by bisection in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from mobilenet.compression import variables

_HALVINGS = 31  # bits of a float without its sign: the threshold is exact


class Masks(tf.Module):
    """Masks by layer name, float32 and of the kernel's shape: 1 keeps a weight, 0 removes it."""

    def __init__(self, kernels: Mapping[str, tf.Variable]) -> None:
        """Takes each mask from the zeros that are in the kernel, so that nothing regrows."""
        super().__init__(name="masks")
        self.kernels = dict(kernels)
        self.masks = {
            name: tf.Variable(
                tf.cast(tf.not_equal(kernel, 0), tf.float32),
                trainable=False,
                name=f"{name}_mask",
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for name, kernel in self.kernels.items()
        }

    def apply(self) -> None:
        """Zeroes what is masked."""
        for name, kernel in self.kernels.items():
            variables.update(kernel, _multiply, [self.masks[name]])

    def refresh(
        self, name: str, due: tf.Tensor, rule: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    ) -> None:
        """Replaces one mask by `rule(kernel, mask)` where `due` (a scalar boolean) says so."""

        def change(mask: Any, kernel: Any, now: tf.Tensor) -> None:
            mask.assign(
                tf.cond(
                    now, lambda: rule(tf.cast(kernel, tf.float32), mask), lambda: tf.identity(mask)
                )
            )

        variables.update(self.masks[name], change, [self.kernels[name], due])

    def sparsity(self) -> dict[str, float]:
        """The share of zeros by layer name."""
        return {name: 1.0 - float(tf.reduce_mean(mask)) for name, mask in self.masks.items()}


def _multiply(kernel: Any, mask: Any) -> None:
    kernel.assign(kernel * tf.cast(mask, kernel.dtype))


def keep_largest(kernel: tf.Tensor, sparsity: tf.Tensor) -> tf.Tensor:
    """The mask that zeroes the smallest magnitudes.

    At least `round(size * sparsity)` entries become zero; more only where magnitudes tie at the
    threshold. An entry that is zero stays zero at any sparsity, so a sparser start is kept.

    Args:
        kernel: any shape.
        sparsity: share of zeros wanted, a scalar.

    Returns:
        0 and 1 in float32, of the kernel's shape.
    """
    magnitude = tf.abs(kernel)
    wanted = tf.round(tf.cast(tf.size(magnitude), tf.float32) * tf.cast(sparsity, tf.float32))

    # The bits of floats from 0 up, read as integers, are in the order of the floats: halving finds
    # the exact threshold, early where a number falls between the wanted weights and the rest.
    def halve(low: tf.Tensor, high: tf.Tensor, below: tf.Tensor) -> tuple[tf.Tensor, ...]:
        middle = low + (high - low) // 2
        zeros = tf.reduce_sum(tf.cast(magnitude < tf.bitcast(middle, tf.float32), tf.float32))
        enough = zeros >= wanted
        moved = (tf.where(enough, low, middle), tf.where(enough, middle, high))
        return (*moved, tf.where(enough, zeros, below))

    highest = tf.bitcast(tf.reduce_max(magnitude), tf.int32) + 1
    start = (tf.constant(0), highest, tf.cast(tf.size(magnitude), tf.float32))
    _, high, _ = tf.while_loop(
        lambda low, high, below: below > wanted, halve, start, maximum_iterations=_HALVINGS
    )
    threshold = tf.where(wanted > 0, tf.bitcast(high, tf.float32), 0.0)
    return tf.cast((magnitude >= threshold) & (magnitude > 0), tf.float32)
