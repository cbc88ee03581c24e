"""The owner record of a run on object storage: which process works in it, instead of a lock."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from mobilenet import files, object_storage, strict_json
from mobilenet.errors import UsageError

NAME = ".owner.json"
SECONDS = 180  # from a renewal until the record is stale; clocks may differ by a minute
_RENEWAL = 30.0
_SETTLING = 1.0  # for another process that saw no record at the same time


class OwnerRecord:
    """Ownership of a run, which a thread renews while the process works in it.

    Args:
        folder: of the run, with `://`.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.path = folder, f"{folder}/{NAME}"
        self.key, self.started = uuid.uuid4().hex, time.time()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Owns the run inside the block.

        Raises:
            UsageError: another process owns it, or the record cannot be written.
        """
        self._refuse_if_owned()
        try:
            self._write()
            time.sleep(_SETTLING)
        except OSError as error:
            expected = f"a folder that can be written ({error})"
            raise UsageError("model_dir", self.folder, expected, "check the credentials") from None
        self._refuse_if_owned()
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(OSError, ValueError):
                if self._is_own(self._read()):
                    object_storage.remove(self.path)

    def check(self) -> None:
        """Checks that no other process has taken the run over, after this one was suspended.

        Raises:
            UsageError: one has; nothing more may be written.
        """
        record = self._read()
        if not self._is_own(record):
            other = f"{_described(record)} has taken it over" if record else "its record is gone"
            expected = f"a run that this process alone works in; {other}"
            raise UsageError("model_dir", self.folder, expected, "start one process at a time")

    def _refuse_if_owned(self) -> None:
        try:
            record = self._read()
        except ValueError:
            remedy = f"if no process works in it, remove {self.path}"
            raise UsageError(self.path, None, "an owner record", remedy) from None
        if record is None or self._is_own(record) or _is_stale(record):
            return
        until = _clock(record["renewed"] + SECONDS)
        raise UsageError(
            "model_dir",
            self.folder,
            f"a folder that no other process trains in; {_described(record)} does",
            f"wait; if it was killed, its record is stale at {until}, or remove {self.path}",
        )

    def _is_own(self, record: dict[str, Any] | None) -> bool:
        return record is not None and record["key"] == self.key

    def _read(self) -> dict[str, Any] | None:
        """The record that is there; `ValueError` if it is damaged."""
        try:
            record = strict_json.loads(object_storage.read_bytes(self.path))
        except FileNotFoundError:
            return None
        if not isinstance(record, dict) or not _TYPES.keys() <= record.keys():
            raise ValueError(NAME)
        if not all(isinstance(record[name], kind) for name, kind in _TYPES.items()):
            raise ValueError(NAME)
        return record

    def _write(self) -> None:
        record = {
            "key": self.key,
            "host": platform.node(),
            "machine": files.machine(),
            "process": os.getpid(),
            "started": self.started,
            "renewed": time.time(),
        }
        object_storage.write_json(self.path, record)

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(_RENEWAL):
            with contextlib.suppress(OSError, ValueError):  # the next time may work
                if not self._is_own(self._read()):
                    return
                self._write()


_TYPES: dict[str, Any] = {
    **dict.fromkeys(("key", "host", "machine"), str),
    "process": int,
    **dict.fromkeys(("started", "renewed"), (int, float)),
}


def _is_stale(record: dict[str, Any]) -> bool:
    if record["machine"] == files.machine() and not files.is_alive(record["process"]):
        return True
    return bool(time.time() > record["renewed"] + SECONDS)


def _described(record: dict[str, Any]) -> str:
    return f"process {record['process']} of {record['host']}, since {_clock(record['started'])},"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
