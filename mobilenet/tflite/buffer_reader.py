"""FlatBuffers, read with every offset and length checked against the file.

The generated accessors (`schema_py_generated`) follow any offset: a negative one wraps around, a
wrong one reads a neighbor. These few reads refuse it instead. Layout:
google.github.io/flatbuffers, "FlatBuffer Internals".
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

_MAX_TABLES = (
    200_000  # as in FlatBuffers' own verifier: shared tables could otherwise multiply without end
)


class MalformedFlatbufferError(Exception):
    """The bytes break the format; the text says where."""


class BufferReader:
    """The bytes of one file, and how many of them may still be read."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.size = len(data)
        self._layouts: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._tables = 0
        self._budget = 4 * self.size + 1024  # vectors may be shared, but not a thousandfold

    def scalar(self, layout: struct.Struct, position: int, what: str) -> int | float:
        if position < 0 or position + layout.size > self.size:
            raise MalformedFlatbufferError(f"{what} at byte {position} of {self.size}")
        value: int | float = layout.unpack_from(self.data, position)[0]
        return value

    def integer(self, layout: struct.Struct, position: int, what: str) -> int:
        return int(self.scalar(layout, position, what))

    def table(self, position: int, what: str) -> Table:
        """The table at `position`, its fields inside itself and itself inside the file."""
        self._tables += 1
        if self._tables > _MAX_TABLES:
            raise MalformedFlatbufferError(f"more than {_MAX_TABLES} tables")
        if position % 4:
            raise MalformedFlatbufferError(f"{what} at the odd byte {position}")
        start = position - self.integer(_INT32, position, what)
        length, fields = self._layout(start, what)
        if position + length > self.size:
            raise MalformedFlatbufferError(f"{what} ends after the file")
        return Table(self, position, fields, what)

    def _layout(self, start: int, what: str) -> tuple[int, tuple[int, ...]]:
        if start not in self._layouts:
            size = self.integer(_UINT16, start, what)
            length = self.integer(_UINT16, start + 2, what)
            if start % 2 or size < 4 or size % 2 or length < 4 or start + size > self.size:
                raise MalformedFlatbufferError(f"the layout of {what}")
            fields = struct.unpack_from(f"<{size // 2 - 2}H", self.data, start + 4)
            if any(field and not 4 <= field < length for field in fields):
                raise MalformedFlatbufferError(f"the layout of {what}")
            self._layouts[start] = length, fields
        return self._layouts[start]

    def vector(self, position: int, item: int, what: str) -> tuple[int, int]:
        """Where the items of a vector start, and how many there are."""
        if position % 4:
            raise MalformedFlatbufferError(f"{what} at the odd byte {position}")
        count = self.integer(_UINT32, position, what)
        if position + 4 + count * item > self.size:
            raise MalformedFlatbufferError(f"{what} of {count} items ends after the file")
        return position + 4, count

    def spend(self, size: int, what: str) -> None:
        self._budget -= size
        if self._budget < 0:
            raise MalformedFlatbufferError(f"{what} is read repeatedly")


_INT32 = struct.Struct("<i")
_UINT32 = struct.Struct("<I")
_UINT16 = struct.Struct("<H")


class Table:
    """One table; `slot` is a field's number in the schema. Absent fields give defaults."""

    __slots__ = ("_fields", "_position", "_reader", "what")

    def __init__(
        self, reader: BufferReader, position: int, fields: tuple[int, ...], what: str
    ) -> None:
        self._reader, self._position, self._fields, self.what = reader, position, fields, what

    def _field(self, slot: int) -> int | None:
        offset = self._fields[slot] if slot < len(self._fields) else 0
        return self._position + offset if offset else None

    def _target(self, slot: int, what: str) -> int | None:
        field = self._field(slot)
        return None if field is None else field + self._reader.integer(_UINT32, field, what)

    def number(self, slot: int, layout: str, default: int = 0) -> int:
        """A whole number; `layout` is a `struct` format."""
        field = self._field(slot)
        if field is None:
            return default
        return self._reader.integer(struct.Struct("<" + layout), field, self.what)

    def array(self, slot: int, dtype: str, what: str) -> npt.NDArray[np.generic]:
        """A vector of numbers, as a view of the file."""
        target = self._target(slot, what)
        kind = np.dtype(dtype)
        if target is None:
            return np.empty(0, kind)
        start, count = self._reader.vector(target, kind.itemsize, what)
        self._reader.spend(count * kind.itemsize, what)
        return np.frombuffer(self._reader.data, kind, count, start)

    def raw(self, slot: int, what: str) -> memoryview:
        """A vector of bytes, as a view of the file."""
        target = self._target(slot, what)
        if target is None:
            return self._reader.data[:0]
        start, count = self._reader.vector(target, 1, what)
        return self._reader.data[start : start + count]

    def text(self, slot: int, what: str) -> str:
        """A string; bytes that are not UTF-8 are replaced."""
        target = self._target(slot, what)
        if target is None:
            return ""
        start, count = self._reader.vector(target, 1, what)
        self._reader.spend(count, what)
        if start + count >= self._reader.size or self._reader.data[start + count] != 0:
            raise MalformedFlatbufferError(f"{what} without its end")
        return bytes(self._reader.data[start : start + count]).decode("utf-8", "replace")

    def table(self, slot: int, what: str) -> Table | None:
        target = self._target(slot, what)
        return None if target is None else self._reader.table(target, what)

    def tables(self, slot: int, what: str, required: bool = False) -> list[Table]:
        target = self._target(slot, what)
        if target is None:
            if required:
                raise MalformedFlatbufferError(f"no {what}s")
            return []
        start, count = self._reader.vector(target, 4, what)
        if count > _MAX_TABLES:
            raise MalformedFlatbufferError(f"more than {_MAX_TABLES} tables")
        positions = range(start, start + 4 * count, 4)
        return [
            self._reader.table(
                position + self._reader.integer(_UINT32, position, what), f"{what} {index}"
            )
            for index, position in enumerate(positions)
        ]
