"""Where zeros may lie: anywhere, some of every group of input channels, or in whole blocks.

Kernels are `[height, width, inputs, outputs]`, or `[inputs, outputs]` of a dense layer. A rule is a
function of the kernel and of the share of zeros that is due; what is zero stays zero in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from mobilenet.compression.pruning.unstructured.masks import keep_largest
from mobilenet.configs.pruning import MagnitudePruning

Rule = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def rule(config: MagnitudePruning) -> Rule:
    """The rule of a pattern: `(kernel, share) -> mask`, both float32 and of one shape."""
    group, block = config.group, config.block
    if group is not None:
        return lambda kernel, share: keep_of_groups(kernel, share, *group)
    if block is not None:
        return lambda kernel, share: keep_blocks(kernel, share, *block)
    return keep_largest


def least_share(config: MagnitudePruning) -> float:
    """The share of zeros that the pattern itself brings."""
    return 0.0 if config.group is None else 1.0 - config.group[0] / config.group[1]


def obstacle(config: MagnitudePruning, shape: Sequence[int], depthwise: bool) -> str:
    """Why a kernel cannot take the pattern; empty where it can."""
    group, block = config.group, config.block
    if group is None and block is None:
        return ""
    if depthwise:
        return f"{config.pattern} needs more than one input channel to an output"
    inputs, outputs = shape[-2:]
    if group is not None:
        return _indivisible(inputs, group[1], "input")
    assert block is not None
    if any(size != 1 for size in shape[:-2]):
        return "blocks need a 1x1 kernel"
    return _indivisible(inputs, block[0], "input") or _indivisible(outputs, block[1], "output")


def _indivisible(channels: int, group: int, side: str) -> str:
    return f"{channels} {side} channels are no multiple of {group}" if channels % group else ""


def keep_of_groups(kernel: tf.Tensor, share: tf.Tensor, kept: int, every: int) -> tf.Tensor:
    """Of `every` neighbouring input channels the `kept` largest stay, in a share of the groups.

    Groups take the pattern in the order of the magnitude that they lose by it. `share` says how
    many of them: all from `1 - kept / every` on; what it asks beyond goes by magnitude.
    """
    shape = tf.shape(kernel)
    inputs, outputs = kernel.shape[-2:]
    groups = tf.unstack(tf.reshape(tf.abs(kernel), [-1, inputs // every, every, outputs]), axis=2)
    ahead = [tf.zeros_like(groups[0]) for _ in groups]  # how many of its group are larger
    for second in range(every):
        for first in range(second):  # of two equals the first counts as larger
            wins = tf.cast(groups[first] >= groups[second], tf.float32)
            ahead[second] += wins
            ahead[first] += 1.0 - wins
    stay = [tf.cast(rank < kept, tf.float32) for rank in ahead]
    loss = tf.add_n([size * (1.0 - keep) for size, keep in zip(groups, stay, strict=True)])
    least = 1.0 - kept / every
    spared = keep_largest(loss, tf.minimum(share / least, 1.0))
    masks = [tf.maximum(keep, spared) for keep in stay]
    mask = tf.reshape(tf.stack(masks, axis=2), shape)
    return keep_largest(kernel * mask, tf.where(share > least, share, 0.0))


def keep_blocks(kernel: tf.Tensor, share: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Blocks of `rows` input by `columns` output channels go by their sum of magnitudes."""
    inputs, outputs = kernel.shape[-2:]
    size = tf.abs(tf.reshape(kernel, [inputs // rows, rows, outputs // columns, columns]))
    kept = keep_largest(tf.reduce_sum(size, [1, 3], keepdims=True), share)
    mask = kept * tf.cast(size > 0, tf.float32)
    return tf.reshape(mask, tf.shape(kernel))
