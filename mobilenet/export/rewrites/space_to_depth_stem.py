"""The first convolution on pairs of pixels: the same values in two thirds of the work.

XNNPACK's int8 kernels of x86 (and of ARM with int8 matrix instructions) fill the channels of each
pixel up to 8, so a 3x3 kernel on RGB costs 9 x 8 multiplications where 9 x 3 would do. Two
neighbors read as one pixel of 6 channels make a stride of 2 a stride of 1, and the kernel 2 pairs
wide, whose fourth column is zero: 6 x 8. The sums are of the same products, so every value
stays the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mobilenet.tflite import editor, tensors
from mobilenet.tflite import model as tflite_model

_FILLED = 8  # channels of a pixel, filled up
_WIDTH, _STRIDE = 3, 2
_SAME = 0  # schema.fbs: Padding


def pair_pixels(data: bytes) -> bytes:
    """Rewrites an int8 file so that its first convolution reads pairs of pixels.

    Args:
        data: the file as converted.

    Returns:
        The file with a RESHAPE to `[batch, height, width / 2, 2 x channels]` before its first
        convolution; unchanged unless that is one of width 3 and stride 2, padded as `SAME`, on an
        int8 input of even width and at most 4 channels.
    """
    content = tflite_model.read(data)
    index = next((i for i, op in enumerate(content.operators) if _fits(op, content)), None)
    if index is None:
        return data
    model = editor.open_flatbuffer(data)
    graph = model.subgraphs[0]
    convolution = graph.operators[index]
    source, kernel = (int(tensor) for tensor in convolution.inputs[:2])
    _pair_kernel(model, graph.tensors[kernel], content.tensors[kernel].data)
    convolution.builtinOptions.strideW = 1
    reshape, pairs = _reshape(model, graph, source)
    convolution.inputs = [pairs, *convolution.inputs[1:]]
    graph.operators = [*graph.operators[:index], reshape, *graph.operators[index:]]
    return editor.pack_flatbuffer(model)


def _fits(op: tensors.Operator, content: tflite_model.Flatbuffer) -> bool:
    """Whether this is the first convolution, and one that pairs make cheaper."""
    if op.name != "CONV_2D":
        return False
    source, kernel = (content.tensors[index] for index in op.inputs[:2])
    first = [op.inputs[0]]  # the file's input, or its QUANTIZE's where that is float or uint8
    for before in content.operators:
        if before.name == "QUANTIZE" and op.inputs[0] in before.outputs:
            first = [*before.inputs]
    return (
        first[0] in content.inputs
        and source.dtype == kernel.dtype == "int8"
        and kernel.data is not None
        and _is_unshared(op.inputs[1], content)
        and kernel.shape[2] == _WIDTH
        and 2 * kernel.shape[3] <= _FILLED
        and source.shape[2] % 2 == 0
        and source.signature[1:] in ((), source.shape[1:])
        and op.options["stride_w"] == _STRIDE
        and op.options["dilation_w"] == 1
        and op.options["padding"] == _SAME
    )


def _is_unshared(index: int, content: tflite_model.Flatbuffer) -> bool:
    """Whether only one operator reads a constant, so that it may change."""
    return sum(op.inputs.count(index) for op in content.operators) == 1


def _pair_kernel(model: Any, tensor: Any, values: Any) -> None:
    """`[channels, height, 3, inputs]` becomes `[channels, height, 2, 2 x inputs]`."""
    padded = np.pad(values, ((0, 0), (0, 0), (0, 1), (0, 0)))
    paired = padded.reshape(*values.shape[:2], 2, 2 * values.shape[3])
    tensor.shape = list(paired.shape)
    editor.set_constant(model, tensor, paired)


def _reshape(model: Any, graph: Any, source: int) -> tuple[Any, int]:
    """The operator that pairs the pixels of a tensor, and the index of its output."""
    schema, read = tflite_model.schema(), graph.tensors[source]
    is_open = read.shapeSignature is not None and -1 in read.shapeSignature
    batch, height, width, channels = (int(size) for size in read.shape)
    pairs = [height, width // 2, 2 * channels]
    new_shape = [-1 if is_open else batch, *pairs]
    name = bytes(read.name)
    shape = editor.new_tensor(name + b"/pairs/shape", [len(new_shape)], schema.TensorType.INT32)
    shape.buffer = editor.add_buffer(model, np.asarray(new_shape, np.int32))
    paired = editor.new_tensor(name + b"/pairs", [batch, *pairs], read.type)
    paired.quantization = read.quantization
    paired.shapeSignature = new_shape if is_open else None
    first = len(graph.tensors)
    graph.tensors = [*graph.tensors, shape, paired]
    options = schema.ReshapeOptionsT()
    options.newShape = new_shape
    operator = schema.OperatorT()
    operator.opcodeIndex = editor.operator_code(model, schema.BuiltinOperator.RESHAPE)
    operator.inputs, operator.outputs = [source, first], [first + 1]
    operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    operator.builtinOptions = options
    return operator, first + 1
