"""Zip archives and `.npz` files from unknown sources, checked before anything is decompressed.

All sizes come from headers and are compared with bounds and with the bytes that are in the file, so
that a small file cannot fill the memory.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mobilenet.errors import UsageError
from mobilenet.typing import Array

MAX_TOTAL_BYTES = 1 << 30  # uncompressed; the largest released checkpoint has 0.4 GiB
MAX_RATIO = 20.0  # uncompressed to compressed bytes; the arrays of trained models reach 2
UNCHECKED_BYTES = 32 << 20  # up to here any ratio is harmless: pruned models compress well
MAX_MEMBERS = 10_000
_MAX_DIRECTORY_BYTES = 256 * MAX_MEMBERS  # zipfile reads the list of members at once
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that zipfile reads in bounded steps
_ENCRYPTED = 1
_FIRST, _END, _ZIP64 = b"PK\3\4", b"PK\5\6", b"PK\6\7"
_END_BYTES, _ZIP64_BYTES, _MAX_COMMENT_BYTES = 22, 20, 1 << 16

Shapes = dict[str, tuple[int, ...]]


def check_zip(
    path: str | os.PathLike[str],
    names: str = ".*",
    what: str = "a whole zip file",
    remedy: str = "copy or download it again",
    max_total_bytes: int = MAX_TOTAL_BYTES,
    max_ratio: float = MAX_RATIO,
) -> None:
    """Checks the headers of a zip file; nothing is decompressed.

    Args:
        path: of the file.
        names: regular expression that the whole name of every member matches.
        what: what the file is expected to be, for the message.
        remedy: what its user can do, for the message.
        max_total_bytes: bound on the uncompressed size of all members together.
        max_ratio: bound on that size over the size of the file, from `UNCHECKED_BYTES` on.

    Raises:
        UsageError: it is no zip file, a member has an unexpected name, occurs twice, is encrypted
            or uses another compression than deflate, or the sizes exceed a bound.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError("no plain file")  # opening a pipe would wait for its writer
        with Path(path).open("rb") as file:
            _check_members(_opened(file), _size(file), names, max_total_bytes, max_ratio)
    except Exception as error:  # whatever zipfile raises for a damaged file
        raise _refused(path, what, error, remedy) from None


def appended_member(content: bytes, name: str, max_bytes: int) -> bytes | None:
    """A member of a zip archive that is appended to other content, as labels to a `.tflite` file.

    Args:
        content: the whole file.
        name: of the member.
        max_bytes: bound on its uncompressed size.

    Returns:
        Its bytes; `None` where it is not there, damaged or larger.
    """
    try:
        file = io.BytesIO(content)
        _check_directory(file)
        with zipfile.ZipFile(file) as archive:
            member = archive.getinfo(name)
            if _fault(member, "(?s:.+)") or member.file_size > max_bytes:
                return None
            with archive.open(member) as opened:
                return opened.read(max_bytes)
    except Exception:  # whatever zipfile and zlib raise for a damaged file
        return None


def npz_shapes(
    path: str | os.PathLike[str],
    what: str = "a whole .npz file",
    remedy: str = "copy or download it again",
    max_total_bytes: int = MAX_TOTAL_BYTES,
) -> Shapes:
    """The shapes of the arrays in an `.npz` file by name; only headers are read.

    After it `numpy.load(path, allow_pickle=False)` allocates no more than the file declares.

    Args:
        path: of the file.
        what: what the file is expected to be, for the message.
        remedy: what its user can do, for the message.
        max_total_bytes: bound on the size of all arrays together.

    Raises:
        UsageError: as `check_zip`; or a member is no `.npy` file, holds objects, or has another
            size than its shape and type give.
    """
    check_zip(path, r"(?s:.+)\.npy", what, remedy, max_total_bytes)
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                member.filename.removesuffix(".npy"): _npy_shape(archive, member)
                for member in archive.infolist()
            }
    except Exception as error:  # whatever zipfile and numpy raise for a damaged header
        raise _refused(path, what, error, remedy) from None


def load_npz(
    path: str | os.PathLike[str],
    what: str = "a whole .npz file",
    remedy: str = "copy or download it again",
    max_total_bytes: int = MAX_TOTAL_BYTES,
) -> dict[str, Array]:
    """The arrays of an `.npz` file by name, read after `npz_shapes` accepted it.

    Raises:
        UsageError: as `npz_shapes`, or the content of a member is damaged.
    """
    npz_shapes(path, what, remedy, max_total_bytes)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # whatever zipfile, zlib and numpy raise for damaged content
        raise _refused(path, what, error, remedy) from None


def _refused(path: str | os.PathLike[str], what: str, error: Exception, remedy: str) -> UsageError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    expected = f"{what} ({' '.join(reason.split())[:120]})"
    return UsageError(os.fspath(path), None, expected, remedy)


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _opened(file: BinaryIO) -> zipfile.ZipFile:
    """Opens an archive that begins with its first member."""
    _check_directory(file)
    file.seek(0)
    if file.read(4) not in (_FIRST, _END):  # numpy takes anything else for a pickle
        raise zipfile.BadZipFile("other bytes before the first member")
    return zipfile.ZipFile(file)


def _check_directory(file: BinaryIO) -> None:
    """Checks that the list of members is short enough to be read."""
    tail_bytes = min(_size(file), _ZIP64_BYTES + _END_BYTES + _MAX_COMMENT_BYTES)
    file.seek(-tail_bytes, os.SEEK_END)
    tail = file.read(tail_bytes)
    start = len(tail) - _END_BYTES  # where zipfile looks first
    if tail[start : start + 4] != _END or tail[-2:] != b"\0\0":
        start = tail.rfind(_END)
    if start < 0:
        raise zipfile.BadZipFile("no zip file")
    if tail[max(0, start - _ZIP64_BYTES) :][:4] == _ZIP64:
        raise zipfile.BadZipFile("Zip64, for more than 65,535 members or 4 GiB")
    if int.from_bytes(tail[start + 12 : start + 16], "little") > _MAX_DIRECTORY_BYTES:
        raise zipfile.BadZipFile(f"more than {MAX_MEMBERS:,} members")


def _check_members(
    archive: zipfile.ZipFile, file_bytes: int, names: str, max_total_bytes: int, max_ratio: float
) -> None:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise zipfile.BadZipFile(f"more than {MAX_MEMBERS:,} members")
    seen: set[str] = set()
    for member in members:
        fault = _fault(member, names)
        if member.filename in seen:
            fault = "occurs twice"
        if fault:
            raise zipfile.BadZipFile(f"member {member.filename[:80]!r} {fault}")
        seen.add(member.filename)
    total = sum(member.file_size for member in members)
    if total > max_total_bytes:
        raise zipfile.BadZipFile(f"{total:,} bytes uncompressed, at most {max_total_bytes:,}")
    if total > UNCHECKED_BYTES and total > max_ratio * file_bytes:
        raise zipfile.BadZipFile(
            f"{total:,} bytes from {file_bytes:,}, at most {max_ratio:g} times as many"
        )


def _fault(member: zipfile.ZipInfo, names: str) -> str:
    """What is wrong with one member, by its header."""
    if not re.fullmatch(names, member.filename):
        return "is not expected in it"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in _METHODS:
        return "is compressed by another method than deflate"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link"
    if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
        return f"has {member.compress_size:,} bytes instead of {member.file_size:,}"
    return ""


def _npy_shape(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, ...]:
    """The shape of one array, after its header was compared with the size of the member."""
    headers: Any = np.lib.format  # without types before numpy 2.3
    with archive.open(member) as file:
        version = headers.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = headers.read_array_header_1_0(file)
        else:  # numpy has no public reader of version 3, which differs only in field names
            shape, _, dtype = headers.read_array_header_2_0(file)
        header_bytes = file.tell()
    if dtype.hasobject:
        raise ValueError(f"member {member.filename[:80]!r} holds Python objects")
    array_bytes = member.file_size - header_bytes
    declared = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or dtype.itemsize == 0 or declared != array_bytes:
        raise ValueError(
            f"member {member.filename[:80]!r} declares {shape} of {dtype} in {array_bytes:,} bytes"
        )
    return tuple(shape)
