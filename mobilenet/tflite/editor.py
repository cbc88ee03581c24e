"""Editing of a flatbuffer: to objects that can be changed, and back to bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np

from mobilenet.tflite import model as tflite_model

SIGNATURE = "serving_default"  # as TensorFlow names the signature of a saved model
_ALIGNMENT = 16  # schema.fbs: `data: [ubyte] (force_align: 16)`


def open_flatbuffer(data: bytes) -> Any:
    """The file as a `ModelT` of the schema's object API, with all constants inside it."""
    model = tflite_model.schema().ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # it follows the tables, at an offset of the old file
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def pack_flatbuffer(model: Any) -> bytes:
    """The bytes of a `ModelT`."""
    builder = _Aligned(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def new_tensor(name: bytes, shape: Sequence[int], dtype: int) -> Any:
    """Creates a tensor that is not a constant, of a type of the schema."""
    new = tflite_model.schema().TensorT()
    new.name, new.shape, new.type, new.buffer = name, list(shape), dtype, 0
    return new


def add_buffer(model: Any, values: Any) -> int:
    """Adds a constant; returns the number of its buffer."""
    new = tflite_model.schema().BufferT()
    new.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers = [*model.buffers, new]
    return len(model.buffers) - 1


def set_constant(model: Any, constant: Any, values: Any) -> None:
    """Sets the values of a constant, in a buffer of its own: converters store equal ones once."""
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    users = sum(x.buffer == constant.buffer for x in (*tensors, *(model.metadata or ())))
    if constant.buffer and users == 1:  # buffer 0 is that of all tensors without one
        model.buffers[constant.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    else:
        constant.buffer = add_buffer(model, values)


def set_signature(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Names the inputs and outputs of the main graph, as `get_signature_runner` takes them."""
    schema, graph = tflite_model.schema(), model.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0

    def tensor_maps(names: Sequence[str], indices: Sequence[int]) -> list[Any]:
        maps = [schema.TensorMapT() for _ in names]
        for entry, name, index in zip(maps, names, indices, strict=True):
            entry.name, entry.tensorIndex = name, int(index)
        return maps

    signature.inputs = tensor_maps(inputs, graph.inputs)
    signature.outputs = tensor_maps(outputs, graph.outputs)
    model.signatureDefs = [signature]


def operator_code(model: Any, builtin: int) -> int:
    """The number of an operator's code, which is added if the file has none."""
    for number, known in enumerate(model.operatorCodes):
        if max(known.builtinCode, known.deprecatedBuiltinCode) == builtin:
            return number
    new = tflite_model.schema().OperatorCodeT()
    new.builtinCode = new.deprecatedBuiltinCode = builtin
    new.version = 1
    model.operatorCodes = [*model.operatorCodes, new]
    return len(model.operatorCodes) - 1


class _Aligned(flatbuffers.Builder):
    """Aligns byte vectors as the schema asks; the generated `Pack` does not, and kernels that read
    32-bit constants directly rely on it."""

    head: int

    def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802
        if x.dtype != np.uint8:
            return super().CreateNumpyVector(x)
        self.StartVector(1, x.size, _ALIGNMENT)
        end: int = self.head
        self.head = end - x.size
        self.Bytes[self.head : end] = x.tobytes()
        return self.EndVector()
