"""Where each record of a set of TFRecord files begins, so that any can be read first.

A file is a sequence of records: the length in 8 bytes, 4 bytes of checksum, the record, 4 bytes of
checksum (tensorflow/core/lib/io/record_writer.h).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import struct
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet import object_storage
from mobilenet.data.sources import index_cache
from mobilenet.errors import UsageError
from mobilenet.files import is_remote

_FRAME = 16  # bytes of a record besides its content
_REMOTE_THREADS = 16
log = logging.getLogger("mobilenet")

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class RecordIndex:
    """The records of some files.

    Attributes:
        files: in their sorted order.
        counts: records in each file, `[files]`.
        offsets: the byte at which each record begins and at which the last one of a file ends, file
            after file, `[records + files]`.
    """

    files: tuple[str, ...]
    counts: Int64
    offsets: Int64

    @property
    def size(self) -> int:
        """Records in all files."""
        return int(self.counts.sum())

    @functools.cached_property
    def ends(self) -> Int64:
        """The number after that of the last record of each file, `[files]`."""
        return np.cumsum(self.counts)

    def file_of(self, numbers: Int64) -> Int64:
        """The index of the file of each record."""
        return np.searchsorted(self.ends, numbers, side="right")

    @property
    def mean_bytes(self) -> float:
        """Of a record with its frame."""
        stops = self.ends + np.arange(len(self.files))
        return float(self.offsets[stops].sum() / self.size)


class _ObjectStorage(index_cache.Storage):
    """Paths with `://`, which TensorFlow reads."""

    def read(self, path: str) -> index_cache.Arrays:
        content = object_storage.read_bytes(path)
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "index.npz")
            with open(local, "wb") as file:
                file.write(content)
            return super().read(local)

    def write(self, path: str, content: bytes) -> None:
        if is_remote(path):
            object_storage.write_bytes(path, content)
        else:
            super().write(path, content)

    def stamp(self, path: str) -> tuple[int, int]:
        with object_storage.os_errors():
            status = tf.io.gfile.stat(path)
        return int(status.length), int(status.mtime_nsec)


def load(files: Sequence[str]) -> RecordIndex:
    """The index of record files, from its file where there is one.

    Otherwise the lengths of the records are read: of local files nothing else, files with `://` are
    read from begin to end.

    Raises:
        UsageError: a file is empty, is cut short, or holds something else.
    """
    files = tuple(files)
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    names = [os.path.relpath(file, folder or ".") for file in files]
    storage = index_cache.LOCAL
    if is_remote(files[0]):
        folder, storage = files[0].rpartition("/")[0], _ObjectStorage()
        names = [file.removeprefix(f"{folder}/") for file in files]
    key = json.dumps(names)
    kind = f"records-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:8]}"
    stored = index_cache.load(folder, kind, key, storage)
    if stored is not None and {"counts", "offsets"} <= set(stored):
        index = RecordIndex(files, stored["counts"], stored["offsets"])
        if len(index.offsets) == index.size + len(files) and len(index.counts) == len(files):
            return index
    try:
        stamped = storage.stamps(folder, names)
    except OSError as error:
        raise UsageError(folder, None, f"files that can be read ({error})") from None
    index = _scan(files)
    if index.size > index_cache.LEAST:
        arrays = {"counts": index.counts, "offsets": index.offsets}
        index_cache.save(folder, kind, key, names, stamped, arrays, storage)
    return index


def _scan(files: tuple[str, ...]) -> RecordIndex:
    remote = is_remote(files[0])
    if remote:
        log.info("%s: reads the %d files once for their index", files[0], len(files))
    with ThreadPoolExecutor(_REMOTE_THREADS if remote else os.cpu_count() or 1) as pool:
        offsets = list(pool.map(_offsets, files))
    counts = np.array([len(one) - 1 for one in offsets], np.int64)
    return RecordIndex(files, counts, np.concatenate(offsets))


def _offsets(path: str) -> Int64:
    """The byte at which each record begins, and the size of the file."""
    remote = is_remote(path)
    offsets = [0]
    try:
        size = tf.io.gfile.stat(path).length
        with tf.io.gfile.GFile(path, "rb") if remote else open(path, "rb", 0) as file:
            while offsets[-1] < size:
                offsets.append(offsets[-1] + _next(file, offsets[-1], size, remote))
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", error)
        raise UsageError(path, None, f"a file that can be read ({reason})") from None
    if offsets[-1] != size or len(offsets) < 2:
        raise UsageError(
            path, None, "a whole, uncompressed TFRecord file", "copy it again, or remove it"
        )
    return np.array(offsets, np.int64)


def _next(file: Any, position: int, size: int, remote: bool) -> int:
    """Bytes of the record at `position`; too many where it is none.

    Object storage is read on: a request for each record would take longer than its content.
    """
    if not remote:
        file.seek(position)
    head = file.read(8)
    count = _FRAME + (struct.unpack("<Q", head)[0] if len(head) == 8 else size)
    if remote and position + count <= size:
        file.read(count - 8)
    return int(count)
