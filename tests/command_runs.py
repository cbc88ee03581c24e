"""Small real runs of the commands, shared by several tests."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock

TINY = ("--width_multiplier=0.25", "--image_size=32")
SHORT = (*TINY, "--epochs=1", "--prune_epochs=1", "--quantize_epochs=1")
# Enough for nine digits of ten: a model that has hardly learned decides by margins under a step.
EPOCHS = {"train": 16, "prune": 4, "quantize": 2}
LEARNED = (*TINY, "--epochs=16", "--prune_epochs=4", "--quantize_epochs=2")
CHAIN = ("train", "prune", "quantize", "convert")


def command(
    name: str, *words: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m mobilenet.NAME WORDS`, ended, with what it wrote."""
    return subprocess.run(
        [sys.executable, "-m", f"mobilenet.{name}", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "300", **environment},  # rows of tables are one line,
    )


@functools.cache
def finished(base: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder in which `trainer --model_dir run` ran all stages on the digits, and the process.

    Made once under `tmp_path_factory.getbasetemp()`, for all workers; copy it to change it.
    """
    common = base.parent if base.name.startswith("popen-") else base
    folder, record = common / "chain", common / "chain.json"
    with filelock.FileLock(common / "chain.lock"):
        if not record.exists():
            folder.mkdir()
            done = command("trainer", *LEARNED, "--model_dir=run", cwd=folder)
            assert done.returncode == 0, done.stderr
            record.write_text(json.dumps([done.stdout, done.stderr]))
    return folder, subprocess.CompletedProcess([], 0, *json.loads(record.read_text()))


def report(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries of `report.json` by stage."""
    stages = json.loads((folder / "report.json").read_text())["stages"]
    return {entry["stage"]: entry for entry in stages}
