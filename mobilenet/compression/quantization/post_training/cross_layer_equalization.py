"""Cross-layer equalization: channels that share a tensor are scaled to similar ranges.

One range serves all channels of an activation; a channel that uses a hundredth of it is left with
one or two of the 256 values. Between two convolutions a channel can be multiplied on one side and
divided on the other without changing what the model computes (Nagel et al., arXiv 1906.04721,
section 4.1; Meller et al., arXiv 1902.01917).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mobilenet.compression.quantization.int8.quantizer_placement import DepthwiseHardSwish
from mobilenet.compression.quantization.post_training import hard_swish_rewrite
from mobilenet.compression.quantization.post_training.observer import Observation
from mobilenet.compression.quantization.post_training.scaling_groups import (
    ScalingGroup,
    ScalingGroups,
)
from mobilenet.models.graph.batch_norm_folding import Folded
from mobilenet.models.graph.roles import unwrap
from mobilenet.typing import Float64Array

_MAX_FACTOR = 64.0  # up or down; beyond that a channel carries nothing
_MAX_GATE = 6.0  # what the ReLU6 of a hard-swish multiplies by at most
_DEAD = 1e-6  # share of the largest channel, below which a channel is not scaled


def equalize_groups(
    groups: ScalingGroups, observations: Mapping[str, Observation]
) -> dict[str, Float64Array]:
    """Equalizes every group that has only convolutions around it. In place.

    Args:
        groups: of the plain model that is changed.
        observations: of its tensors on images, by layer name.

    Returns:
        The factor of each output channel, by name of the convolution.
    """
    factors: dict[str, Float64Array] = {}
    for group in groups:
        if not group.is_scalable:
            continue
        abs_max = group_abs_max(group, observations, groups.depthwise_hard_swishes_in(group))
        if abs_max is None:
            continue
        usage = [kernel_usage(other) for other in group.consumers if not other.depthwise]
        chosen = equalization_factors(abs_max, usage)
        group.scale(chosen)
        factors.update({producer.name: chosen for producer in group.producers})
    return factors


def group_abs_max(
    group: ScalingGroup,
    observations: Mapping[str, Observation],
    hard_swishes: Sequence[DepthwiseHardSwish] = (),
) -> Float64Array | None:
    """The largest magnitude of each channel over the quantized tensors of a group, `[channels]`.

    Where the group has `hard_swishes` it is that of their inputs, and a sixth of that of other
    tensors: the ReLU6 multiplies by up to six.
    """
    by_source = {id(one.source): one for one in hard_swishes}
    abs_max = []
    for layer in group.tensors:
        seen = observations.get(unwrap(layer).name)
        if seen is None:
            continue
        if id(layer) in by_source:
            abs_max.append(hard_swish_rewrite.active_abs_max(by_source[id(layer)], seen))
        else:
            divisor = _MAX_GATE if hard_swishes else 1.0
            abs_max.append(np.maximum(seen.high, -seen.low) / divisor)
    return np.asarray(np.max(abs_max, axis=0)) if abs_max else None


def kernel_usage(consumer: Folded) -> Float64Array:
    """The largest share, in 0..1, of a kernel's range that each input channel uses."""
    kernel = np.abs(np.asarray(consumer.kernel, np.float64))
    kernel = kernel.reshape(-1, *kernel.shape[-2:]).max(axis=0)  # [input, output]
    largest = kernel.max(axis=0)
    usage: Float64Array = (kernel / np.where(largest > 0, largest, 1.0)).max(axis=1)
    return usage


def equalization_factors(abs_max: Float64Array, usages: Sequence[Float64Array]) -> Float64Array:
    """The factor of each channel.

    A depthwise kernel has a scale per channel, so its inputs can have equal ranges. A 1x1 kernel
    has a scale per *output* channel: whatever is gained on the activations is lost on the weights,
    so both meet in the middle.

    Args:
        abs_max: largest magnitude of each channel.
        usages: `kernel_usage` of each consumer that is not depthwise.
    """
    live = abs_max > _DEAD * abs_max.max()
    if not live.any():
        return np.ones_like(abs_max)
    safe = np.where(live, abs_max, 1.0)
    if usages:
        largest = np.maximum(np.max(usages, axis=0), _DEAD)
        factors = np.sqrt(largest / safe)
    else:
        factors = 1.0 / safe
    factors = factors / np.median(factors[live])
    return np.where(live, np.clip(factors, 1 / _MAX_FACTOR, _MAX_FACTOR), 1.0)
