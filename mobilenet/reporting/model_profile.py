"""A model layer by layer: parameters, MACs, zeros, time, packed size and dependency group."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mobilenet import text_tables
from mobilenet.compression.pruning.channel import dependency_groups
from mobilenet.compression.quantization.int8.quantized_model import QuantizedModel
from mobilenet.configs.base import ImageSize
from mobilenet.configs.card import Card
from mobilenet.configs.conversion import ConversionConfig
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.export.verification import verify
from mobilenet.models import counting, saving
from mobilenet.models.graph import flatten
from mobilenet.models.graph.roles import Graph, kind
from mobilenet.packing import model as packed_model
from mobilenet.reporting import layer_latency, packed_size, sparsity, tables

FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """A layer with its batch norm and activation; or a pool, a sum, a product.

    Attributes:
        layer: name of the first one.
        role: of its kernel, or its class (`GlobalAveragePooling2D`, `Add`).
        shape: of its output, without the batch: `[height, width, channels]`.
        params: all values, including batch norm and its statistics.
        macs: by the rule of `counting.layer_macs`.
        thop: by that of `counting.layer_thop_flops`.
        zeros: values of the kernel that are exactly zero.
        weights: values of the kernel; 0 without one.
        distinct: number of different values of the kernel.
        seconds: measured, of one image on one thread; `None` if it was not.
        group: number of the dependency group of its output channels.
        entropy: bytes of the kernel's zero mask and value indices at their zeroth-order entropy,
            see `packed_size.PackedArray`.
        packed: bytes of all its arrays in the packed file; `None` if the model was not packed.
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
    entropy: float | None = None
    packed: int | None = None

    @property
    def bytes(self) -> int:
        """Of its values in float32."""
        return FLOAT_BYTES * self.params

    @property
    def sparsity(self) -> float | None:
        """Share of exact zeros in its kernel."""
        return self.zeros / self.weights if self.weights else None


@dataclasses.dataclass(frozen=True)
class ModelProfile:
    """A model, layer by layer; `str()` shows a table as wide as the terminal at most.

    Attributes:
        layers: in the order of execution; every parameter is in one of them.
        groups: the dependency groups of channels, including those that cannot be pruned.
        distinct: number of different values of all kernels together.
        whole: seconds of the whole float file, measured along with the layers.
        notes: what could not be determined, one line each.
        sizes: bytes of the whole model by kind of file, if it was packed.
        zeros: zero weights and channels of each kernel.
    """

    layers: tuple[LayerProfile, ...]
    groups: tuple[dependency_groups.Group, ...]
    distinct: int = 0
    whole: float | None = None
    notes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    zeros: tuple[sparsity.Zeros, ...] = ()

    def __str__(self) -> str:
        lines = [text_tables.table(*tables.of_layers(self))]
        if self.summary():
            lines += ["", *(line for note in self.summary() for line in text_tables.wrap(note))]
        return "\n".join(lines)

    @property
    def seconds(self) -> float:
        """The sum over the layers."""
        return sum(layer.seconds or 0.0 for layer in self.layers)

    def total(self) -> LayerProfile:
        """All layers as one."""
        sums = {
            name: sum(getattr(layer, name) for layer in self.layers)
            for name in ("params", "macs", "thop", "zeros", "weights")
        }
        measured = self.seconds if self.whole is not None else None
        known = [layer.entropy for layer in self.layers if layer.weights]
        return LayerProfile(
            "total",
            "",
            (),
            distinct=self.distinct,
            seconds=measured,
            group=None,
            entropy=None if None in known else sum(bound or 0.0 for bound in known),
            packed=sum(layer.packed or 0 for layer in self.layers) if self.sizes else None,
            **sums,
        )

    def summary(self) -> list[str]:
        """What is not in the table of layers, one line each."""
        lines = list(self.notes)
        if self.sizes:
            lines.insert(0, ", ".join(f"{size:,} {what}" for what, size in self.sizes.items()))
        if self.whole is not None:
            lines.insert(
                0,
                f"whole float file: {text_tables.milliseconds(1000 * self.whole)} ms on one "
                f"thread; the layers add up to {self.seconds / self.whole:.1%} of it",
            )
        return lines


@dataclasses.dataclass(frozen=True)
class _Packed:
    """Bytes of a model by kind of file; entropy and packed bytes by layer."""

    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    bounds: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    layer_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def of(self, layers: Sequence[str]) -> int | None:
        """Packed bytes of several layers together; `None` if nothing was packed."""
        return sum(self.layer_bytes.get(name, 0) for name in layers) if self.sizes else None


def profile(
    model: Any,
    input_shape: Sequence[int] | None = None,
    latency: bool = True,
    card: Card | None = None,
) -> ModelProfile:
    """Counts a model's layers and measures them on this machine.

    Args:
        model: a functional or Sequential model of tf_keras; layers of nested models count as its
            own.
        input_shape: `[height, width, channels]` if the model leaves its size open.
        latency: measure every distinct layer as a one-layer float file, along with the whole file;
            takes seconds.
        card: of the model; with it, the model is packed and converted to get the sizes.

    Raises:
        UsageError: it is no such model, or a size is open.
    """
    flatten.check_functional(model)
    model = flatten.inline(model)
    graph = Graph(model)
    shapes = counting.output_shapes(graph, input_shape)
    macs = counting.layer_macs(model, input_shape)
    thop = counting.layer_thop_flops(model, input_shape)
    spans = layer_latency.spans(model, input_shape)
    channel_graph, notes = _channel_graph(model)
    owners = {} if channel_graph is None else channel_graph.by_layer()
    times, whole = layer_latency.LayerTimes(), None
    shape = None if input_shape is None else tuple(input_shape)
    file = _converted(model, shape, notes) if latency or card else b""
    latency = latency and bool(file)
    if latency:
        whole = times.measure((span.piece for span in spans), {"model": file})["model"]
    packed = _Packed() if card is None else _packed(saving.LoadedModel(model, card), file, notes)
    layers, values = [], []
    for span in spans:
        head, owner = span.layers[0], owners.get(span.layers[0].name)
        kernel = graph.kernel(head)
        values.append(np.empty(0) if kernel is None else np.unique(np.asarray(kernel)))
        size = 0 if kernel is None else math.prod(kernel.shape)
        weights = [weight for layer in span.layers for weight in layer.weights]
        layers.append(
            LayerProfile(
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
                entropy=packed.bounds.get(head.name),
                packed=packed.of([layer.name for layer in span.layers]),
            )
        )
    if untimed := [layer.layer for layer in layers if latency and layer.seconds is None]:
        notes.append(f"not timed, as they cannot be run alone: {', '.join(untimed)}")
    distinct = len(np.unique(np.concatenate(values)))
    groups = () if channel_graph is None else channel_graph.all_groups
    zeros = tuple(sparsity.zeros(model))
    return ModelProfile(tuple(layers), groups, distinct, whole, tuple(notes), packed.sizes, zeros)


def profile_model(
    model: Any, latency: bool = True, packed: bool = True, image_size: ImageSize | None = None
) -> ModelProfile:
    """The profile of a model in memory; see `mobilenet.profile`.

    Args:
        model: a Keras model, or a `LoadedModel`; of a `QuantizedModel` its float model is shown.
        latency: measure the layers and the whole.
        packed: pack and convert the model.
        image_size: of a model that leaves its size open.

    Raises:
        UsageError: see `profile`.
    """
    if isinstance(model, QuantizedModel):
        model = saving.LoadedModel(model.float_model, model.card)
    loaded = saving.with_card(model)
    open_shape = loaded.model.input_shape[1:]
    shape = ConversionConfig(image_size=image_size).input_shape(open_shape)
    return profile(loaded.model, shape, latency, loaded.card if packed else None)


def _converted(model: Any, shape: tuple[int, ...] | None, notes: list[str]) -> bytes:
    """The float flatbuffer; empty, and why, where the converter refuses the model."""
    try:
        return tflite_converter.float_flatbuffer(model, input_shape=shape)
    except RuntimeError as error:
        notes.append(f"not timed: {error}")
        return b""


def _packed(model: saving.LoadedModel, file: bytes, notes: list[str]) -> _Packed:
    try:
        data, records = packed_model.pack_with_records(model)
    except UsageError as error:
        notes.append(f"not packed: {error}")
        return _Packed()
    layer_bytes: dict[str, int] = {}
    for record in records:
        layer_bytes[record.layer] = layer_bytes.get(record.layer, 0) + len(record.data)
    arrays = packed_size.of_records(records, len(data)).arrays
    sizes = {"packed": len(data)}
    if file:
        gzip_size = verify.gzip_size(file)
        sizes = {"bytes of float flatbuffer": len(file), "under gzip": gzip_size, **sizes}
    return _Packed(sizes, {array.name: array.entropy for array in arrays}, layer_bytes)


def _shown(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(side for side in shape[1:] if side is not None)


def _channel_graph(model: Any) -> tuple[dependency_groups.ChannelGraph | None, list[str]]:
    """The groups of channels; `None`, and why, for a model whose channels cannot be traced."""
    try:
        return dependency_groups.ChannelGraph(flatten.flatten(model)), []
    except UsageError as error:
        return None, [f"no groups of channels: {error}"]
