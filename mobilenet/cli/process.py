"""A command as a process: exit statuses, one line for what a user can mend, quiet start, tables."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from mobilenet import console
from mobilenet.errors import UsageError

INTERRUPTED = 130
TERMINATED = 143
_BROKEN_PIPE = 141
_PLACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_PLACE_ERRORS |= {errno.ENAMETOOLONG}
_PLACE_TEXTS = ("No space left on device", "Permission denied", "Read-only file system")


def main(
    function: Callable[[list[str]], int | None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Runs a command and ends the process with its status.

    A `UsageError`, a package that is not installed, and a disk that is full or cannot be written
    are one line on stderr and status 2; Ctrl-C is 130 and SIGTERM 143, both through every
    `finally`. Any other exception is our defect and keeps its traceback.

    Args:
        function: takes the words behind the command's name; its result is the status (`None` is 0).
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
    except KeyboardInterrupt:
        console.print_error("")
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


def _fail(line: str, status: int = UsageError.status) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # the disk is full, or the reader has gone
        console.discard(sys.stdout)
    console.print_error(line)
    return status


def line_of(error: Exception) -> str | None:
    """The line that `main` prints in place of a traceback; `None` for a defect of ours."""
    return _place_error(error) or _absent(error) or _name_error(error)


def _check_text(words: Sequence[str]) -> None:
    """Refuses words that hold other bytes than UTF-8, which TensorFlow takes as no path.

    Raises:
        UsageError: see there.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise _not_utf8(error) from None


def _name_error(error: Exception) -> str | None:
    """One line for the name of a file that holds other bytes than UTF-8."""
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


def _place_error(error: Exception) -> str | None:
    """One line for a full or closed disk, whoever met it: Python, h5py or TensorFlow."""
    foreign = type(error).__module__.partition(".")[0] == "tensorflow"
    if not isinstance(error, OSError) and not foreign:
        return None
    text = str(error)
    number = getattr(error, "errno", None)
    reason = next((known for known in _PLACE_TEXTS if known in text), None)
    if number not in _PLACE_ERRORS and reason is None:
        return None
    place = str(getattr(error, "filename", None) or "files")
    expected = f"a place that can be read and written ({reason or os.strerror(number or 0)})"
    return str(UsageError(place, None, expected, "free space or choose another folder"))


def _absent(error: Exception) -> str | None:
    """One line for a package that is not installed; a part that one lacks is a defect."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    package = error.name.partition(".")[0]
    if importlib.util.find_spec(package) is not None:
        return None
    remedy = "pip install mobilenet, without --no-deps, brings all that the commands need"
    return str(UsageError(package, None, "an installed package", remedy))


@contextlib.contextmanager
def starting_tensorflow() -> Iterator[None]:
    """Keeps what TensorFlow's libraries print while they load off the terminal.

    They write to file descriptor 2 before any logging level holds. It is given back when the block
    ends, and everything is shown if the block fails. Put the imports there and nothing else.
    """
    text = ""
    try:
        with console.quiet() as written:
            try:
                yield
                if tensorflow := sys.modules.get("tensorflow"):
                    tensorflow.config.list_physical_devices()  # looks for drivers, and says so
            except Exception:
                text = written()
                raise
    finally:
        if text:
            console.print_error(text.rstrip())


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in plain text: no colors, no cell cut, numbers to the right; `None` is `-`."""
    from rich import box, console, text
    from rich import table as rich_table

    drawn = rich_table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    for place, header in enumerate(headers):
        numeric = bool(cells) and all(_numeric(row[place]) for row in cells)
        drawn.add_column(text.Text(header), justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        drawn.add_row(*(text.Text(cell) for cell in row))
    wide = console.Console(width=100_000, color_system=None, force_terminal=False)
    with wide.capture() as capture:
        wide.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().replace("─", "-").splitlines())


def _numeric(cell: str) -> bool:
    return (
        cell == "-"
        or cell.replace(",", "").rstrip("%x").strip().lstrip("+-").replace(".", "", 1).isdigit()
    )
