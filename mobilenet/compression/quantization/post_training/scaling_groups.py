"""Tensors that one factor per channel can pass through, found from the graph.

A ReLU, a pool, a product with a gate and a residual sum all keep a factor: what is multiplied in
front of them comes out multiplied. Convolutions give such a factor on one side and
take it back on the other, so that the model computes the same. What lies between them is a group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from mobilenet.compression.quantization.int8.quantizer_placement import (
    WEIGHTS,
    DepthwiseHardSwish,
    HardSwish,
    find_depthwise_hard_swishes,
    find_hard_swishes,
)
from mobilenet.models.graph.batch_norm_folding import Array, Folded
from mobilenet.models.graph.roles import Graph, kind, unwrap

_POOLS = ("GlobalAveragePooling2D", "AveragePooling2D", "MaxPooling2D")
_KEPT = (*_POOLS, "Dropout", "ZeroPadding2D")


@dataclasses.dataclass
class ScalingGroup:
    """A set of tensors that share a factor per channel.

    Attributes:
        tensors: the layers whose outputs they are, in execution order.
        producers: convolutions whose output they are.
        consumers: convolutions that read them.
        barriers: layers at the ends that let no factor through; none in a group that can be
            equalized exactly.
    """

    tensors: list[Any] = dataclasses.field(default_factory=list)
    producers: list[Folded] = dataclasses.field(default_factory=list)
    consumers: list[Folded] = dataclasses.field(default_factory=list)
    barriers: list[Any] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """That of its first tensor."""
        return str(unwrap(self.tensors[0]).name)

    @property
    def channels(self) -> int:
        channels = _shape(self.tensors[0])[-1]
        assert channels is not None
        return channels

    @property
    def is_open(self) -> bool:
        """Whether every end gives or takes a factor."""
        return bool(self.producers and self.consumers) and not self.barriers and self._can_scale

    @property
    def _can_scale(self) -> bool:
        return all(producer.can_scale for producer in self.producers)

    def ends_only_at(self, layers: Iterable[Any]) -> bool:
        """Whether convolutions and these layers are its only ends."""
        allowed = {id(layer) for layer in layers}
        return self._can_scale and all(id(layer) in allowed for layer in self.barriers)

    def scale(self, factors: Array) -> None:
        """Multiplies the tensors by `factors`, `[channels]`; what is behind stays as it was."""
        for producer in self.producers:
            producer.scale(factors)
        for consumer in self.consumers:
            consumer.scale_inputs(1.0 / factors)


class ScalingGroups:
    """All groups of a model, by the layer whose output is asked for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.folded = {
            id(layer): Folded(graph, layer) for layer in graph.layers if kind(layer) in WEIGHTS
        }
        self.hard_swishes: list[HardSwish] = find_hard_swishes(graph)
        self.depthwise_hard_swishes: dict[int, DepthwiseHardSwish] = {
            id(found.product): found for found in find_depthwise_hard_swishes(graph)
        }
        self._inside = {id(x) for found in self.hard_swishes for x in found.inside}
        self._products = {id(found.product): found for found in self.hard_swishes}
        self._parent: dict[int, int] = {id(layer): id(layer) for layer in graph.layers}
        self._closing: list[tuple[int, Any]] = []
        for layer in graph.layers:
            self._join(layer)
        self._groups: dict[int, ScalingGroup] = {}
        self._fill()

    def __iter__(self) -> Any:
        return iter(self._groups.values())

    def of(self, layer: Any) -> ScalingGroup:
        """The group that the output of a layer belongs to."""
        return self._groups[self._root(id(layer))]

    def between_convolutions(self, found: HardSwish) -> bool:
        """Whether a factor in front of a hard-swish, and one behind it, have both their ends."""
        before, behind = self.of(found.source), self.of(found.product)
        ends = (found.product,)
        return bool(
            before.producers
            and behind.consumers
            and before.ends_only_at(ends)
            and behind.ends_only_at(ends)
        )

    def depthwise_hard_swishes_in(self, group: ScalingGroup) -> list[DepthwiseHardSwish]:
        """The gates whose products are in a group."""
        return [
            self.depthwise_hard_swishes[id(x)]
            for x in group.tensors
            if id(x) in self.depthwise_hard_swishes
        ]

    def _root(self, node: int) -> int:
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def _join(self, layer: Any) -> None:
        """Joins what a layer gives with what it reads, or closes both."""
        before = self.graph.producers(layer)
        if id(layer) in self.folded or id(layer) in self._inside:
            return
        if id(layer) in self._products:
            found = self._products[id(layer)]
            self._close(found.source, found.product)
            self._close(found.product, found.product)
            return
        joined = [other for other in before if self._keeps(layer, other)]
        for other in joined:
            self._parent[self._root(id(other))] = self._root(id(layer))
        for other in before:
            if other not in joined:
                self._close(other, layer)
        if not joined:
            self._close(layer, layer)

    def _close(self, tensor: Any, by: Any) -> None:
        self._closing.append((id(tensor), by))

    def _keeps(self, layer: Any, source: Any) -> bool:
        """Whether a factor of `source` passes through `layer` unchanged."""
        name, inner = kind(layer), unwrap(layer)
        if name in _KEPT or name == "Add":
            return True
        if name == "BatchNormalization":
            pair = self.folded.get(id(source))
            return pair is not None and pair.output is layer
        if name == "ReLU":
            return (
                inner.max_value is None
                and float(inner.negative_slope) == 0.0
                and float(inner.threshold) == 0.0
            )
        if name == "Activation":
            return inner.activation.__name__ in ("relu", "linear")
        if name == "Multiply":
            return bool(self._gated(layer) is source)
        if name in ("Flatten", "Reshape"):
            return bool(_shape(layer)[-1] == _shape(source)[-1])
        return False

    def _gated(self, layer: Any) -> Any:
        """Of a product of a map and a gate, its own or `[batch, 1, 1, channels]`, the map."""
        if id(layer) in self.depthwise_hard_swishes:
            return self.depthwise_hard_swishes[id(layer)].source
        maps = [x for x in self.graph.producers(layer) if _shape(x)[1:3] != (1, 1)]
        return maps[0] if len(maps) == 1 else None

    def _fill(self) -> None:
        for layer in self.graph.layers:
            if id(layer) not in self._inside:
                group = self._groups.setdefault(self._root(id(layer)), ScalingGroup())
                group.tensors.append(layer)
        for pair in self.folded.values():
            self._attach(pair)
        for node, by in self._closing:
            self._groups[self._root(node)].barriers.append(by)
        for layer in self.graph.layers:
            if not self.graph.consumers(layer) and id(layer) not in self._inside:
                self.of(layer).barriers.append(layer)

    def _attach(self, pair: Folded) -> None:
        inner, before = unwrap(pair.layer), self.of(self.graph.producers(pair.layer)[0])
        activation = getattr(inner.activation, "__name__", "linear")
        if getattr(inner, "groups", 1) > 1:
            before.barriers.append(pair.layer)
        else:
            before.consumers.append(pair)
        if activation in ("relu", "linear"):
            self.of(pair.output).producers.append(pair)
        else:
            self.of(pair.output).barriers.append(pair.layer)


def _shape(layer: Any) -> tuple[int | None, ...]:
    """`[batch, ..., channels]` of a layer's one output; input layers tell it in a list."""
    shape = layer.output_shape
    return tuple(shape[0] if isinstance(shape, list) else shape)
