"""Tensors named after the layers of the model, as viewers of a file show them.

The converter names a tensor after the operators of the graph that it has fused, each with its path
(`model/quant_conv/Conv2D;model/quant_bn/FusedBatchNormV3`), and numbers constants. Here the layers
are left (`conv;bn`), and constants are named after the layer that reads them (`conv/kernel`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mobilenet.export.rewrites.float_fallback import QUANTIZED
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite import tensors
from mobilenet.tflite.kernels import KERNEL_OPERATORS

_KERNEL_PATH = re.compile(r"(Conv2D|depthwise|MatMul)[\d_]*")  # how such a path may end
_SLOTS = {1: "kernel", 2: "bias"}
_JOINED = ";"


def layers_of(name: str) -> tuple[str, ...]:
    """The layers of a tensor by its name as converted.

    A path begins with the model's name, and a layer's name has no slash (`flatten`).
    """
    paths = tensors.name_paths(name)
    layers = (words[1].removeprefix(QUANTIZED) for words in paths if len(words) > 1)
    return tuple(dict.fromkeys(layers))


def rename(model: Any, content: tflite_model.Flatbuffer, source: str, output: str) -> None:
    """Renames the tensors of the main graph, each to a name of its own. In place.

    Args:
        model: the file as a `ModelT`, as it was converted.
        content: the same file, read.
        source: name of the input.
        output: name of the output if it belongs to no layer.
    """
    taken: set[str] = set()
    graph = model.subgraphs[0]

    def assign(index: int, name: str, operator: str) -> None:
        candidates = _candidates(name, operator)
        unique = next(candidate for candidate in candidates if candidate not in taken)
        taken.add(unique)
        graph.tensors[index].name = unique.encode()

    named = set(content.inputs)
    assign(content.inputs[0], source, "input")
    for index, name, operator in _new_names(content, output):
        if index not in named:
            named.add(index)
            assign(index, name, operator)


def _candidates(name: str, operator: str) -> Iterator[str]:
    yield name
    yield f"{name}:{operator}"
    number = 2
    while True:
        yield f"{name}:{operator}_{number}"
        number += 1


def _new_names(content: tflite_model.Flatbuffer, output: str) -> Iterator[tuple[int, str, str]]:
    """Index, name and the operator of the tensors: what is computed first, then constants."""
    unpacked = {
        op.outputs[0]: op.inputs[0]
        for op in content.operators
        if op.name == "DEQUANTIZE" and content.tensors[op.inputs[0]].is_constant
    }
    for op in content.operators:
        for index in op.outputs:
            layers = layers_of(content.tensors[index].name)
            name = output if index in content.outputs else op.name.lower()
            if index not in unpacked:
                yield index, _JOINED.join(layers) or name, op.name.lower()
    for op in content.operators:
        for slot, index in enumerate(op.inputs):
            stored = unpacked.get(index, index)
            if index >= 0 and content.tensors[stored].is_constant and op.outputs[0] not in unpacked:
                name = _constant_name(op, slot, content)
                yield stored, name, op.name.lower()
                yield index, name, "dequantize"


def _constant_name(op: tensors.Operator, slot: int, content: tflite_model.Flatbuffer) -> str:
    output = content.tensors[op.outputs[0]].name
    if op.name not in KERNEL_OPERATORS or slot not in _SLOTS:
        return f"{next(iter(layers_of(output)), op.name.lower())}/constant"
    names = (output, content.tensors[op.inputs[1]].name)
    layers = [layer for name in names for layer in _kernel_layers(name)]
    others = [layer for name in names for layer in layers_of(name)]
    return f"{next(iter([*layers, *others]), op.name.lower())}/{_SLOTS[slot]}"


def _kernel_layers(name: str) -> Iterator[str]:
    """Of the layers that an operator computes, those with a kernel."""
    for part in name.split(_JOINED):
        if _KERNEL_PATH.fullmatch(part.split("/")[-1].split(":")[0]):
            yield from layers_of(part)
