"""Zeros of a model: single weights, and whole channels that surgery could cut out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.models.graph.roles import Graph, kind


@dataclasses.dataclass(frozen=True)
class Zeros:
    """The zeros of one kernel.

    Attributes:
        layer, role: whose it is.
        weights, zeros: how many values it holds, and how many are exactly zero.
        outputs, zero_outputs: channels that it makes, and those whose every weight is zero. What
            their bias and batch norm make of it need not be zero.
        inputs, zero_inputs: channels that it reads, and those that no weight reads.
    """

    layer: str
    role: str
    weights: int
    zeros: int
    outputs: int
    zero_outputs: int
    inputs: int
    zero_inputs: int


def kernels(model: Any) -> Iterator[tuple[Any, str, npt.NDArray[np.float32]]]:
    """Layer, role and kernel of every convolution and dense layer, in the order of execution."""
    graph = Graph(model)
    for layer in graph.layers:
        kernel = graph.kernel(layer)
        if kernel is not None:
            yield layer, graph.role(layer), np.asarray(kernel)


def zeros(model: Any) -> list[Zeros]:
    """The zeros of every kernel, in the order of execution.

    A channel counts as zero by its largest magnitude: a sum of weights could cancel.
    """
    return [_zeros(layer, role, kernel) for layer, role, kernel in kernels(model)]


def _zeros(layer: Any, role: str, kernel: npt.NDArray[np.float32]) -> Zeros:
    *_, read, made = kernel.shape
    # A depthwise kernel is [height, width, channels, filters a channel].
    makers = read * made if kind(layer) == "DepthwiseConv2D" else made
    silent = ~kernel.reshape(-1, makers).any(axis=0)
    unread = ~kernel.reshape(-1, read, made).any(axis=(0, 2))
    return Zeros(
        layer=layer.name,
        role=role,
        weights=kernel.size,
        zeros=kernel.size - int(np.count_nonzero(kernel)),
        outputs=silent.size,
        zero_outputs=int(silent.sum()),
        inputs=unread.size,
        zero_inputs=int(unread.sum()),
    )
