"""ai-edge-quantizer's recipes on a float file of ours (the extra `[edge]`).

They are what Google offers beyond TensorFlow's converter; here they run as published, so that
their files can be compared with ours in one table.

int4 is ours where kernels lie on a 4-bit grid. A kernel after linear quantization with 4 bits
is a multiple of one step, and with the batch norm folded in of one step per channel.
ai-edge-quantizer writes int4, but its scales are a channel's largest weight over 7: a channel whose
largest is 5 steps leaves the grid, which most do. Its file is therefore given the scales and
quantized values of the grid.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.export import freeze
from mobilenet.runtime import quantized_io
from mobilenet.tflite import editor
from mobilenet.tflite import model as tflite_model
from mobilenet.typing import Float32Array

_RECIPES = {
    "edge_dynamic": "dynamic_wi8_afp32",
    "edge_weights": "weight_only_wi8_afp32",
    "edge_static": "static_wi8_ai8",
}
_INT4 = "edge_int4"
_INT4_OPERATORS = ("CONV_2D", "FULLY_CONNECTED")
_INT4_MAX = 7  # the range is symmetric
_GRID_TOLERANCE = 1e-4  # of a step; folding a batch norm rounds each weight by 1e-7 of itself
_INPUT, _OUTPUT = "input", "output"


def apply_recipe(data: bytes, name: str, images: Float32Array | None = None) -> bytes:
    """Quantizes a float file by a recipe of ai-edge-quantizer.

    Args:
        data: a float file.
        name: `edge_dynamic`, `edge_weights`, `edge_static`, or `edge_int4` for kernels on a 4-bit
            grid.
        images: `[n, height, width, channels]`, preprocessed for the file; `edge_static` needs them.

    Raises:
        UsageError: the package refused the file, or no kernel of it lies on a 4-bit grid.
        ImportError: the package is not installed.
    """
    from ai_edge_quantizer import quantizer

    content = tflite_model.read(data)
    batch = content.tensors[content.inputs[0]].shape[0]
    scales = grid_scales(content) if name == _INT4 else {}
    if name == _INT4 and not scales:
        trained = "`quantization=linear` with `num_bits_pointwise=4` trains them"
        expected = f"kernels on a 4-bit grid, as {trained}"
        raise UsageError("number_format", name, expected)
    refusal: Exception | None = None
    output = io.StringIO()
    with freeze.quiet(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            tool = quantizer.Quantizer(add_signature(data), _recipe(name, content, scales))
            calibration = None
            if tool.need_calibration:
                assert images is not None
                samples = [{_INPUT: block} for block in quantized_io.batches(images, batch)]
                calibration = tool.calibrate({editor.SIGNATURE: samples}, num_threads=1)
            result = tool.quantize(calibration, enable_progress_report=False)
            quantized: Any = result.quantized_model
        except (ValueError, RuntimeError) as error:
            refusal = error
    if refusal is not None:
        reason = " ".join(str(refusal).split())[:300]
        expected = f"a model that ai-edge-quantizer takes ({reason})"
        raise UsageError("number_format", name, expected) from refusal
    return set_grid_values(bytes(quantized), content, scales) if scales else bytes(quantized)


def _recipe(name: str, content: tflite_model.Flatbuffer, kernels: Collection[int]) -> Any:
    """The package's own recipe, or int4 for the operators of some `kernels`."""
    from ai_edge_quantizer import qtyping, recipe, recipe_manager

    if name != _INT4:
        return getattr(recipe, _RECIPES[name])()
    manager = recipe_manager.RecipeManager()
    for operator in content.operators:
        if operator.name in _INT4_OPERATORS and operator.inputs[1] in kernels:
            scope = re.escape(content.tensors[operator.outputs[0]].name)
            kind = qtyping.TFLOperationName(operator.name)
            manager.add_weight_only_config(f"^{scope};?$", kind, num_bits=4)
    return manager.get_quantization_recipe()


def add_signature(data: bytes) -> bytes:
    """The file with a signature, by which the package finds its input and output."""
    model = editor.open_flatbuffer(data)
    editor.set_signature(model, [_INPUT], [_OUTPUT])
    return editor.pack_flatbuffer(model)


def channel_steps(kernel: Float32Array) -> Float32Array | None:
    """The step of each channel of a kernel on a 4-bit grid.

    Args:
        kernel: `[channels, ...]`.

    Returns:
        `[channels]`, 1 where all weights of a channel are zero; `None` where a weight of any
        channel is not a whole number of steps, or more than 7 of them.
    """
    flat = kernel.reshape(len(kernel), -1).astype(np.float64)
    largest = np.abs(flat).max(axis=1, initial=0.0)
    steps = np.where(largest > 0, 0.0, 1.0)
    for count in range(1, _INT4_MAX + 1):
        remaining = np.flatnonzero(steps == 0)
        step = largest[remaining] / count
        ratios = flat[remaining] / step[:, None]
        error = np.abs(ratios - np.rint(ratios)).max(axis=1, initial=0.0)
        on_grid = error < _GRID_TOLERANCE
        steps[remaining[on_grid]] = step[on_grid]
    return steps.astype(np.float32) if steps.all() else None


def grid_scales(content: tflite_model.Flatbuffer) -> dict[int, Float32Array]:
    """The steps of each kernel of a float file that lies on a 4-bit grid, by tensor index."""
    scales = {}
    for operator in content.operators:
        if operator.name in _INT4_OPERATORS:
            kernel = content.tensors[operator.inputs[1]]
            steps = None if kernel.data is None else channel_steps(kernel.data)
            if steps is not None:
                scales[kernel.index] = steps
    return scales


def set_grid_values(
    data: bytes, float_file: tflite_model.Flatbuffer, scales: Mapping[int, Float32Array]
) -> bytes:
    """Gives the kernels of an int4 file the scales and values of their grid.

    Args:
        data: of ai-edge-quantizer; its kernels have the indices that they had in `float_file`.
        float_file: the file that was quantized.
        scales: of `grid_scales`.
    """
    model = editor.open_flatbuffer(data)
    tensors = model.subgraphs[0].tensors
    for index, step in scales.items():
        kernel, tensor = float_file.tensors[index].data, tensors[index]
        assert kernel is not None and tensor.type == tflite_model.schema().TensorType.INT4
        values = np.rint(kernel / step.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.int8)
        tensor.quantization.scale = step
        tensor.quantization.zeroPoint = np.zeros(len(step), np.int64)
        tensor.quantization.quantizedDimension = 0
        editor.set_constant(model, tensor, pack_int4(values))
    return editor.pack_flatbuffer(model)


def pack_int4(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Packs two values into a byte, the first in the lower half."""
    flat = np.append(values.ravel(), np.zeros(values.size % 2, np.int8)).view(np.uint8) & 15
    return np.asarray(flat[::2] | (flat[1::2] << 4), np.uint8)
