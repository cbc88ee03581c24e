"""One array to the fewest bytes and back, bit by bit: where its non-zeros are, and what they are.

Only the bits are looked at: -0.0 is a value of its own and denormals stay what they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mobilenet.packing.entropy_coding import (
    ByteReader,
    MalformedPackError,
    decode,
    encode,
    encode_number,
)
from mobilenet.typing import Array

DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
_DENSE, _MASK, _GAPS = range(3)  # every value; a bit per weight; zeros before each non-zero
_PLANES, _HALVES, _CODEBOOK = range(3)  # byte by byte; as float16; indices of distinct values
_LONGEST = 4095  # zeros in one gap; longer ones take several symbols
_BYTE = 1 << 8
_MAX_CODEBOOK = 1 << 16
_SMALL = 4096  # values up to which every form is tried; above, a form that cannot win is not


def pack_array(array: Array) -> bytes:
    """The shortest of the forms of an array of one of `DTYPES`."""
    bits = np.ascontiguousarray(array).reshape(-1).view(_bits(array.dtype))
    filled = bits != 0
    forms, is_full = [], bool(filled.all())
    if is_full or len(bits) <= _SMALL:
        forms.append(bytes([_DENSE]) + _values(bits, array.dtype))
    if not is_full:
        mask = bytes([_MASK]) + encode(filled.astype(np.uint8), 2)
        forms.append(min(mask, _gaps(filled), key=len) + _values(bits[filled], array.dtype))
    return min(forms, key=len)


def unpack_array(data: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    """The array that `pack_array` was given.

    Args:
        data: its bytes, all of them.
        dtype: one of `DTYPES`.
        shape: its axes; the caller has checked its size.

    Raises:
        MalformedPackError: these cannot be its bytes.
    """
    reader, kind, size = ByteReader(data), np.dtype(dtype), math.prod(shape)
    form = reader.take(1)[0]
    if form == _DENSE:
        bits = _read_values(reader, size, kind)
    elif form in (_MASK, _GAPS):
        positions = _read_mask(reader, size) if form == _MASK else _read_gaps(reader, size)
        bits = np.zeros(size, _bits(kind))
        bits[positions] = _read_values(reader, len(positions), kind)
    else:
        raise MalformedPackError(f"positions of form {form}")
    reader.check_end()
    if kind == np.bool_ and size and int(bits.max()) > 1:
        raise MalformedPackError("a truth value that is neither 0 nor 1")
    return bits.view(kind).reshape(shape)


def distinct_values(bits: Array) -> Array:
    """Each value once, ascending; numpy's `unique` hashes, which takes seconds for a million."""
    ordered = np.sort(bits)
    is_first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    firsts: Array = ordered[is_first]
    return firsts


def as_float16_bits(bits: Array, dtype: np.dtype[Any]) -> Array | None:
    """The bits of the float16 that each value is exactly; `None` where they are no such float32."""
    if dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        halves = bits.view(np.float32).astype(np.float16)
    same = np.array_equal(halves.astype(np.float32).view(bits.dtype), bits)
    return halves.view("<u2") if same else None


def _bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"<u{dtype.itemsize}")


def _gaps(filled: Array) -> bytes:
    gaps = np.diff(np.flatnonzero(filled), prepend=-1) - 1
    lasts = np.cumsum(gaps // _LONGEST + 1)
    symbols = np.full(int(lasts[-1]) if len(lasts) else 0, _LONGEST)
    symbols[lasts - 1] = gaps % _LONGEST
    return bytes([_GAPS]) + encode_number(len(symbols)) + encode(symbols, _LONGEST + 1)


def _read_mask(reader: ByteReader, size: int) -> Array:
    return np.flatnonzero(decode(reader, size, 2))


def _read_gaps(reader: ByteReader, size: int) -> Array:
    count = reader.read_number(size)
    gaps = decode(reader, count, _LONGEST + 1).astype(np.int64)
    is_long = gaps == _LONGEST
    positions: Array = np.cumsum(gaps + ~is_long)[~is_long] - 1
    if len(positions) and int(positions[-1]) >= size:
        raise MalformedPackError(f"a non-zero after the last of {size} weights")
    return positions


def _values(bits: Array, dtype: np.dtype[Any]) -> bytes:
    distinct = distinct_values(bits)
    if len(distinct) > min(_MAX_CODEBOOK, len(bits) // 2):
        return _each(bits, dtype)
    book = encode_number(len(distinct)) + _each(distinct, dtype)
    codes = encode(np.searchsorted(distinct, bits), len(distinct))
    coded = bytes([_CODEBOOK]) + book + codes
    if len(bits) > max(_SMALL, 16 * len(distinct)):
        return coded
    return min(coded, _each(bits, dtype), key=len)


def _each(bits: Array, dtype: np.dtype[Any]) -> bytes:
    """Every value by itself."""
    planes, halves = bytes([_PLANES]) + _planes(bits), as_float16_bits(bits, dtype)
    if halves is None:
        return planes
    return min(planes, bytes([_HALVES]) + _planes(halves), key=len)


def _read_values(reader: ByteReader, count: int, dtype: np.dtype[Any]) -> Array:
    form = reader.take(1)[0]
    if form != _CODEBOOK:
        return _read_each(reader, form, count, dtype)
    size = reader.read_number(min(_MAX_CODEBOOK, count))
    if not size:
        raise MalformedPackError("a codebook without values")
    book = _read_each(reader, reader.take(1)[0], size, dtype)
    return book[decode(reader, count, size)]


def _read_each(reader: ByteReader, form: int, count: int, dtype: np.dtype[Any]) -> Array:
    kind = _bits(dtype)
    if form == _PLANES:
        return _read_planes(reader, count, kind)
    if form == _HALVES and dtype == np.float32:
        halves = _read_planes(reader, count, np.dtype("<u2")).view(np.float16)
        return halves.astype(np.float32).view(kind)
    raise MalformedPackError(f"values of form {form}")


def _planes(bits: Array) -> bytes:
    """The lowest bytes of all values, then the next ones: exponents are alike and code well."""
    columns = bits.view(np.uint8).reshape(-1, bits.dtype.itemsize)
    return b"".join(encode(column, _BYTE) for column in columns.T)


def _read_planes(reader: ByteReader, count: int, kind: np.dtype[Any]) -> Array:
    columns = np.empty((count, kind.itemsize), np.uint8)
    for byte in range(kind.itemsize):
        columns[:, byte] = decode(reader, count, _BYTE)
    return columns.reshape(-1).view(kind)
