"""Channels that are the same at every place and for every image, and who can take them over.

The model is walked with one number a channel in place of a map: known where weights of zero make
the channel a constant, NaN elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.compression.pruning.channel.dependency_groups import Group, Member
from mobilenet.compression.pruning.channel.slicing import positions
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph, kind

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_ELEMENTWISE = ("Activation", "ELU", "LeakyReLU", "ReLU", "Rescaling")
_BORDER = "a padding makes its constant another at the borders"
_NOWHERE = "what reads it has neither a bias nor a batch norm for its constant"


@dataclasses.dataclass(frozen=True)
class Leftover:
    """Constant channels that stay: of which group's first layer, which ones, and why."""

    layer: str
    channels: tuple[int, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class _Map:
    """What is known of a tensor `[..., axis]`: the constant of each channel, or NaN, and whether it
    holds at the borders too."""

    value: Array
    exact: Flags

    @property
    def known(self) -> Flags:
        return ~np.isnan(self.value)


def constant_channels(
    model: Any, groups: Sequence[Group], borders: bool
) -> tuple[dict[str, npt.NDArray[np.int64]], dict[tuple[str, str], Array], list[Leftover]]:
    """Finds the channels that can go without a change of the outputs.

    Args:
        model: a plain functional model.
        groups: those that may lose channels.
        borders: let channels go that are constant but for the borders.

    Returns:
        The channels that stay, by the group's first layer; what must be added to a weight, by layer
        and weight; and the constant channels that stay.
    """
    graph = Graph(model)
    maps = _walk(graph)
    kept, left = {}, []
    changes: dict[tuple[str, str], Array] = {}
    for group in groups:
        gone = np.ones(group.channels, bool)
        refused: dict[str, Flags] = {}
        for member in group.on("in"):
            free, why = _removable(graph, maps, group, member, borders)
            gone &= free
            for reason, flags in why.items():
                refused[reason] = refused.get(reason, np.zeros_like(flags)) | flags
        if gone.all():
            gone[0] = False  # a layer needs a channel
        for member in group.on("in"):
            _hand_over(graph, maps, group, member, gone, changes)
        kept[group.name] = np.flatnonzero(~gone)
        left += [
            Leftover(group.name, tuple(int(c) for c in np.flatnonzero(flags & ~gone)), reason)
            for reason, flags in refused.items()
            if (flags & ~gone).any()
        ]
    return kept, changes, left


def _removable(
    graph: Graph, maps: dict[int, _Map], group: Group, member: Member, borders: bool
) -> tuple[Flags, dict[str, Flags]]:
    """Which channels a reader can do without; and which it could, were it not for a reason."""
    read = maps[id(graph.producers(member.layer)[0])]
    places = positions(member, np.arange(group.channels), group.channels)
    shape = (member.repeats, group.channels)
    constant = read.known[places].reshape(shape).all(0)
    zero = (read.value[places] == 0).reshape(shape).all(0)
    exact = read.exact[places].reshape(shape).all(0)
    if _pads(member.layer):
        exact &= zero
    homeless = constant & ~zero & (_home(graph, member.layer) is None)
    at_border = constant & ~exact & ~homeless
    free = constant & ~homeless & (exact | borders)
    return free, {_NOWHERE: homeless, **({} if borders else {_BORDER: at_border})}


def _home(graph: Graph, layer: Any) -> tuple[str, str, float] | None:
    """Layer, weight and sign for a constant that `layer` would have added to its output."""
    if "bias" in variables.named(layer):
        return layer.name, "bias", 1.0
    after = graph.consumers(layer)
    if len(after) == 1 and kind(after[0]) == "BatchNormalization":
        return after[0].name, "moving_mean", -1.0
    return None


def _hand_over(
    graph: Graph,
    maps: dict[int, _Map],
    group: Group,
    member: Member,
    gone: Flags,
    changes: dict[tuple[str, str], Array],
) -> None:
    """Adds what a reader gets from the channels that go to what stands behind it."""
    places = positions(member, np.flatnonzero(gone), group.channels)
    value = maps[id(graph.producers(member.layer)[0])].value[places]
    if not np.any(value):
        return
    added = value @ _taps(member.layer).sum(0)[places]
    home = _home(graph, member.layer)
    if home is not None:
        layer, weight, sign = home
        changes[layer, weight] = changes.get((layer, weight), 0.0) + sign * added


def _taps(layer: Any) -> Array:
    """The kernel of a layer that reads all channels: `[places, inputs, outputs]`."""
    kernel = np.asarray(variables.kernel(layer), np.float64)
    return kernel.reshape(-1, *kernel.shape[-2:])


def _pads(layer: Any) -> bool:
    """Whether a convolution puts zeros around its input."""
    return getattr(layer, "padding", "valid") == "same" and max(layer.kernel_size) > 1


def _walk(graph: Graph) -> dict[int, _Map]:
    maps: dict[int, _Map] = {}
    for layer in graph.layers:
        width = graph.output(layer).shape[-1]
        before = [maps[id(producer)] for producer in graph.producers(layer)]
        maps[id(layer)] = _step(layer, before, width)
    return maps


def _step(layer: Any, before: list[_Map], width: int) -> _Map:
    name = kind(layer)
    if name in ("Conv2D", "Dense"):
        return _activated(layer, _convolved(layer, before[0]))
    if name == "DepthwiseConv2D":
        return _activated(layer, _filtered(layer, before[0]))
    if name == "BatchNormalization":
        return _normalized(layer, before[0])
    if name in _ELEMENTWISE:
        return _applied(layer, before[0])
    if name == "ZeroPadding2D":
        return _Map(before[0].value, before[0].exact & (before[0].value == 0))
    if name == "Add":
        return _Map(np.sum([m.value for m in before], 0), np.all([m.exact for m in before], 0))
    if name == "Multiply":
        zero = np.any([(m.value == 0) & m.exact for m in before], 0)
        product = np.prod([m.value for m in before], 0)
        exact = np.all([m.exact for m in before], 0)
        return _Map(np.where(zero, 0.0, product), zero | exact)
    if not before or name in ("Average", "Maximum", "Minimum", "Softmax", "Subtract"):
        return _Map(np.full(width, np.nan), np.ones(width, bool))
    repeats = width // before[0].value.size  # pooling, dropout, and what only reshapes
    return _Map(np.tile(before[0].value, repeats), np.tile(before[0].exact, repeats))


def _convolved(layer: Any, read: _Map) -> _Map:
    taps = _taps(layer)
    used = (taps != 0).any(0)  # [inputs, outputs]
    value = np.nan_to_num(read.value) @ taps.sum(0)
    value[(used & ~read.known[:, None]).any(0)] = np.nan
    loose = ~read.exact | ((read.value != 0) & _pads_of(layer))
    exact = ~(used & loose[:, None]).any(0)
    return _Map(value + _bias(layer), exact)


def _filtered(layer: Any, read: _Map) -> _Map:
    kernel = np.asarray(variables.kernel(layer), np.float64)
    taps = kernel.reshape(-1, kernel.shape[2])
    used = (taps != 0).any(0)
    value = np.where(used, read.value * taps.sum(0), 0.0)
    exact = ~used | (read.exact & ~((read.value != 0) & _pads_of(layer)))
    return _Map(value + _bias(layer), exact)


def _pads_of(layer: Any) -> bool:
    return kind(layer) != "Dense" and _pads(layer)


def _bias(layer: Any) -> Array | float:
    named = variables.named(layer)
    return np.asarray(named["bias"], np.float64) if "bias" in named else 0.0


def _normalized(layer: Any, read: _Map) -> _Map:
    own = {name: np.asarray(v, np.float64) for name, v in variables.named(layer).items()}
    scale = own.get("gamma", 1.0) / np.sqrt(own["moving_variance"] + layer.epsilon)
    shift = own.get("beta", 0.0)
    dead = np.broadcast_to(scale == 0, read.value.shape)
    value = np.where(dead, shift, (read.value - own["moving_mean"]) * scale + shift)
    return _Map(value, read.exact | dead)


def _activated(layer: Any, made: _Map) -> _Map:
    """Behind an activation that is part of the layer."""
    function = layer.activation
    name = getattr(function, "__name__", "")
    if name == "softmax":
        return _Map(np.full_like(made.value, np.nan), made.exact)
    return made if name == "linear" else _mapped(function, made)


def _applied(layer: Any, read: _Map) -> _Map:
    if getattr(getattr(layer, "activation", None), "__name__", "") == "softmax":
        return _Map(np.full_like(read.value, np.nan), read.exact)
    return _mapped(lambda values: layer(values[None, None, None])[0, 0, 0], read)


def _mapped(function: Any, read: _Map) -> _Map:
    """A function of single values, of what is known."""
    filled = np.nan_to_num(read.value).astype(np.float32)
    value = np.asarray(function(filled), np.float64)
    return _Map(np.where(read.known, value, np.nan), read.exact)
