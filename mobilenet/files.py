"""Files that are either whole or absent: each is written beside its name and renamed into place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet.errors import UsageError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path in the same folder; on success it takes the place of `path`.

    Works for a file or a folder, whichever the block creates. The temporary name keeps the suffix,
    so that writers which look at it (`.keras`, `.npz`, `.png`) are content. After an error nothing
    is left.

    Raises:
        UsageError: the folder cannot be made or written, or the disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from None
    try:
        temporary = holder / target.name
        yield temporary
        if temporary.is_dir() and target.is_dir():
            os.rename(target, holder / "replaced")
        os.replace(temporary, target)
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(holder)):
            raise _unwritable(target, error) from None
        raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _unwritable(target: Path, error: OSError) -> UsageError:
    reason = error.strerror or str(error)
    return UsageError(
        str(target),
        None,
        f"a place that can be written ({reason})",
        "free space or choose another folder",
    )


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
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
