"""The one mechanism of pruning: masks, multiplied into the kernels after every optimizer step.

A rule says when a mask changes and how. tfmot's wrapper masks inside the layer's call instead, so
that between the optimizer and the next forward pass the weights are dense, a checkpoint by step is
dense, and 16-bit policies round the master weights; its threshold is a full sort. Here the step
ends with masked weights, and the threshold is found by counting in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from mobilenet.compression import variables


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

    def refresh(self, name: str, due: tf.Tensor, rule: Callable[[tf.Tensor], tf.Tensor]) -> None:
        """Replaces one mask by `rule(kernel)` where `due` (a scalar boolean) says so.

        The rule sees the kernel in float32 under the old mask: the optimizer has just moved what
        was removed, too.
        """

        def change(mask: Any, kernel: Any, now: tf.Tensor) -> None:
            def renew() -> tf.Tensor:
                mask.assign(rule(tf.cast(kernel, tf.float32) * mask))
                return now

            tf.cond(now, renew, lambda: now)

        variables.update(self.masks[name], change, [self.kernels[name], due])

    def sparsity(self) -> dict[str, float]:
        """The share of zeros by layer name."""
        return {name: 1.0 - float(tf.reduce_mean(mask)) for name, mask in self.masks.items()}


def _multiply(kernel: Any, mask: Any) -> None:
    kernel.assign(kernel * tf.cast(mask, kernel.dtype))


def keep_largest(kernel: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """The mask that zeroes the smallest magnitudes.

    At least `round(size * share)` entries become zero; more only where magnitudes tie at the
    threshold. An entry that is zero stays zero at any share, so a sparser start is kept.

    Args:
        kernel: float32 of any shape.
        share: of zeros wanted, a scalar.

    Returns:
        0 and 1 in float32, of the kernel's shape.
    """
    # The bits of floats from 0 up, read as integers, are in the order of the floats. Counting by
    # the upper bits finds those of the wanted weight; counting by the lower bits, among the weights
    # that share its upper ones, finds the rest. All others differ above and fall outside the count.
    bits = tf.reshape(tf.bitcast(tf.abs(kernel), tf.int32), [-1])
    size = tf.cast(tf.size(bits), tf.float32)
    wanted = tf.cast(tf.round(size * tf.cast(share, tf.float32)), tf.int32)
    upper, rank = _find(tf.bitwise.right_shift(bits, _LOWER), _UPPER, tf.maximum(wanted, 1))
    upper = tf.bitwise.left_shift(upper, _LOWER)
    lower, _ = _find(tf.bitwise.bitwise_xor(bits, upper), _LOWER, rank)
    largest_removed = tf.where(wanted > 0, upper + lower, 0)
    return tf.cast(tf.reshape(bits > largest_removed, tf.shape(kernel)), tf.float32)


_UPPER, _LOWER = 16, 15  # 31 bits: a float's without its sign


def _find(values: tf.Tensor, width: int, rank: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The value at `rank` (from 1) in rising order, and its rank among its equals.

    Values of more than `width` bits do not count.
    """
    counts = tf.raw_ops.DenseBincount(
        input=values, size=2**width, weights=tf.zeros([0], tf.int32), binary_output=False
    )
    columns = 2 ** (width // 2)
    table = tf.reshape(counts, [2**width // columns, columns])
    row, rank = _place(tf.reduce_sum(table, 1), rank)
    column, rank = _place(table[row], rank)
    return row * columns + column, rank


def _place(counts: tf.Tensor, rank: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The bin that holds `rank`, and the rank inside it."""
    before = tf.cumsum(counts, exclusive=True)
    place = tf.searchsorted(before, [rank])[0] - 1
    return place, rank - before[place]
