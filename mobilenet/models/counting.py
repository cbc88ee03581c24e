"""Parameters and multiply-accumulates of a net, from its layers and shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mobilenet.errors import UsageError

from .roles import Graph, kind, unwrap


@dataclasses.dataclass(frozen=True)
class Count:
    """Size of a net.

    Attributes:
        params: all values, moving statistics included (`Model.count_params()`).
        trainable_params: those that an optimizer may change.
        macs: products of one image in convolutions, depthwise convolutions and dense layers;
            normalizations, biases, activations, pooling and sums of maps are not counted.
    """

    params: int
    trainable_params: int
    macs: int


def count(model: Any, input_shape: Sequence[int] | None = None) -> Count:
    """Counts parameters and MACs.

    Args:
        model: a functional model.
        input_shape: `[height, width, channels]` at which the MACs are counted; the model's own
            when left out.

    Raises:
        UsageError: the model has no fixed image size and none is given.
    """
    trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return Count(model.count_params(), int(trainable), sum(layer_macs(model, input_shape).values()))


def layer_macs(model: Any, input_shape: Sequence[int] | None = None) -> dict[str, int]:
    """MACs by layer name, of layers that have a kernel."""
    graph = Graph(model)
    shapes = output_shapes(graph, input_shape)
    macs: dict[str, int] = {}
    for layer in graph.layers:
        kernel = graph.kernel(layer)
        if kernel is None:
            continue
        sides = shapes[id(layer)][1:-1]
        positions = [side for side in sides if side is not None]
        if len(positions) < len(sides):
            raise UsageError(
                "input_shape",
                None,
                "[height, width, channels] for a net without a fixed image size",
            )
        macs[layer.name] = math.prod(kernel.shape) * math.prod(positions)
    return macs


def output_shapes(
    graph: Graph, input_shape: Sequence[int] | None = None
) -> dict[int, tuple[int | None, ...]]:
    """Output shape by `id(layer)`, as built or for images of another size."""
    if input_shape is None:
        return {id(layer): tuple(graph.output(layer).shape) for layer in graph.layers}
    shapes: dict[int, tuple[int | None, ...]] = {}
    for layer in graph.layers:
        before = [shapes[id(producer)] for producer in graph.producers(layer)]
        if not before:
            shapes[id(layer)] = (None, *input_shape)
            continue
        as_built = [tuple(tensor.shape) for tensor in (graph.output(layer), *graph.inputs(layer))]
        if (
            kind(layer) == "TFOpLambda" and as_built[0] == as_built[1]
        ):  # an operator that changes no shape
            shapes[id(layer)] = before[0]
            continue
        given = before if len(before) > 1 else before[0]
        shapes[id(layer)] = tuple(unwrap(layer).compute_output_shape(given))
    return shapes


def nonzero_weights(model: Any) -> int:
    """Entries that are not zero in all weights but the moving statistics of normalizations."""
    total = 0
    for layer in model.layers:
        inner = unwrap(layer)
        for variable, value in zip(inner.weights, inner.get_weights(), strict=True):
            if kind(layer) == "BatchNormalization" and variable.name.split("/")[-1].startswith(
                "moving_"
            ):
                continue
            total += int(np.count_nonzero(value))
    return total
