"""Masks, multiplied into the kernels after every optimizer step: the one mechanism of pruning.

tfmot's wrapper masks inside the layer's call instead: between the optimizer and the next forward
pass its weights are dense, so are checkpoints saved after a step, and 16-bit policies round the
master weights; its threshold takes a full sort. Here every step ends with masked weights, and the
threshold is found by counting in the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from mobilenet.compression.method import Sparsity
from mobilenet.models.graph import variables


class Masks(tf.Module):
    """Masks by layer name, float32 and of the kernel's shape: 1 keeps a weight, 0 removes it."""

    def __init__(self, kernels: Mapping[str, tf.Variable]) -> None:
        """Starts from the zeros that are in the kernels, so that none of them regrows."""
        super().__init__(name="masks")
        self.kernels = dict(kernels)
        self.masks = {
            name: variables.state_variable(
                tf.cast(tf.not_equal(kernel, 0), tf.float32), f"{name}_mask"
            )
            for name, kernel in self.kernels.items()
        }

    def apply(self) -> None:
        """Zeroes the masked weights."""
        for name, kernel in self.kernels.items():
            variables.update(kernel, _multiply, [self.masks[name]])

    def refresh(
        self, due: tf.Tensor, rules: Mapping[str, Callable[[tf.Tensor], tf.Tensor]]
    ) -> None:
        """Replaces masks by `rules[layer](kernel)` where `due`, a scalar boolean, is true.

        A rule gets the kernel in float32 under the old mask, since the optimizer has just moved
        the removed weights, too.
        """

        def renew(mask: Any, kernel: Any, name: str) -> None:
            mask.assign(rules[name](tf.cast(kernel, tf.float32) * mask))

        def renew_all() -> tf.Tensor:
            for name in rules:
                renew(self.masks[name], self.kernels[name], name)
            return due

        def renew_one(mask: Any, kernel: Any, now: tf.Tensor, name: str) -> None:
            def one() -> tf.Tensor:
                renew(mask, kernel, name)
                return now

            tf.cond(now, one, lambda: now)

        if variables.are_plain():
            # One branch for all masks is cheaper in steps that are not due.
            tf.cond(due, renew_all, lambda: due)
            return
        for name in rules:
            change = functools.partial(renew_one, name=name)
            variables.update(self.masks[name], change, [self.kernels[name], due])

    def sparsity(self) -> dict[str, float]:
        """The share of zeros by layer name."""
        return {name: 1.0 - float(tf.reduce_mean(mask)) for name, mask in self.masks.items()}

    def overall(self, step: int, schedules: Mapping[str, Any]) -> Sparsity | None:
        """The share of zeros in all kernels together, and what it is to be after `step` updates.

        Args:
            step: updates so far.
            schedules: tfmot's schedule of each layer that has one; others stay as they are.
        """
        now = self.sparsity()
        return overall_sparsity(
            {name: kernel.shape.num_elements() for name, kernel in self.kernels.items()},
            now,
            now | {name: float(schedule(step)[1]) for name, schedule in schedules.items()},
        )


def overall_sparsity(
    sizes: Mapping[str, int], now: Mapping[str, float], target: Mapping[str, float]
) -> Sparsity | None:
    """The means of shares by layer, weighted by size; `None` without a layer."""
    total = sum(sizes.values())
    if not total:
        return None
    means = (sum(shares[name] * size for name, size in sizes.items()) for shares in (now, target))
    return Sparsity(*(mean / total for mean in means))


def _multiply(kernel: Any, mask: Any) -> None:
    kernel.assign(variables.apply_mask(kernel, mask > 0))


def keep_largest(kernel: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """The mask that zeroes the smallest magnitudes.

    At least `round(size * share)` entries become zero; more only where magnitudes tie at the
    threshold. An entry that is zero stays zero at any share, so a kernel that is sparser stays so.

    Args:
        kernel: float32 of any shape.
        share: share of zeros to reach, a scalar.

    Returns:
        0 and 1 in float32, of the kernel's shape.
    """
    bits = _bits(kernel)
    size = tf.cast(tf.size(bits), tf.float32)
    zeros = tf.cast(tf.round(size * tf.cast(share, tf.float32)), tf.int32)
    threshold = _at_rank(bits, tf.maximum(zeros, 1))
    threshold = tf.where(zeros > 0, threshold, 0)
    return tf.cast(tf.reshape(bits > threshold, tf.shape(kernel)), tf.float32)


def magnitude_at(kernel: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """The percentile of the magnitudes by nearest rank: that at `round((size - 1) * share)`.

    Args:
        kernel: float32 of any shape.
        share: share of the entries that lie below, a scalar.

    Returns:
        One of the magnitudes, a float32 scalar.
    """
    bits = _bits(kernel)
    index = tf.round(tf.cast(tf.size(bits) - 1, tf.float64) * tf.cast(share, tf.float64))
    return tf.bitcast(_at_rank(bits, tf.cast(index, tf.int32) + 1), tf.float32)


def _bits(kernel: tf.Tensor) -> tf.Tensor:
    """The bits of the magnitudes, flat. Read as integers they are in the order of the floats."""
    return tf.reshape(tf.bitcast(tf.abs(kernel), tf.int32), [-1])


def _at_rank(bits: tf.Tensor, rank: tf.Tensor) -> tf.Tensor:
    """The entry at `rank` (from 1) in rising order."""
    # Counting by the upper bits finds those of the searched weight; counting by the next ones,
    # among the weights that share its upper bits, finds the rest. All others differ above and fall
    # outside the count.
    values, left, threshold = bits, _BITS, tf.constant(0)
    for width in _FEW_PASSES if (bits.shape.num_elements() or 0) > _MANY else _SMALL_TABLES:
        left -= width
        prefix, rank = _value_at_rank(
            tf.bitwise.right_shift(values, left) if left else values, width, rank
        )
        threshold += tf.bitwise.left_shift(prefix, left)
        values = tf.bitwise.bitwise_xor(bits, threshold)
    return threshold


_BITS = 31  # of a float without its sign
# Widths of the counts. A large table costs more than a pass over a small kernel.
_FEW_PASSES, _SMALL_TABLES, _MANY = (16, 15), (11, 10, 10), 2**17


def _value_at_rank(values: tf.Tensor, width: int, rank: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The value at `rank` (from 1) in rising order, and its rank among its equals.

    Values of more than `width` bits do not count.
    """
    counts = tf.raw_ops.DenseBincount(
        input=values, size=2**width, weights=tf.zeros([0], tf.int32), binary_output=False
    )
    if width <= 12:
        return _bin_at_rank(counts, rank)
    columns = 2 ** (width // 2)  # a cumulative sum is slow
    table = tf.reshape(counts, [2**width // columns, columns])
    row, rank = _bin_at_rank(tf.reduce_sum(table, 1), rank)
    column, rank = _bin_at_rank(table[row], rank)
    return row * columns + column, rank


def _bin_at_rank(counts: tf.Tensor, rank: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The bin that holds `rank`, and the rank inside it."""
    before = tf.cumsum(counts, exclusive=True)
    index = tf.searchsorted(before, [rank])[0] - 1
    return index, rank - before[index]
