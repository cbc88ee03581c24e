"""Files that are either complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet.errors import UsageError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which is renamed to `path` on success.

    Works for a file or a folder, whichever the block creates. The temporary name keeps the suffix,
    so that writers which depend on it work (`.keras`, `.npz`, `.png`). After an error nothing
    is left; what a killed process left in the folder is removed.

    Raises:
        UsageError: the folder cannot be created or written, or the disk is full; or one of the
            block, which then names `path` and not the temporary path.
    """
    check_local(path, str(path))
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        prefix = f".writing-{machine()}-{os.getpid()}-"
        holder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from None
    try:
        temporary = holder / target.name
        yield temporary
        if temporary.is_dir() and target.is_dir():
            os.rename(target, holder / _REPLACED)
        os.replace(temporary, target)
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(holder)):
            reason = (error.strerror or str(error)).replace(str(holder), str(target.parent))
            raise _unwritable(target, reason) from None
        raise
    except UsageError as error:
        raise error.renamed(str(holder), str(target.parent)) from error.__cause__
    finally:
        shutil.rmtree(holder, ignore_errors=True)


_HOLDER = re.compile(r"\.writing-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-\w+")
_REPLACED = "replaced"
_BLOCK = 1 << 20  # bytes read at a time
_ABANDONED_SECONDS = 24 * 3600  # on another machine; a file is written within minutes


def _remove_abandoned(folder: Path) -> None:
    """Removes the temporary folders of processes that were killed, never those of living ones."""
    for path in folder.glob(".writing-*"):
        if (name := _HOLDER.fullmatch(path.name)) and _is_abandoned(path, name):
            _complete(path)
            shutil.rmtree(path, ignore_errors=True)


def _complete(holder: Path) -> None:
    """Renames a complete new folder to its path, if its process was killed after moving the old
    one.
    """
    if (holder / _REPLACED).is_dir():
        for new in holder.iterdir():
            target = holder.parent / new.name
            if new.name != _REPLACED and not target.exists():
                new.rename(target)


def _is_abandoned(path: Path, name: re.Match[str]) -> bool:
    if name["machine"] == machine():
        return not is_alive(int(name["process"]))
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    except OSError:  # its process has just removed it
        return False


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def machine() -> str:
    """Eight digits that identify this machine; containers on it count their own processes."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        namespace = 0
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _unwritable(target: Path, reason: str) -> UsageError:
    return UsageError(
        str(target),
        None,
        f"a path that can be written ({reason})",
        "free space or choose another folder",
    )


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one of object storage, which has `://`; such text is never a `Path`."""
    return isinstance(path, str) and "://" in path


def check_local(path: str | os.PathLike[str], parameter: str, remedy: str = "") -> None:
    """Refuses a path of object storage.

    Args:
        path: any.
        parameter: its name in errors.
        remedy: what can be done instead of copying the files to this machine.

    Raises:
        UsageError: the path has `://`.
    """
    if is_remote(path):
        raise UsageError(
            parameter,
            path,
            "a path of this machine",
            remedy or "copy it here first; runs and records may lie on object storage",
        )


def cache_folder() -> Path:
    """Where files are kept that can be made or fetched again: `MOBILENET_CACHE`, else `mobilenet`
    in `XDG_CACHE_HOME` or `~/.cache`.
    """
    if named := os.environ.get("MOBILENET_CACHE"):
        return Path(named).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(caches) / "mobilenet"


def sha256(path: str | os.PathLike[str]) -> bytes:
    """The digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()


def check_target(
    path: str | os.PathLike[str],
    parameter: str = "path",
    *,
    replaces: tuple[str, str] | None = None,
    overwrite: bool = True,
) -> None:
    """Refuses, before any work is done, a folder that cannot be written or would lose other files.

    Args:
        path: the folder to be written; it may be absent.
        parameter: its name in errors.
        replaces: where the folder will be replaced as a whole, the file that marks an earlier
            result of the same kind, and what that is: `("model.keras", "a model")`.
        overwrite: whether an earlier result may be replaced.

    Raises:
        UsageError: a file has that name, the folder above cannot be written, or the folder holds
            anything but an earlier result that may be replaced.
    """
    check_local(path, parameter)
    target = Path(path)
    above = next(folder for folder in target.absolute().parents if folder.exists())
    try:
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file has that name")
        os.rmdir(tempfile.mkdtemp(prefix=".writing-", dir=above))
    except OSError as error:
        expected = f"a folder that can be written ({error.strerror})"
        raise UsageError(parameter, str(target), expected, "choose another folder") from None
    if replaces is None or not target.is_dir() or not any(target.iterdir()):
        return
    marker, result = replaces
    if not (target / marker).is_file():
        expected = f"a new folder or one that holds {result}"
        raise UsageError(parameter, str(target), expected, "choose another folder")
    if not overwrite:
        remedy = f"choose another, or replace {result} with `overwrite`"
        raise UsageError(parameter, str(target), "a new folder", remedy)


def check_file_target(
    path: str | os.PathLike[str], parameter: str = "path", *, overwrite: bool = True
) -> None:
    """Refuses, before any work is done, a file that cannot be written or would replace another.

    Args:
        path: the file to be written; it may be absent.
        parameter: its name in errors.
        overwrite: whether a file of that name may be replaced.

    Raises:
        UsageError: a folder has that name, the folder above cannot be written, or there is a file
            that may not be replaced.
    """
    check_local(path, parameter)
    target = Path(path)
    if target.is_dir():
        raise UsageError(parameter, str(target), "a file; a folder has that name", "choose another")
    if target.exists() and not overwrite:
        remedy = "choose another, or replace the file with `overwrite`"
        raise UsageError(parameter, str(target), "a new file", remedy)
    check_target(target.absolute().parent, parameter)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes bytes, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes indented JSON with a final newline, whole or not at all."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Indented JSON with a final newline."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
