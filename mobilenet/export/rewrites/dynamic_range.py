"""A float file whose convolution and dense kernels become int8, with a scale per channel; no data
is read.

XNNPACK then multiplies integers, with activations that it quantizes at run time. Depthwise kernels
stay float: it has no integer kernel for them under float activations, and each would leave the
delegate. The converter's own "dynamic range" does that, which makes depthwise models slower than
float.

Narrow kernels stay float too. To quantize a kernel's input and to scale its outputs costs as much
for few channels as for many; below `NARROW` of either it costs more than the integers save (with
all kernels in int8 V3-small takes 0.83 of the float time, so 0.69), and their bytes are few.

Rounded kernels shift each output by their error times the mean of their inputs. After a ReLU that
mean is far from 0, so the shift, not the noise, is what costs accuracy (Nagel et al., arXiv
1906.04721). Biases are corrected for it. Which photos give the mean matters little: images of 1/f
noise, whose spectrum is that of photographs, are enough.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.runtime import interpreter, quantized_io
from mobilenet.tflite import editor, kernels, tensors
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite.tensors import layer_name
from mobilenet.typing import FloatArray

OPERATORS = ("CONV_2D", "FULLY_CONNECTED")
NARROW = 32  # products summed for one output, or channels; 16, 24, 48 and 64 were tried too
_MAX_VALUE = 127  # the range is symmetric
_TIE = 0.25  # steps; how far from a tie a weight may be that is rounded the other way
_SMALLEST = _MAX_VALUE * np.finfo(np.float32).tiny  # below, a scale is no normal float32

NOISE_IMAGES = 8  # 32 change no figure
_BRIGHTNESS = 115.0, 25.0  # mean of the images' means, and its deviation
_CONTRAST = 64.0
# Opponent colors: gray carries most of a photo's contrast, blue to yellow and red to green little.
_COLORS = np.array([[0.9, 0.9, 0.9], [0.3, 0.0, -0.3], [0.1, -0.2, 0.1]])

Int8 = npt.NDArray[np.int8]


def quantize_kernels(data: bytes, images: FloatArray | None = None, narrow: int = NARROW) -> bytes:
    """Rounds the wide kernels of a float file to int8 and corrects their biases.

    Args:
        data: a float file with one graph.
        images: `[images, height, width, channels]`, preprocessed for the file. Biases are corrected
            for what the rounding adds on average to each channel on these images; `noise_images`
            will do. `None` leaves the biases as they are.
        narrow: kernels of fewer channels, or of fewer values per channel, stay float where the
            feature map has more than one position; 0 for none. If all would stay float, all are
            rounded.

    Returns:
        The new file.

    Raises:
        UsageError: a kernel is not finite.
    """
    content = tflite_model.read(data)
    means = {} if images is None else input_means(content, images, OPERATORS)
    chosen = _chosen_kernels(content, narrow)
    file = _KernelEditor(data, content, chosen)
    for number, kernel in chosen.items():
        values, scales = round_kernel(kernel)
        file.set_kernel(number, values, scales)
        source = content.operators[number].inputs[0]
        if source in means:
            file.add_to_bias(number, -_output_shift(kernel, values, scales, means[source]))
    return editor.pack_flatbuffer(file.model)


def noise_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> FloatArray:
    """Colored noise with the spectrum, brightness and contrast of photos.

    Args:
        count: how many images.
        shape: `[height, width, channels]` of each.
        seed: of the noise.

    Returns:
        Pixels 0 to 255, `[count, height, width, channels]`.
    """
    noise = np.random.default_rng(seed)
    height, width, channels = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    falloff = 1 / np.maximum(frequency, 1 / max(height, width))
    spectrum = np.fft.fft2(noise.normal(size=(count, 3, height, width))) * falloff
    planes = np.fft.ifft2(spectrum).real
    planes -= planes.mean(axis=(2, 3), keepdims=True)
    planes *= _CONTRAST / planes.std(axis=(1, 2, 3), keepdims=True)
    colors = _COLORS[:, np.arange(channels) % 3]
    brightness = noise.normal(*_BRIGHTNESS, (count, 1, 1, 1))
    pixels: FloatArray = np.clip(np.moveaxis(planes, 1, -1) @ colors + brightness, 0, 255)
    return pixels


def input_means(
    content: tflite_model.Flatbuffer, images: FloatArray, operators: Collection[str]
) -> dict[int, FloatArray]:
    """Mean of each channel of the operators' inputs, over images and positions.

    Args:
        content: a float file.
        images: `[images, height, width, channels]`, preprocessed for the file.
        operators: names of the operators whose first input is measured.

    Returns:
        `[channels]` by index of the input tensor.
    """
    runner = interpreter.make_interpreter(content, keep_tensors=True)
    sources = sorted({op.inputs[0] for op in content.operators if op.name in operators})
    sums = {index: np.zeros(content.tensors[index].shape[-1]) for index in sources}
    for count in quantized_io.invoke_batches(runner, images):
        for index in sources:
            values = runner.get_tensor(index)[:count].astype(np.float64)
            sums[index] += values.reshape(count, -1, values.shape[-1]).mean(axis=1).sum(axis=0)
    return {index: total / len(images) for index, total in sums.items()}


def _chosen_kernels(content: tflite_model.Flatbuffer, narrow: int) -> dict[int, FloatArray]:
    """The kernels that become int8, by number of the operator."""
    found = _float_kernels(content)
    wide = {n: k for n, k in found.items() if not _is_narrow(content.operators[n], content, narrow)}
    return wide or found


def _float_kernels(content: tflite_model.Flatbuffer) -> dict[int, FloatArray]:
    """The float kernels of convolutions and dense layers, by number of the operator."""
    found: dict[int, FloatArray] = {}
    for number, op in enumerate(content.operators):
        kernel = content.tensors[op.inputs[1]] if op.name in OPERATORS else None
        if kernel is None or kernel.dtype != "float32" or kernel.data is None:
            continue
        if not np.isfinite(kernel.data).all():
            raise UsageError(f"kernel {layer_name(kernel)}", "NaN or infinity", "finite weights")
        found[number] = kernel.data
    return found


def _is_narrow(op: tensors.Operator, content: tflite_model.Flatbuffer, narrow: int) -> bool:
    """Whether an operator is faster in float; one that reads a single position is not."""
    source, kernel = (content.tensors[index] for index in op.inputs[:2])
    channels = kernel.shape[0]
    return source.elements > source.shape[0] * source.shape[-1] and (
        min(channels, kernel.elements // channels) < narrow
    )


def round_kernel(weights: FloatArray) -> tuple[Int8, npt.NDArray[np.float32]]:
    """Quantized values and scales of a kernel, symmetric, with a scale per channel.

    The scale is the largest magnitude over 127; a channel of zeros has scale 1. Some weights close
    to a tie are rounded the other way, so that the quantized values of a channel sum to what its
    weights do. Equal weights of a channel keep equal values, zeros stay zeros.

    Args:
        weights: `[channels, ...]`, finite.
    """
    flat = weights.reshape(len(weights), -1).astype(np.float64)
    largest = np.abs(flat).max(axis=1)
    nonzero = largest >= _SMALLEST
    scales = np.where(nonzero, largest / _MAX_VALUE, 1).astype(np.float32)
    steps = np.where(nonzero[:, None], flat / scales[:, None], 0)
    values = np.stack([_rounded_to_equal_sum(channel) for channel in steps])
    return values.astype(np.int8).reshape(weights.shape), scales


def _rounded_to_equal_sum(steps: FloatArray) -> FloatArray:
    """A channel rounded to whole numbers of nearly the same sum."""
    values, inverse, counts = np.unique(steps, return_inverse=True, return_counts=True)
    whole = np.clip(np.rint(values), -_MAX_VALUE, _MAX_VALUE)
    added = whole - values
    excess = float(added @ counts)
    sign = np.sign(excess)
    for index in np.argsort(-sign * added, kind="stable"):
        if abs(excess) <= 0.5 or sign * added[index] < 0.5 - _TIE:
            break
        if counts[index] < 2 * abs(excess) and abs(whole[index] - sign) <= _MAX_VALUE:
            whole[index] -= sign
            excess -= sign * counts[index]
    rounded: FloatArray = whole[inverse.reshape(-1)]
    return rounded


def _output_shift(
    weights: FloatArray, values: Int8, scales: npt.NDArray[np.float32], mean: FloatArray
) -> FloatArray:
    """What the rounding adds to each output channel where the inputs are at their mean."""
    broad = scales.reshape(-1, *[1] * (values.ndim - 1)).astype(np.float64)
    error = (values * broad - weights).reshape(len(weights), -1, weights.shape[-1])
    shift: FloatArray = error.sum(axis=1) @ mean
    return shift


class _KernelEditor:
    """Replaces kernels and biases of some operators; constants that others share stay theirs."""

    def __init__(
        self, data: bytes, content: tflite_model.Flatbuffer, chosen: Collection[int]
    ) -> None:
        self.model = editor.open_flatbuffer(data)
        self._graph = self.model.subgraphs[0]
        self._content = content
        self._kernels: dict[int, int] = {}  # new tensor by the old one
        self._users = Counter(
            (index, slot == 1 and number in chosen)
            for number, op in enumerate(content.operators)
            for slot, index in enumerate(op.inputs)
        )

    def set_kernel(self, number: int, values: Int8, scales: npt.NDArray[np.float32]) -> None:
        """Gives an operator its int8 kernel; those that share it get the same one."""
        operator = self._graph.operators[number]
        old = int(operator.inputs[1])
        if old not in self._kernels:
            unshared = not self._users[old, False]
            self._kernels[old] = self._own_tensor(old, unshared)
            tensor = self._graph.tensors[self._kernels[old]]
            schema = tflite_model.schema()
            tensor.type = schema.TensorType.INT8
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = scales
            tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
            tensor.quantization.quantizedDimension = 0
            editor.set_constant(self.model, tensor, values)
        _set_input(operator, 1, self._kernels[old])
        if self._content.operators[number].name == "FULLY_CONNECTED":
            operator.builtinOptions.asymmetricQuantizeInputs = True

    def add_to_bias(self, number: int, change: FloatArray) -> None:
        """Changes an operator's bias, or gives it one; operators that shared it keep it."""
        operator = self._graph.operators[number]
        slots = self._content.operators[number].inputs
        if len(slots) > 2 and slots[2] >= 0:
            bias = self._content.tensors[slots[2]].data
            assert bias is not None
            unshared = self._users[slots[2], False] == 1
            own, change = self._own_tensor(slots[2], unshared), bias + change
        else:
            own = self._new_bias(self._graph.tensors[operator.inputs[1]], len(change))
        _set_input(operator, 2, own)
        editor.set_constant(self.model, self._graph.tensors[own], change.astype(np.float32))

    def _new_bias(self, kernel: Any, channels: int) -> int:
        float32 = tflite_model.schema().TensorType.FLOAT32
        self._graph.tensors.append(editor.new_tensor(kernel.name + b"/bias", [channels], float32))
        return len(self._graph.tensors) - 1

    def _own_tensor(self, old: int, unshared: bool) -> int:
        """The tensor itself where no other operator uses it, else a copy."""
        if unshared:
            return old
        self._graph.tensors.append(copy.copy(self._graph.tensors[old]))
        return len(self._graph.tensors) - 1


def _set_input(operator: Any, slot: int, index: int) -> None:
    """Has an operator read another tensor; its inputs as read are a view of the file."""
    inputs = [int(tensor) for tensor in operator.inputs]
    inputs += [-1] * (slot + 1 - len(inputs))
    inputs[slot] = index
    operator.inputs = np.array(inputs, np.int32)


def find_faults(
    original: tflite_model.Flatbuffer, quantized: tflite_model.Flatbuffer, narrow: int = NARROW
) -> list[str]:
    """Lists where a file is not the float file that it was made from, operator by operator.

    Wide kernels must be int8 and, dequantized, within a step of their weights, zeros must be zeros,
    and no channel may hold more distinct weights; other constants must be the same, but for the
    biases of the operators that were quantized.
    """
    if [op.name for op in original.operators] != [op.name for op in quantized.operators]:
        return ["the operators are not those of the float file"]
    faults, chosen = [], _chosen_kernels(original, narrow)
    pairs = zip(original.operators, quantized.operators, strict=True)
    for number, (before, after) in enumerate(pairs):
        for slot, (old, new) in enumerate(zip(before.inputs, after.inputs, strict=False)):
            if old < 0 or (number in chosen and slot == 2):
                continue
            first, second = original.tensors[old], quantized.tensors[new]
            if first.data is None:
                continue
            if number in chosen and slot == 1:
                faults += _kernel_faults(layer_name(first), first.data, second)
            elif bytes(first.buffer) != bytes(second.buffer) or first.dtype != second.dtype:
                faults.append(f"{layer_name(first)}: another constant than in the float file")
    return faults


def _kernel_faults(name: str, weights: FloatArray, tensor: Any) -> list[str]:
    values = tensor.data
    if tensor.dtype != "int8":
        return [f"{name}: {tensor.dtype} instead of int8"]
    if values is None or values.shape != weights.shape or len(tensor.scales) != len(weights):
        return [f"{name}: a kernel of another shape than in the float file"]
    expected, stored = weights.reshape(len(weights), -1).T, values.reshape(len(values), -1).T
    faults = []
    far = int(np.count_nonzero(np.abs(stored * tensor.scales - expected) > tensor.scales))
    if far:
        faults.append(f"{name}: {far} weights are more than a step from the float file's")
    lost = int(np.count_nonzero(stored[expected == 0]))
    if lost:
        faults.append(f"{name}: {lost} zeros of the kernel are not zero in the file")
    more = int(np.count_nonzero(kernels.distinct(stored) > kernels.distinct(expected)))
    if more:
        faults.append(f"{name}: {more} channels have more distinct weights than in the float file")
    return faults
