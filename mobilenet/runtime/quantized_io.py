"""Images into a file and numbers out of it: codes, scales, blocks of the file's batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.tflite import tensors

Floats = npt.NDArray[np.floating]


def scale_of(tensor: tensors.Tensor) -> tuple[float, int]:
    """Scale and zero point of a tensor that has one of each; `(0, 0)` where it is float."""
    if not len(tensor.scales):
        return 0.0, 0
    return float(tensor.scales[0]), int(tensor.zero_points[0])


def quantized(values: Floats, detail: dict[str, Any]) -> npt.NDArray[Any]:
    """What an end of an interpreter takes: codes of its scale, or floats as such."""
    scale, zero = detail["quantization"]
    if not scale:
        return values.astype(detail["dtype"])
    ends = np.iinfo(detail["dtype"])
    codes: npt.NDArray[Any] = np.clip(np.round(values / scale) + zero, ends.min, ends.max)
    return codes.astype(detail["dtype"])


def dequantized(codes: npt.NDArray[Any], scale: float, zero: int) -> Floats:
    """Real values of codes; floats, whose scale is 0, stay what they are."""
    real: Floats = (codes.astype(np.float64) - zero) * (scale or 1.0)
    return real


def batches(images: npt.NDArray[Any], size: int) -> Iterator[npt.NDArray[Any]]:
    """Blocks of `size` images; the last is filled up with repetitions."""
    for start in range(0, len(images), size):
        yield np.resize(images[start : start + size], (size, *images.shape[1:]))


def blocks(runner: Any, inputs: Floats) -> Iterator[int]:
    """Runs an interpreter on images, as many at once as it takes.

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
    for number, block in enumerate(batches(quantized(inputs, source), batch)):
        runner.set_tensor(source["index"], block)
        runner.invoke()
        yield min(batch, len(inputs) - number * batch)


def run(runner: Any, inputs: Floats) -> Floats:
    """Runs an interpreter on images and gives its outputs.

    Args:
        runner: an interpreter with its tensors allocated.
        inputs: `[images, height, width, channels]`, float, preprocessed for the file.

    Returns:
        Float `[images, classes]`; codes are made and read with the scales of the file's two ends.

    Raises:
        UsageError: see `blocks`.
    """
    source, sink = runner.get_input_details()[0], runner.get_output_details()[0]
    rows = []
    for count in blocks(runner, inputs):
        values = dequantized(runner.get_tensor(sink["index"]), *sink["quantization"])
        rows.append(values.reshape(int(source["shape"][0]), -1)[:count])
    return np.concatenate(rows)
