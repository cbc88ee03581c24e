"""A command as a process: how it ends, what it prints, what it keeps off the terminal."""

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

from mobilenet import cli

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


def test_a_table_cuts_and_colours_nothing() -> None:
    long = "x" * 300
    lines = cli.table(["stage", "top-1", "what"], [["train", 98.5, long], ["[red]é", None, ""]])
    head, rule, first, second = lines.splitlines()
    assert head.split() == ["stage", "top-1", "what"]
    assert set(rule) == {"-"}
    assert first.split() == ["train", "98.5", long]
    assert second.split() == ["[red]é", "-"]
    assert first.index("98.5") + 4 == head.index("top-1") + 5 == second.rindex("-") + 1


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
        (FULL, 2, "/a/b: expected a place that can be "),
        (FOREIGN, 2, "files: expected a place that can be "),
        ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", 2, "files: expected a place"),
        ("raise KeyboardInterrupt", 130, "\n"),
        ("import none_of_ours.part", 2, "none_of_ours: expected an installed package; pip"),
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
    _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (141, "")


def test_what_is_printed_at_start_is_kept_aside_and_shown_after_a_failure() -> None:
    quiet = "with cli.starting_tensorflow(): os.write(2, b'chatter')\n"
    assert process(f"{quiet}    print('after', file=sys.stderr)").stderr == "after\n"
    assert process(f"{quiet[:-1]}; 1 / 0").stderr.startswith("chatter")


def test_tensorflow_starts_without_a_word_and_below_warnings() -> None:
    body = "with cli.starting_tensorflow(): import tensorflow as tf\n"
    done = process(f"{body}    print(tf.reduce_sum(tf.ones(3)).numpy())")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3.0\n", "")
