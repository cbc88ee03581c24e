"""A run folder on object storage: the run works in a local copy of it, which is published part by
part as these are complete.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mobilenet import files, object_storage
from mobilenet.errors import UsageError
from mobilenet.training import stage_data
from mobilenet.training.owner_record import OwnerRecord
from mobilenet.training.run_folder import CHECKPOINTS, CONFIG, REPORT

log = logging.getLogger("mobilenet")
_LOOSE = ("tensorboard", "plots", stage_data.FOLDER)  # folders whose files count by themselves
_STATE_DEPTH = 3  # of checkpoints/STAGE/STATE
_PREFIX = "mobilenet-run"

# Of each part its files and their digests. A part is a file, or a folder that counts as a whole.
_Parts = dict[str, dict[str, bytes]]


class WorkingCopy:
    """A local copy of a run folder.

    Args:
        address: of the run folder, with `://`.
        owner: of the run; `None` once it is closed, and for a process that only reads.
        is_written: whether this process writes the run; `publish` of a reader does nothing.

    Attributes:
        path: of the copy; it is removed with this object.
    """

    def __init__(self, address: str, owner: OwnerRecord | None, is_written: bool = True) -> None:
        self.address, self.owner, self.is_written = address, owner, is_written
        _remove_abandoned()
        prefix = f"{_PREFIX}-{files.machine()}-{os.getpid()}-"
        self._folder = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
        self.path = Path(self._folder.name) / "run"
        self.is_published = False
        self._there: _Parts = {}

    def download(self) -> None:
        """Copies all that is complete; a model or state without its marker is left out.

        Raises:
            UsageError: storage cannot be read, or the folder holds something other than a run.
        """
        try:
            names = object_storage.list_names(self.address)
            unfinished = [name for name in names if object_storage.is_unfinished(name)]
            names = [name for name in names if name not in unfinished and not _is_hidden(name)]
            if names and CONFIG not in names:
                expected, remedy = "a new folder or one that holds a run", "choose another folder"
                raise UsageError("model_dir", self.address, expected, remedy)
            self.clear()
            self._there = {name: {name: b""} for name in unfinished}
            for part, own in _by_part(dict.fromkeys(names, b"")).items():
                self._there[part] = self._download(part, own)
        except OSError as error:
            expected = f"a folder that can be read ({error})"
            raise UsageError("model_dir", self.address, expected, "check the name") from None

    def clear(self) -> None:
        """Removes the copy of a run that is replaced; the run itself stays until `start`."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()

    def _download(self, part: str, names: Mapping[str, bytes]) -> dict[str, bytes]:
        """Copies a part; returns its digests, none of one that is not complete."""
        source, target = f"{self.address}/{part}", self.path / part
        if part in names:
            object_storage.download_file(source, target)
            return {part: files.sha256(target)}
        try:
            inside = [name.removeprefix(f"{part}/") for name in names]
            object_storage.download_folder(source, target, inside)
        except ValueError as damage:
            log.warning("%s is not complete (%s); it is left out", source, damage)
            shutil.rmtree(target, ignore_errors=True)
        return self._digests(target)

    def start(self) -> None:
        """Publishes a run that begins, in place of the one that was there.

        Its config is replaced once everything else is removed: what is there is always one run.

        Raises:
            UsageError: as of `publish`.
        """

        def remove() -> None:
            for part in sorted({*self._there} - {CONFIG}, key=lambda part: part != REPORT):
                self._remove(part)

        self._write(remove)
        self.publish()

    def publish(self) -> None:
        """Copies what is new or has changed to storage, then removes what is no longer here.

        The marker of a folder is written after its files, and the report of the stages at last: a
        process may be killed between any two.

        Raises:
            UsageError: storage cannot be written, or another process has taken the run over; what
                was complete there stays.
        """

        def copy() -> None:
            here = _by_part(self._digests())
            for part in sorted(here, key=_order):
                if here[part] != self._there.get(part):
                    self._upload(part, here[part])
            for part in sorted({*self._there} - {*here}):
                self._remove(part)

        if self.is_written:
            self.is_published = True
            self._write(copy)

    def _write(self, action: Callable[[], None]) -> None:
        try:
            if self.owner is not None:
                self.owner.check()
            action()
        except OSError as error:
            expected = f"a folder that can be written ({error})"
            remedy = "the same run then continues from what is complete there"
            raise UsageError("model_dir", self.address, expected, remedy) from None

    def _upload(self, part: str, digests: dict[str, bytes]) -> None:
        source, target = self.path / part, f"{self.address}/{part}"
        self._there[part] = {part: b""} if part in digests else {}  # until it is complete
        if part in digests:
            object_storage.upload_file(source, target)
        else:
            object_storage.upload_folder(source, target)
        self._there[part] = digests

    def _remove(self, part: str) -> None:
        if part in self._there[part]:
            object_storage.remove(f"{self.address}/{part}")
        else:
            object_storage.remove_folder(f"{self.address}/{part}")
        del self._there[part]

    def _digests(self, folder: Path | None = None) -> dict[str, bytes]:
        """The digest of each file of the copy, or of a folder of it, by its name in the copy.

        Hidden files are this machine's own.
        """
        paths = {p.relative_to(self.path).as_posix(): p for p in (folder or self.path).rglob("*")}
        return {
            name: files.sha256(path)
            for name, path in paths.items()
            if path.is_file() and not _is_hidden(name)
        }

    def close(self) -> None:
        """Publishes what was written since, if anything ever was; nothing belongs to it then."""
        try:
            if self.is_published:
                self.publish()
        finally:
            self.owner = None


@contextlib.contextmanager
def opened(address: str, is_written: bool = True) -> Iterator[WorkingCopy]:
    """Opens a run folder on object storage for this process alone.

    Args:
        address: with `://`.
        is_written: by this process; a worker that only reads takes no owner record.

    Yields:
        A copy of what is there. Errors and log lines of the block name the address.

    Raises:
        UsageError: storage cannot be used, another process works there, or there is no run.
    """
    address = address.rstrip("/")
    object_storage.check(address, "model_dir")
    owner = OwnerRecord(address) if is_written else None
    with owner.held() if owner is not None else contextlib.nullcontext():
        copy = WorkingCopy(address, owner, is_written)
        copy.download()
        with _naming(copy):
            try:
                yield copy
            except BaseException:
                with contextlib.suppress(UsageError):  # the first error says more
                    copy.close()
                raise
            copy.close()


@contextlib.contextmanager
def _naming(copy: WorkingCopy) -> Iterator[None]:
    """Errors and log lines of the block name the address instead of the copy."""
    path = str(copy.path)

    def rename(record: logging.LogRecord) -> bool:
        if path in (text := record.getMessage()):
            record.msg, record.args = text.replace(path, copy.address), ()
        return True

    log.addFilter(rename)
    try:
        yield
    except UsageError as error:
        raise error.renamed(path, copy.address) from error.__cause__
    finally:
        log.removeFilter(rename)


def _remove_abandoned() -> None:
    """Removes the copies of processes of this machine that were killed."""
    pattern = re.compile(rf"{_PREFIX}-{files.machine()}-(\d+)-\w+")
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}-*"):
        if (name := pattern.fullmatch(path.name)) and not files.is_alive(int(name[1])):
            shutil.rmtree(path, ignore_errors=True)


def _by_part(digests: Mapping[str, bytes]) -> _Parts:
    parts: _Parts = {}
    for name, digest in digests.items():
        parts.setdefault(_part_of(name), {})[name] = digest
    return parts


def _part_of(name: str) -> str:
    """The file itself, or the folder that it belongs to."""
    words = name.split("/")
    depth = _STATE_DEPTH if words[0] == CHECKPOINTS else 1
    return name if words[0] in _LOOSE or len(words) <= depth else "/".join(words[:depth])


def _is_hidden(name: str) -> bool:
    return any(word.startswith(".") for word in name.split("/"))


def _order(part: str) -> tuple[int, str]:
    """The config comes first, the report, which says what is finished, last."""
    return (0 if part == CONFIG else 2 if part == REPORT else 1, part)
