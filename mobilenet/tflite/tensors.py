"""Tensors and operators of a flatbuffer, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_PACKED = {"int4": 4, "uint4": 4, "int2": 2}  # bits per element
_FOREIGN = (*_PACKED, "bfloat16")  # numpy has these only where another package brings them


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of the main graph.

    Attributes:
        index: its number in the graph.
        name: its name, for messages.
        shape: sizes of its axes; an open batch shows as 1.
        dtype: numpy's name of its type (`int4`, `bfloat16`, `string` and the like have none in
            numpy).
        scales: float32, empty (not quantized), one, or one per channel: `real = scale * (value -
            zero_point)`.
        zero_points: int64, as many as `scales`.
        quantized_dimension: the axis of the channels.
        buffer: its constant bytes as stored; empty where the tensor is computed.
        is_variable: it keeps its value between invocations.
        is_sparse: its buffer holds only the non-zero blocks.
        signature: the shape with -1 for open axes; empty where none is open.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.int64]
    quantized_dimension: int
    buffer: memoryview
    is_variable: bool = False
    is_sparse: bool = False
    signature: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=object)) if self.shape else 1

    @property
    def is_constant(self) -> bool:
        return len(self.buffer) > 0

    @property
    def computed_bytes(self) -> int:
        """Bytes of memory that it takes; 0 of a constant, which stays in the file."""
        return 0 if self.is_constant else self.elements * item_bits(self.dtype) // 8

    @property
    def has_numpy_type(self) -> bool:
        """Whether numpy itself has its type."""
        bits = item_bits(self.dtype)
        return bits >= 8 and self.dtype not in _FOREIGN and not self.dtype.startswith("float8")

    @property
    def data(self) -> npt.NDArray[Any] | None:
        """The constant, a view of the file; `None` if computed, sparse or of no numpy type."""
        if not self.is_constant or self.is_sparse or not self.has_numpy_type:
            return None
        return np.frombuffer(self.buffer, self.dtype).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator: its name as in the schema (`CONV_2D`), and its tensors by index (-1: left out).

    `options` are given for convolutions and pooling: `padding` (0 same, 1 valid), `stride_w`,
    `stride_h`, `dilation_w`, `dilation_h`, and `filter_w`, `filter_h` of pooling.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, int] = dataclasses.field(default_factory=dict)


def item_bits(dtype: str) -> int:
    """Bits of one element; 0 where there is no fixed size."""
    if dtype in _PACKED:
        return _PACKED[dtype]
    if dtype == "bfloat16":
        return 16
    try:
        return 8 * np.dtype(dtype).itemsize
    except TypeError:
        return 8 if dtype.startswith("float8") else 0


def layer_name(tensor: Tensor) -> str:
    """The layer of a tensor: the first of the names that the converter joins when it fuses."""
    return tensor.name.split(";")[0]


def name_paths(name: str) -> list[list[str]]:
    """The paths that the name of a tensor is joined from, each as its words.

    A file as converted has a path of the graph for each operator that was fused, with the model's
    name before the layer's (`model/conv/Conv2D;model/bn/FusedBatchNormV3`); a file with tensors
    named after layers has these alone (`conv;bn`, and `conv:quantize` for a second tensor of one).
    """
    return [part.split(":")[0].split("/") for part in name.split(";")]
