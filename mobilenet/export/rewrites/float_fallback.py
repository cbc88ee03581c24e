"""Layers of an int8 file that compute in float: between a DEQUANTIZE and a QUANTIZE.

The converter leaves an operator in float where one of its tensors has no range, but quantizes every
kernel whose operator has a range on both sides. `restore_float` undoes that.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from mobilenet.tflite import editor, tensors
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite.kernels import KERNEL_OPERATORS
from mobilenet.typing import Float32Array

CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
QUANTIZED = "quant_"  # before the names of layers in a model with quantizers


@dataclasses.dataclass(frozen=True)
class FloatLayers:
    """What computes in float.

    Attributes:
        kernels: kernel and bias of each requested layer, by its name, with the batch norm
            folded in: `[channels, height, width, inputs]`, `[1, height, width, channels]` of a
            depthwise layer, `[channels, inputs]` of a dense one; and `[channels]`.
        layers: names of all layers that compute in float with them.
    """

    kernels: Mapping[str, tuple[Float32Array, Float32Array]] = dataclasses.field(
        default_factory=dict
    )
    layers: Collection[str] = ()


NO_FLOAT_LAYERS = FloatLayers()


@dataclasses.dataclass(frozen=True)
class FloatRegion:
    """Operators between a DEQUANTIZE and a QUANTIZE that compute one quantized tensor in float.

    Attributes:
        operators: in execution order, including the conversions.
        sources: the quantized tensors that they read.
    """

    operators: tuple[tensors.Operator, ...]
    sources: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of its last operator with a kernel, or of its last operator."""
        names = [op.name for op in self.operators if op.name not in CONVERSIONS]
        kernels = [name for name in names if name in KERNEL_OPERATORS]
        return f"{(kernels or names or ['QUANTIZE'])[-1]} in float"


def find_float_regions(content: tflite_model.Flatbuffer) -> dict[int, FloatRegion]:
    """The float regions of a file by their output tensor; a float input or output is none."""
    producers = {index: op for op in content.operators for index in op.outputs}
    floats = {tensor.index for tensor in content.float_tensors()}
    regions = {}
    for op in content.operators:
        if op.name != "QUANTIZE" or op.inputs[0] not in floats or op.inputs[0] not in producers:
            continue
        members, sources, pending = {id(op)}, [], list(op.inputs)
        while pending:
            index = pending.pop()
            if index not in floats:
                if index in producers or index in content.inputs:
                    sources.append(index)
            elif index in producers and id(producers[index]) not in members:
                members.add(id(producers[index]))
                pending += producers[index].inputs
        operators = tuple(other for other in content.operators if id(other) in members)
        regions[op.outputs[0]] = FloatRegion(operators, tuple(dict.fromkeys(sources)))
    return regions


def layers_of(tensor: tensors.Tensor) -> set[str]:
    """The layers of a tensor, in whose name those that were fused are joined."""
    names: set[str] = set()
    for words in tensors.name_paths(tensor.name):
        marked = {word for word in words if word.startswith(QUANTIZED)}
        names |= marked or {words[0]}
    return names | {name.removeprefix(QUANTIZED) for name in names}


def kernel_operators(content: tflite_model.Flatbuffer, layer: str) -> list[int]:
    """The numbers of the operators with a kernel that belong to a layer."""
    return [
        number
        for number, op in enumerate(content.operators)
        if op.name in KERNEL_OPERATORS and layer in layers_of(content.tensors[op.outputs[0]])
    ]


def restore_float(data: bytes, kernels: Mapping[str, tuple[Float32Array, Float32Array]]) -> bytes:
    """Makes the operators of some layers float again.

    Args:
        data: an int8 file.
        kernels: see `FloatLayers`; those that are float in the file are left as they are.

    Returns:
        The file in which the operators of these layers have float kernels and biases, between a
        DEQUANTIZE and a QUANTIZE. A layer without an operator of its own is left to
        `structure_faults`.
    """
    content = tflite_model.read(data)
    chosen = {}
    for layer, constants in kernels.items():
        operators = kernel_operators(content, layer)
        if len(operators) == 1 and _is_int8(content, operators[0]):
            chosen[operators[0]] = constants
    return _FloatRestorer(data, content).restore(chosen) if chosen else data


def _is_int8(content: tflite_model.Flatbuffer, number: int) -> bool:
    op = content.operators[number]
    return all(content.tensors[index].dtype == "int8" for index in (*op.inputs[:2], *op.outputs))


class _FloatRestorer:
    """Makes operators of a file float; constants that other operators share stay theirs."""

    def __init__(self, data: bytes, content: tflite_model.Flatbuffer) -> None:
        self.model = editor.open_flatbuffer(data)
        self.graph = self.model.subgraphs[0]
        self.users = Counter(index for op in content.operators for index in op.inputs)

    def restore(self, chosen: Mapping[int, tuple[Float32Array, Float32Array]]) -> bytes:
        """The new file; `chosen` holds kernel and bias by number of the operator."""
        operators = []
        for number, operator in enumerate(self.graph.operators):
            if number not in chosen:
                operators.append(operator)
                continue
            kernel, bias = chosen[number]
            source, output = int(operator.inputs[0]), int(operator.outputs[0])
            constants = [int(index) for index in operator.inputs[1:]]
            float_source, float_output = self._float_copy(source), self._float_copy(output)
            has_bias = len(constants) > 1 and constants[1] >= 0
            operator.inputs = [
                float_source,
                self._float_constant(constants[0], kernel),
                self._float_constant(constants[1] if has_bias else None, bias),
            ]
            operator.outputs = [float_output]
            operators += [
                self._conversion("DEQUANTIZE", source, float_source),
                operator,
                self._conversion("QUANTIZE", float_output, output),
            ]
        self.graph.operators = operators
        return editor.pack_flatbuffer(self.model)

    def _float_copy(self, index: int) -> int:
        """A computed float tensor in the shape of a quantized one."""
        tensor = copy.copy(self.graph.tensors[index])
        tensor.name, tensor.quantization, tensor.buffer = bytes(tensor.name) + b"/float", None, 0
        return self._add(tensor)

    def _float_constant(self, index: int | None, values: Float32Array) -> int:
        """A float constant instead of a quantized one."""
        if index is not None and self.users[index] == 1:
            tensor = self.graph.tensors[index]
        else:
            tensor = editor.new_tensor(b"kept_float", values.shape, 0)
            index = self._add(tensor)
        editor.set_constant(self.model, tensor, values)
        tensor.type, tensor.quantization = tflite_model.schema().TensorType.FLOAT32, None
        tensor.shape = list(values.shape)
        return index

    def _add(self, tensor: Any) -> int:
        tensor.type = tflite_model.schema().TensorType.FLOAT32
        self.graph.tensors = [*self.graph.tensors, tensor]
        return len(self.graph.tensors) - 1

    def _conversion(self, name: str, source: int, output: int) -> Any:
        operator = tflite_model.schema().OperatorT()
        builtin = getattr(tflite_model.schema().BuiltinOperator, name)
        operator.opcodeIndex = editor.operator_code(self.model, builtin)
        operator.inputs, operator.outputs = [source], [output]
        return operator
