"""HDF5 files of weights, checked by their headers: nothing outside the file, no more than it holds.

HDF5 can refer to other files (external links, external storage, virtual datasets), follow links in
a circle, and declare arrays of any size that were never written.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

from mobilenet.archives import MAX_RATIO, UNCHECKED_BYTES

MAX_OBJECTS = 1 << 16
MAX_ATTRIBUTE = 1 << 24  # bytes; the largest holds the description of a model
_NUMBERS = "fiub"  # kinds of numpy
_HEAP, _HEAP_BYTES = b"GCOL\x01\0\0\0", 16  # signature and version; with the size
_ENTRY = struct.Struct("<HxxxxxxQ")  # number, uses and padding, length


class UnsafeFile(ValueError):
    """The reason why a file is refused."""


def check(file: Any) -> int:
    """Looks at every link, header and attribute; no array is read.

    Args:
        file: an open `h5py.File`.

    Returns:
        How many numbers its arrays hold.

    Raises:
        UnsafeFile: a link that is not a hard one, an array that is stored elsewhere, holds no
            numbers, arrays that are far larger than what is stored, or too many objects.
    """
    numbers = declared = stored = 0
    for name, item in _objects(file):
        for key in item.attrs:
            _check_attribute(f"attribute {key} of {name}", item.attrs.get_id(key))
        if hasattr(item, "shape"):
            _check_array(name, item)
            numbers += math.prod(item.shape)
            declared += item.nbytes
            stored += item.id.get_storage_size()
    if declared > UNCHECKED_BYTES + MAX_RATIO * stored:
        raise UnsafeFile(f"its arrays declare {declared} bytes where {stored} are stored")
    return numbers


def check_heaps(path: str | os.PathLike[str]) -> None:
    """Looks at the heaps that hold texts; HDF5 reads an entry of no length without end.

    Source: HDF5 File Format Specification 3.0, III.E "Disk Format: Level 1E - Global Heap".

    Args:
        path: of the file, before it is opened.

    Raises:
        UnsafeFile: an entry that is empty or leaves its heap.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(_HEAP)
            while start >= 0:
                _check_heap(data, start)
                start = data.find(_HEAP, start + 1)


def _check_heap(data: mmap.mmap, start: int) -> None:
    (size,) = struct.unpack_from("<Q", data[start + len(_HEAP) : start + _HEAP_BYTES].ljust(8))
    position, end = start + _HEAP_BYTES, start + size
    if end > len(data):
        raise UnsafeFile(f"a heap of {size} bytes, more than the file has after it")
    while position + _ENTRY.size <= end:
        index, length = _ENTRY.unpack_from(data, position)
        # Entry 0 is what is free, its own header included; data are padded to 8 bytes.
        step = length if index == 0 else _ENTRY.size + -(-length // 8) * 8
        if step < _ENTRY.size or position + step > end:
            raise UnsafeFile("a heap with an entry that does not end in it")
        position += step


def text_attribute(file: Any, key: str) -> str | None:
    """An attribute that holds a text, such as `model_config`; `None` where there is none.

    Raises:
        UnsafeFile: it is larger than 16 MiB, or no text.
    """
    if key not in file.attrs:
        return None
    _check_attribute(key, file.attrs.get_id(key))
    value = file.attrs[key]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise UnsafeFile(f"{key} is not a text")
    return value


def _objects(file: Any) -> Iterator[tuple[str, Any]]:
    """Groups and arrays with their paths, each once."""
    import h5py

    seen: set[Any] = set()
    waiting: list[tuple[str, Any]] = [("/", file["/"])]
    while waiting:
        name, item = waiting.pop()
        if item.id in seen:
            continue
        seen.add(item.id)
        if len(seen) > MAX_OBJECTS:
            raise UnsafeFile(f"more than {MAX_OBJECTS} objects")
        yield name, item
        if not isinstance(item, h5py.Group):
            continue
        for key in item:
            path = f"{name.rstrip('/')}/{key}"
            if not isinstance(item.get(key, getlink=True), h5py.HardLink):
                raise UnsafeFile(f"{path} is a link to another place")
            waiting.append((path, item[key]))


def _check_attribute(name: str, attribute: Any) -> None:
    size = attribute.get_type().get_size() * math.prod(attribute.shape)
    if size > MAX_ATTRIBUTE:
        raise UnsafeFile(f"{name} has {size} bytes, at most {MAX_ATTRIBUTE} are read")


def _check_array(name: str, array: Any) -> None:
    if array.external or array.is_virtual:
        raise UnsafeFile(f"the data of {name} are in another file")
    if array.shape is None or array.dtype.kind not in _NUMBERS:
        raise UnsafeFile(f"{name} does not hold numbers")
