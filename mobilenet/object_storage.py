"""Files on object storage: paths with `://`, which TensorFlow's file systems read and write.

An object appears whole. Nothing renames several at once there: a folder that counts as a whole has
a completion marker with the checksums of its files, which is written last and removed first.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from mobilenet import files, strict_json
from mobilenet.errors import UsageError

MARKER = "complete.json"
_UNFINISHED = ".writing-"  # between the name of an object and a random one
_SECONDS = 30.0  # for storage to answer
_MOST_FILES = 1000  # of a saved model; a bucket may have millions
_PLUGIN = "tensorflow_io"

log = logging.getLogger("mobilenet")


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Raises `OSError` instead of TensorFlow's errors, `FileNotFoundError` where nothing is."""
    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(_reason(error)) from None
    except tf.errors.OpError as error:
        raise OSError(_reason(error)) from None


def _reason(error: tf.errors.OpError) -> str:
    return " ".join((error.message or type(error).__name__).split())


def check(path: str, parameter: str) -> None:
    """Checks that storage can be read, whether or not there is anything at the path.

    Args:
        path: with `://`.
        parameter: its name in errors.

    Raises:
        UsageError: this TensorFlow has no file system for its scheme; or storage refuses access or
            does not respond within 30 seconds.
    """
    scheme = path.partition("://")[0]
    if scheme not in tf.io.gfile.get_registered_schemes() and importlib.util.find_spec(_PLUGIN):
        with contextlib.suppress(Exception):  # a version for another TensorFlow
            importlib.import_module(_PLUGIN)  # adds its schemes
    if scheme not in tf.io.gfile.get_registered_schemes():
        known = ", ".join(f"{one}://" for one in tf.io.gfile.get_registered_schemes() if one)
        remedy = "install a tensorflow-io for this TensorFlow, or mount the storage as a folder"
        raise UsageError(parameter, path, f"a scheme that TensorFlow reads ({known})", remedy)
    try:
        _within(_SECONDS, lambda: exists(path))
    except (OSError, TimeoutError) as error:
        expected = f"storage that can be read ({error})"
        remedy = "check the name, the network and the credentials"
        raise UsageError(parameter, path, expected, remedy) from None


def _within(seconds: float, action: Callable[[], Any]) -> None:
    """Runs an action, which TensorFlow may try again for many minutes."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            action()
        except Exception as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no response in {seconds:.0f} seconds")
    if errors:
        raise errors[0]


def exists(path: str) -> bool:
    """Whether there is an object or a folder; unlike gfile's, with an error where none is known.

    Raises:
        OSError: storage cannot be read.
    """
    try:
        with os_errors():
            tf.io.gfile.stat(path)
    except FileNotFoundError:
        return False
    return True


def list_names(root: str) -> list[str]:
    """The names of all objects below a folder, relative to it; none where it is not there.

    Raises:
        OSError: storage cannot be read.
    """
    if not exists(root):
        return []

    def refuse(error: Exception) -> None:
        raise error

    names = []
    with os_errors():
        for folder, _, own in tf.io.gfile.walk(root, onerror=refuse):
            inside = folder.rstrip("/")[len(root.rstrip("/")) :].strip("/")
            names += [f"{inside}/{name}" if inside else name for name in own]
    for name in names:
        if ".." in name.split("/"):
            raise OSError(f"{root}/{name} is not read")
    return sorted(names)


def read_bytes(path: str) -> bytes:
    """The content of an object; `OSError` where it cannot be read."""
    with os_errors(), tf.io.gfile.GFile(path, "rb") as file:
        content: bytes = file.read()
        return content


def write_bytes(path: str, content: bytes) -> None:
    """Writes an object, whole or not at all; `OSError` where it cannot be written."""
    with _replacing(path) as temporary, tf.io.gfile.GFile(temporary, "wb") as file:
        file.write(content)


def write_json(path: str, value: Any) -> None:
    """Writes JSON, whole or not at all; `OSError` where it cannot be written."""
    write_bytes(path, files.as_json(value).encode())


def remove(path: str) -> None:
    """Removes an object, if there is one; `OSError` where it cannot be removed."""
    with contextlib.suppress(FileNotFoundError), os_errors():
        tf.io.gfile.remove(path)


def is_unfinished(name: str) -> bool:
    """Whether an object was left by a process that was ended as it wrote."""
    return _UNFINISHED in name


def upload_file(source: Path, target: str) -> None:
    """Copies a file to an object, which appears whole."""
    with _replacing(target) as temporary:
        tf.io.gfile.copy(str(source), temporary, overwrite=True)


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """Yields the name of another object, which then gets its own; `OSError` after an error."""
    temporary = f"{path}{_UNFINISHED}{uuid.uuid4().hex[:8]}"
    with os_errors():
        tf.io.gfile.makedirs(path.rpartition("/")[0])
        yield temporary
        tf.io.gfile.rename(temporary, path, overwrite=True)


def upload_folder(source: Path, target: str) -> None:
    """Replaces a folder by a local one; it is complete with its marker, which is written last."""
    remove_folder(target)
    every = {p.relative_to(source).as_posix(): p for p in source.rglob("*") if p.is_file()}
    for name, path in sorted(every.items()):
        with os_errors():
            tf.io.gfile.makedirs(f"{target}/{name}".rpartition("/")[0])
            tf.io.gfile.copy(str(path), f"{target}/{name}", overwrite=True)
    checksums = {name: files.sha256(path).hex() for name, path in every.items()}
    write_json(f"{target}/{MARKER}", checksums)


def remove_folder(target: str) -> None:
    """Removes a folder, its marker first, if there is one; `OSError` where it cannot be."""
    remove(f"{target}/{MARKER}")
    with contextlib.suppress(FileNotFoundError), os_errors():
        tf.io.gfile.rmtree(target)


def download_file(source: str, target: Path) -> None:
    """Copies an object to a file; `OSError` where it cannot be read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with os_errors():
        tf.io.gfile.copy(source, str(target), overwrite=True)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """Yields a copy of a saved model, in a temporary folder that is removed at the end.

    Args:
        path: with `://`: an object, or a folder; without a completion marker it is taken to be
            complete, which the log says. A checkpoint by the name that its objects begin with.

    Raises:
        UsageError: there is nothing, too much, or a folder that is not complete; or storage cannot
            be read.
    """
    path = path.rstrip("/")
    check(path, path)
    with tempfile.TemporaryDirectory(prefix="mobilenet-") as folder:
        target = Path(folder) / (path.rpartition("/")[2] or "model")
        try:
            _download_model(path, target)
        except (OSError, ValueError) as error:
            expected = f"a complete saved model ({error})"
            raise UsageError(path, None, expected, "copy or save it again") from None
        try:
            yield target
        except UsageError as error:
            raise error.renamed(str(target), path) from error.__cause__


def _download_model(path: str, target: Path) -> None:
    with os_errors():
        is_folder = tf.io.gfile.isdir(path)
        objects = [path] if not is_folder and exists(path) else tf.io.gfile.glob(f"{path}.*")
    if not is_folder:
        for own in objects:
            download_file(own, target.parent / own.rpartition("/")[2])
        if not objects:
            raise FileNotFoundError("there is nothing there")
        return
    names = list_names(path)
    if len(names) > _MOST_FILES:
        raise ValueError(f"{len(names)} files, at most {_MOST_FILES} are read")
    if MARKER in names:
        download_folder(path, target, names)
        return
    log.info("%s has no %s: it is taken to be complete", path, MARKER)
    for name in names:
        download_file(f"{path}/{name}", target / name)


def download_folder(source: str, target: Path, names: Iterable[str]) -> None:
    """Copies a folder that has a completion marker.

    Args:
        source: the folder on storage.
        target: where its files are written.
        names: of the objects below it.

    Raises:
        ValueError: it is not complete: it has no marker, or other files than this lists.
        OSError: storage cannot be read.
    """
    if MARKER not in names:
        raise ValueError(f"it has no {MARKER}")
    checksums = strict_json.loads(read_bytes(f"{source}/{MARKER}"))
    if not isinstance(checksums, Mapping) or not set(checksums) <= set(names):
        raise ValueError(f"it has not all files of {MARKER}")
    for name, checksum in checksums.items():
        download_file(f"{source}/{name}", target / name)
        if files.sha256(target / name).hex() != checksum:
            raise ValueError(f"{name} has another checksum than in {MARKER}")
