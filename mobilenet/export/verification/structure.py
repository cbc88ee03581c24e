"""The structure of a flatbuffer that was made here, and its faults, without running it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mobilenet.configs.card import TensorType
from mobilenet.configs.number_formats import FORMATS, INT8, Format
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.export.rewrites import float_fallback
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite import tensors
from mobilenet.tflite.tensors import layer_name

FLOAT_STEP = 1e-3  # "step" of a file whose logits are float
_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}
_KERNEL_AXIS = {**_CHANNEL_AXIS, "FULLY_CONNECTED": 0}
_SCALE_SLACK = 1e-3  # scales are float32 products
# XNNPACK, src/operators/convolution-nhwc.c: "requantization scale greater or equal to 256.0".
_MAX_RESCALING = 256.0
_ZERO_PIXEL = 128  # of a model for [-1, 1]
_CHANCE = 4  # fewer channels may share a quantized bias by chance


def structure_faults(
    content: tflite_model.Flatbuffer,
    expect_int8: bool,
    io: str,
    pixel_std: float | None = 127.5,
    float_layers: float_fallback.FloatLayers = float_fallback.NO_FLOAT_LAYERS,
    pixel_zero: int = _ZERO_PIXEL,
) -> list[str]:
    """Lists what is wrong inside a file, without running it.

    Args:
        content: the file.
        expect_int8: whether it must be int8 inside.
        io: the type that its input and output must have.
        pixel_std: of the preprocessing; `None` where it has one per channel.
        float_layers: what must compute in float inside an int8 file; nothing else may.
        pixel_zero: the pixel that is zero for the file.
    """
    one_of("io", io, ("int8", "uint8", "float32"))
    faults = []
    if len(content.inputs) != 1 or len(content.outputs) != 1:
        faults.append(
            f"{len(content.inputs)} inputs and {len(content.outputs)} outputs instead of one each"
        )
    for name, index in (("input", content.inputs[0]), ("output", content.outputs[0])):
        dtype = content.tensors[index].dtype
        if dtype != io:
            faults.append(f"{name} is {dtype} instead of {io}")
    if not expect_int8:
        return faults
    faults += _float_faults(content, float_layers)
    if pixel_std is not None:
        faults += _input_grid_faults(content, pixel_std, pixel_zero)
    for op in content.operators:
        if op.name in _CHANNEL_AXIS:
            faults += _convolution_faults(op, content)
    return faults


def check_rescaling(content: tflite_model.Flatbuffer) -> None:
    """Refuses a file with a kernel that XNNPACK cannot compute in int8, and names the layer.

    A channel's sum, in steps of input times kernel, becomes steps of the output by one factor. A
    channel whose weights are far too large for the output's range needs a factor that the runtime
    refuses, and with it the whole file.

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
        layer = _layer_of_kernel(kernel)
        channel, ratio = int(factors.argmax()), float(factors.max() / np.median(factors))
        raise UsageError(
            layer,
            f"channel {channel} at {ratio:,.0f} times the median channel",
            "channels that one int8 layer can hold",
            f"`keep_float={layer}` computes it in float; or train on with weight decay",
        )


def _layer_of_kernel(kernel: tensors.Tensor) -> str:
    words = tensors.name_paths(kernel.name)[0]
    marked = [word for word in words if word.startswith(float_fallback.QUANTIZED)]
    return marked[0].removeprefix(float_fallback.QUANTIZED) if marked else words[0]


def format_faults(content: tflite_model.Flatbuffer, number_format: Format) -> list[str]:
    """Lists where a file is not of a number format: kernels, their scales, computed tensors."""
    producers = {index: op for op in content.operators for index in op.outputs}
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
        if number_format.mixed and kernel.is_constant and kernel.dtype == "float32":
            continue
        if (kernel.index in unpacked) != number_format.dequantized:
            relation = "lacks" if number_format.dequantized else "has"
            faults.append(f"the kernel {layer_name(kernel)} {relation} a DEQUANTIZE")
        constant = unpacked.get(kernel.index, kernel)
        stored.add(constant.dtype)
        faults += _kernel_faults(op.name, constant, number_format)
        faults += _bias_faults(op, content)
    if number_format.mixed and number_format.kernel not in stored:
        faults.append(f"no kernel is {number_format.kernel}")
    io = {*content.inputs, *content.outputs}
    others = [
        f"{layer_name(content.tensors[index])} ({content.tensors[index].dtype})"
        for index in producers
        if index not in {*io, *unpacked} and content.tensors[index].dtype != number_format.computed
    ]
    if others:
        faults.append(f"{len(others)} tensors are not {number_format.computed}: {shorten(others)}")
    return faults


def _kernel_faults(operator: str, kernel: tensors.Tensor, number_format: Format) -> Iterator[str]:
    """What is wrong with the type or the scales of a kernel as it is stored."""
    dtype = number_format.depthwise if operator == "DEPTHWISE_CONV_2D" else number_format.kernel
    if not kernel.is_constant or kernel.dtype != dtype:
        yield f"the kernel {layer_name(kernel)} is {kernel.dtype} instead of {dtype}"
    elif dtype in ("int8", "int4"):
        axis = _KERNEL_AXIS[operator]
        channels = kernel.shape[axis]
        if len(kernel.scales) != channels or (channels > 1 and kernel.quantized_dimension != axis):
            yield f"{layer_name(kernel)} has {len(kernel.scales)} scales for {channels} channels"
        if np.any(kernel.zero_points):
            yield f"{layer_name(kernel)} has zero points other than 0"


def _bias_faults(op: tensors.Operator, content: tflite_model.Flatbuffer) -> Iterator[str]:
    """A quantized bias has the scale of the input times that of its channel's kernel."""
    if len(op.inputs) < 3 or op.inputs[2] < 0:
        return
    source, kernel, bias = (content.tensors[index] for index in op.inputs[:3])
    if not len(bias.scales) or not len(source.scales):
        return
    expected = source.scales[0].astype(np.float64) * kernel.scales
    if not np.allclose(bias.scales, expected, rtol=_SCALE_SLACK, atol=0):
        yield f"{layer_name(kernel)}: its bias has other scales than input times kernel"


def is_int8(content: tflite_model.Flatbuffer) -> bool:
    """Whether a file computes convolutions or dense layers in int8."""
    return any(
        op.name in _KERNEL_AXIS and content.tensors[op.outputs[0]].dtype == INT8
        for op in content.operators
    )


def find_format(content: tflite_model.Flatbuffer) -> str | None:
    """The number format of a file, `None` for none that is known."""
    if is_int8(content):
        return INT8
    return next((name for name, kind in FORMATS.items() if not format_faults(content, kind)), None)


def has_pixel_grid(content: tflite_model.Flatbuffer, std: float) -> bool:
    """Whether a file quantizes a pixel to the pixel minus 128.

    Args:
        content: the file.
        std: of the preprocessing.
    """
    return not _input_grid_faults(content, std)


def inner_float_tensors(content: tflite_model.Flatbuffer) -> list[str]:
    """Names of the float tensors that are neither input nor output of the file."""
    io = {*content.inputs, *content.outputs}
    return [layer_name(tensor) for tensor in content.float_tensors() if tensor.index not in io]


def output_step(content: tflite_model.Flatbuffer) -> float:
    """The step of the int8 logits; `FLOAT_STEP` where the file computes them in float."""
    sink = content.outputs[0]
    for op in content.operators:
        if op.name == "DEQUANTIZE" and sink in op.outputs:
            sink = op.inputs[0]
    return io_of(content.tensors[sink]).scale or FLOAT_STEP


def _float_faults(
    content: tflite_model.Flatbuffer, float_layers: float_fallback.FloatLayers
) -> Iterator[str]:
    """Float operators and tensors must be those of the float layers, and these must be float."""
    io = {*content.inputs, *content.outputs}
    floats = {tensor.index for tensor in content.float_tensors()}
    constants = {tensor.index for tensor in content.tensors if tensor.is_constant}
    allowed = {
        id(op)
        for region in float_fallback.find_float_regions(content).values()
        if any(_is_float_layer(member, content, float_layers) for member in region.operators)
        for op in region.operators
    }
    used: set[int] = set(io)
    others = []
    for op in content.operators:
        touched = floats.intersection(op.inputs + op.outputs)
        if op.name in float_fallback.CONVERSIONS:
            fits = touched <= io or (id(op) in allowed and op.inputs[0] not in constants)
        else:
            fits = id(op) in allowed and _is_float_layer(op, content, float_layers)
        if touched and fits:
            used |= touched
        elif touched:
            others.append(op.name)
    names = [layer_name(content.tensors[index]) for index in sorted(floats - used)]
    if names:
        yield f"{len(names)} float tensors inside: {shorten(names)}"
    if others:
        yield f"float operators: {shorten(others)}"
    for layer in float_layers.kernels:
        numbers = float_fallback.kernel_operators(content, layer)
        kernels = [content.operators[number].inputs[1] for number in numbers]
        if not kernels or not all(k in floats and k in constants for k in kernels):
            yield f"{layer} does not compute in float"


def _is_float_layer(
    op: tensors.Operator,
    content: tflite_model.Flatbuffer,
    float_layers: float_fallback.FloatLayers,
) -> bool:
    """Whether an operator is one of a layer that computes in float, its conversions apart."""
    layers = float_fallback.layers_of(content.tensors[op.outputs[0]])
    return op.name not in float_fallback.CONVERSIONS and not layers.isdisjoint(float_layers.layers)


def _input_grid_faults(
    content: tflite_model.Flatbuffer, std: float, zero: int = _ZERO_PIXEL
) -> list[str]:
    """A pixel must be quantized to the pixel minus 128; other grids put pixels between two
    values.
    """
    source = content.inputs[0]
    if content.tensors[source].dtype != "int8":  # then the first operator quantizes
        readers = [op for op in content.operators if op.name == "QUANTIZE" and source in op.inputs]
        source = readers[0].outputs[0] if readers else source
    quantization = io_of(content.tensors[source])
    scale, zero_point = quantization.scale, quantization.zero_point
    expected = zero - _ZERO_PIXEL
    if abs(scale * std - 1) > 1e-6 or zero_point != expected:
        return [
            f"input scale {scale:.8g} and zero point {zero_point} instead of 1/{std:g} and "
            f"{expected}"
        ]
    return []


def _convolution_faults(op: tensors.Operator, content: tflite_model.Flatbuffer) -> Iterator[str]:
    kernel = content.tensors[op.inputs[1]]
    axis = _CHANNEL_AXIS[op.name]
    channels, scales = kernel.shape[axis], np.asarray(kernel.scales, np.float64)
    if kernel.dtype != "int8":
        return  # reported as a float operator
    if len(scales) != channels or (channels > 1 and kernel.quantized_dimension != axis):
        yield f"{layer_name(kernel)} has {len(scales)} scales for {channels} channels"
    if len(op.inputs) < 3 or op.inputs[2] < 0 or content.tensors[op.inputs[2]].dtype != "int32":
        return
    bias = content.tensors[op.inputs[2]].data
    if bias is None:
        return
    largest = np.iinfo(np.int32).max
    saturated = int(np.count_nonzero(np.abs(bias.astype(np.int64)) >= largest))
    if saturated:
        reason = f"{saturated} biases out of int32's range (channels hardly weighted)"
        yield f"{layer_name(kernel)}: {reason}"
    elif len(bias) >= _CHANCE and bias[0] and np.ptp(bias) == 0 and np.ptp(scales) > 0:
        yield f"{layer_name(kernel)}: one quantized bias for all channels, whose scales differ"


def io_of(tensor: tensors.Tensor) -> TensorType:
    """Type and quantization of an input or output."""
    if not len(tensor.scales):
        return TensorType(tensor.dtype)
    return TensorType(tensor.dtype, float(tensor.scales[0]), int(tensor.zero_points[0]))
