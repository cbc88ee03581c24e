"""A float file whose convolution and dense kernels become int8, a scale a channel; no data is read.

XNNPACK then multiplies integers, with activations that it quantizes on the way. Depthwise kernels
stay float: it has no integer kernel for them under float activations, and each would leave the
delegate. The converter's own "dynamic range" does that, which makes depthwise models slower than
float.

Narrow kernels stay float too. To round what a kernel reads and to scale what it makes costs as much
for few channels as for many; below `NARROW` of either it costs more than the integers win (with all
kernels in int8 V3-small takes 0.83 of the float time, so 0.69), and their bytes are few.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.export.rewrites import offsets
from mobilenet.export.verification.structure import name_of
from mobilenet.tflite import editor, kernels, tensors
from mobilenet.tflite import model as tflite_model

OPERATORS = ("CONV_2D", "FULLY_CONNECTED")
NARROW = 32  # values that one output is summed of, or channels; 16, 24, 48 and 64 were tried too
_MOST = 127  # codes are symmetric
_TIE = 0.25  # how far from it a weight may be that is rounded the other way, in steps
_SMALLEST = _MOST * np.finfo(np.float32).tiny  # below, a scale is no normal float32

Floats = npt.NDArray[np.floating]
Codes = npt.NDArray[np.int8]


def quantize(data: bytes, pictures: Floats | None = None, narrow: int = NARROW) -> bytes:
    """Rounds the wide kernels of a float file to int8 and mends their biases.

    Args:
        data: a float file with one graph.
        pictures: `[images, height, width, channels]`, preprocessed as the file takes them. Biases
            take back what the rounding adds on average to each channel when the file sees these;
            `offsets.noise_pictures` serves. `None` leaves the biases as they are.
        narrow: kernels of fewer channels, or of fewer values a channel, stay float where the map
            has more than one place; 0 for none. Where all would stay, all are rounded.

    Returns:
        The new file.

    Raises:
        UsageError: a kernel is not finite.
    """
    content = tflite_model.read(data)
    means = {} if pictures is None else offsets.input_means(content, pictures, OPERATORS)
    chosen = _chosen(content, narrow)
    file = _Editor(data, content, chosen)
    for number, kernel in chosen.items():
        codes, scales = rounded(kernel)
        file.set_kernel(number, codes, scales)
        source = content.operators[number].inputs[0]
        if source in means:
            file.add_to_bias(number, -_shift(kernel, codes, scales, means[source]))
    return editor.packed(file.model)


def _chosen(content: tflite_model.Flatbuffer, narrow: int) -> dict[int, Floats]:
    """The kernels that are to be int8, by number of the operator."""
    found = _kernels(content)
    wide = {n: k for n, k in found.items() if not _is_narrow(content.operators[n], content, narrow)}
    return wide or found


def _kernels(content: tflite_model.Flatbuffer) -> dict[int, Floats]:
    """The float kernels of convolutions and dense layers, by number of the operator."""
    found: dict[int, Floats] = {}
    for number, op in enumerate(content.operators):
        kernel = content.tensors[op.inputs[1]] if op.name in OPERATORS else None
        if kernel is None or kernel.dtype != "float32" or kernel.data is None:
            continue
        if not np.isfinite(kernel.data).all():
            raise UsageError(f"kernel {name_of(kernel)}", "NaN or infinity", "finite weights")
        found[number] = kernel.data
    return found


def _is_narrow(op: tensors.Operator, content: tflite_model.Flatbuffer, narrow: int) -> bool:
    """Whether an operator is faster in float; one that reads a single place is not."""
    source, kernel = (content.tensors[index] for index in op.inputs[:2])
    channels = kernel.shape[0]
    return source.elements > source.shape[0] * source.shape[-1] and (
        min(channels, kernel.elements // channels) < narrow
    )


def rounded(weights: Floats) -> tuple[Codes, npt.NDArray[np.float32]]:
    """Codes and scales of a kernel, symmetric, a scale a channel.

    The scale is the largest magnitude over 127; a channel of zeros has scale 1. Some weights close
    to a tie go the other way, so that the codes of a channel sum to what its weights do. Equal
    weights of a channel keep equal codes, zeros stay zeros.

    Args:
        weights: `[channels, ...]`, finite.
    """
    flat = weights.reshape(len(weights), -1).astype(np.float64)
    reach = np.abs(flat).max(axis=1)
    live = reach >= _SMALLEST
    scales = np.where(live, reach / _MOST, 1).astype(np.float32)
    steps = np.where(live[:, None], flat / scales[:, None], 0)
    codes = np.stack([_balanced(channel) for channel in steps])
    return codes.astype(np.int8).reshape(weights.shape), scales


def _balanced(steps: Floats) -> Floats:
    """Whole numbers beside those of a channel, of nearly the same sum."""
    values, place, counts = np.unique(steps, return_inverse=True, return_counts=True)
    whole = np.clip(np.rint(values), -_MOST, _MOST)
    added = whole - values
    excess = float(added @ counts)
    sign = np.sign(excess)
    for index in np.argsort(-sign * added, kind="stable"):
        if abs(excess) <= 0.5 or sign * added[index] < 0.5 - _TIE:
            break
        if counts[index] < 2 * abs(excess) and abs(whole[index] - sign) <= _MOST:
            whole[index] -= sign
            excess -= sign * counts[index]
    balanced: Floats = whole[place.reshape(-1)]
    return balanced


def _shift(weights: Floats, codes: Codes, scales: npt.NDArray[np.float32], mean: Floats) -> Floats:
    """What the rounding adds to each output channel where the inputs are at their mean."""
    broad = scales.reshape(-1, *[1] * (codes.ndim - 1)).astype(np.float64)
    error = (codes * broad - weights).reshape(len(weights), -1, weights.shape[-1])
    shift: Floats = error.sum(axis=1) @ mean
    return shift


class _Editor:
    """Puts kernels and biases of some operators into a file; what others share is left to them."""

    def __init__(
        self, data: bytes, content: tflite_model.Flatbuffer, chosen: Collection[int]
    ) -> None:
        self.model = editor.opened(data)
        self._graph = self.model.subgraphs[0]
        self._content = content
        self._kernels: dict[int, int] = {}  # new tensor by the old one
        self._users = Counter(
            (index, slot == 1 and number in chosen)
            for number, op in enumerate(content.operators)
            for slot, index in enumerate(op.inputs)
        )

    def set_kernel(self, number: int, codes: Codes, scales: npt.NDArray[np.float32]) -> None:
        """Gives an operator its int8 kernel; those that share it come to the same one."""
        operator = self._graph.operators[number]
        old = int(operator.inputs[1])
        if old not in self._kernels:
            alone = not self._users[old, False]
            self._kernels[old] = self._tensor(old, alone)
            tensor = self._graph.tensors[self._kernels[old]]
            schema = tflite_model.schema()
            tensor.type = schema.TensorType.INT8
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = scales
            tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
            tensor.quantization.quantizedDimension = 0
            editor.fill(self.model, tensor, codes)
        _point(operator, 1, self._kernels[old])
        if self._content.operators[number].name == "FULLY_CONNECTED":
            operator.builtinOptions.asymmetricQuantizeInputs = True

    def add_to_bias(self, number: int, change: Floats) -> None:
        """Changes an operator's bias, or gives it one; others that had the same one keep it."""
        operator = self._graph.operators[number]
        slots = self._content.operators[number].inputs
        if len(slots) > 2 and slots[2] >= 0:
            held = self._content.tensors[slots[2]].data
            assert held is not None
            own, change = self._tensor(slots[2], self._users[slots[2], False] == 1), held + change
        else:
            own = self._new_bias(self._graph.tensors[operator.inputs[1]], len(change))
        _point(operator, 2, own)
        editor.fill(self.model, self._graph.tensors[own], change.astype(np.float32))

    def _new_bias(self, kernel: Any, channels: int) -> int:
        float32 = tflite_model.schema().TensorType.FLOAT32
        self._graph.tensors.append(editor.tensor(kernel.name + b"/bias", [channels], float32))
        return len(self._graph.tensors) - 1

    def _tensor(self, old: int, alone: bool) -> int:
        """The tensor where nobody else uses it, else a twin."""
        if alone:
            return old
        twin = copy.copy(self._graph.tensors[old])
        self._graph.tensors.append(twin)
        return len(self._graph.tensors) - 1


def _point(operator: Any, slot: int, index: int) -> None:
    """Has an operator read another tensor; what the schema read is a view of the file."""
    inputs = [int(held) for held in operator.inputs]
    inputs += [-1] * (slot + 1 - len(inputs))
    inputs[slot] = index
    operator.inputs = np.array(inputs, np.int32)


def faults(
    original: tflite_model.Flatbuffer, made: tflite_model.Flatbuffer, narrow: int = NARROW
) -> list[str]:
    """What a file lost of the float file it was made from, operator by operator.

    Wide kernels must be int8 and, dequantized, within a step of their weights, zeros must be zeros,
    and no channel may hold more distinct weights; other constants must be the same, but for the
    biases of the operators that were quantized.
    """
    if [op.name for op in original.operators] != [op.name for op in made.operators]:
        return ["the operators are not those of the float file"]
    found, chosen = [], _chosen(original, narrow)
    pairs = zip(original.operators, made.operators, strict=True)
    for number, (before, after) in enumerate(pairs):
        for slot, (old, new) in enumerate(zip(before.inputs, after.inputs, strict=False)):
            if old < 0 or (number in chosen and slot == 2):
                continue
            first, second = original.tensors[old], made.tensors[new]
            if first.data is None:
                continue
            if number in chosen and slot == 1:
                found += _kernel_faults(name_of(first), first.data, second)
            elif bytes(first.buffer) != bytes(second.buffer) or first.dtype != second.dtype:
                found.append(f"{name_of(first)}: another constant than in the float file")
    return found


def _kernel_faults(name: str, weights: Floats, tensor: Any) -> list[str]:
    codes = tensor.data
    if tensor.dtype != "int8":
        return [f"{name}: {tensor.dtype} instead of int8"]
    if codes is None or codes.shape != weights.shape or len(tensor.scales) != len(weights):
        return [f"{name}: a kernel of another shape than in the float file"]
    real, held = weights.reshape(len(weights), -1).T, codes.reshape(len(codes), -1).T
    found = []
    far = int(np.count_nonzero(np.abs(held * tensor.scales - real) > tensor.scales))
    if far:
        found.append(f"{name}: {far} weights are more than a step from the float file's")
    lost = int(np.count_nonzero(held[real == 0]))
    if lost:
        found.append(f"{name}: {lost} zeros of the kernel are not zero in the file")
    grown = int(np.count_nonzero(kernels.distinct(held) > kernels.distinct(real)))
    if grown:
        found.append(f"{name}: {grown} channels have more distinct weights than in the float file")
    return found
