"""The kernels of a file against those of the model: zeros stay zeros, clusters stay clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.tflite import model as tflite_model
from mobilenet.tflite import tensors

Array = npt.NDArray[Any]
KERNEL_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def codes_of(
    operator: tensors.Operator, content: tflite_model.Flatbuffer, like: tuple[int, ...] = ()
) -> Array | None:
    """The int8 kernel of an operator as a matrix `[weights of a channel, channels]`.

    `None` where it is not int8, or not stored entry by entry.

    Args:
        operator: of the file.
        content: the file.
        like: `[height, width, inputs, channels]` of the layer's kernel; one that the file keeps on
            pairs of pixels is then given on single ones.
    """
    tensor = content.tensors[operator.inputs[1]]
    data = tensor.data
    if data is None or tensor.dtype != "int8":
        return None
    if operator.name == "DEPTHWISE_CONV_2D":  # [1, height, width, channels]
        depthwise: Array = data.reshape(-1, data.shape[-1])
        return depthwise
    # [channels, height, width, inputs], or [channels, inputs] of a dense layer
    if len(like) == data.ndim == 4 and data.shape[3] == 2 * like[2]:
        data = _unpaired(data, like[1])
    codes: Array = data.reshape(data.shape[0], -1).T
    return codes


def _unpaired(paired: Array, width: int) -> Array:
    """Single pixels of a kernel `[channels, height, pairs, 2 x inputs]`, see `stem.pair`.

    What is behind `width` must be zero; where it is not, the kernel is given as it is, and another
    size than the layer's is a fault.
    """
    channels, height, pairs, inputs = paired.shape
    single = paired.reshape(channels, height, 2 * pairs, inputs // 2)
    return paired if single[:, :, width:].any() else single[:, :, :width]


def by_channel(kernel: Array, depthwise: bool) -> Array:
    """A Keras kernel in the same form: `[height, width, inputs, channels]`, or depthwise
    `[height, width, channels, multiplier]`."""
    channels = kernel.shape[-2] * kernel.shape[-1] if depthwise else kernel.shape[-1]
    return kernel.reshape(-1, channels)


def faults(layer: str, model: Array, simulated: Array, file: Array) -> list[str]:
    """What a kernel lost on its way into the file.

    Args:
        layer: its name.
        model: the weights as trained, `[weights of a channel, channels]`.
        simulated: the same as the simulation rounds them, in codes.
        file: codes of the file.
    """
    if not model.shape == simulated.shape == file.shape:
        return [f"{layer}: a kernel of {list(file.shape)} instead of {list(model.shape)}"]
    found = []
    lost = int(np.count_nonzero(file[model == 0]))
    if lost:
        found.append(f"{layer}: {lost} zeros of the kernel are not zero in the file")
    grown = int(np.count_nonzero(distinct(file) > distinct(model)))
    if grown:
        found.append(f"{layer}: {grown} channels have more distinct weights than in the model")
    # A batch norm of negative gamma turns the sign of its channel's codes.
    other = int(np.count_nonzero(np.abs(file.astype(np.int16)) != np.abs(simulated)))
    if other:
        found.append(f"{layer}: {other} of {file.size} kernel codes are not the simulated ones")
    return found


def distinct(matrix: Array) -> npt.NDArray[np.int64]:
    """How many different values each column holds."""
    if not len(matrix):
        return np.zeros(matrix.shape[1], np.int64)
    ordered = np.sort(matrix, axis=0)
    changes: npt.NDArray[np.int64] = 1 + np.count_nonzero(ordered[1:] != ordered[:-1], axis=0)
    return changes
