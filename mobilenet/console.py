"""The standard streams of a process: closed ones, characters they cannot print, the lines that C++
libraries write to file descriptor 2 by themselves, and what the package logs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, TextIO, cast

_STDERR = 2
MAX_MESSAGE_BYTES = 1 << 16  # of the captured lines that are read back
_package_log = logging.getLogger("mobilenet")
_lock = threading.RLock()  # file descriptor 2 belongs to the process


def open_streams() -> None:
    """Makes every standard stream one that can be written, whatever the process was started with.

    A closed one becomes the null device: the next file to be opened would take its number, and get
    what libraries write to it. Characters that an encoding lacks are printed as escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if not _is_open(number):
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - to stay
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Redirects a stream that cannot be written to the null device, with its unwritten content.

    Python would try again when the process ends, and change its status.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_error(line: str) -> None:
    """Prints a line to stderr, where that is possible."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Captures what is written to file descriptor 2, above all by C++ libraries.

    Blocks may be nested in one thread; another thread waits.

    Yields:
        A function that returns what has been written so far. The descriptor is the process's: lines
        that other threads write meanwhile are among it.
    """
    with _lock:
        saved = os.dup(_STDERR) if _is_open(_STDERR) else None
        with _sink() as sink:  # has number 2 itself where that was closed
            _flush()
            if sink.fileno() != _STDERR:
                os.dup2(sink.fileno(), _STDERR)
            try:
                yield lambda: _content(sink)
            finally:
                _flush()
                if saved is not None:
                    os.dup2(saved, _STDERR)
                    os.close(saved)
                elif sink.fileno() != _STDERR:
                    os.close(_STDERR)


@contextlib.contextmanager
def starting_tensorflow() -> Iterator[None]:
    """Keeps what TensorFlow's libraries print while they load off the terminal.

    They write to file descriptor 2 before a logging level applies. It is restored when the block
    ends, and what was written is shown if the block fails. Put imports there and nothing else.
    """
    text = ""
    try:
        with quiet() as written:
            try:
                yield
                if tensorflow := sys.modules.get("tensorflow"):
                    tensorflow.config.list_physical_devices()  # looks for drivers, and says so
            except Exception:
                text = written()
                raise
    finally:
        if text:
            print_error(text.rstrip())


class _StdoutHandler(logging.StreamHandler):  # type: ignore[type-arg]  # not generic in Python 3.10
    """A reader that has gone, or a full disk, ends the command as it does for `print`."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        raise


@contextlib.contextmanager
def log_to_stdout() -> Iterator[None]:
    """Sends the package's log to stdout; a repeated warning is printed once."""
    before, handler = (_package_log.level, _package_log.propagate), _StdoutHandler(sys.stdout)
    warned: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        fresh = record.levelno < logging.WARNING or text not in warned
        if record.levelno >= logging.WARNING:
            warned.add(text)
        return fresh

    handler.addFilter(is_new)
    _package_log.setLevel(logging.INFO)
    _package_log.propagate = False
    _package_log.addHandler(handler)
    try:
        yield
    finally:
        _package_log.removeHandler(handler)
        _package_log.setLevel(before[0])
        _package_log.propagate = before[1]


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _sink() -> BinaryIO:
    """Where lines are captured; a machine without a folder to write to discards them."""
    try:
        return cast(BinaryIO, tempfile.TemporaryFile())
    except OSError:
        return open(os.devnull, "r+b")


def _content(sink: BinaryIO) -> str:
    _flush()
    return os.pread(sink.fileno(), MAX_MESSAGE_BYTES, 0).decode("utf-8", "replace")


def _flush() -> None:
    """Python's own buffer of stderr; there is none where a library runs without the stream."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
