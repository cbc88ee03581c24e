"""A command as a process: its status, its errors, interruption, and output of libraries."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BODY = """
import os, sys, time
from mobilenet import cli
from mobilenet.errors import UsageError
def run(argv):
    {body}
cli.main(run)
"""
FULL = f"raise OSError({errno.ENOSPC}, 'No space left on device', '/a/b')"
FOREIGN = (
    "raise OSError('Unable to write (errno = 28, No space left on device)')"  # as h5py words it
)


def process(body: str, *, wait: bool = True, **kwargs: Any) -> Any:
    """A command with this body, as a process."""
    code = BODY.format(body=body)
    if not wait:
        return subprocess.Popen([sys.executable, "-c", code], text=True, **kwargs)
    return subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=False, **kwargs
    )


@pytest.mark.parametrize(
    ("body", "status", "stderr"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        (
            "raise UsageError('--x', 0, 'a number', 'try 1')",
            2,
            "--x: got 0, expected a number; try 1",
        ),
        (FULL, 2, "/a/b: expected a path that can be "),
        (FOREIGN, 2, "files: expected a path that can be "),
        ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", 2, "files: expected a path"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        (
            "with cli.resumable('go on'): raise KeyboardInterrupt",
            130,
            "interrupted; go on\n",
        ),
        (
            "with cli.resumable('go on'): os.kill(os.getpid(), 15)",
            143,
            "interrupted; go on\n",
        ),
        ("import none_of_ours.part", 2, "none_of_ours: expected an installed package; install"),
    ],
)
def test_the_process_ends_with_its_status_and_one_line(body: str, status: int, stderr: str) -> None:
    done = process(body)
    assert done.returncode == status
    assert done.stderr.startswith(stderr)
    assert done.stderr.count("\n") == bool(stderr)


@pytest.mark.parametrize(
    "body",
    [
        "raise OSError(5, 'Input/output error')",
        "import mobilenet.no_such_file",
        "import numpy.no_such_part",
        "import json.no_such_part",
    ],
)
def test_a_defect_keeps_its_traceback(body: str) -> None:
    done = process(body)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_run_the_cleanup(tmp_path: Path, number: signal.Signals, status: int) -> None:
    started, left = tmp_path / "started", tmp_path / "left"
    body = f"try: open({str(started)!r}, 'w'); time.sleep(60)\n"
    running = process(
        f"{body}    finally: open({str(left)!r}, 'w')",
        wait=False,
        # A shell starts what runs in its background with this signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 30
        while not started.exists() and time.monotonic() < until:
            time.sleep(0.02)
        running.send_signal(number)
        assert running.wait(30) == status
    finally:
        running.kill()
    assert left.exists()


def test_a_closed_pipe_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    running = process("print('x' * 100_000)", wait=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, stderr = running.communicate(timeout=30)
    assert (running.returncode, stderr) == (141, "")


def test_what_is_printed_at_start_is_captured_and_shown_after_a_failure() -> None:
    quiet = "with cli.starting_tensorflow(): os.write(2, b'chatter')\n"
    assert process(f"{quiet}    print('after', file=sys.stderr)").stderr == "after\n"
    assert process(f"{quiet[:-1]}; 1 / 0").stderr.startswith("chatter")


def test_tensorflow_starts_without_output() -> None:
    body = "with cli.starting_tensorflow(): import tensorflow as tf\n"
    done = process(f"{body}    print(tf.reduce_sum(tf.ones(3)).numpy())")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3.0\n", "")


def shell(redirection: str, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command with this body, started by a shell that redirects its streams."""
    args = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c"]
    return subprocess.run(
        [*args, BODY.format(body=body), "\u00e9"],
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )


QUIET = (
    "from mobilenet import console\n    with console.quiet() as output: os.write(2, b'a line\\n')\n"
)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("print('x' * 9999)", 0),
        ("raise UsageError('--x', 0, 'a number')", 2),
        ("raise KeyboardInterrupt", 130),
        (f"{QUIET}    print('x', file=sys.stderr)", 0),
        ("with cli.starting_tensorflow(): os.write(2, b'a line')\n    return 3", 3),
    ],
)
def test_a_closed_stream_changes_no_status(redirection: str, body: str, status: int) -> None:
    done = shell(redirection, body)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    path = tmp_path / "file"
    done = shell("2>&-", f"file = open({str(path)!r}, 'w'); os.write(2, b'noise'); file.close()")
    assert done.returncode == 0
    assert path.read_text() == ""


def test_a_full_disk_under_stdout_is_one_line() -> None:
    done = shell(">/dev/full", "print('x' * 9999)")
    assert done.returncode == 2
    assert "No space left on device" in done.stderr and done.stderr.count("\n") == 1
    assert shell("2>/dev/full", "raise UsageError('--x', 0, 'a number')").returncode == 2
    assert shell("2>/dev/full", "print(1)").returncode == 0


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_characters_that_cannot_be_printed_are_escaped(stream: str) -> None:
    body = f"print(cli.table(['\\u00e9'], [['\\u6587']]), file=sys.{stream})"
    done = shell("", body, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr if stream == "stdout" else done.stdout) == (0, "")
    assert "\\xe9" in getattr(done, stream) and "\\u6587" in getattr(done, stream)


def test_arguments_that_are_no_text_are_one_line() -> None:
    done = shell("", "print(argv)", **ASCII)
    assert done.returncode == 2
    assert done.stderr.startswith("name of a file: got '\\udcc3\\udca9', expected text in UTF-8;")
    assert "set PYTHONUTF8=1" in done.stderr and done.stderr.count("\n") == 1
    args = [sys.executable, "-c", BODY.format(body="print(argv)"), b"\xff"]
    ended = subprocess.run(args, capture_output=True, check=False)
    assert ended.returncode == 2 and ended.stderr.endswith(b"rename the file\n")


def test_a_name_that_is_no_text_is_one_line_wherever_it_is_met() -> None:
    done = process("'\\udce9'.encode()")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "name of a file: got '\\udce9'" in done.stderr
    done = process("'\\u00e9'.encode('ascii')")  # a defect
    assert done.returncode == 1 and "Traceback" in done.stderr
