"""The feature maps that detection and segmentation heads are attached to."""

from __future__ import annotations

from typing import Any

import tf_keras

from mobilenet.models.graph import flatten
from mobilenet.models.graph.calls import CallList
from mobilenet.models.graph.roles import Graph, kind, stride

_PADDINGS = ("ZeroPadding2D", "InputLayer")
_NO_FEATURE_MAP = (
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "AveragePooling2D",
    "Flatten",
    "Reshape",
)


def end_points(model: Any) -> dict[int, Any]:
    """The last feature map at each stride.

    At a stride that a later block halves this is that block's expansion, where the family has
    one: what slim's SSDLite and Keras' U-Net tutorials attach to. At the last stride it is the
    map before the pooling.

    Args:
        model: a functional model of `build` or keras.applications, or one around it.

    Returns:
        From stride (2, 4, 8, 16, 32; fewer with an `output_stride`) to the symbolic tensor
        `[batch, height, width, channels]`, ready for `Model(model.input,
        list(end_points(model).values()))`. Layers of nested models are called again on
        `model.input`, so that a model of these tensors shares their weights.

    Raises:
        UsageError: two layers of nested models have one name.
    """
    if isinstance(model, tf_keras.Model):
        flatten.check_functional(model)
        if flatten.has_nested(model):
            model = CallList(model).call_again()
    return of_graph(Graph(model))


def of_graph(graph: Graph) -> dict[int, Any]:
    """The last feature map at each stride, in the model of the graph itself."""
    strides: dict[int, int] = {}
    tensors: dict[int, Any] = {}
    for layer in graph.layers:
        before = [
            strides[id(producer)] for producer in graph.producers(layer) if id(producer) in strides
        ]
        if graph.producers(layer) and not before:
            continue
        if kind(layer) in _NO_FEATURE_MAP:
            continue
        strides[id(layer)] = max(before, default=1) * stride(layer)
        tensor = graph.output(layer)
        if strides[id(layer)] > 1 and kind(layer) not in _PADDINGS and len(tensor.shape) == 4:
            tensors[strides[id(layer)]] = tensor
    return tensors
