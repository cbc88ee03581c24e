"""The layers of a quantized model that compute in float, and their kernels for the file."""

from __future__ import annotations

from typing import Any

import numpy as np

from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.quantizer_placement import (
    WEIGHTS,
    expand_float_layers,
    folded_shift,
)
from mobilenet.models.graph.batch_norm_folding import Folded
from mobilenet.models.graph.roles import Graph, kind, unwrap
from mobilenet.typing import Float32Array


def find_float_layers(wrapped: Any) -> tuple[str, ...]:
    """The layers with a kernel that compute in float, in execution order."""
    return tuple(unwrap(layer).name for layer in _with_float_kernel(wrapped, Graph(wrapped)))


def find_all_float_layers(wrapped: Any) -> set[str]:
    """Those, and the layers without a kernel that compute in float with them."""
    return expand_float_layers(Graph(wrapped), set(find_float_layers(wrapped)))


def folded_kernels(wrapped: Any) -> dict[str, tuple[Float32Array, Float32Array]]:
    """Kernel and bias of each of `find_float_layers`, with its batch norm folded in.

    Returns:
        By name: `[channels, height, width, inputs]`, `[1, height, width, channels]` of a depthwise
        layer, `[channels, inputs]` of a dense one; and `[channels]`.
    """
    graph = Graph(wrapped)
    return {unwrap(layer).name: _fold(graph, layer) for layer in _with_float_kernel(wrapped, graph)}


def _with_float_kernel(wrapped: Any, graph: Graph) -> list[Any]:
    quantizers = scheme.quantizers(wrapped)
    return [
        layer
        for layer in graph.layers
        if kind(layer) in WEIGHTS and f"{unwrap(layer).name}/kernel" not in quantizers
    ]


def _fold(graph: Graph, layer: Any) -> tuple[Float32Array, Float32Array]:
    pair = Folded(graph, layer)
    multiplier, bias = pair.affine()
    raw = np.asarray(pair.kernel, np.float64)
    if pair.depthwise:
        kernel = raw.reshape(1, *raw.shape[:2], -1) * multiplier
    else:
        kernel = np.moveaxis(raw * multiplier, -1, 0)
    total = bias + folded_shift(graph, layer)
    return np.ascontiguousarray(kernel, np.float32), total.astype(np.float32)
