"""A flatbuffer as objects that can be changed, and back to bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np

from mobilenet.tflite import model as tflite_model

_ALIGNMENT = 16  # schema.fbs: `data: [ubyte] (force_align: 16)`


def opened(data: bytes) -> Any:
    """The file as a `ModelT` of the schema's object API, with all constants inside it."""
    model = tflite_model.schema().ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # it lies behind the tables, at a place of the old file
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def packed(model: Any) -> bytes:
    """The bytes of a `ModelT`."""
    builder = _Aligned(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def tensor(name: bytes, shape: Sequence[int], dtype: int) -> Any:
    """A tensor that is no constant, of a type of the schema."""
    made = tflite_model.schema().TensorT()
    made.name, made.shape, made.type, made.buffer = name, list(shape), dtype, 0
    return made


def buffer(model: Any, values: Any) -> int:
    """Adds a constant; gives its number."""
    made = tflite_model.schema().BufferT()
    made.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers = [*model.buffers, made]
    return len(model.buffers) - 1


def fill(model: Any, constant: Any, values: Any) -> None:
    """Gives a tensor constant values, in a buffer of its own: converters store equal ones once."""
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    holders = sum(x.buffer == constant.buffer for x in (*tensors, *(model.metadata or ())))
    if constant.buffer and holders == 1:  # buffer 0 is that of all tensors without one
        model.buffers[constant.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    else:
        constant.buffer = buffer(model, values)


def code(model: Any, builtin: int) -> int:
    """The number of an operator's code, added where the file has none."""
    for number, known in enumerate(model.operatorCodes):
        if max(known.builtinCode, known.deprecatedBuiltinCode) == builtin:
            return number
    made = tflite_model.schema().OperatorCodeT()
    made.builtinCode = made.deprecatedBuiltinCode = builtin
    made.version = 1
    model.operatorCodes = [*model.operatorCodes, made]
    return len(model.operatorCodes) - 1


class _Aligned(flatbuffers.Builder):
    """Aligns byte vectors as the schema asks; the generated `Pack` does not, and kernels that read
    32-bit constants in place rely on it."""

    head: int

    def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802
        if x.dtype != np.uint8:
            return super().CreateNumpyVector(x)
        self.StartVector(1, x.size, _ALIGNMENT)
        end: int = self.head
        self.head = end - x.size
        self.Bytes[self.head : end] = x.tobytes()
        return self.EndVector()
