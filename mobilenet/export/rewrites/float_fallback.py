"""Layers of an int8 file that compute in float: between a DEQUANTIZE and a QUANTIZE.

The converter leaves an operator in float where one of its tensors has no range, but gives codes to
every kernel whose operator has a range on both sides. `restore` takes those back.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.tflite import editor, tensors
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite.kernels import KERNEL_OPERATORS

CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
_PREFIX = "quant_"  # of the layers of a model with quantizers
Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is to compute in float.

    Attributes:
        kernels: kernel and bias of each layer that was asked for, by its name, with the batch norm
            folded in: `[channels, height, width, inputs]`, `[1, height, width, channels]` of a
            depthwise layer, `[channels, inputs]` of a dense one; and `[channels]`.
        layers: names of all layers that compute in float with them.
    """

    kernels: Mapping[str, tuple[Floats, Floats]] = dataclasses.field(default_factory=dict)
    layers: Collection[str] = ()


NOTHING = Kept()


@dataclasses.dataclass(frozen=True)
class Island:
    """Operators that compute one tensor of codes in float.

    Attributes:
        operators: in execution order, with the conversions at both ends.
        sources: the tensors of codes that they read.
    """

    operators: tuple[tensors.Operator, ...]
    sources: tuple[int, ...]

    @property
    def name(self) -> str:
        """That of its last operator with a kernel, or of its last."""
        names = [op.name for op in self.operators if op.name not in CONVERSIONS]
        kernels = [name for name in names if name in KERNEL_OPERATORS]
        return f"{(kernels or names or ['QUANTIZE'])[-1]} in float"


def find(content: tflite_model.Flatbuffer) -> dict[int, Island]:
    """The islands of a file by the tensor that each gives; the ends of the file are none."""
    makers = {index: op for op in content.operators for index in op.outputs}
    floats = {tensor.index for tensor in content.float_tensors()}
    found = {}
    for op in content.operators:
        if op.name != "QUANTIZE" or op.inputs[0] not in floats or op.inputs[0] not in makers:
            continue
        inside, sources, waiting = {id(op)}, [], list(op.inputs)
        while waiting:
            index = waiting.pop()
            if index not in floats:
                if index in makers or index in content.inputs:
                    sources.append(index)
            elif index in makers and id(makers[index]) not in inside:
                inside.add(id(makers[index]))
                waiting += makers[index].inputs
        own = tuple(other for other in content.operators if id(other) in inside)
        found[op.outputs[0]] = Island(own, tuple(dict.fromkeys(sources)))
    return found


def layers_of(tensor: tensors.Tensor) -> set[str]:
    """The layers in the name that the converter joins of what it fuses."""
    words = {word for part in tensor.name.split(";") for word in part.split("/")}
    return {word.removeprefix(_PREFIX) for word in words if word.startswith(_PREFIX)}


def kernel_operators(content: tflite_model.Flatbuffer, layer: str) -> list[int]:
    """The numbers of the operators with a kernel that are named after a layer."""
    return [
        number
        for number, op in enumerate(content.operators)
        if op.name in KERNEL_OPERATORS and layer in layers_of(content.tensors[op.outputs[0]])
    ]


def restore(data: bytes, kernels: Mapping[str, tuple[Floats, Floats]]) -> bytes:
    """Takes the codes of some kernels back.

    Args:
        data: an int8 file.
        kernels: see `Kept`; those that are float in the file are left as they are.

    Returns:
        The file in which the operators of these layers have float kernels and biases, with a
        DEQUANTIZE in front and a QUANTIZE behind. A layer without an operator of its own is left
        to `structure_faults`.
    """
    content = tflite_model.read(data)
    chosen = {}
    for layer, constants in kernels.items():
        places = kernel_operators(content, layer)
        if len(places) == 1 and _has_codes(content, places[0]):
            chosen[places[0]] = constants
    if not chosen:
        return data
    file = _Editor(data, content)
    return file.restored(chosen)


def _has_codes(content: tflite_model.Flatbuffer, number: int) -> bool:
    op = content.operators[number]
    return all(content.tensors[index].dtype == "int8" for index in (*op.inputs[:2], *op.outputs))


class _Editor:
    """A file that is changed; what other operators share is left to them."""

    def __init__(self, data: bytes, content: tflite_model.Flatbuffer) -> None:
        self.model = editor.opened(data)
        self.graph = self.model.subgraphs[0]
        self.users = Counter(index for op in content.operators for index in op.inputs)

    def restored(self, chosen: Mapping[int, tuple[Floats, Floats]]) -> bytes:
        operators = []
        for number, operator in enumerate(self.graph.operators):
            if number not in chosen:
                operators.append(operator)
                continue
            kernel, bias = chosen[number]
            source, output = int(operator.inputs[0]), int(operator.outputs[0])
            codes = [int(index) for index in operator.inputs[1:]]
            read, made = self._twin(source), self._twin(output)
            operator.inputs = [
                read,
                self._constant(codes[0], kernel),
                self._constant(codes[1] if len(codes) > 1 and codes[1] >= 0 else None, bias),
            ]
            operator.outputs = [made]
            operators += [
                self._conversion("DEQUANTIZE", source, read),
                operator,
                self._conversion("QUANTIZE", made, output),
            ]
        self.graph.operators = operators
        return editor.packed(self.model)

    def _twin(self, codes: int) -> int:
        """A computed float tensor in the form of one of codes."""
        twin = copy.copy(self.graph.tensors[codes])
        twin.name, twin.quantization, twin.buffer = bytes(twin.name) + b"/float", None, 0
        return self._added(twin)

    def _constant(self, codes: int | None, values: Floats) -> int:
        """A float constant in place of one of codes."""
        if codes is not None and self.users[codes] == 1:
            tensor, index = self.graph.tensors[codes], codes
        else:
            tensor = editor.tensor(b"kept_float", values.shape, 0)
            index = self._added(tensor)
        editor.fill(self.model, tensor, values)
        tensor.type, tensor.quantization = tflite_model.schema().TensorType.FLOAT32, None
        tensor.shape = list(values.shape)
        return index

    def _added(self, tensor: Any) -> int:
        tensor.type = tflite_model.schema().TensorType.FLOAT32
        self.graph.tensors = [*self.graph.tensors, tensor]
        return len(self.graph.tensors) - 1

    def _conversion(self, name: str, source: int, output: int) -> Any:
        operator = tflite_model.schema().OperatorT()
        builtin = getattr(tflite_model.schema().BuiltinOperator, name)
        operator.opcodeIndex = editor.code(self.model, builtin)
        operator.inputs, operator.outputs = [source], [output]
        return operator
