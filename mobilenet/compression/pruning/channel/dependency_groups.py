"""Dependency groups: sets of channels that can only be removed together, read from the graph.

The last axis of a tensor is a set of channels. A convolution or dense layer makes a new set, every
other layer passes on the set of its input, and a sum or product merges the sets of its inputs. A
set with all layers that produce, transform or consume it is a group: a channel removed from one of
them is removed from all. Layer names play no part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from mobilenet.errors import UsageError
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph, is_wrapper, kind
from mobilenet.typing import Array

Layer = Any

JOINING = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")
PASSING = (
    *("Activation", "ELU", "LeakyReLU", "ReLU", "Rescaling", "Softmax"),
    *("Dropout", "GaussianNoise", "SpatialDropout2D"),
    *("Cropping2D", "UpSampling2D", "ZeroPadding2D"),
    *("AveragePooling2D", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "MaxPooling2D"),
)
_PER_CHANNEL = {"DepthwiseConv2D": "a filter", "BatchNormalization": "a scale and a shift"}
_KNOWN = ("InputLayer", "Conv2D", "Dense", *_PER_CHANNEL, *JOINING, *PASSING, "Flatten", "Reshape")

KERNELS = ("kernel", "depthwise_kernel")
# kind of layer -> weight -> side of the group -> axis of the weight that is its channels
AXES: Mapping[str, Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "Conv2D": {"kernel": {"in": 2, "out": 3}, "bias": {"out": 0}},
        "DepthwiseConv2D": {  # Keras 3 calls its kernel `kernel`
            **dict.fromkeys(KERNELS, {"all": 2}),
            "bias": {"all": 0},
        },
        "Dense": {"kernel": {"in": 0, "out": 1}, "bias": {"out": 0}},
        "BatchNormalization": dict.fromkeys(
            ("gamma", "beta", "moving_mean", "moving_variance"), {"all": 0}
        ),
        "Reshape": {},
    }
)


@dataclasses.dataclass(frozen=True)
class Member:
    """A layer that belongs to a group, and the axes of its weights that are the group's channels.

    Attributes:
        layer: the layer.
        side: `out` makes the channels, `all` has weights for each of them, `in` reads them, `shape`
            is a reshape that states their number.
        reason: why it belongs to the group, in a few words.
        repeats: how many times its axis holds the channels (more than 1 after a `Flatten`).
    """

    layer: Layer
    side: str
    reason: str
    repeats: int = 1

    def axes(self) -> dict[str, int]:
        """The axis of the group's channels by the name of the layer's weight."""
        table = AXES[kind(self.layer)]
        return {
            name: table[name][self.side]
            for name in variables.named(self.layer)
            if self.side in table[name]
        }

    def positions(self, indices: Sequence[int] | Array, channels: int) -> Array:
        """Positions on the member's axis of the channels `indices`, out of `channels`."""
        starts = channels * np.arange(self.repeats)[:, None]
        return np.asarray((starts + np.asarray(indices, np.int64)[None]).ravel(), np.int64)

    def weight_rows(self, weight: str, value: Any = None) -> Array:
        """A weight (or `value` of its shape) as float64 `[channels * repeats, other axes]`."""
        value = variables.named(self.layer)[weight] if value is None else value
        moved = np.moveaxis(np.asarray(value, np.float64), self.axes()[weight], 0)
        return moved.reshape(moved.shape[0], -1)


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels that must be removed together. Printing it shows its members and the reasons.

    Attributes:
        number: index in execution order, from 0.
        channels: number of channels.
        members: layers of the group, in execution order.
        role: role of the first layer that makes the channels (`stem`, `pointwise`, `fused`,
            `squeeze_excite`, ...).
        fixed: why no channel can be removed; empty where they can.

    Examples:
        >>> model = build(archs.MobileNetV1Config(), (32, 32, 3))
        >>> print(find_groups(model)[13])
        group 13: 1024 channels of Conv2d_13_pointwise (pointwise)
          Conv2d_13_pointwise            out  makes them
          Conv2d_13_pointwise_batch_norm all  a scale and a shift for each
          Logits                         in   reads them
    """

    number: int
    channels: int
    members: tuple[Member, ...]
    role: str
    fixed: str = ""

    @property
    def name(self) -> str:
        """Name of the first layer that makes the channels."""
        return next((member.layer.name for member in self.members if member.side == "out"), "")

    def members_on(self, *sides: str) -> list[Member]:
        """The members on these sides."""
        return [member for member in self.members if member.side in sides]

    def __str__(self) -> str:
        width = max((len(member.layer.name) for member in self.members), default=0)
        fixed = f", fixed: {self.fixed}" if self.fixed else ""
        lines = [f"group {self.number}: {self.channels} channels of {self.name} ({self.role})"]
        lines[0] += fixed
        lines += [f"  {m.layer.name:<{width}} {m.side:<4} {m.reason}" for m in self.members]
        return "\n".join(lines)


class ChannelGraph:
    """A model's graph with its dependency groups; made once per model and passed on.

    Attributes:
        model: the model.
        graph: its layers and their connections.
        all_groups: all groups in execution order, also those whose channels are fixed: the classes,
            features that the model returns.
        groups: the groups that may lose channels, in execution order. The squeezed channels of a
            squeeze-excite block are a group of their own.

    Raises:
        UsageError: names the layer whose channels cannot be followed.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.graph = Graph(model)
        outputs = {id(_source(tensor)) for tensor in model.outputs}
        self.all_groups = tuple(_GroupFinder(self.graph, outputs).groups())
        self.groups = tuple(group for group in self.all_groups if not group.fixed)

    def by_layer(self) -> dict[str, Group]:
        """The group (fixed ones too) of the channels that a layer outputs, by layer name."""
        return {
            member.layer.name: group
            for group in self.all_groups
            for member in group.members_on("out", "all")
        }


def find_groups(model: Any, fixed: bool = False) -> tuple[Group, ...]:
    """The dependency groups of a model, in execution order.

    V1 has 14 groups and V2 25, as in ivclab/Multistage_Pruning utils/graph.py; V3 has those of its
    squeeze-excite blocks as well.

    Args:
        model: a plain functional model of known layers, of tf_keras or of Keras 3.
        fixed: include the groups that cannot lose channels.

    Raises:
        UsageError: names the layer whose channels cannot be followed.
    """
    channel_graph = ChannelGraph(model)
    return channel_graph.all_groups if fixed else channel_graph.groups


@dataclasses.dataclass
class _ChannelSet:
    """A set of channels while groups are built; `parent` is the set that it was merged into."""

    channels: int
    parent: _ChannelSet | None = None
    merged_by: str = ""

    def root(self) -> _ChannelSet:
        return self if self.parent is None else self.parent.root()


class _GroupFinder:
    """Follows channel sets through a graph, layer by layer in execution order."""

    def __init__(self, graph: Graph, outputs: set[int]) -> None:
        self.graph = graph
        # by layer: the set on its output's last axis, and how many times the axis repeats it
        self.sets: dict[int, tuple[_ChannelSet, int]] = {}
        self.members: list[tuple[_ChannelSet, Member]] = []
        self.fixed: dict[int, str] = {}
        for layer in graph.layers:
            self._visit(layer)
            if id(layer) in outputs:
                self._fix(self.sets[id(layer)][0], "the model outputs them")

    def groups(self) -> list[Group]:
        members_of: dict[int, list[Member]] = {}
        roots: dict[int, _ChannelSet] = {}
        for channels, member in self.members:
            root = channels.root()
            roots[id(root)] = root
            members_of.setdefault(id(root), []).append(self._with_reason(channels, member))
        reasons: dict[int, str] = {}
        for channels, _ in self.sets.values():
            if id(channels) in self.fixed:
                reasons[id(channels.root())] = self.fixed[id(channels)]
        groups: list[Group] = []
        for key, members in members_of.items():
            first = next((m.layer for m in members if m.side == "out"), None)
            if first is not None:  # else the channels of an image
                role, fixed = self.graph.role(first), reasons.get(key, "")
                groups.append(Group(len(groups), roots[key].channels, tuple(members), role, fixed))
        return groups

    @staticmethod
    def _with_reason(channels: _ChannelSet, member: Member) -> Member:
        if member.side == "out" and channels.merged_by:
            reason = f"makes what {channels.merged_by} joins to them"
            return dataclasses.replace(member, reason=reason)
        return member

    def _visit(self, layer: Layer) -> None:
        name = kind(layer)
        shape = tuple(self.graph.output(layer).shape)
        if name == "InputLayer":
            self.sets[id(layer)] = _ChannelSet(shape[-1]), 1
            self._fix(self.sets[id(layer)][0], "they are the model's input")
            return
        self._check(layer, name)
        inputs = [self.sets[id(producer)] for producer in self.graph.producers(layer)]
        self.sets[id(layer)] = self._output_set(layer, name, inputs, shape)
        activation = getattr(getattr(layer, "activation", None), "__name__", "")
        if name == "Softmax" or activation == "softmax":
            self._fix(self.sets[id(layer)][0], f"the softmax {layer.name} mixes them")

    def _output_set(
        self, layer: Layer, name: str, inputs: list[tuple[_ChannelSet, int]], shape: tuple[Any, ...]
    ) -> tuple[_ChannelSet, int]:
        source, repeats = inputs[0]
        if getattr(layer, "groups", 1) > 1 and name == "Conv2D":
            new = _ChannelSet(shape[-1])
            self.members.append((new, Member(layer, "out", "makes them")))
            for channels in (source, new):  # its kernel has no axis of all inputs
                self._fix(channels, f"{layer.name} convolves them in groups")
            return new, 1
        if name in ("Conv2D", "Dense"):
            pooled = kind(self.graph.producers(layer)[0]).startswith("Global")
            reason = "reads their means" if pooled else "reads them"
            if repeats > 1:
                reason += f", at {repeats} positions"
            self.members.append((source, Member(layer, "in", reason, repeats)))
            new = _ChannelSet(shape[-1])
            self.members.append((new, Member(layer, "out", "makes them")))
            return new, 1
        if name in _PER_CHANNEL:
            reason = f"{_PER_CHANNEL[name]} for each"
            self.members.append((source, Member(layer, "all", reason, repeats)))
        elif name in JOINING:
            self._merge(layer, inputs)
        elif name in ("Flatten", "Reshape"):
            repeats = self._repeats_after_reshape(layer, source, repeats, shape)
            if name == "Reshape" and layer.target_shape[-1] != -1:
                self.members.append(
                    (source, Member(layer, "shape", "states their number", repeats))
                )
        return source, repeats

    def _merge(self, layer: Layer, inputs: list[tuple[_ChannelSet, int]]) -> None:
        (first, repeats), *others = inputs
        for other, count in others:
            if count != repeats or other.root().channels != first.root().channels:
                raise _unsupported(layer, "inputs of one channel count")
            source, target = other.root(), first.root()
            if source is not target:
                source.parent = target
                source.merged_by = source.merged_by or layer.name

    @staticmethod
    def _repeats_after_reshape(
        layer: Layer, source: _ChannelSet, repeats: int, shape: tuple[Any, ...]
    ) -> int:
        """How many times the last axis repeats the channels after a layer that only reshapes."""
        width = shape[-1]
        channels = source.root().channels
        if width == channels * repeats:
            return repeats
        if len(shape) != 2 or width is None or width % channels:
            raise _unsupported(
                layer, "a reshape that keeps the channels last, or makes all one axis"
            )
        return int(width) // channels

    def _fix(self, channels: _ChannelSet, reason: str) -> None:
        self.fixed.setdefault(id(channels), reason)

    def _check(self, layer: Layer, name: str) -> None:
        if is_wrapper(layer) or name not in _KNOWN:
            raise _unsupported(
                layer, f"a layer whose channels can be followed ({', '.join(_KNOWN)})"
            )
        inputs = self.graph.inputs(layer)
        if name not in JOINING and len(inputs) != 1:
            raise _unsupported(layer, "a layer that is used once")
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise _unsupported(layer, "channels on the last axis")
        if name == "DepthwiseConv2D" and layer.depth_multiplier != 1:
            raise _unsupported(layer, "one filter a channel (depth_multiplier 1)")
        if name == "BatchNormalization":
            axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
            if axis not in (-1, len(inputs[0].shape) - 1):
                raise _unsupported(layer, "a batch norm over the last axis")
        if name == "Rescaling" and any(
            math.prod(getattr(value, "shape", None) or ()) != 1 or isinstance(value, (list, tuple))
            for value in (layer.scale, layer.offset)
        ):
            # Constants by channel are part of the layer's config, which surgery does not slice.
            source = self.sets[id(self.graph.producers(layer)[0])][0]
            self._fix(source, f"{layer.name} has a constant for each")


def _unsupported(layer: Layer, expected: str) -> UsageError:
    return UsageError(f"layer {layer.name}", type(layer).__name__, expected)


def _source(tensor: Any) -> Layer:
    history = tensor._keras_history
    return history.operation if hasattr(history, "operation") else history.layer
