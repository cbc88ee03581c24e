"""Groups of channels that must go together, found from the graph; names play no part.

The last axis of a tensor is a set of channels. A convolution or a dense layer makes a new set;
every other layer hands on the set of its input; a sum or a product makes the sets of its inputs
one. A set, with all layers that make, follow or read it, is a group: what one of them loses, all
lose.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from mobilenet.errors import UsageError
from mobilenet.models.graph.roles import Graph, is_wrapper, kind

Layer = Any

JOINING = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")
PASSING = (
    *("Activation", "ELU", "LeakyReLU", "ReLU", "Rescaling", "Softmax"),
    *("Dropout", "GaussianNoise", "SpatialDropout2D"),
    *("Cropping2D", "UpSampling2D", "ZeroPadding2D"),
    *("AveragePooling2D", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "MaxPooling2D"),
)
_FOLLOWING = {"DepthwiseConv2D": "a filter", "BatchNormalization": "a scale and a shift"}
_KNOWN = ("InputLayer", "Conv2D", "Dense", *_FOLLOWING, *JOINING, *PASSING, "Flatten", "Reshape")


@dataclasses.dataclass(frozen=True)
class Member:
    """A layer with weights that belongs to a group.

    Attributes:
        layer: the layer.
        side: `out` makes the channels, `all` has weights for each of them, `in` reads them, `shape`
            is a reshape that states their number.
        why: why it belongs, in a few words.
        repeats: how many times over its axis holds the channels (maps that were flattened).
    """

    layer: Layer
    side: str
    why: str
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels that must go together. Printing it shows its members and why each belongs.

    Attributes:
        number: place in the order of execution, from 0.
        channels: how many there are.
        members: layers that know the channels, in the order of execution.
        role: of the layer that makes the channels first (`stem`, `pointwise`, `fused`,
            `squeeze_excite`, ...).
        fixed: why no channel can go; empty where they can.

    Example:
        >>> model = build(archs.MobileNetV1Config(), (32, 32, 3))
        >>> print(find(model)[13])
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
        """Name of the layer that makes the channels first; empty for the model's input."""
        return next((member.layer.name for member in self.members if member.side == "out"), "")

    def on(self, *sides: str) -> list[Member]:
        """The members on these sides."""
        return [member for member in self.members if member.side in sides]

    def __str__(self) -> str:
        width = max((len(member.layer.name) for member in self.members), default=0)
        fixed = f", fixed: {self.fixed}" if self.fixed else ""
        lines = [f"group {self.number}: {self.channels} channels of {self.name} ({self.role})"]
        lines[0] += fixed
        lines += [f"  {m.layer.name:<{width}} {m.side:<4} {m.why}" for m in self.members]
        return "\n".join(lines)


def find(model: Any, fixed: bool = False) -> tuple[Group, ...]:
    """The groups of a model that may lose channels, in the order of execution.

    The squeezed channels of a squeeze-excite are a group of their own. V1 has 14 groups, V2 25, as
    in ivclab/Multistage_Pruning utils/graph.py; V3 has its squeezes beside such ones.

    Args:
        model: a plain functional model of known layers, of tf_keras or of Keras 3.
        fixed: give the groups that cannot lose any as well: the classes, features that the model
            returns.

    Raises:
        UsageError: names the layer whose channels cannot be followed.
    """
    found = _Survey(Graph(model), {id(_source(tensor)) for tensor in model.outputs}).groups()
    return tuple(group for group in found if fixed or not group.fixed)


def by_layer(groups: Iterable[Group]) -> dict[str, Group]:
    """The group of the channels that a layer gives, by the layer's name."""
    return {m.layer.name: group for group in groups for m in group.on("out", "all")}


@dataclasses.dataclass
class _Set:
    """A set of channels while the graph is walked; `parent` is the set that it has become."""

    channels: int
    parent: _Set | None = None
    joined: str = ""

    def root(self) -> _Set:
        return self if self.parent is None else self.parent.root()


class _Survey:
    """One walk over a graph, in the order of execution."""

    def __init__(self, graph: Graph, ends: set[int]) -> None:
        self.graph = graph
        self.sets: dict[int, tuple[_Set, int]] = {}  # by layer: its output's set, and how often
        self.members: list[tuple[_Set, Member]] = []
        self.fixed: dict[int, str] = {}
        for layer in graph.layers:
            self._visit(layer)
            if id(layer) in ends:
                self._fix(self.sets[id(layer)][0], "the model gives them back")

    def groups(self) -> list[Group]:
        found: dict[int, list[Member]] = {}
        roots: dict[int, _Set] = {}
        for made, member in self.members:
            root = made.root()
            roots[id(root)] = root
            found.setdefault(id(root), []).append(self._told(made, member))
        reasons: dict[int, str] = {}
        for made, _ in self.sets.values():
            if id(made) in self.fixed:
                reasons[id(made.root())] = self.fixed[id(made)]
        groups: list[Group] = []
        for key, members in found.items():
            first = next((m.layer for m in members if m.side == "out"), None)
            if first is not None:  # else the channels of an image
                role, fixed = self.graph.role(first), reasons.get(key, "")
                groups.append(Group(len(groups), roots[key].channels, tuple(members), role, fixed))
        return groups

    @staticmethod
    def _told(made: _Set, member: Member) -> Member:
        joined = made.joined
        if member.side == "out" and joined:
            return dataclasses.replace(member, why=f"makes what {joined} joins to them")
        return member

    def _visit(self, layer: Layer) -> None:
        name = kind(layer)
        shape = tuple(self.graph.output(layer).shape)
        if name == "InputLayer":
            self.sets[id(layer)] = _Set(shape[-1]), 1
            self._fix(self.sets[id(layer)][0], "the model takes them")
            return
        self._check(layer, name)
        before = [self.sets[id(producer)] for producer in self.graph.producers(layer)]
        self.sets[id(layer)] = self._output(layer, name, before, shape)
        activation = getattr(getattr(layer, "activation", None), "__name__", "")
        if name == "Softmax" or activation == "softmax":
            self._fix(self.sets[id(layer)][0], f"the softmax {layer.name} mixes them")

    def _output(
        self, layer: Layer, name: str, before: list[tuple[_Set, int]], shape: tuple[Any, ...]
    ) -> tuple[_Set, int]:
        source, repeats = before[0]
        if name in ("Conv2D", "Dense"):
            pooled = kind(self.graph.producers(layer)[0]).startswith("Global")
            reads = "reads their means" if pooled else "reads them"
            if repeats > 1:
                reads += f", at {repeats} places"
            self.members.append((source, Member(layer, "in", reads, repeats)))
            made = _Set(shape[-1])
            self.members.append((made, Member(layer, "out", "makes them")))
            return made, 1
        if name in _FOLLOWING:
            why = f"{_FOLLOWING[name]} for each"
            self.members.append((source, Member(layer, "all", why, repeats)))
        elif name in JOINING:
            self._join(layer, before)
        elif name in ("Flatten", "Reshape"):
            repeats = self._reshaped(layer, source, repeats, shape)
            if name == "Reshape" and layer.target_shape[-1] != -1:
                self.members.append(
                    (source, Member(layer, "shape", "states their number", repeats))
                )
        return source, repeats

    def _join(self, layer: Layer, before: list[tuple[_Set, int]]) -> None:
        (first, repeats), *others = before
        for other, count in others:
            if count != repeats or other.root().channels != first.root().channels:
                raise _unknown(layer, "inputs of one channel count")
            source, target = other.root(), first.root()
            if source is not target:
                source.parent = target
                source.joined = source.joined or layer.name

    @staticmethod
    def _reshaped(layer: Layer, source: _Set, repeats: int, shape: tuple[Any, ...]) -> int:
        """How often the last axis holds the channels, behind a layer that only reshapes."""
        width = shape[-1]
        channels = source.root().channels
        if width == channels * repeats:
            return repeats
        if len(shape) != 2 or width is None or width % channels:
            raise _unknown(layer, "a reshape that keeps the channels last, or makes all one axis")
        return int(width) // channels

    def _fix(self, made: _Set, why: str) -> None:
        self.fixed.setdefault(id(made), why)

    def _check(self, layer: Layer, name: str) -> None:
        if is_wrapper(layer) or name not in _KNOWN:
            raise _unknown(layer, f"a layer whose channels can be followed ({', '.join(_KNOWN)})")
        inputs = self.graph.inputs(layer)
        if name not in JOINING and len(inputs) != 1:
            raise _unknown(layer, "a layer that is used once")
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise _unknown(layer, "channels on the last axis")
        if name == "Conv2D" and layer.groups != 1:
            raise _unknown(layer, "a convolution of one group, or a DepthwiseConv2D")
        if name == "DepthwiseConv2D" and layer.depth_multiplier != 1:
            raise _unknown(layer, "one filter a channel (depth_multiplier 1)")
        if name == "BatchNormalization":
            axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
            if axis not in (-1, len(inputs[0].shape) - 1):
                raise _unknown(layer, "a batch norm over the last axis")
        if name == "Rescaling" and any(
            math.prod(getattr(value, "shape", None) or ()) != 1 or isinstance(value, (list, tuple))
            for value in (layer.scale, layer.offset)
        ):
            self._per_channel(layer)

    def _per_channel(self, layer: Layer) -> None:
        """Numbers by channel that are no weights can stand only where no channel can go."""
        source = self.sets[id(self.graph.producers(layer)[0])][0]
        self._fix(source, f"{layer.name} has a number for each")


def _unknown(layer: Layer, expected: str) -> UsageError:
    return UsageError(f"layer {layer.name}", type(layer).__name__, expected)


def _source(tensor: Any) -> Layer:
    history = tensor._keras_history
    return history.operation if hasattr(history, "operation") else history.layer
