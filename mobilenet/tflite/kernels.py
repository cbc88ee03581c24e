"""Kernels of a file compared with those of the model: zeros and clusters must be kept."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mobilenet.tflite import model as tflite_model
from mobilenet.tflite import tensors
from mobilenet.typing import Array

KERNEL_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_TO_FLOAT = "DEQUANTIZE"


def stored_kernel(
    operator: tensors.Operator, content: tflite_model.Flatbuffer
) -> tensors.Tensor | None:
    """The kernel of a convolution or dense layer as it is stored, also where it is dequantized
    before use; `None` of other operators and of kernels that are computed.
    """
    if operator.name not in KERNEL_OPERATORS:
        return None
    index = operator.inputs[1]
    dequantized = {op.outputs[0]: op.inputs[0] for op in content.operators if op.name == _TO_FLOAT}
    tensor = content.tensors[dequantized.get(index, index)]
    return tensor if tensor.is_constant else None


def int8_kernel_matrix(
    operator: tensors.Operator, content: tflite_model.Flatbuffer, layer_shape: tuple[int, ...] = ()
) -> Array | None:
    """The int8 kernel of an operator as a matrix `[weights of a channel, channels]`.

    `None` where it is not int8, or not stored entry by entry.

    Args:
        operator: of the file.
        content: the file.
        layer_shape: `[height, width, inputs, channels]` of the layer's kernel; a kernel that the
            file stores for pairs of pixels is returned for single ones.
    """
    tensor = content.tensors[operator.inputs[1]]
    data = tensor.data
    if data is None or tensor.dtype != "int8":
        return None
    if operator.name == "DEPTHWISE_CONV_2D":  # [1, height, width, channels]
        depthwise: Array = data.reshape(-1, data.shape[-1])
        return depthwise
    # [channels, height, width, inputs], or [channels, inputs] of a dense layer
    if len(layer_shape) == data.ndim == 4 and data.shape[3] == 2 * layer_shape[2]:
        data = _unpair_pixels(data, layer_shape[1])
    matrix: Array = data.reshape(data.shape[0], -1).T
    return matrix


def _unpair_pixels(paired: Array, width: int) -> Array:
    """Single pixels of a kernel `[channels, height, pairs, 2 x inputs]`.

    See `export.rewrites.space_to_depth_stem`. Columns from `width` on must be zero; if they are
    not, the kernel is returned as it is, and its size then differs from the layer's.
    """
    channels, height, pairs, inputs = paired.shape
    single = paired.reshape(channels, height, 2 * pairs, inputs // 2)
    return paired if single[:, :, width:].any() else single[:, :, :width]


def kernel_matrix(kernel: Array, depthwise: bool) -> Array:
    """A Keras kernel as a matrix `[weights of a channel, channels]`.

    Args:
        kernel: `[height, width, inputs, channels]`, or depthwise
            `[height, width, channels, multiplier]`.
        depthwise: which of the two.
    """
    channels = kernel.shape[-2] * kernel.shape[-1] if depthwise else kernel.shape[-1]
    return kernel.reshape(-1, channels)


def kernel_faults(layer: str, trained: Array, simulated: Array, stored: Array) -> list[str]:
    """Lists where the kernel in a file is not that of its layer.

    Args:
        layer: its name.
        trained: the weights as trained, `[weights of a channel, channels]`.
        simulated: the same after quantization in the simulation.
        stored: the quantized values in the file.
    """
    if not trained.shape == simulated.shape == stored.shape:
        return [f"{layer}: a kernel of {list(stored.shape)} instead of {list(trained.shape)}"]
    faults = []
    lost = int(np.count_nonzero(stored[trained == 0]))
    if lost:
        faults.append(f"{layer}: {lost} zeros of the kernel are not zero in the file")
    more = int(np.count_nonzero(distinct(stored) > distinct(trained)))
    if more:
        faults.append(f"{layer}: {more} channels have more distinct weights than in the model")
    # A batch norm of negative gamma turns the sign of its channel's values.
    other = int(np.count_nonzero(np.abs(stored.astype(np.int16)) != np.abs(simulated)))
    if other:
        faults.append(f"{layer}: {other} of {stored.size} kernel values differ from the simulation")
    return faults


def distinct(matrix: Array) -> npt.NDArray[np.int64]:
    """The number of distinct values in each column."""
    if not len(matrix):
        return np.zeros(matrix.shape[1], np.int64)
    ordered = np.sort(matrix, axis=0)
    changes: npt.NDArray[np.int64] = 1 + np.count_nonzero(ordered[1:] != ordered[:-1], axis=0)
    return changes
