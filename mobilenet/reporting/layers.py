"""A net layer by layer: what each one holds, computes and takes, and its group of channels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mobilenet.compression.pruning import groups
from mobilenet.errors import UsageError
from mobilenet.export import convert, layer_times
from mobilenet.models import counting
from mobilenet.models.roles import Graph, kind

FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Line:
    """A layer with its batch norm and activation; or a pool, a sum, a product.

    Attributes:
        layer: name of the one that leads.
        role: of its kernel, else what it is (`GlobalAveragePooling2D`, `Add`).
        shape: of what it makes, without the batch: `[height, width, channels]`.
        params: all values, batch norm and its statistics included.
        macs: by the rule of `counting.layer_macs`.
        thop: by that of `counting.layer_thop_flops`.
        zeros: values of the kernel that are exactly zero.
        weights: values of the kernel; 0 without one.
        distinct: how many different values the kernel holds.
        seconds: measured, of one image on one thread; `None` where it was not.
        group: number of the group that its output channels belong to.
    """

    layer: str
    role: str
    shape: tuple[int, ...]
    params: int
    macs: int
    thop: int
    zeros: int
    weights: int
    distinct: int
    seconds: float | None
    group: int | None

    @property
    def bytes(self) -> int:
        """Of its values in float32."""
        return FLOAT_BYTES * self.params

    @property
    def sparsity(self) -> float | None:
        """Share of exact zeros in its kernel."""
        return self.zeros / self.weights if self.weights else None


@dataclasses.dataclass(frozen=True)
class Profile:
    """A net, layer by layer.

    Attributes:
        lines: in the order of execution; every parameter is in one of them.
        groups: the groups of channels, those that cannot lose any too.
        distinct: how many different values all kernels together hold.
        whole: measured seconds of the whole float file, beside those of the lines.
        notes: what could not be found, a line each.
    """

    lines: tuple[Line, ...]
    groups: tuple[groups.Group, ...]
    distinct: int = 0
    whole: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The sum of the lines."""
        return sum(line.seconds or 0.0 for line in self.lines)

    def total(self) -> Line:
        """All lines as one."""
        sums = {
            name: sum(getattr(line, name) for line in self.lines)
            for name in ("params", "macs", "thop", "zeros", "weights")
        }
        measured = self.seconds if self.whole is not None else None
        return Line("total", "", (), distinct=self.distinct, seconds=measured, group=None, **sums)


def profile(model: Any, input_shape: Sequence[int] | None = None, latency: bool = True) -> Profile:
    """Counts, and measures on this machine.

    Args:
        model: a plain functional net of tf_keras.
        input_shape: `[height, width, channels]` where the model leaves its size open.
        latency: measure every distinct layer as a one-layer float file, and the whole file beside
            them; seconds of work.

    Raises:
        UsageError: a size is open, or the net cannot be converted.
    """
    graph = Graph(model)
    shapes = counting.output_shapes(graph, input_shape)
    macs = counting.layer_macs(model, input_shape)
    thop = counting.layer_thop_flops(model, input_shape)
    spans = layer_times.spans(model, input_shape)
    found, notes = _groups(model)
    owners = groups.by_layer(found)
    times, whole = layer_times.LayerTimes(), None
    if latency:
        shape = None if input_shape is None else tuple(input_shape)
        net = convert.float_flatbuffer(model, input_shape=shape)
        whole = times.measure((span.piece for span in spans), {"net": net})["net"]
    lines, values = [], []
    for span in spans:
        head, owner = span.layers[0], owners.get(span.layers[0].name)
        kernel = graph.kernel(head)
        values.append(np.empty(0) if kernel is None else np.unique(np.asarray(kernel)))
        size = 0 if kernel is None else math.prod(kernel.shape)
        weights = [weight for layer in span.layers for weight in layer.weights]
        lines.append(
            Line(
                layer=head.name,
                role=graph.role(head) if kernel is not None else kind(head),
                shape=_shown(shapes[id(span.layers[-1])]),
                params=sum(math.prod(weight.shape) for weight in weights),
                macs=sum(macs.get(layer.name, 0) for layer in span.layers),
                thop=sum(thop.get(layer.name, 0) for layer in span.layers),
                zeros=size and size - int(np.count_nonzero(np.asarray(kernel))),
                weights=size,
                distinct=len(values[-1]),
                seconds=times.seconds.get(span.piece),
                group=None if owner is None else owner.number,
            )
        )
    untimed = [line.layer for line in lines if line.seconds is None] if latency else []
    if untimed:
        notes.append(f"not timed, as they cannot stand alone: {', '.join(untimed)}")
    distinct = len(np.unique(np.concatenate(values)))
    return Profile(tuple(lines), found, distinct, whole, tuple(notes))


def _shown(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(side for side in shape[1:] if side is not None)


def _groups(model: Any) -> tuple[tuple[groups.Group, ...], list[str]]:
    """The groups of channels; none, and why, for a net whose channels cannot be followed."""
    try:
        return groups.find(model, fixed=True), []
    except UsageError as error:
        return (), [f"no groups of channels: {error}"]
