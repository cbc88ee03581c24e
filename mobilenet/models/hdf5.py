"""HDF5 files of weights, checked by their headers: nothing outside the file, no more than it holds.

HDF5 can refer to other files (external links, external storage, virtual datasets), follow links in
a circle, and declare arrays of any size that were never written.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

MAX_OBJECTS = 1 << 16
MAX_ATTRIBUTE = 1 << 24  # bytes; the largest holds the description of a model
_NUMBERS = "fiub"  # kinds of numpy
_HEAP = b"GCOL\x01"  # signature and version
_HEAP_HEADER = struct.Struct("<8xQ")  # with three reserved bytes; the size
_MAX_ENTRIES = 1 << 18
_MAX_TEXTS = 1 << 30  # bytes of a list, if each text were the longest: a description of a megabyte
_ENTRY = struct.Struct("<HxxxxxxQ")  # number, uses and padding, length


class UnsafeFile(ValueError):
    """The reason why a file is refused."""


@contextlib.contextmanager
def open_checked(path: str | os.PathLike[str]) -> Iterator[tuple[Any, int]]:
    """Opens a file for reading, after checking all of it.

    Yields:
        The `h5py.File`, and how many numbers its arrays hold.

    Raises:
        UnsafeFile: see `_check_heaps` and `_check`.
        OSError: the file cannot be read.
    """
    import h5py

    longest_text = _check_heaps(path)
    with h5py.File(path, "r") as file:
        yield file, _check(file, longest_text)


def _check(file: Any, longest_text: int) -> int:
    """Checks every link, header and attribute; no array is read.

    Args:
        file: an open `h5py.File`.
        longest_text: from `_check_heaps`; a list may name the same text many times.

    Returns:
        How many numbers its arrays hold.

    Raises:
        UnsafeFile: a link that is not a hard one, an array that is stored elsewhere, holds no
            numbers, is compressed or larger than what is stored, a weight that is named twice, or
            too many objects.
    """
    numbers = 0
    named: set[int] = set()
    for name, item in _objects(file):
        for key in item.attrs:
            _check_attribute(f"attribute {key} of {name}", item.attrs.get_id(key), longest_text)
            if key.startswith("weight_names"):
                _check_names(name, item, item.attrs[key], named)
        if hasattr(item, "shape"):
            _check_array(name, item)
            numbers += math.prod(item.shape)
    return numbers


def _check_heaps(path: str | os.PathLike[str]) -> int:
    """Checks the heaps of texts; HDF5 reads an entry of no length without end.

    Source: HDF5 File Format Specification 3.0, III.E "Disk Format: Level 1E - Global Heap".

    Args:
        path: of the file, before it is opened.

    Returns:
        The bytes of the longest text, for `_check`.

    Raises:
        UnsafeFile: an entry that is empty or leaves its heap, or too many entries.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start, entries, longest = data.find(_HEAP), 0, 0
            while start >= 0:
                count, length = _check_heap(data, start, _MAX_ENTRIES - entries)
                entries, longest = entries + count, max(longest, length)
                start = data.find(_HEAP, start + 1)  # heaps may be made to overlap
            return longest


def _check_heap(data: mmap.mmap, start: int, most: int) -> tuple[int, int]:
    """The number of entries of a heap, and the length of the longest."""
    position, count, longest = start + _HEAP_HEADER.size, 0, 0
    if position > len(data):
        raise UnsafeFile("a heap that is cut short")
    (size,) = _HEAP_HEADER.unpack_from(data, start)
    end = start + size
    if end > len(data):
        raise UnsafeFile(f"a heap of {size} bytes, more than the file has after it")
    while position + _ENTRY.size <= end:
        index, length = _ENTRY.unpack_from(data, position)
        # Entry 0 is what is free, its own header included; data are padded to 8 bytes.
        step = length if index == 0 else _ENTRY.size + -(-length // 8) * 8
        if step < _ENTRY.size or position + step > end:
            raise UnsafeFile("a heap with an entry that does not end in it")
        position, count, longest = position + step, count + 1, max(longest, length)
        if count > most:
            raise UnsafeFile(f"heaps of more than {_MAX_ENTRIES} entries")
    return count, longest


def text_attribute(file: Any, key: str) -> str | None:
    """An attribute that holds a text, such as `model_config`; `None` where there is none.

    Raises:
        UnsafeFile: it is larger than 16 MiB, or no text.
    """
    if key not in file.attrs:
        return None
    _check_attribute(key, file.attrs.get_id(key), 0)
    if file.attrs.get_id(key).shape:
        raise UnsafeFile(f"{key} is not a text")
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
            raise UnsafeFile(f"{name} is another name of the same object")
        seen.add(item.id)
        if len(seen) > MAX_OBJECTS:
            raise UnsafeFile(f"more than {MAX_OBJECTS} objects")
        yield name, item
        if not isinstance(item, h5py.Group):
            continue
        for key in item:
            path = f"{name.rstrip('/')}/{key}"
            if not isinstance(item.get(key, getlink=True), h5py.HardLink):
                raise UnsafeFile(f"{path} is a link to another object")
            waiting.append((path, item[key]))


def _check_attribute(name: str, attribute: Any, longest_text: int) -> None:
    import h5py

    kind, count = attribute.get_type(), math.prod(attribute.shape)
    is_variable = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    if is_variable and attribute.shape and count * longest_text > _MAX_TEXTS:
        raise UnsafeFile(f"{name} may have {count * longest_text} bytes")
    size = kind.get_size() * count
    if size > MAX_ATTRIBUTE:
        raise UnsafeFile(f"{name} has {size} bytes, at most {MAX_ATTRIBUTE} are read")


def _check_names(name: str, group: Any, names: Any, seen: set[int]) -> None:
    """Keras reads each array that is named here before it counts them."""
    import h5py

    for key in names:
        array = group.get(key)
        if not isinstance(array, h5py.Dataset):
            raise UnsafeFile(f"{name} names weights that it does not hold")
        address = h5py.h5o.get_info(array.id).addr
        if address in seen:
            raise UnsafeFile(f"{array.name} is named twice")
        seen.add(address)


def _check_array(name: str, array: Any) -> None:
    if array.external or array.is_virtual:
        raise UnsafeFile(f"the data of {name} are in another file")
    if array.shape is None or array.dtype.kind not in _NUMBERS:
        raise UnsafeFile(f"{name} does not hold numbers")
    if array.id.get_create_plist().get_nfilters():
        raise UnsafeFile(f"{name} is compressed or filtered; Keras does neither")
    stored = array.id.get_storage_size()
    if array.nbytes > stored:
        raise UnsafeFile(f"{name} declares {array.nbytes} bytes where {stored} are stored")
