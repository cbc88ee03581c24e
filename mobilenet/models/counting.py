"""Parameters and multiply-accumulates of a model, from its layers and shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mobilenet.errors import UsageError
from mobilenet.models.graph import flatten
from mobilenet.models.graph.roles import Graph, kind, unwrap


@dataclasses.dataclass(frozen=True)
class Count:
    """Size of a model.

    Attributes:
        params: all values, moving statistics included (`Model.count_params()`).
        trainable_params: those that an optimizer may change.
        macs: products of one image in convolutions, depthwise convolutions and dense layers;
            normalizations, biases, activations, pooling and sums of maps are not counted.
        thop_flops: what Lyken17/pytorch-OpCounter (commit 3ab72b2, of January 2020) calls FLOPs;
            papers quote it. See `layer_thop_flops`.
    """

    params: int
    trainable_params: int
    macs: int
    thop_flops: int


def count(model: Any, input_shape: Sequence[int] | None = None) -> Count:
    """Counts parameters and MACs.

    Args:
        model: a functional or Sequential model; layers of nested models count as its own.
        input_shape: `[height, width, channels]` at which the MACs are counted; the model's own
            when left out.

    Raises:
        UsageError: the model has no fixed image size and none is given, or no graph of layers.
    """
    flat = flatten.inline(model)
    trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return Count(
        model.count_params(),
        int(trainable),
        sum(layer_macs(flat, input_shape).values()),
        sum(layer_thop_flops(flat, input_shape).values()),
    )


def layer_macs(model: Any, input_shape: Sequence[int] | None = None) -> dict[str, int]:
    """MACs by layer name, of layers that have a kernel; those of nested models too."""
    graph = Graph(flatten.inline(model))
    shapes = output_shapes(graph, input_shape)
    return {
        layer.name: math.prod(graph.kernel(layer).shape) * _map_size(shapes[id(layer)])
        for layer in graph.layers
        if graph.kernel(layer) is not None
    }


def layer_thop_flops(model: Any, input_shape: Sequence[int] | None = None) -> dict[str, int]:
    """Operations by thop's rule, by layer name.

    A convolution counts its products and one addition an output for a bias; a dense layer, and
    with it the classifier, counts products and additions; a batch norm counts two an element.
    Activations, dropout, means of maps, sums and products of maps count nothing.

    Source: Lyken17/pytorch-OpCounter thop/count_hooks.py, commit 3ab72b2.
    """
    graph = Graph(flatten.inline(model))
    shapes = output_shapes(graph, input_shape)
    flops: dict[str, int] = {}
    for layer in graph.layers:
        shape, kernel = shapes[id(layer)], graph.kernel(layer)
        if kernel is not None:
            products = math.prod(kernel.shape)
            biased = bool(unwrap(layer).use_bias)
            if kind(layer) == "Dense" or graph.role(layer) == "classifier":
                each = 2 * products - (0 if biased else shape[-1] or 0)
            else:
                each = products + (shape[-1] or 0) * biased
            flops[layer.name] = each * _map_size(shape)
        elif kind(layer) == "BatchNormalization":
            flops[layer.name] = 2 * (shape[-1] or 0) * _map_size(shape)
    return flops


def _map_size(shape: Sequence[int | None]) -> int:
    """Height times width of a map `[batch, height, width, channels]`; 1 for a vector."""
    sides = [side for side in shape[1:-1] if side is not None]
    if len(sides) < len(shape) - 2:
        raise UsageError(
            "input_shape",
            None,
            "[height, width, channels] for a model without a fixed image size",
        )
    return math.prod(sides)


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
        inputs = before if len(before) > 1 else before[0]
        shapes[id(layer)] = tuple(unwrap(layer).compute_output_shape(inputs))
    return shapes


def nonzero_weights(model: Any) -> int:
    """Entries that are not zero in all weights but the moving statistics of normalizations."""
    total = 0
    for layer in flatten.inline(model).layers:
        inner = unwrap(layer)
        for variable, value in zip(inner.weights, inner.get_weights(), strict=True):
            if kind(layer) == "BatchNormalization" and variable.name.split("/")[-1].startswith(
                "moving_"
            ):
                continue
            total += int(np.count_nonzero(value))
    return total
