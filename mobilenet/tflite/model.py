"""Reads a TensorFlow Lite file: operators, tensors, scales. Its structure is checked before any
interpreter sees it.

The interpreter trusts the file and may crash the process on a malformed one, so `read` follows
every offset, index and length first. Schema: tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.tflite import validation
from mobilenet.tflite.buffer_reader import BufferReader, MalformedFlatbufferError, Table
from mobilenet.tflite.tensors import Operator, Tensor, item_bits
from mobilenet.tflite.validation import check_indices

_MAX_BYTES = 2**31 - 1  # offsets are 32 bit; also the largest tensor that is taken
_FLOATS = ("float16", "float32", "float64", "bfloat16")
# Operator options that hold more than numbers: type -> (slot, numpy dtype or "text").
_OPTIONS = {
    3: ((1, "<i4"), (2, "<i4")),  # ConcatEmbeddings
    8: ((5, "u1"),),  # FullyConnected
    17: ((0, "<i4"),),  # Reshape
    30: ((0, "<i4"),),  # Squeeze
    111: ((0, "text"), (1, "text")),  # VarHandle
    115: ((0, "<f4"),),  # Bucketize
}
# Numbers in the options of windowed operators: type -> name -> (slot, struct format, default).
_STRIDES = {"padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0)}
_WINDOWS = {
    1: {**_STRIDES, "dilation_w": (4, "i", 1), "dilation_h": (5, "i", 1)},  # Conv2D
    2: {**_STRIDES, "dilation_w": (5, "i", 1), "dilation_h": (6, "i", 1)},  # DepthwiseConv2D
    5: {**_STRIDES, "filter_w": (3, "i", 0), "filter_h": (4, "i", 0)},  # Pool2D
}


@dataclasses.dataclass(frozen=True, eq=False)
class Flatbuffer:
    """The contents of a valid file. All but `subgraphs` describes the main graph, the first.

    Attributes:
        operators: in execution order.
        tensors: by index.
        inputs, outputs: tensor indices.
        subgraphs: number of graphs; more than 1 in files with control flow or signatures.
        metadata: named blobs.
        content: the whole file.
    """

    operators: tuple[Operator, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraphs: int
    metadata: dict[str, memoryview]
    content: bytes

    def float_tensors(self) -> list[Tensor]:
        """Tensors of a float type; an int8 model that is int8 throughout has none."""
        return [tensor for tensor in self.tensors if tensor.dtype in _FLOATS]

    def computed_bytes(self) -> int:
        """Bytes of all tensors that are no constants, none sharing memory with another."""
        return sum(tensor.computed_bytes for tensor in self.tensors)

    def weights(self) -> list[Tensor]:
        """Constants that were learned, float or with a scale: no shapes, no axes."""
        used = {index for operator in self.operators for index in operator.inputs}
        return [
            tensor
            for tensor in self.tensors
            if tensor.index in used
            and tensor.is_constant
            and (tensor.dtype in _FLOATS or tensor.scales.size)
        ]


def read(source: str | os.PathLike[str] | bytes) -> Flatbuffer:
    """Reads and checks a TensorFlow Lite file.

    Args:
        source: a path, or the bytes.

    Raises:
        UsageError: there is no such file, or it is truncated, malformed or not of this kind.
    """
    name = "flatbuffer" if isinstance(source, bytes) else os.fspath(source)
    content = source if isinstance(source, bytes) else _content(Path(source))
    try:
        return _model(content)
    except MalformedFlatbufferError as error:
        raise UsageError(
            name,
            None,
            f"a whole TensorFlow Lite file ({error})",
            "export or copy it again",
        ) from None


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise UsageError(str(path), None, "a .tflite file, not a folder")
        if size > _MAX_BYTES:
            raise UsageError(
                str(path), f"{size} bytes", "a TensorFlow Lite file of less than 2 GiB"
            )
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            str(path), None, f"a .tflite file that can be read ({error.strerror})"
        ) from None


@functools.cache
def schema() -> Any:
    """The generated schema module, for its names: of ai_edge_litert, else of TensorFlow."""
    for name in (
        "ai_edge_litert.schema_py_generated",
        "tensorflow.lite.python.schema_py_generated",
    ):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UsageError(
        "ai_edge_litert", None, "an installed TensorFlow Lite runtime", "pip install ai-edge-litert"
    )


@functools.cache
def _names(enumeration: str) -> dict[int, str]:
    members = vars(getattr(schema(), enumeration))
    return {value: name for name, value in members.items() if isinstance(value, int)}


def _model(content: bytes) -> Flatbuffer:
    if len(content) < 8:
        raise MalformedFlatbufferError(f"only {len(content)} bytes")
    if content[4:8] != b"TFL3":
        raise MalformedFlatbufferError("no mark TFL3 at byte 4")
    reader = BufferReader(content)
    root = reader.table(int.from_bytes(content[:4], "little"), "the root")
    if root.number(0, "I") != 3:
        raise MalformedFlatbufferError(f"schema version {root.number(0, 'I')} instead of 3")
    root.text(3, "the description")
    codes = [_code(table) for table in root.tables(1, "operator code", required=True)]
    buffers = [_buffer(table, content) for table in root.tables(4, "buffer", required=True)]
    metadata = _metadata(root, buffers)
    if root.tables(8, "external group") or root.tables(9, "external buffer"):
        raise MalformedFlatbufferError("weights in other files, which are not read")
    graphs = [_graph(t, codes, buffers) for t in root.tables(2, "graph", required=True)]
    if not graphs:
        raise MalformedFlatbufferError("no graph")
    for signature in root.tables(7, "signature"):
        _signature(signature, [len(graph.tensors) for graph in graphs])
    return dataclasses.replace(graphs[0], subgraphs=len(graphs), metadata=metadata, content=content)


def _code(table: Table) -> str:
    code = max(table.number(0, "b"), table.number(3, "i"))
    custom = table.text(1, "a custom operator's name")
    name = _names("BuiltinOperator").get(code)
    if name is None:
        raise MalformedFlatbufferError(f"operator code {code}, unknown to this runtime")
    return custom if name == "CUSTOM" else name


def _buffer(table: Table, content: bytes) -> memoryview:
    data = table.raw(0, table.what)
    offset, size = table.number(1, "Q"), table.number(2, "Q")
    if offset <= 1:  # 0 and 1 stand for "inside the table"
        return data
    if offset + size > len(content):
        raise MalformedFlatbufferError(f"{table.what} ends after the file")
    return memoryview(content)[offset : offset + size]


def _metadata(root: Table, buffers: list[memoryview]) -> dict[str, memoryview]:
    check_indices(root.array(5, "<i4", "metadata buffers"), len(buffers), "a metadata buffer")
    metadata = {}
    for table in root.tables(6, "metadata"):
        index = table.number(1, "I")
        if index >= len(buffers):
            raise MalformedFlatbufferError(f"{table.what} in buffer {index} of {len(buffers)}")
        metadata[table.text(0, table.what)] = buffers[index]
    return metadata


def _signature(table: Table, sizes: list[int]) -> None:
    table.text(2, table.what)
    graph = table.number(4, "I")
    if graph >= len(sizes):
        raise MalformedFlatbufferError(f"{table.what} of graph {graph} of {len(sizes)}")
    for slot in (0, 1):
        for entry in table.tables(slot, table.what):
            entry.text(0, table.what)
            if entry.number(1, "I") >= sizes[graph]:
                raise MalformedFlatbufferError(
                    f"{table.what} names tensor {entry.number(1, 'I')} of {sizes[graph]}"
                )


def _graph(table: Table, codes: list[str], buffers: list[memoryview]) -> Flatbuffer:
    table.text(4, table.what)
    parts = table.tables(0, "tensor", required=True)
    tensors = tuple(_tensor(part, index, buffers) for index, part in enumerate(parts))
    inputs = check_indices(table.array(1, "<i4", "inputs"), len(tensors), "input tensor")
    outputs = check_indices(table.array(2, "<i4", "outputs"), len(tensors), "output tensor")
    operators = tuple(_operator(part, codes, len(tensors)) for part in table.tables(3, "operator"))
    validation.check_order(operators, tensors, inputs, outputs)
    validation.check_shapes(operators, tensors)
    return Flatbuffer(operators, tensors, inputs, outputs, 1, {}, b"")


def _operator(table: Table, codes: list[str], tensors: int) -> Operator:
    code = table.number(0, "I")
    if code >= len(codes):
        raise MalformedFlatbufferError(f"{table.what} with code {code} of {len(codes)}")
    inputs = check_indices(
        table.array(1, "<i4", table.what), tensors, f"{table.what} with input tensor", least=-1
    )
    outputs = check_indices(
        table.array(2, "<i4", table.what), tensors, f"{table.what} with output tensor"
    )
    check_indices(table.array(8, "<i4", table.what), tensors, f"{table.what} with inner tensor")
    table.raw(5, table.what)
    table.raw(7, table.what)
    options = table.table(4, table.what)
    kind = table.number(3, "B")
    for slot, dtype in _OPTIONS.get(kind, ()) if options else ():
        assert options is not None
        options.text(slot, table.what) if dtype == "text" else options.array(
            slot, dtype, table.what
        )
    if table.number(11, "B") or table.number(9, "Q") > 1:
        raise MalformedFlatbufferError(
            f"{table.what} ({codes[code]}) with options of a kind that is not read"
        )
    numbers = _WINDOWS.get(kind, {}) if options else {}
    values = {name: options.number(*field) for name, field in numbers.items()} if options else {}
    operator = Operator(codes[code], inputs, outputs, values)
    validation.check_operands(operator, kind, _names("BuiltinOptions"))
    return operator


def _tensor(table: Table, index: int, buffers: list[memoryview]) -> Tensor:
    kind = table.number(1, "b")
    dtype = _names("TensorType").get(kind)
    if dtype is None:
        raise MalformedFlatbufferError(f"{table.what} of type {kind}")
    dtype = dtype.lower()
    number = table.number(2, "I")
    if number >= len(buffers):
        raise MalformedFlatbufferError(f"{table.what} in buffer {number} of {len(buffers)}")
    shape = tuple(int(size) for size in table.array(0, "<i4", table.what))
    signature = tuple(int(size) for size in table.array(7, "<i4", table.what))
    if table.tables(9, table.what):
        raise MalformedFlatbufferError(f"{table.what} of a kind that is not read")
    scales, zero_points, axis = _quantization(table, shape)
    sparsity = table.table(6, table.what)
    tensor = Tensor(
        index, table.text(3, table.what), shape, dtype, scales, zero_points, axis,
        buffers[number], bool(table.number(5, "B")), sparsity is not None, signature,
    )  # fmt: skip
    _check_size(tensor, table.what)
    if tensor.is_variable and tensor.is_constant:  # the interpreter would clear it in the file
        raise MalformedFlatbufferError(f"{table.what} is a variable and a constant")
    if sparsity is not None:
        validation.check_sparsity(sparsity, tensor, item_bits(tensor.dtype))
    return tensor


def _check_size(tensor: Tensor, what: str) -> None:
    bits = item_bits(tensor.dtype)
    expected = (tensor.elements * bits + 7) // 8
    if any(size < 0 for size in tensor.shape) or len(tensor.shape) > 8 or expected > _MAX_BYTES:
        raise MalformedFlatbufferError(f"{what} of shape {list(tensor.shape)[:9]}")
    if tensor.is_constant and bits and not tensor.is_sparse and len(tensor.buffer) != expected:
        shape = "x".join(map(str, tensor.shape))
        raise MalformedFlatbufferError(
            f"{what} of {shape} {tensor.dtype} in a buffer of {len(tensor.buffer)} bytes"
        )


def _quantization(
    table: Table, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int]:
    part = table.table(4, table.what)
    if part is None:
        return np.empty(0, np.float32), np.empty(0, np.int64), 0
    for slot in (0, 1):
        part.array(slot, "<f4", table.what)
    scales = part.array(2, "<f4", table.what).astype(np.float32)
    zero_points = part.array(3, "<i8", table.what).astype(np.int64)
    axis = part.number(6, "i")
    if part.number(4, "B"):
        raise MalformedFlatbufferError(f"{table.what} quantized in a way that is not read")
    if not np.all(np.isfinite(scales)) or np.any(scales < 0):
        raise MalformedFlatbufferError(f"{table.what} with a scale that is negative or not finite")
    if scales.size > 1 and not (0 <= axis < len(shape) and scales.size == shape[axis]):
        raise MalformedFlatbufferError(
            f"{table.what} with {scales.size} scales on axis {axis} of {list(shape)}"
        )
    if scales.size and zero_points.size not in (1, scales.size):
        raise MalformedFlatbufferError(
            f"{table.what} with {scales.size} scales and {zero_points.size} zero points"
        )
    if np.any(np.abs(zero_points) > 2**31 - 1):
        raise MalformedFlatbufferError(f"{table.what} with a zero point out of range")
    return scales, np.broadcast_to(zero_points, scales.shape) if scales.size else zero_points, axis
