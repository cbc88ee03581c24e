"""Kernels that lie on a 4-bit grid as int4, without another rounding.

What `--quantization linear` with 4 bits makes of a kernel is a multiple of one step, and with the
batch norm folded in of one step a channel. ai-edge-quantizer writes int4, but its scales are a
channel's largest weight over 7: a channel whose largest is 5 steps leaves the grid, which most do.
Here its file is given the scales and codes of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mobilenet.tflite import editor
from mobilenet.tflite import model as tflite_model

MOST = 7  # of a symmetric int4
OPERATORS = ("CONV_2D", "FULLY_CONNECTED")
_OFF = 1e-4  # of a step; folding a batch norm rounds each weight by 1e-7 of itself
Floats = npt.NDArray[np.float32]


def steps(kernel: Floats) -> Floats | None:
    """The step of each channel of a kernel on a grid.

    Args:
        kernel: `[channels, ...]`.

    Returns:
        `[channels]`, 1 where all weights of a channel are zero; `None` where a weight of any
        channel is not a whole number of steps, or more than 7 of them.
    """
    flat = kernel.reshape(len(kernel), -1).astype(np.float64)
    reach = np.abs(flat).max(axis=1, initial=0.0)
    found = np.where(reach > 0, 0.0, 1.0)
    for most in range(1, MOST + 1):
        open_ones = np.flatnonzero(found == 0)
        step = reach[open_ones] / most
        off = np.abs(flat[open_ones] / step[:, None] - np.rint(flat[open_ones] / step[:, None]))
        fits = off.max(axis=1, initial=0.0) < _OFF
        found[open_ones[fits]] = step[fits]
    return found.astype(np.float32) if found.all() else None


def grids(content: tflite_model.Flatbuffer) -> dict[int, Floats]:
    """The steps of each kernel of a float file that lies on a grid, by index of its tensor."""
    found = {}
    for operator in content.operators:
        if operator.name in OPERATORS:
            kernel = content.tensors[operator.inputs[1]]
            scales = None if kernel.data is None else steps(kernel.data)
            if scales is not None:
                found[kernel.index] = scales
    return found


def on_grid(data: bytes, plain: tflite_model.Flatbuffer, scales: Mapping[int, Floats]) -> bytes:
    """An int4 file with the scales and codes of the grid.

    Args:
        data: of ai-edge-quantizer; its kernels have the indices that they had in `plain`.
        plain: the float file.
        scales: of `grids`.
    """
    model = editor.opened(data)
    tensors = model.subgraphs[0].tensors
    for index, step in scales.items():
        kernel, tensor = plain.tensors[index].data, tensors[index]
        assert kernel is not None and tensor.type == tflite_model.schema().TensorType.INT4
        codes = np.rint(kernel / step.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.int8)
        tensor.quantization.scale = step
        tensor.quantization.zeroPoint = np.zeros(len(step), np.int64)
        tensor.quantization.quantizedDimension = 0
        editor.fill(model, tensor, packed(codes))
    return editor.packed(model)


def packed(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two codes a byte, the first in the lower half."""
    flat = np.append(codes.ravel(), np.zeros(codes.size % 2, np.int8)).view(np.uint8) & 15
    return np.asarray(flat[::2] | (flat[1::2] << 4), np.uint8)
