"""Exact equalization: channels that share a tensor are brought to ranges that are alike.

One range serves all channels of an activation; a channel that uses a hundredth of it has one or two
codes. Between two convolutions a channel can be multiplied on one side and divided on the other
without changing what the model computes (Nagel et al., arXiv 1906.04721, section 4.1; Meller et
al., arXiv 1902.01917).
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
from mobilenet.models.graph.batch_norm_folding import Array, Folded
from mobilenet.models.graph.roles import unwrap

_MOST = 64.0  # times up or down; beyond that a channel carries nothing
_GATE = 6.0  # the most that a gate multiplies by
_LEAST = 1e-6  # share of the largest channel: below that a channel is dead and left alone


def equalize(groups: ScalingGroups, observed: Mapping[str, Observation]) -> dict[str, Array]:
    """Equalizes every group whose ends are convolutions alone. In place.

    Args:
        groups: of the plain model that is changed.
        observed: its tensors on images, by layer name.

    Returns:
        The factor of each output channel, by name of the convolution that gives it.
    """
    done: dict[str, Array] = {}
    for group in groups:
        if not group.is_open:
            continue
        reach = group_abs_max(group, observed, groups.depthwise_hard_swishes_in(group))
        if reach is None:
            continue
        factors = factors_of(reach, [reading(t) for t in group.consumers if not t.depthwise])
        group.scale(factors)
        done.update({producer.name: factors for producer in group.producers})
    return done


def group_abs_max(
    group: ScalingGroup, observed: Mapping[str, Observation], own: Sequence[DepthwiseHardSwish] = ()
) -> Array | None:
    """The largest magnitude of each channel over the tensors that the file rounds.

    Where a group has gates of its `own` it is that in front of them, and a sixth of it elsewhere:
    a gate multiplies by up to six.
    """
    fronts = {id(gate.source): gate for gate in own}
    found = []
    for layer in group.tensors:
        seen = observed.get(unwrap(layer).name)
        if seen is None:
            continue
        if id(layer) in fronts:
            found.append(hard_swish_rewrite.active_abs_max(fronts[id(layer)], seen))
        else:
            found.append(np.maximum(seen.high, -seen.low) / (_GATE if own else 1.0))
    return np.asarray(np.max(found, axis=0)) if found else None


def reading(consumer: Folded) -> Array:
    """How much of the range of its kernel each input channel uses at most, in 0..1."""
    kernel = np.abs(np.asarray(consumer.kernel, np.float64))
    kernel = kernel.reshape(-1, *kernel.shape[-2:]).max(axis=0)  # [input, output]
    widest = kernel.max(axis=0)
    found: Array = (kernel / np.where(widest > 0, widest, 1.0)).max(axis=1)
    return found


def factors_of(reach: Array, readings: list[Array]) -> Array:
    """The factor of each channel.

    Behind a depthwise layer, which has a scale per channel, all ranges can be alike. A 1x1 kernel
    has a scale per *output* channel: what is taken from the activations' spread is given to the
    weights', so the two meet in the middle.

    Args:
        reach: largest magnitude of each channel.
        readings: `reading` of each convolution behind that is not depthwise.
    """
    live = reach > _LEAST * reach.max()
    if not live.any():
        return np.ones_like(reach)
    safe = np.where(live, reach, 1.0)
    if readings:
        widest = np.maximum(np.max(readings, axis=0), _LEAST)
        factors = np.sqrt(widest / safe)
    else:
        factors = 1.0 / safe
    factors = factors / np.median(factors[live])
    return np.where(live, np.clip(factors, 1 / _MOST, _MOST), 1.0)
