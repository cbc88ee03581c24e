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
class Line:
    """One kernel, or all arrays of one sort together.

    Attributes:
        name: layer, or what is counted together.
        weights, zeros: values, and those whose every bit is 0.
        distinct: different values that are no zero, by their bits; `None` for several arrays.
        entropy: bytes that positions and codes take at their zeroth-order entropy: a bit's worth a
            weight for whether it is zero, a code's worth a non-zero for which value. `None` where
            most values differ, so that a codebook would hold nearly the weights themselves.
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
        lines: the kernels, then the rest.
        total: of the whole file; its weights are those of the model.
    """

    lines: list[Line]
    total: Line

    @property
    def ratio(self) -> float:
        """Bytes of the weights for each byte of the file."""
        return self.total.plain / self.total.packed


def contents(path: str | os.PathLike[str]) -> Contents:
    """What is in a file; the model is not built, so TensorFlow has nothing to do.

    Raises:
        UsageError: see `container.read`.
    """
    _, records = container.read(path)
    try:
        return of_records(records, os.path.getsize(path))
    except entropy_coding.MalformedPackError as error:
        raise container.damaged_file_error(path, error) from None


def of_records(records: Sequence[container.Record], size: int) -> Contents:
    """What the arrays of a file of `size` bytes hold.

    Raises:
        Malformed: an array cannot be had from its bytes.
    """
    weights = [record for record in records if record.kind == container.WEIGHT]
    kernels = [record for record in weights if len(record.shape) > 1]
    others = [record for record in weights if len(record.shape) <= 1]
    ranges = [record for record in records if record.kind == container.RANGE]
    lines = [_line(record) for record in kernels]
    if others:
        lines.append(_together("norms and biases", others))
    if ranges:
        lines.append(_together("ranges", ranges))
    lines.append(_empty("header", size - sum(line.packed for line in lines)))
    whole = [line for line in lines if line.name != "ranges"]
    total = Line(
        name="total",
        weights=sum(line.weights for line in whole),
        zeros=sum(line.zeros for line in whole),
        distinct=None,
        entropy=None,
        codebook=None,
        packed=size,
        plain=sum(line.plain for line in whole),
    )
    return Contents(lines, total)


def measure(array: npt.NDArray[Any]) -> tuple[int, int, float, int]:
    """Zeros, distinct non-zeros, zeroth-order entropy in bytes of an array, by its bits, and the
    bytes of a distinct value."""
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    filled = bits[bits != 0]
    distinct = array_codec.distinct_values(filled)
    codes = np.bincount(np.searchsorted(distinct, filled)) if len(filled) else np.zeros(0)
    zeros = bits.size - filled.size
    entropy = entropy_coding.entropy(np.array([zeros, filled.size])) + entropy_coding.entropy(codes)
    halves = array_codec.as_float16_bits(distinct, array.dtype)
    return zeros, distinct.size, entropy, (distinct if halves is None else halves).itemsize


def _line(record: container.Record) -> Line:
    zeros, distinct, entropy, value = measure(record.array())
    item = np.dtype(record.dtype).itemsize
    has_codes = distinct <= (record.size - zeros) // 2
    return Line(
        name=record.layer or record.name,
        weights=record.size,
        zeros=zeros,
        distinct=distinct,
        entropy=entropy if has_codes else None,
        codebook=value * distinct if has_codes else None,
        packed=len(record.data),
        plain=item * record.size,
    )


def _together(name: str, records: Sequence[container.Record]) -> Line:
    return dataclasses.replace(
        _empty(name, sum(len(record.data) for record in records)),
        weights=sum(record.size for record in records),
        zeros=sum(measure(record.array())[0] for record in records),
        plain=sum(record.size * np.dtype(record.dtype).itemsize for record in records),
    )


def _empty(name: str, packed: int) -> Line:
    return Line(name, 0, 0, None, None, None, packed, 0)
