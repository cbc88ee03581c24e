"""What a packed model holds, layer by layer, and how near it comes to the entropy of its
weights.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.packing import array_codec, container, entropy_coding


@dataclasses.dataclass(frozen=True)
class PackedArray:
    """One kernel, or all arrays of one kind together.

    Attributes:
        name: layer, or the kind of the arrays.
        weights, zeros: number of values, and of those whose bits are all 0.
        distinct: number of different nonzero values, by their bits; `None` for several arrays.
        entropy: bytes of the zero mask and of the indices of nonzero values in the codebook, at
            their zeroth-order entropy; `None` if most values differ, so that a codebook would be
            nearly as large as the weights.
        codebook: bytes of the distinct values.
        packed: bytes in the file.
        plain: bytes of the values as they are.
    """

    name: str
    weights: int
    zeros: int
    distinct: int | None
    entropy: float | None
    codebook: int | None
    packed: int
    plain: int


@dataclasses.dataclass(frozen=True)
class Contents:
    """A packed model.

    Attributes:
        arrays: the kernels, then the rest.
        total: of the whole file; its weights are those of the model.
    """

    arrays: list[PackedArray]
    total: PackedArray

    @property
    def ratio(self) -> float:
        """Bytes of the weights for each byte of the file."""
        return self.total.plain / self.total.packed


def contents(path: str | os.PathLike[str]) -> Contents:
    """Reads a file; the model is not built, so TensorFlow is not needed.

    Raises:
        UsageError: see `container.read`.
    """
    _, records = container.read(path)
    try:
        return of_records(records, os.path.getsize(path))
    except entropy_coding.MalformedPackError as error:
        raise container.damaged_file_error(path, error) from None


def of_records(records: Sequence[container.Record], size: int) -> Contents:
    """Measures the arrays of a file of `size` bytes.

    Raises:
        Malformed: an array cannot be had from its bytes.
    """
    weights = [record for record in records if record.kind == container.WEIGHT]
    kernels = [record for record in weights if len(record.shape) > 1]
    others = [record for record in weights if len(record.shape) <= 1]
    ranges = [record for record in records if record.kind == container.RANGE]
    arrays = [_measured(record) for record in kernels]
    if others:
        arrays.append(_together("norms and biases", others))
    if ranges:
        arrays.append(_together("ranges", ranges))
    arrays.append(_empty("header", size - sum(array.packed for array in arrays)))
    weights_alone = [array for array in arrays if array.name != "ranges"]
    total = PackedArray(
        name="total",
        weights=sum(array.weights for array in weights_alone),
        zeros=sum(array.zeros for array in weights_alone),
        distinct=None,
        entropy=None,
        codebook=None,
        packed=size,
        plain=sum(array.plain for array in weights_alone),
    )
    return Contents(arrays, total)


def measure(array: npt.NDArray[Any]) -> tuple[int, int, float, int]:
    """Zeros, distinct non-zeros, zeroth-order entropy in bytes of an array, by its bits, and the
    bytes of a distinct value."""
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    filled = bits[bits != 0]
    distinct = array_codec.distinct_values(filled)
    counts = np.bincount(np.searchsorted(distinct, filled)) if len(filled) else np.zeros(0)
    zeros = bits.size - filled.size
    entropy = entropy_coding.entropy(np.array([zeros, filled.size])) + entropy_coding.entropy(
        counts
    )
    halves = array_codec.as_float16_bits(distinct, array.dtype)
    return zeros, distinct.size, entropy, (distinct if halves is None else halves).itemsize


def _measured(record: container.Record) -> PackedArray:
    zeros, distinct, entropy, value = measure(record.array())
    item = np.dtype(record.dtype).itemsize
    has_codebook = distinct <= (record.size - zeros) // 2
    return PackedArray(
        name=record.layer or record.name,
        weights=record.size,
        zeros=zeros,
        distinct=distinct,
        entropy=entropy if has_codebook else None,
        codebook=value * distinct if has_codebook else None,
        packed=len(record.data),
        plain=item * record.size,
    )


def _together(name: str, records: Sequence[container.Record]) -> PackedArray:
    return dataclasses.replace(
        _empty(name, sum(len(record.data) for record in records)),
        weights=sum(record.size for record in records),
        zeros=sum(measure(record.array())[0] for record in records),
        plain=sum(record.size * np.dtype(record.dtype).itemsize for record in records),
    )


def _empty(name: str, packed: int) -> PackedArray:
    return PackedArray(name, 0, 0, None, None, None, packed, 0)
