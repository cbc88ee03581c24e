"""The file of a packed model: a fixed front, a JSON header, the arrays; docs/packed.md describes
it.

Nothing in a file is trusted: lengths are checked against its size and the limits here before
anything is allocated, and a digest covers every byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet import strict_json
from mobilenet.errors import UsageError
from mobilenet.packing import array_codec
from mobilenet.packing.entropy_coding import MalformedPackError
from mobilenet.typing import Array

MAGIC = b"\x89MNPACK\n"
VERSION = 2
WEIGHT, RANGE = "weight", "range"
_FRONT = struct.Struct("<8sIIIQ")  # magic, version, header packed, header unpacked, arrays
_START = _FRONT.size + hashlib.sha256().digest_size  # of the header
_MAX_HEADER = 1 << 21  # bytes once unpacked: labels, history and a foreign model's layers
_MAX_VALUES = 1 << 17  # of the header, by the marks before them; each takes memory and time
_MAX_ARRAYS = 1 << 12
_MAX_FILE = 1 << 31
_MAX_AXES = 8
# The most weights that a file may claim. Kernels of zeros cost nearly nothing, so some are free.
_FREE_WEIGHTS = 1 << 22
_WEIGHTS_PER_BYTE = 1 << 6


@dataclasses.dataclass(frozen=True)
class Record:
    """One packed array.

    Attributes:
        name: of the weight, or of the layer that a range is of.
        layer: the layer of the weight.
        kind: `weight` or `range`.
        dtype: one of `array_codec.DTYPES`.
        shape: its axes.
        data: the result of `array_codec.pack_array`.
    """

    name: str
    layer: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def size(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    def array(self) -> Array:
        """The values.

        Raises:
            MalformedPackError: the bytes are not a packed array.
        """
        return array_codec.unpack_array(self.data, self.dtype, self.shape)


def assemble(header: dict[str, Any], records: Sequence[Record]) -> bytes:
    """The bytes of a file.

    Args:
        header: JSON values; `arrays` is added.
        records: in order.

    Raises:
        UsageError: more than a file may hold.
    """
    arrays = [[r.name, r.layer, r.kind, r.dtype, list(r.shape), len(r.data)] for r in records]
    text = json.dumps({**header, "arrays": arrays}, allow_nan=False).encode()
    packed = zlib.compress(text, 9)
    body = b"".join(record.data for record in records)
    front = _FRONT.pack(MAGIC, VERSION, len(packed), len(text), len(body))
    data = b"".join((front, _digest(front, packed, body), packed, body))
    try:
        _check_sizes(len(text), len(data), sum(record.size for record in records))
        _check_values(text)
        _check_limit(_MAX_ARRAYS, len(records), "arrays")
    except MalformedPackError as error:
        raise UsageError("model", None, f"one that can be packed ({error})") from None
    return data


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Record]]:
    """Header and arrays of a file; the arrays stay packed.

    Raises:
        UsageError: no such file, another kind of file, a later version, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(str(path), None, "a packed model; there is no such file")
    try:
        with path.open("rb") as file:
            front = file.read(_START)
            _check_kind(path, front)
            sizes = _sizes(front, os.fstat(file.fileno()).st_size)
            packed, body = file.read(sizes[0]), file.read(sizes[2])
        if _digest(front[: _FRONT.size], packed, body) != front[_FRONT.size :]:
            raise MalformedPackError("its bytes are not those that were written")
        header = _header(packed, sizes[1])
        records = _records(header.pop("arrays", None), body)
        _check_sizes(sizes[1], _START + len(packed) + len(body), sum(r.size for r in records))
    except MalformedPackError as error:
        raise damaged_file_error(path, error) from None
    except OSError as error:
        raise UsageError(str(path), None, f"a file that can be read ({error.strerror})") from None
    return header, records


def is_packed_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like a packed model."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def damaged_file_error(path: str | os.PathLike[str], error: Exception) -> UsageError:
    """The error for a file that is not what was written."""
    reason = str(error)[:200]
    return UsageError(str(path), None, f"a whole packed model ({reason})", "copy or pack it again")


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _check_kind(path: Path, front: bytes) -> None:
    if front[: len(MAGIC)] != MAGIC:
        remedy = "python -m mobilenet.packer pack MODEL FILE makes one"
        raise UsageError(str(path), None, "a packed model; this is another kind of file", remedy)
    if len(front) < _START:
        raise MalformedPackError(f"it ends after {len(front)} bytes")
    version = _FRONT.unpack(front[: _FRONT.size])[1]
    if version != VERSION:
        remedy = "a later mobilenet may read it"
        raise UsageError(f"{path} version", version, f"{VERSION}, or the file is damaged", remedy)


def _sizes(front: bytes, size: int) -> tuple[int, int, int]:
    """Header packed and unpacked, and the arrays, in bytes."""
    _, _, packed, text, body = _FRONT.unpack(front[: _FRONT.size])
    if _START + packed + body != size:
        raise MalformedPackError(f"{size} bytes where {_START + packed + body} were written")
    _check_sizes(text, size, 0)
    return packed, text, body


def _check_sizes(text: int, size: int, weights: int) -> None:
    _check_limit(_MAX_HEADER, text, "bytes of header")
    _check_limit(_MAX_FILE, size, "bytes")
    _check_limit(_FREE_WEIGHTS + _WEIGHTS_PER_BYTE * size, weights, "weights")


def _check_values(text: bytes) -> None:
    """Counts the values of JSON before they are created."""
    _check_limit(
        _MAX_VALUES, sum(map(text.count, (b",", b":", b"[", b"{"))), "values in the header"
    )


def _check_limit(limit: int, count: int, what: str) -> None:
    if count > limit:
        raise MalformedPackError(f"{count} {what} where {limit} is the most")


def _header(packed: bytes, size: int) -> dict[str, Any]:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, size + 1)
    except zlib.error as error:
        raise MalformedPackError(f"a header that cannot be read: {error}") from None
    if len(text) != size or not unpacker.eof or unpacker.unused_data:
        raise MalformedPackError("a header of another length")
    _check_values(text)
    try:
        header = strict_json.loads(text)
    except strict_json.InvalidJSON as error:
        raise MalformedPackError(f"a header that cannot be read: {error}") from None
    if not isinstance(header, dict):
        raise MalformedPackError("a header that is no JSON object")
    return header


def _records(listed: Any, body: bytes) -> list[Record]:
    if not isinstance(listed, list):
        raise MalformedPackError("a header without arrays")
    _check_limit(_MAX_ARRAYS, len(listed), "arrays")
    records, position = [], 0
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 6:
            raise MalformedPackError("an array without name, layer, kind, type, shape and length")
        name, layer, kind, dtype, shape, size = entry
        if not (isinstance(name, str) and isinstance(layer, str) and kind in (WEIGHT, RANGE)):
            raise MalformedPackError("an array without a name")
        if dtype not in array_codec.DTYPES:
            raise MalformedPackError(f"an array of {dtype!r}")
        if not isinstance(shape, list) or len(shape) > _MAX_AXES:
            raise MalformedPackError(f"an array without a shape of at most {_MAX_AXES} axes")
        if not all(type(side) is int and 0 <= side < _MAX_FILE for side in (*shape, size)):
            raise MalformedPackError("an array with a length that cannot be")
        if size > len(body) - position:
            raise MalformedPackError(
                f"an array of {size} bytes where {len(body) - position} are left"
            )
        data = body[position : position + size]
        records.append(Record(name, layer, kind, dtype, tuple(shape), data))
        position += size
    if position != len(body):
        raise MalformedPackError(f"{len(body) - position} bytes that no array has")
    return records
