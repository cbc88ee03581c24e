"""A command as a process: exit status, errors as one line, interruption, a quiet start."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from mobilenet import console
from mobilenet.errors import UsageError

INTERRUPTED = 130
TERMINATED = 143
_BROKEN_PIPE = 141
_FILE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_FILE_ERRORS |= {errno.ENAMETOOLONG}
_FILE_TEXTS = ("No space left on device", "Permission denied", "Read-only file system")


def main(
    function: Callable[[list[str]], int | None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Runs a command and ends the process with its status.

    A `UsageError`, a package that is not installed, and a disk that is full or cannot be written
    are one line on stderr and status 2. Ctrl-C is one line and status 130, SIGTERM status 143; both
    run every `finally`. Any other exception is a defect of ours and keeps its traceback.

    Args:
        function: takes the words after the command's name; returns the status (`None` is 0).
        argv: those words; the process's own when `None`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read once, when TensorFlow is imported
    signal.signal(signal.SIGTERM, _terminate)
    console.open_streams()
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        _check_text(words)
        status = function(words) or 0
        sys.stdout.flush()
    except UsageError as error:
        status = _fail(str(error), error.status)
    except KeyboardInterrupt as error:
        _print_after_progress(str(error) or "interrupted")
        status = INTERRUPTED
    except BrokenPipeError:  # `command | head` has read enough
        console.discard(sys.stdout)
        status = _BROKEN_PIPE
    except Exception as error:
        line = line_of(error)
        if line is None:
            raise
        status = _fail(line)
    sys.exit(status)


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)


@contextlib.contextmanager
def resumable(remedy: str) -> Iterator[None]:
    """Says how to continue when Ctrl-C or SIGTERM ends the block.

    Args:
        remedy: follows "interrupted; ".
    """
    line = f"interrupted; {remedy}"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(line) from None
    except SystemExit as error:
        if error.code == TERMINATED:
            _print_after_progress(line)
        raise


def _print_after_progress(line: str) -> None:
    """Prints a line to stderr; on a terminal, below a progress bar or the `^C` that it echoed."""
    console.print_error(f"\n{line}" if sys.stderr.isatty() else line)


def _fail(line: str, status: int = UsageError.status) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # the disk is full, or the reader has gone
        console.discard(sys.stdout)
    console.print_error(line)
    return status


def line_of(error: Exception) -> str | None:
    """The line that `main` prints instead of a traceback; `None` for a defect of ours."""
    return _file_error(error) or _absent(error) or _name_error(error)


def _check_text(words: Sequence[str]) -> None:
    """Refuses words that are not UTF-8, which TensorFlow cannot use as paths.

    Raises:
        UsageError: names the word.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise _not_utf8(error) from None


def _name_error(error: Exception) -> str | None:
    """One line for the name of a file that is not UTF-8."""
    foreign = isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason
    if not foreign and sys.getfilesystemencoding() == "utf-8":
        return None
    return str(_not_utf8(error)) if isinstance(error, UnicodeEncodeError) else None


def _not_utf8(error: UnicodeEncodeError) -> UsageError:
    encoding = sys.getfilesystemencoding()
    remedy = "rename the file" if encoding == "utf-8" else "set PYTHONUTF8=1"
    return UsageError(
        "name of a file", error.object, f"text in UTF-8; this process reads {encoding}", remedy
    )


def _file_error(error: Exception) -> str | None:
    """One line for a full or read-only disk, as reported by Python, h5py or TensorFlow."""
    foreign = type(error).__module__.partition(".")[0] == "tensorflow"
    if not isinstance(error, OSError) and not foreign:
        return None
    text = str(error)
    number = getattr(error, "errno", None)
    reason = next((known for known in _FILE_TEXTS if known in text), None)
    if number not in _FILE_ERRORS and reason is None:
        return None
    path = str(getattr(error, "filename", None) or "files")
    expected = f"a path that can be read and written ({reason or os.strerror(number or 0)})"
    return str(UsageError(path, None, expected, "free space or choose another folder"))


def _absent(error: Exception) -> str | None:
    """One line for a package that is not installed; a module that one lacks is a defect."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    package = error.name.partition(".")[0]
    if importlib.util.find_spec(package) is not None:
        return None
    remedy = "install this package without --no-deps: that installs all that the commands need"
    return str(UsageError(package, None, "an installed package", remedy))
