"""Which axis of which weight holds the channels of a group: a table by kind of layer.

Importance, masks and surgery all read their weights through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.compression.pruning.channel.dependency_groups import Member
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import kind

Array = npt.NDArray[Any]

# kind of layer, weight, side of the group: axis
AXES: Mapping[str, Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "Conv2D": {"kernel": {"in": 2, "out": 3}, "bias": {"out": 0}},
        "DepthwiseConv2D": {  # Keras 3 says kernel
            **dict.fromkeys(("depthwise_kernel", "kernel"), {"all": 2}),
            "bias": {"all": 0},
        },
        "Dense": {"kernel": {"in": 0, "out": 1}, "bias": {"out": 0}},
        "BatchNormalization": dict.fromkeys(
            ("gamma", "beta", "moving_mean", "moving_variance"), {"all": 0}
        ),
        "Reshape": {},
    }
)
KERNELS = ("kernel", "depthwise_kernel")


def axes(member: Member) -> dict[str, int]:
    """The axis of the group's channels, by the name of the member's weight."""
    table = AXES[kind(member.layer)]
    return {
        name: table[name][member.side]
        for name in variables.named(member.layer)
        if member.side in table[name]
    }


def positions(member: Member, indices: Sequence[int] | Array, channels: int) -> Array:
    """Where channels lie on the member's axis: again and again, where maps were flattened."""
    starts = channels * np.arange(member.repeats)[:, None]
    return np.asarray((starts + np.asarray(indices, np.int64)[None]).ravel(), np.int64)


def rows(member: Member, weight: str, value: Any = None) -> Array:
    """A weight of the member, or `value` of its shape, as `[channels, the rest]` in float64."""
    value = variables.named(member.layer)[weight] if value is None else value
    moved = np.moveaxis(np.asarray(value, np.float64), axes(member)[weight], 0)
    return moved.reshape(moved.shape[0], -1)
