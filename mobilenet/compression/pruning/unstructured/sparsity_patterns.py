"""Sparsity patterns: zeros anywhere, in N:M groups of input channels, or in whole blocks.

Kernels are `[height, width, inputs, outputs]`, or `[inputs, outputs]` of a dense layer. A rule is a
function from the kernel and the share of zeros that is due to a mask; under all of them a zero
stays zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from mobilenet.compression.pruning.unstructured.masks import keep_largest
from mobilenet.configs.pruning import MagnitudePruning

MaskRule = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def mask_rule(config: MagnitudePruning) -> MaskRule:
    """The rule of the config's pattern: `(kernel, share) -> mask`, float32 of one shape."""
    group, block = config.group, config.block
    if group is not None:
        return lambda kernel, share: keep_largest_of_groups(kernel, share, *group)
    if block is not None:
        return lambda kernel, share: keep_largest_blocks(kernel, share, *block)
    return keep_largest


def min_sparsity(config: MagnitudePruning) -> float:
    """The share of zeros that the pattern implies."""
    return 0.0 if config.group is None else 1.0 - config.group[0] / config.group[1]


def obstacle(config: MagnitudePruning, shape: Sequence[int], depthwise: bool) -> str:
    """Why a kernel cannot take the pattern; empty where it can."""
    group, block = config.group, config.block
    if group is None and block is None:
        return ""
    if depthwise:
        return f"{config.pattern} needs more than one input channel per output"
    inputs, outputs = shape[-2:]
    if group is not None:
        return _indivisible(inputs, group[1], "input")
    assert block is not None
    if any(size != 1 for size in shape[:-2]):
        return "blocks need a 1x1 kernel"
    return _indivisible(inputs, block[0], "input") or _indivisible(outputs, block[1], "output")


def _indivisible(channels: int, group: int, side: str) -> str:
    return f"{channels} {side} channels are no multiple of {group}" if channels % group else ""


def keep_largest_of_groups(kernel: tf.Tensor, share: tf.Tensor, count: int, size: int) -> tf.Tensor:
    """N:M sparsity: keeps the `count` largest of every `size` neighboring input channels.

    The pattern is imposed on a share of the groups, those first that lose the least magnitude: on
    all of them from `share = 1 - count / size` on. What `share` asks beyond that is removed by
    magnitude.
    """
    shape = tf.shape(kernel)
    inputs, outputs = kernel.shape[-2:]
    groups = tf.unstack(tf.reshape(tf.abs(kernel), [-1, inputs // size, size, outputs]), axis=2)
    ranks = [tf.zeros_like(groups[0]) for _ in groups]  # how many of its group are larger
    for second in range(size):
        for first in range(second):  # of two equals the first counts as larger
            is_larger = tf.cast(groups[first] >= groups[second], tf.float32)
            ranks[second] += is_larger
            ranks[first] += 1.0 - is_larger
    masks = [tf.cast(rank < count, tf.float32) for rank in ranks]
    pairs = zip(groups, masks, strict=True)
    loss = tf.add_n([magnitude * (1.0 - mask) for magnitude, mask in pairs])
    full = 1.0 - count / size
    dense = keep_largest(loss, tf.minimum(share / full, 1.0))  # groups that stay dense so far
    masks = [tf.maximum(mask, dense) for mask in masks]
    mask = tf.reshape(tf.stack(masks, axis=2), shape)
    return keep_largest(kernel * mask, tf.where(share > full, share, 0.0))


def keep_largest_blocks(kernel: tf.Tensor, share: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Removes the blocks (`rows` input x `columns` output channels) of the smallest sums."""
    inputs, outputs = kernel.shape[-2:]
    size = tf.abs(tf.reshape(kernel, [inputs // rows, rows, outputs // columns, columns]))
    blocks = keep_largest(tf.reduce_sum(size, [1, 3], keepdims=True), share)
    mask = blocks * tf.cast(size > 0, tf.float32)
    return tf.reshape(mask, tf.shape(kernel))
