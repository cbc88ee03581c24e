"""A cache of what is in a large data set, so that it is listed once: a file next to the data or,
where that cannot be written, in the user's cache folder.

An index is used as long as the files and folders that it was made of have the size and time of
modification that they had. It is rebuilt where it is damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import stat
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet import archives, files
from mobilenet.errors import UsageError

LEAST = 10_000  # images; smaller sets are listed each time, and their folders stay as they are
_FORMAT = 1
_FRESH_NS = 2_000_000_000  # a time of modification may be as coarse as two seconds
_THREADS = 16
log = logging.getLogger("mobilenet")

Arrays = Mapping[str, npt.NDArray[Any]]


class Storage:
    """Files and folders of this machine."""

    def read(self, path: str) -> Arrays:
        """The arrays of a file; `OSError` without one, `UsageError` where it is damaged."""
        os.stat(path)
        return archives.load_npz(path, "an index")

    def write(self, path: str, content: bytes) -> None:
        """Writes a file, whole or not at all; else `OSError` or `UsageError`."""
        files.write_bytes(path, content)

    def stamp(self, path: str) -> tuple[int, int]:
        """Size, 0 of a folder, and time of modification in nanoseconds; `OSError` without it."""
        status = os.stat(path)
        return 0 if stat.S_ISDIR(status.st_mode) else status.st_size, status.st_mtime_ns

    def stamps(self, folder: str, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """The `stamp` of each name in a folder, `[names, 2]`; `OSError` if one is not there."""
        paths = [os.path.join(folder, name) for name in names]
        with ThreadPoolExecutor(_THREADS) as pool:
            return np.array(list(pool.map(self.stamp, paths)), np.int64).reshape(-1, 2)


LOCAL = Storage()


def load(folder: str, kind: str, key: str, storage: Storage = LOCAL) -> Arrays | None:
    """Reads an index.

    Args:
        folder: of the data.
        kind: of the index; part of its file's name.
        key: whatever the index depends on besides the content of the files.
        storage: where the data are.

    Returns:
        What `save` got, or `None` where there is no such index, it is damaged, or the data have
        changed since.
    """
    for path in _paths(folder, kind):
        try:
            arrays = dict(storage.read(path))
        except OSError:
            continue
        except UsageError as error:
            log.info("%s; it is made again", error)
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            own = json.loads(arrays.pop("header").tobytes())
            stamped = arrays.pop("stamps")
            if (own["format"], own["key"]) != (_FORMAT, key):
                continue
            if np.array_equal(stamped, storage.stamps(folder, own["names"])):
                return arrays
    return None


def save(
    folder: str,
    kind: str,
    key: str,
    names: Sequence[str],
    stamped: npt.NDArray[np.int64],
    arrays: Arrays,
    storage: Storage = LOCAL,
) -> None:
    """Writes an index, whole or not at all; does nothing where no folder can be written.

    Args:
        folder, kind, key, storage: see `load`.
        names: files and folders, relative to `folder`, that it was made of.
        stamped: their `stamps` from before they were read.
        arrays: the index.
    """
    if len(stamped) and stamped[:, 1].max() > time.time_ns() - _FRESH_NS:
        return  # another change may leave the time as it is
    header = json.dumps({"format": _FORMAT, "key": key, "names": list(names)})
    content = io.BytesIO()
    encoded = np.frombuffer(header.encode(), np.uint8)
    everything: dict[str, Any] = {**arrays, "header": encoded, "stamps": stamped}
    np.savez(content, **everything)
    for path in _paths(folder, kind):
        try:
            storage.write(path, content.getvalue())
        except (OSError, UsageError):
            continue
        log.info("%s: index of the data, used as long as they do not change", path)
        return


def _paths(folder: str, kind: str) -> tuple[str, str]:
    """Where an index may lie, in the order in which it is looked for."""
    source = folder if "://" in folder else os.path.realpath(folder)
    name = hashlib.sha256(f"{source}\n{kind}".encode(errors="surrogateescape")).hexdigest()[:20]
    return (
        os.path.join(folder, f".mobilenet-{kind}.npz"),
        os.path.join(files.cache_folder(), "indices", f"{name}.npz"),
    )
