"""Zeros of a model: single weights, and whole channels that surgery can remove."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.models.graph.roles import Graph, empty_outputs


@dataclasses.dataclass(frozen=True)
class Zeros:
    """The zeros of one kernel.

    Attributes:
        layer, role: of the kernel.
        weights, zeros: number of values, and of those that are exactly zero.
        outputs, zero_outputs: number of output channels, and of those whose weights are all zero;
            with bias and batch norm, the outputs themselves need not be zero.
        inputs, zero_inputs: the same of input channels.
    """

    layer: str
    role: str
    weights: int
    zeros: int
    outputs: int
    zero_outputs: int
    inputs: int
    zero_inputs: int


def zeros(model: Any) -> list[Zeros]:
    """The zeros of every kernel, in the order of execution.

    A channel counts as zero by its largest magnitude: a sum of weights could cancel.
    """
    return [_zeros(layer, role, kernel) for layer, role, kernel in Graph(model).kernels()]


def _zeros(layer: Any, role: str, kernel: npt.NDArray[np.float32]) -> Zeros:
    *_, inputs, outputs = kernel.shape
    zero_outputs = empty_outputs(layer, kernel)
    zero_inputs = ~kernel.reshape(-1, inputs, outputs).any(axis=(0, 2))
    return Zeros(
        layer=layer.name,
        role=role,
        weights=kernel.size,
        zeros=kernel.size - int(np.count_nonzero(kernel)),
        outputs=zero_outputs.size,
        zero_outputs=int(zero_outputs.sum()),
        inputs=zero_inputs.size,
        zero_inputs=int(zero_inputs.sum()),
    )
