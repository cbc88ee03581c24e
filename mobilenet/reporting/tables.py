"""Profiles and comparisons as headers and rows of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mobilenet import text_tables

if TYPE_CHECKING:  # a file alone is shown without TensorFlow
    from mobilenet.reporting import (
        int8_comparison,
        model_profile,
        packed_size,
        sparsity,
        tflite_profile,
    )

Rows = tuple[list[str], list[list[object]]]


def of_layers(profile: model_profile.ModelProfile) -> Rows:
    """One row a layer, and the total."""
    heads = ["layer", "role", "output", "params", "MACs", "thop FLOPs", "zeros %", "distinct"]
    heads += ["bytes", "entropy", "packed", "time %", "ms", "group"]
    return heads, [_layer(layer, profile.seconds) for layer in (*profile.layers, profile.total())]


def _layer(line: model_profile.LayerProfile, sum_of_all: float) -> list[object]:
    seconds = line.seconds
    return [
        line.layer,
        line.role,
        _sides(line.shape),
        f"{line.params:,}",
        f"{line.macs:,}",
        f"{line.thop:,}",
        None if line.sparsity is None else f"{100 * line.sparsity:.2f}",
        f"{line.distinct:,}" if line.weights else None,
        f"{line.bytes:,}",
        None if line.entropy is None else f"{line.entropy:,.0f}",
        None if line.packed is None else f"{line.packed:,}",
        None if seconds is None else f"{100 * seconds / (sum_of_all or 1.0):.1f}",
        None if seconds is None else text_tables.milliseconds(1000 * seconds),
        line.group,
    ]


def of_zeros(kernels: Sequence[sparsity.Zeros]) -> Rows:
    """One row a kernel."""
    heads = ["layer", "role", "weights", "zeros", "zeros %"]
    heads += ["outputs", "zero outputs", "inputs", "zero inputs"]
    rows: list[list[object]] = [
        [
            *(line.layer, line.role, f"{line.weights:,}", f"{line.zeros:,}"),
            f"{100 * line.zeros / line.weights:.2f}",
            *(line.outputs, line.zero_outputs, line.inputs, line.zero_inputs),
        ]
        for line in kernels
    ]
    return heads, rows


def of_file(operators: Sequence[tflite_profile.OperatorProfile]) -> Rows:
    """One row an operator, and the total of their constants."""
    heads = ["#", "operator", "output", "type", "output bytes", "kernel", "bytes", "zeros %"]
    heads += ["distinct"]
    rows: list[list[object]] = [
        [
            *(number, line.operator, _sides(line.shape), line.dtype, f"{line.output_bytes:,}"),
            *(line.kernel or "-", f"{line.constant_bytes:,}"),
            None if line.zeros is None else f"{100 * line.zeros / (line.weights or 1):.2f}",
            None if line.distinct is None else f"{line.distinct:,}",
        ]
        for number, line in enumerate(operators)
    ]
    constants = sum(line.constant_bytes for line in operators)
    rows.append([None, "total", "", "", None, "", f"{constants:,}", None, None])
    return heads, rows


def of_comparison(tensors: Sequence[int8_comparison.TensorComparison]) -> Rows:
    """One row a quantized tensor."""
    heads = ["layer", "operator", "range", "reached", "outlier", "dB alone", "dB", "cause"]
    rows: list[list[object]] = [
        [
            *(line.layer, line.operator, f"{line.low:.3g}..{line.high:.3g}"),
            f"{line.reached[0]:.3g}..{line.reached[1]:.3g}",
            f"{line.outliers:.1f}",
            *(_decibels(line.alone), _decibels(line.accumulated)),
            *(line.cause, line.remedy or "-"),
        ]
        for line in tensors
    ]
    return [*heads, "remedy"], rows


def of_packed(contents: packed_size.Contents) -> Rows:
    """One row a kernel, the rest, and the total of a packed model."""
    heads = ["layer", "weights", "zeros %", "distinct", "entropy", "codebook", "packed", "float"]
    rows: list[list[object]] = [
        [
            *(line.name, f"{line.weights:,}"),
            f"{100 * line.zeros / line.weights:.2f}" if line.weights else None,
            None if line.distinct is None else f"{line.distinct:,}",
            None if line.entropy is None else f"{line.entropy:,.0f}",
            None if line.codebook is None else f"{line.codebook:,}",
            *(f"{line.packed:,}", f"{line.plain:,}"),
        ]
        for line in (*contents.arrays, contents.total)
    ]
    return heads, rows


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
