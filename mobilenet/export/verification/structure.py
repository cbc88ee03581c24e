"""What is inside a flatbuffer that was made here, and what is wrong with it, without running it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mobilenet.configs.card import Edge
from mobilenet.configs.number_formats import Format
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.export.rewrites import float_fallback
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite import tensors

FLOAT_STEP = 1e-3  # "step" of a file whose logits are float
_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}
_KERNEL_AXIS = {**_CHANNEL_AXIS, "FULLY_CONNECTED": 0}
_SCALE_SLACK = 1e-3  # scales are float32 products
# XNNPACK, src/operators/convolution-nhwc.c: "requantization scale greater or equal to 256.0".
_MAX_RESCALING = 256.0
_CHANCE = 4  # fewer channels may share a bias code by chance


def structure_faults(
    content: tflite_model.Flatbuffer,
    expect_int8: bool,
    io: str,
    pixel_std: float | None = 127.5,
    kept: float_fallback.Kept = float_fallback.NOTHING,
) -> list[str]:
    """Lists what is wrong inside a file, without running it.

    Args:
        content: the file.
        expect_int8, io: what must be inside, and the type of both ends.
        pixel_std: of the preprocessing; `None` where it has one a channel.
        kept: what must compute in float inside an int8 file; nothing else may.
    """
    one_of("io", io, ("int8", "uint8", "float32"))
    faults = []
    if len(content.inputs) != 1 or len(content.outputs) != 1:
        faults.append(
            f"{len(content.inputs)} inputs and {len(content.outputs)} outputs instead of one each"
        )
    for end, index in (("input", content.inputs[0]), ("output", content.outputs[0])):
        dtype = content.tensors[index].dtype
        if dtype != io:
            faults.append(f"{end} is {dtype} instead of {io}")
    if not expect_int8:
        return faults
    faults += _float_faults(content, kept)
    if pixel_std is not None:
        faults += _input_grid_faults(content, pixel_std)
    for op in content.operators:
        if op.name in _CHANNEL_AXIS:
            faults += _convolution_faults(op, content)
    return faults


def check_rescaling(content: tflite_model.Flatbuffer) -> None:
    """Refuses a file with a kernel that XNNPACK cannot compute in int8, and names the layer.

    What a channel sums up, in steps of input times kernel, becomes steps of the output by one
    factor. A channel whose weights are far larger than what the output's range holds needs a
    factor that the runtime does not take; the whole file could then not be run.

    Raises:
        UsageError: there is one.
    """
    for op in content.operators:
        if op.name not in _KERNEL_AXIS:
            continue
        source, kernel = (content.tensors[index] for index in op.inputs[:2])
        result = content.tensors[op.outputs[0]]
        if not (source.scales.size and kernel.scales.size and result.scales.size):
            continue
        factors = source.scales[0].astype(np.float64) * kernel.scales / result.scales[0]
        if factors.max() < _MAX_RESCALING:
            continue
        layer = shorten(sorted(float_fallback.layers_of(kernel))) or name_of(kernel)
        channel, ratio = int(factors.argmax()), float(factors.max() / np.median(factors))
        raise UsageError(
            layer,
            f"channel {channel} at {ratio:,.0f} times the median channel",
            "channels that one int8 layer can hold",
            f"--keep_float {layer} computes it in float; or train on with weight decay",
        )


def format_faults(content: tflite_model.Flatbuffer, wanted: Format) -> list[str]:
    """Lists where a file is not of a number format: stored kernels, their scales, what is made."""
    makers = {index: op for op in content.operators for index in op.outputs}
    unpacked = {
        op.outputs[0]: content.tensors[op.inputs[0]]
        for op in content.operators
        if op.name == "DEQUANTIZE" and content.tensors[op.inputs[0]].is_constant
    }
    faults, stored = [], set()
    for op in content.operators:
        if op.name not in _KERNEL_AXIS:
            continue
        kernel = content.tensors[op.inputs[1]]
        if wanted.partly and kernel.is_constant and kernel.dtype == "float32":
            continue
        if (kernel.index in unpacked) != wanted.unpacked:
            how = "without" if wanted.unpacked else "behind"
            faults.append(f"the kernel {name_of(kernel)} is {how} a DEQUANTIZE")
        held = unpacked.get(kernel.index, kernel)
        stored.add(held.dtype)
        faults += _kernel_faults(op.name, held, wanted)
        faults += _bias_faults(op, content)
    if wanted.partly and wanted.kernel not in stored:
        faults.append(f"no kernel is {wanted.kernel}")
    ends = {*content.inputs, *content.outputs}
    others = [
        f"{name_of(content.tensors[index])} ({content.tensors[index].dtype})"
        for index in makers
        if index not in {*ends, *unpacked} and content.tensors[index].dtype != wanted.computed
    ]
    if others:
        faults.append(f"{len(others)} tensors are not {wanted.computed}: {shorten(others)}")
    return faults


def _kernel_faults(operator: str, kernel: tensors.Tensor, wanted: Format) -> Iterator[str]:
    """What is wrong with the type or the scales of a kernel as it is stored."""
    dtype = wanted.depthwise if operator == "DEPTHWISE_CONV_2D" else wanted.kernel
    if not kernel.is_constant or kernel.dtype != dtype:
        yield f"the kernel {name_of(kernel)} is {kernel.dtype} instead of {dtype}"
    elif dtype in ("int8", "int4"):
        axis = _KERNEL_AXIS[operator]
        channels = kernel.shape[axis]
        if len(kernel.scales) != channels or (channels > 1 and kernel.quantized_dimension != axis):
            yield f"{name_of(kernel)} has {len(kernel.scales)} scales for {channels} channels"
        if np.any(kernel.zero_points):
            yield f"{name_of(kernel)} has zero points other than 0"


def _bias_faults(op: tensors.Operator, content: tflite_model.Flatbuffer) -> Iterator[str]:
    """A bias of codes has the scale of the input times that of its channel's kernel."""
    if len(op.inputs) < 3 or op.inputs[2] < 0:
        return
    source, kernel, bias = (content.tensors[index] for index in op.inputs[:3])
    if not len(bias.scales) or not len(source.scales):
        return
    expected = source.scales[0].astype(np.float64) * kernel.scales
    if not np.allclose(bias.scales, expected, rtol=_SCALE_SLACK, atol=0):
        yield f"{name_of(kernel)}: its bias has other scales than input times kernel"


def inner_float_tensors(content: tflite_model.Flatbuffer) -> list[str]:
    """Names of the float tensors that are not an end of the file."""
    ends = {*content.inputs, *content.outputs}
    return [name_of(tensor) for tensor in content.float_tensors() if tensor.index not in ends]


def output_step(content: tflite_model.Flatbuffer) -> float:
    """The logit that one int8 code is worth; `FLOAT_STEP` where the file computes them in float."""
    sink = content.outputs[0]
    for op in content.operators:
        if op.name == "DEQUANTIZE" and sink in op.outputs:
            sink = op.inputs[0]
    return edge_of(content.tensors[sink]).scale or FLOAT_STEP


def _float_faults(content: tflite_model.Flatbuffer, kept: float_fallback.Kept) -> Iterator[str]:
    """Float operators and tensors must be those of the layers that are kept, and these be float."""
    ends = {*content.inputs, *content.outputs}
    floats = {tensor.index for tensor in content.float_tensors()}
    allowed = {
        id(op)
        for island in float_fallback.find(content).values()
        if any(_is_kept(held, content, kept) for held in island.operators)
        for op in island.operators
    }
    used: set[int] = set(ends)
    others = []
    for op in content.operators:
        touched = floats.intersection(op.inputs + op.outputs)
        if op.name in float_fallback.CONVERSIONS:
            fits = touched <= ends or (id(op) in allowed and op.inputs[0] not in _held(content))
        else:
            fits = id(op) in allowed and _is_kept(op, content, kept)
        if touched and fits:
            used |= touched
        elif touched:
            others.append(op.name)
    names = [name_of(content.tensors[index]) for index in sorted(floats - used)]
    if names:
        yield f"{len(names)} float tensors inside: {shorten(names)}"
    if others:
        yield f"float operators: {shorten(others)}"
    for layer in kept.kernels:
        places = float_fallback.kernel_operators(content, layer)
        kernels = [content.operators[place].inputs[1] for place in places]
        if not kernels or not all(k in floats and k in _held(content) for k in kernels):
            yield f"{layer} does not compute in float"


def _is_kept(
    op: tensors.Operator, content: tflite_model.Flatbuffer, kept: float_fallback.Kept
) -> bool:
    """Whether an operator is one of a layer that computes in float, its conversions apart."""
    named = float_fallback.layers_of(content.tensors[op.outputs[0]])
    return op.name not in float_fallback.CONVERSIONS and not named.isdisjoint(kept.layers)


def _held(content: tflite_model.Flatbuffer) -> set[int]:
    """The constants of a file."""
    return {tensor.index for tensor in content.tensors if tensor.is_constant}


def _input_grid_faults(content: tflite_model.Flatbuffer, std: float) -> list[str]:
    """The code of a pixel must be the pixel minus 128: other grids put pixels between two codes."""
    source = content.inputs[0]
    if content.tensors[source].dtype != "int8":  # then the first operator makes the codes
        readers = [op for op in content.operators if op.name == "QUANTIZE" and source in op.inputs]
        source = readers[0].outputs[0] if readers else source
    edge = edge_of(content.tensors[source])
    if abs(edge.scale * std - 1) > 1e-6 or edge.zero_point != 0:
        found = f"input scale {edge.scale:.8g} and zero point {edge.zero_point}"
        return [f"{found} instead of 1/{std:g} and 0"]
    return []


def _convolution_faults(op: tensors.Operator, content: tflite_model.Flatbuffer) -> Iterator[str]:
    kernel = content.tensors[op.inputs[1]]
    axis = _CHANNEL_AXIS[op.name]
    channels, scales = kernel.shape[axis], np.asarray(kernel.scales, np.float64)
    if kernel.dtype != "int8":
        return  # told as a float operator
    if len(scales) != channels or (channels > 1 and kernel.quantized_dimension != axis):
        yield f"{name_of(kernel)} has {len(scales)} scales for {channels} channels"
    if len(op.inputs) < 3 or op.inputs[2] < 0 or content.tensors[op.inputs[2]].dtype != "int32":
        return
    bias = content.tensors[op.inputs[2]].data
    if bias is None:
        return
    largest = np.iinfo(np.int32).max
    saturated = int(np.count_nonzero(np.abs(bias.astype(np.int64)) >= largest))
    if saturated:
        what = f"{saturated} biases out of int32's range (channels hardly weighted)"
        yield f"{name_of(kernel)}: {what}"
    elif len(bias) >= _CHANCE and bias[0] and np.ptp(bias) == 0 and np.ptp(scales) > 0:
        yield f"{name_of(kernel)}: one bias code for all channels, whose scales differ"


def name_of(tensor: tensors.Tensor) -> str:
    """The first of the names that the converter joins when it fuses layers."""
    return tensor.name.split(";")[0]


def edge_of(tensor: tensors.Tensor) -> Edge:
    if not len(tensor.scales):
        return Edge(tensor.dtype)
    return Edge(tensor.dtype, float(tensor.scales[0]), int(tensor.zero_points[0]))
