"""Constant channels: those with the same value at every position and for every image.

Constants are propagated through the graph with one number per channel instead of a feature map:
known where zero weights make the channel a constant, NaN elsewhere. A constant channel can be
removed if the layers that read it can absorb its value into a bias or batch norm.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.compression.pruning.channel.dependency_groups import ChannelGraph, Group, Member
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph, kind
from mobilenet.typing import Float64Array

BoolArray = npt.NDArray[np.bool_]
_ELEMENTWISE = ("Activation", "ELU", "LeakyReLU", "ReLU", "Rescaling")
_BORDER = "padding makes its constant another value at the borders"
_NO_OFFSET = "the layer that reads it has neither a bias nor a batch norm for its constant"


@dataclasses.dataclass(frozen=True)
class Leftover:
    """Constant channels that are not removed: their group's first layer, indices and the reason."""

    layer: str
    channels: tuple[int, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class _Constants:
    """What is known of a tensor's channels, each `[channels]`.

    Attributes:
        value: the constant, NaN where the channel is not constant.
        exact: whether the constant holds at the borders of the map too.
    """

    value: Float64Array
    exact: BoolArray

    @property
    def known(self) -> BoolArray:
        return ~np.isnan(self.value)


_ByLayer = dict[int, _Constants]  # by `id` of the layer whose output it is


def constant_channels(
    channel_graph: ChannelGraph, borders: bool
) -> tuple[dict[str, npt.NDArray[np.int64]], dict[tuple[str, str], Float64Array], list[Leftover]]:
    """Finds the channels that can be removed without a change of the outputs.

    Args:
        channel_graph: of a plain functional model.
        borders: remove channels that are constant except at the borders, too.

    Returns:
        The channels that remain, by the group's first layer; what must be added to a weight, by
        layer and weight; and the constant channels that remain.
    """
    graph = channel_graph.graph
    constants = _propagate(graph)
    remaining, leftovers = {}, []
    changes: dict[tuple[str, str], Float64Array] = {}
    for group in channel_graph.groups:
        removed = np.ones(group.channels, bool)
        refused: dict[str, BoolArray] = {}
        for member in group.members_on("in"):
            removable, reasons = _removable(graph, constants, group, member, borders)
            removed &= removable
            for reason, flags in reasons.items():
                refused[reason] = refused.get(reason, np.zeros_like(flags)) | flags
        if removed.all():
            removed[0] = False  # a layer needs a channel
        for member in group.members_on("in"):
            _absorb(graph, constants, group, member, removed, changes)
        remaining[group.name] = np.flatnonzero(~removed)
        leftovers += [
            Leftover(group.name, tuple(int(c) for c in np.flatnonzero(flags & ~removed)), reason)
            for reason, flags in refused.items()
            if (flags & ~removed).any()
        ]
    return remaining, changes, leftovers


def _removable(
    graph: Graph, constants: _ByLayer, group: Group, member: Member, borders: bool
) -> tuple[BoolArray, dict[str, BoolArray]]:
    """Which channels a consumer can do without; and, by reason, which constant ones it cannot."""
    inputs = constants[id(graph.producers(member.layer)[0])]
    positions = member.positions(np.arange(group.channels), group.channels)
    shape = (member.repeats, group.channels)
    constant = inputs.known[positions].reshape(shape).all(0)
    zero = (inputs.value[positions] == 0).reshape(shape).all(0)
    exact = inputs.exact[positions].reshape(shape).all(0)
    if _pads(member.layer):
        exact &= zero
    no_offset = constant & ~zero & (_offset(graph, member.layer) is None)
    at_border = constant & ~exact & ~no_offset
    removable = constant & ~no_offset & (exact | borders)
    return removable, {_NO_OFFSET: no_offset, **({} if borders else {_BORDER: at_border})}


def _offset(graph: Graph, layer: Any) -> tuple[str, str, float] | None:
    """Layer, weight and sign for a constant that `layer` would have added to its output."""
    if "bias" in variables.named(layer):
        return layer.name, "bias", 1.0
    consumers = graph.consumers(layer)
    if len(consumers) == 1 and kind(consumers[0]) == "BatchNormalization":
        return consumers[0].name, "moving_mean", -1.0
    return None


def _absorb(
    graph: Graph,
    constants: _ByLayer,
    group: Group,
    member: Member,
    removed: BoolArray,
    changes: dict[tuple[str, str], Float64Array],
) -> None:
    """Adds what a consumer reads from the removed channels to its bias or batch norm."""
    positions = member.positions(np.flatnonzero(removed), group.channels)
    value = constants[id(graph.producers(member.layer)[0])].value[positions]
    if not np.any(value):
        return
    added = value @ _taps(member.layer).sum(0)[positions]
    offset = _offset(graph, member.layer)
    if offset is not None:
        layer, weight, sign = offset
        changes[layer, weight] = changes.get((layer, weight), 0.0) + sign * added


def _taps(layer: Any) -> Float64Array:
    """The kernel of a layer that reads all channels: `[kernel positions, inputs, outputs]`."""
    kernel = np.asarray(variables.kernel(layer), np.float64)
    taps = kernel.reshape(-1, *kernel.shape[-2:])
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return taps
    positions, inputs, outputs = taps.shape
    whole = np.zeros((positions, groups, inputs, groups, outputs // groups))
    for group, values in enumerate(np.split(taps, groups, axis=2)):
        whole[:, group, :, group] = values
    return whole.reshape(positions, groups * inputs, outputs)


def _pads(layer: Any) -> bool:
    """Whether a layer that reads channels pads its input with zeros."""
    if kind(layer) == "Dense":
        return False
    return getattr(layer, "padding", "valid") == "same" and max(layer.kernel_size) > 1


def _propagate(graph: Graph) -> _ByLayer:
    constants: _ByLayer = {}
    for layer in graph.layers:
        width = graph.output(layer).shape[-1]
        inputs = [constants[id(producer)] for producer in graph.producers(layer)]
        constants[id(layer)] = _output_constants(layer, inputs, width)
    return constants


def _output_constants(layer: Any, inputs: list[_Constants], width: int) -> _Constants:
    name = kind(layer)
    if name in ("Conv2D", "Dense"):
        return _after_activation(layer, _after_convolution(layer, inputs[0]))
    if name == "DepthwiseConv2D":
        return _after_activation(layer, _after_depthwise(layer, inputs[0]))
    if name == "BatchNormalization":
        return _after_batch_norm(layer, inputs[0])
    if name in _ELEMENTWISE:
        return _after_elementwise(layer, inputs[0])
    values, exact = [x.value for x in inputs], [x.exact for x in inputs]
    if name == "ZeroPadding2D":
        return _Constants(values[0], exact[0] & (values[0] == 0))
    if name == "Add":
        return _Constants(np.sum(values, 0), np.all(exact, 0))
    if name == "Multiply":
        zero = np.any([(x.value == 0) & x.exact for x in inputs], 0)
        product = np.prod(values, 0)
        return _Constants(np.where(zero, 0.0, product), zero | np.all(exact, 0))
    if not inputs or name in ("Average", "Maximum", "Minimum", "Softmax", "Subtract"):
        return _Constants(np.full(width, np.nan), np.ones(width, bool))
    repeats = width // values[0].size  # pooling, dropout, and layers that only reshape
    return _Constants(np.tile(values[0], repeats), np.tile(exact[0], repeats))


def _after_convolution(layer: Any, inputs: _Constants) -> _Constants:
    taps = _taps(layer)
    used = (taps != 0).any(0)  # [inputs, outputs]
    value = np.nan_to_num(inputs.value) @ taps.sum(0)
    value[(used & ~inputs.known[:, None]).any(0)] = np.nan
    inexact = ~inputs.exact | ((inputs.value != 0) & _pads(layer))
    exact = ~(used & inexact[:, None]).any(0)
    return _Constants(value + _bias(layer), exact)


def _after_depthwise(layer: Any, inputs: _Constants) -> _Constants:
    kernel = np.asarray(variables.kernel(layer), np.float64)
    taps = kernel.reshape(-1, kernel.shape[2])
    used = (taps != 0).any(0)
    value = np.where(used, inputs.value * taps.sum(0), 0.0)
    exact = ~used | (inputs.exact & ~((inputs.value != 0) & _pads(layer)))
    return _Constants(value + _bias(layer), exact)


def _bias(layer: Any) -> Float64Array | float:
    named = variables.named(layer)
    return np.asarray(named["bias"], np.float64) if "bias" in named else 0.0


def _after_batch_norm(layer: Any, inputs: _Constants) -> _Constants:
    own = {name: np.asarray(v, np.float64) for name, v in variables.named(layer).items()}
    scale = own.get("gamma", 1.0) / np.sqrt(own["moving_variance"] + layer.epsilon)
    shift = own.get("beta", 0.0)
    dead = np.broadcast_to(scale == 0, inputs.value.shape)
    value = np.where(dead, shift, (inputs.value - own["moving_mean"]) * scale + shift)
    return _Constants(value, inputs.exact | dead)


def _after_activation(layer: Any, outputs: _Constants) -> _Constants:
    """After an activation that is part of the layer."""
    function = layer.activation
    name = getattr(function, "__name__", "")
    if name == "softmax":
        return _Constants(np.full_like(outputs.value, np.nan), outputs.exact)
    return outputs if name == "linear" else _mapped(function, outputs)


def _after_elementwise(layer: Any, inputs: _Constants) -> _Constants:
    if getattr(getattr(layer, "activation", None), "__name__", "") == "softmax":
        return _Constants(np.full_like(inputs.value, np.nan), inputs.exact)
    return _mapped(lambda values: layer(values[None, None, None])[0, 0, 0], inputs)


def _mapped(function: Any, inputs: _Constants) -> _Constants:
    """Applies an element-wise function to the known constants."""
    filled = np.nan_to_num(inputs.value).astype(np.float32)
    value = np.asarray(function(filled), np.float64)
    return _Constants(np.where(inputs.known, value, np.nan), inputs.exact)
