"""Groups of tensors that share a factor per channel, read from the graph.

A ReLU, a pool, a product with a gate and a residual sum pass a factor on: a scaled input gives a
scaled output. Convolutions apply the factor on one side and undo it on the other, so that the model
computes the same. The tensors between them are a scaling group (AIMET: a `cls_set`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from mobilenet.compression.quantization.int8.quantizer_placement import (
    WEIGHTS,
    DepthwiseHardSwish,
    HardSwish,
    find_depthwise_hard_swishes,
    find_hard_swishes,
)
from mobilenet.models.graph.batch_norm_folding import Folded
from mobilenet.models.graph.roles import Graph, kind, unwrap
from mobilenet.typing import Float64Array

_POOLS = ("GlobalAveragePooling2D", "AveragePooling2D", "MaxPooling2D")
_LINEAR = (*_POOLS, "Dropout", "ZeroPadding2D", "Add")


@dataclasses.dataclass
class ScalingGroup:
    """A set of tensors that share a factor per channel.

    Attributes:
        tensors: the layers whose outputs they are, in execution order.
        producers: convolutions that compute one of them.
        consumers: convolutions that read one of them.
        barriers: layers around the group that no factor passes; a group that has some cannot be
            scaled exactly.
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
    def is_scalable(self) -> bool:
        """Whether the group can be scaled exactly."""
        return bool(self.producers and self.consumers) and self.has_only_barriers(())

    def has_only_barriers(self, layers: Iterable[Any]) -> bool:
        """Whether the group could be scaled exactly but for these layers."""
        allowed = {id(layer) for layer in layers}
        can_scale = all(producer.can_scale for producer in self.producers)
        return can_scale and all(id(layer) in allowed for layer in self.barriers)

    def scale(self, factors: Float64Array) -> None:
        """Multiplies the tensors by `factors`, `[channels]`; the consumers' outputs stay equal."""
        for producer in self.producers:
            producer.scale(factors)
        for consumer in self.consumers:
            consumer.scale_inputs(1.0 / factors)


class ScalingGroups:
    """All scaling groups of a model.

    Attributes:
        graph: of the model.
        folded: the convolutions, by id of the layer.
        hard_swishes: those in layers of the original form.
        depthwise_hard_swishes: those with a kernel, by id of the product.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.folded = {
            id(layer): Folded(graph, layer) for layer in graph.layers if kind(layer) in WEIGHTS
        }
        self.hard_swishes: list[HardSwish] = find_hard_swishes(graph)
        self.depthwise_hard_swishes: dict[int, DepthwiseHardSwish] = {
            id(one.product): one for one in find_depthwise_hard_swishes(graph)
        }
        self._inside = {id(layer) for one in self.hard_swishes for layer in one.inside}
        self._products = {id(one.product): one for one in self.hard_swishes}
        self._parent: dict[int, int] = {id(layer): id(layer) for layer in graph.layers}
        self._barriers: list[tuple[int, Any]] = []
        for layer in graph.layers:
            self._join(layer)
        self._groups: dict[int, ScalingGroup] = {}
        self._fill()

    def __iter__(self) -> Iterator[ScalingGroup]:
        return iter(self._groups.values())

    def of(self, layer: Any) -> ScalingGroup:
        """The group of a layer's output."""
        return self._groups[self._root(id(layer))]

    def is_between_convolutions(self, hard_swish: HardSwish) -> bool:
        """Whether the groups before and after could be scaled but for the hard-swish between."""
        before, after = self.of(hard_swish.source), self.of(hard_swish.product)
        return bool(
            before.producers
            and after.consumers
            and before.has_only_barriers([hard_swish.product])
            and after.has_only_barriers([hard_swish.product])
        )

    def depthwise_hard_swishes_in(self, group: ScalingGroup) -> list[DepthwiseHardSwish]:
        """Those whose products are in a group."""
        by_product = self.depthwise_hard_swishes
        return [by_product[id(layer)] for layer in group.tensors if id(layer) in by_product]

    def _root(self, node: int) -> int:
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def _join(self, layer: Any) -> None:
        """Joins a layer's output with its inputs, or makes it a barrier of both."""
        sources = self.graph.producers(layer)
        if id(layer) in self.folded or id(layer) in self._inside:
            return
        if id(layer) in self._products:
            hard_swish = self._products[id(layer)]
            self._add_barrier(hard_swish.source, hard_swish.product)
            self._add_barrier(hard_swish.product, hard_swish.product)
            return
        joined = [source for source in sources if self._passes(layer, source)]
        for source in joined:
            self._parent[self._root(id(source))] = self._root(id(layer))
        for source in sources:
            if source not in joined:
                self._add_barrier(source, layer)
        if not joined:
            self._add_barrier(layer, layer)

    def _add_barrier(self, tensor: Any, barrier: Any) -> None:
        self._barriers.append((id(tensor), barrier))

    def _passes(self, layer: Any, source: Any) -> bool:
        """Whether a factor of `source` passes through `layer` unchanged."""
        name, inner = kind(layer), unwrap(layer)
        if name in _LINEAR:
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

    def _gated(self, product: Any) -> Any:
        """The map of a product of a map and a gate.

        The gate is computed from the map in a hard-swish with a kernel, or is
        `[batch, 1, 1, channels]`.
        """
        if id(product) in self.depthwise_hard_swishes:
            return self.depthwise_hard_swishes[id(product)].source
        maps = [x for x in self.graph.producers(product) if _shape(x)[1:3] != (1, 1)]
        return maps[0] if len(maps) == 1 else None

    def _fill(self) -> None:
        for layer in self.graph.layers:
            if id(layer) not in self._inside:
                group = self._groups.setdefault(self._root(id(layer)), ScalingGroup())
                group.tensors.append(layer)
        for pair in self.folded.values():
            self._attach(pair)
        for node, barrier in self._barriers:
            self._groups[self._root(node)].barriers.append(barrier)
        for layer in self.graph.layers:
            if not self.graph.consumers(layer) and id(layer) not in self._inside:
                self.of(layer).barriers.append(layer)

    def _attach(self, pair: Folded) -> None:
        """Makes a convolution a consumer and a producer, or a barrier where it cannot be scaled."""
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
    """`[batch, ..., channels]` of a layer's one output; input layers return it in a list."""
    shape = layer.output_shape
    return tuple(shape[0] if isinstance(shape, list) else shape)
