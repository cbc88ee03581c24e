"""The index file of a TF1 or TF2 checkpoint, checked entry by entry before TensorFlow opens it.

TensorFlow aborts the process on some malformed entries, and allocates what an entry declares before
it compares the size with the data file.

Source of the format: tensorflow/core/lib/io/format.h (a LevelDB table) and
tensorflow/core/protobuf/tensor_bundle.proto (its values). The checksums are left to TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet.archives import MAX_TOTAL_BYTES

_FOOTER_BYTES, _TRAILER_BYTES = 48, 5  # two handles and the magic; compression and checksum
_MAX_INDEX_BYTES = 8 << 20  # 20 kB for a training of MobileNetV1 with its slots
_MAX_ENTRIES, _MAX_KEY_BYTES, _MAX_RANK = 20_000, 1024, 8
_MAX_VARINT_BYTES, _CHECKSUM_BYTES = 10, 4
_MAX_STRINGS = 16  # a checkpoint of TF2 has one, which describes its objects


class MalformedIndexError(ValueError):
    """The index does not follow the format, or declares what the data files cannot hold."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One variable: its shape, and its type as a `tf.dtypes.DType`."""

    shape: tuple[int, ...]
    dtype: Any


def read_index(prefix: str) -> dict[str, Entry]:
    """The variables of the checkpoint `prefix` by name; their data files were found long enough.

    Raises:
        MalformedIndexError: see there.
        OSError: the index cannot be read.
    """
    path = Path(f"{prefix}.index")
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise MalformedIndexError(f"{path.stat().st_size:,} bytes of index")
    records = _records(path.read_bytes())
    key, header = next(records, (b"?", b""))
    if key:
        raise MalformedIndexError("no header in the index")
    shards = _Shards(prefix, header)
    return {_text(key): shards.checked_entry(_text(key), value) for key, value in records}


class _Shards:
    """The data files that an index counts in its header."""

    def __init__(self, prefix: str, header: bytes) -> None:
        from tensorflow.core.protobuf import tensor_bundle_pb2

        parsed = tensor_bundle_pb2.BundleHeaderProto()
        parsed.ParseFromString(header)
        if parsed.endianness != tensor_bundle_pb2.BundleHeaderProto.LITTLE:
            raise MalformedIndexError("numbers in big-endian order")
        self._prefix, self._count = prefix, parsed.num_shards
        self._sizes: dict[int, int] = {}
        self._declared = 0

    def checked_entry(self, name: str, value: bytes) -> Entry:
        """One variable, if its data file has the bytes that its shape takes."""
        import tensorflow as tf
        from tensorflow.core.protobuf import tensor_bundle_pb2

        entry = tensor_bundle_pb2.BundleEntryProto()
        entry.ParseFromString(value)
        if entry.slices:
            raise MalformedIndexError(f"{name} is partitioned")
        shape = tuple(dim.size for dim in entry.shape.dim)
        if entry.shape.unknown_rank or len(shape) > _MAX_RANK or min(shape, default=0) < 0:
            raise MalformedIndexError(f"{name} has no fixed shape of at most {_MAX_RANK} axes")
        dtype, item_bytes, exact = _type(name, entry.dtype)
        size = math.prod(shape) * item_bytes
        if entry.size != size and (exact or entry.size < size):
            raise MalformedIndexError(f"{name} declares {shape} in {entry.size:,} bytes")
        if entry.offset < 0 or entry.offset + entry.size > self._size(entry.shard_id):
            raise MalformedIndexError(f"{name} declares bytes after the end of its data file")
        if dtype == tf.string:
            self._check_strings(name, entry, math.prod(shape))
        self._declared += entry.size
        if self._declared > min(sum(self._sizes.values()), MAX_TOTAL_BYTES):
            raise MalformedIndexError(
                f"variables of more bytes than the data files, or than {MAX_TOTAL_BYTES:,}"
            )
        return Entry(shape, dtype)

    def _check_strings(self, name: str, entry: Any, count: int) -> None:
        """Strings are stored as their lengths, a checksum of these, and their bytes."""
        if count > _MAX_STRINGS:
            raise MalformedIndexError(f"{name} has {count:,} strings")
        self._size(entry.shard_id)
        with self._path(entry.shard_id).open("rb") as file:
            file.seek(entry.offset)
            data = file.read(min(entry.size, count * _MAX_VARINT_BYTES))
        position = total = 0
        for _ in range(count):
            length, position = _varint(data, position)
            total += length
        if position + _CHECKSUM_BYTES + total != entry.size:
            raise MalformedIndexError(f"{name} declares strings of {total:,} bytes")

    def _path(self, shard: int) -> Path:
        return Path(f"{self._prefix}.data-{shard:05}-of-{self._count:05}")

    def _size(self, shard: int) -> int:
        if not 0 <= shard < self._count:
            raise MalformedIndexError(f"data file {shard} of {self._count}")
        if shard not in self._sizes:
            path = self._path(shard)
            if not path.is_file():
                raise MalformedIndexError(f"no {path.name}")
            self._sizes[shard] = os.path.getsize(path)
        return self._sizes[shard]


def _type(name: str, number: int) -> tuple[Any, int, bool]:
    """A type, the bytes of one element, and whether each has exactly so many."""
    import tensorflow as tf

    try:
        dtype = tf.dtypes.as_dtype(number)
    except (TypeError, KeyError):
        raise MalformedIndexError(f"{name} is of an unknown type") from None
    if dtype in (tf.string, tf.variant, tf.resource):
        return dtype, 1, False
    if dtype != dtype.base_dtype:
        raise MalformedIndexError(f"{name} is a reference to a variable")
    return dtype, dtype.size, True


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise MalformedIndexError(f"{key!r} is no name") from None


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in the strict order of the keys."""
    if len(data) < _FOOTER_BYTES:
        raise MalformedIndexError("an index cut short")
    footer = data[-_FOOTER_BYTES:]
    position = 0
    for _ in range(2):  # the first handle is that of the unused meta index
        _, position = _varint(footer, position)
    last, count, read = b"", 0, 0
    for _, handle in _block(data, *_handle(footer, position)):
        read += _handle(handle, 0)[1]
        if read > len(data):
            raise MalformedIndexError("blocks that are listed more than once")
        for key, value in _block(data, *_handle(handle, 0)):
            if (key <= last and count) or count >= _MAX_ENTRIES:
                raise MalformedIndexError("entries out of order, or too many")
            yield key, value
            last, count = key, count + 1


def _handle(data: bytes, position: int) -> tuple[int, int]:
    offset, position = _varint(data, position)
    return offset, _varint(data, position)[0]


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block; keys are stored without what they share with the last one."""
    block = data[offset : offset + size + 1]
    if len(block) != size + 1 or size < 4 or block[-1] != 0:
        raise MalformedIndexError("a block that is lost, or compressed")
    block = block[:-1]
    end, restarts = _restarts(block)
    position, key, starts = 0, b"", {0}
    while position < end:
        start = position
        shared, position = _varint(block, position)
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        if shared > len(key) or shared + own > _MAX_KEY_BYTES or position + own + length > end:
            raise MalformedIndexError("an entry longer than its block")
        key = key[:shared] + block[position : position + own]
        position += own + length
        starts |= {start} if not shared else set()
        yield key, block[position - length : position]
    if not starts.issuperset(restarts):
        raise MalformedIndexError("a restart inside an entry")


def _restarts(block: bytes) -> tuple[int, list[int]]:
    """Where the entries of a block end, and the positions from which TensorFlow may read it."""
    count = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (count + 1)
    if end < 0:
        raise MalformedIndexError("a block without its entries")
    numbers = block[end:-4]
    return end, [int.from_bytes(numbers[i : i + 4], "little") for i in range(0, 4 * count, 4)]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise MalformedIndexError("a number without its end")
