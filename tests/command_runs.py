"""The commands, as processes of their own or in this one, with flags for runs of seconds."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from mobilenet.cli import process

TINY = ("--width_multiplier=0.25", "--image_size=32")
SHORT = (*TINY, "--epochs=1", "--prune_epochs=1", "--quantize_epochs=1")
# Enough for nine digits of ten: a model that has hardly learned decides by margins under a step.
EPOCHS = {"train": 16, "prune": 4, "quantize": 2}
LEARNED = (*TINY, "--epochs=16", "--prune_epochs=4", "--quantize_epochs=2")
CHAIN = ("train", "prune", "quantize", "convert")
FinishedRun = tuple[Path, subprocess.CompletedProcess[str]]  # the fixture `finished_run`


def start_command(
    name: str, *args: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m mobilenet.NAME WORDS` as a process of its own, ended, with what it wrote."""
    return subprocess.run(
        [sys.executable, "-m", f"mobilenet.{name}", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "300", **environment},  # rows of tables are one line,
    )


def run_command(
    name: str, *args: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported TensorFlow: status, stdout and stderr.

    What libraries in C++ write to file descriptors is not among it.
    """
    suffix = ".__main__" if name == "tf1_loader" else ""
    run = importlib.import_module(f"mobilenet.{name}{suffix}").run
    out, err = io.StringIO(), io.StringIO()
    before, handler, status = Path.cwd(), signal.getsignal(signal.SIGTERM), None
    os.chdir(cwd or before)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            process.main(run, [*map(str, args)])
    except SystemExit as end:
        status = end.code
    finally:
        os.chdir(before)
        signal.signal(signal.SIGTERM, handler)
    assert isinstance(status, int)
    return subprocess.CompletedProcess([name, *args], status, out.getvalue(), err.getvalue())


def report(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries of `report.json` by stage."""
    stages = json.loads((folder / "report.json").read_text())["stages"]
    return {entry["stage"]: entry for entry in stages}
