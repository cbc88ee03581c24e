"""Quantization of a file's inputs and dequantization of its outputs, in batches of its own size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.tflite import tensors
from mobilenet.typing import FloatArray


def scale_of(tensor: tensors.Tensor) -> tuple[float, int]:
    """Scale and zero point of a tensor that has one of each; `(0, 0)` where it is float."""
    if not len(tensor.scales):
        return 0.0, 0
    return float(tensor.scales[0]), int(tensor.zero_points[0])


def quantize(
    values: FloatArray, dtype: npt.DTypeLike, scale: float, zero_point: int
) -> npt.NDArray[Any]:
    """Quantizes real values: `round(value / scale) + zero_point`, clipped to the type's range.

    Args:
        values: any shape.
        dtype: an integer type, or a float one with scale 0.
        scale: of one step; 0 only changes the type.
        zero_point: the quantized value of 0.
    """
    if not scale:
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    quantized = np.clip(np.round(values / scale) + zero_point, limits.min, limits.max)
    integers: npt.NDArray[Any] = quantized.astype(dtype)
    return integers


def dequantize(values: npt.NDArray[Any], scale: float, zero_point: int) -> npt.NDArray[np.float64]:
    """Real values `scale * (value - zero_point)`; floats, whose scale is 0, stay what they are."""
    real: npt.NDArray[np.float64] = (values.astype(np.float64) - zero_point) * (scale or 1.0)
    return real


def batches(images: npt.NDArray[Any], size: int) -> Iterator[npt.NDArray[Any]]:
    """Batches of `size` images; the last is filled up with repetitions."""
    for start in range(0, len(images), size):
        yield np.resize(images[start : start + size], (size, *images.shape[1:]))


def invoke_batches(runner: Any, inputs: FloatArray) -> Iterator[int]:
    """Runs an interpreter on images, in batches of the file's size.

    Args:
        runner: an interpreter with its tensors allocated.
        inputs: `[images, height, width, channels]`, float, preprocessed for the file.

    Yields:
        After each invocation, how many images of its batch are from `inputs`; the last batch is
        filled up with repetitions.

    Raises:
        UsageError: the images do not have the file's shape, or there are none.
    """
    source = runner.get_input_details()[0]
    batch, *image = (int(size) for size in source["shape"])
    if inputs.ndim != 4 or list(inputs.shape[1:]) != image or not len(inputs):
        raise UsageError("inputs", inputs.shape, f"images of shape {tuple(image)}, one at least")
    quantized = quantize(inputs, source["dtype"], *source["quantization"])
    for number, block in enumerate(batches(quantized, batch)):
        runner.set_tensor(source["index"], block)
        runner.invoke()
        yield min(batch, len(inputs) - number * batch)


def run(runner: Any, inputs: FloatArray) -> FloatArray:
    """Runs an interpreter on images and returns its outputs.

    Args:
        runner: an interpreter with its tensors allocated.
        inputs: `[images, height, width, channels]`, float, preprocessed for the file.

    Returns:
        Float `[images, classes]`, quantized and dequantized by the scales of the file's input and
        output.

    Raises:
        UsageError: see `invoke_batches`.
    """
    source, sink = runner.get_input_details()[0], runner.get_output_details()[0]
    rows = []
    for count in invoke_batches(runner, inputs):
        values = dequantize(runner.get_tensor(sink["index"]), *sink["quantization"])
        rows.append(values.reshape(int(source["shape"][0]), -1)[:count])
    return np.concatenate(rows)
