"""Small real runs of the commands, shared by several tests."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TINY = ("--width_multiplier=0.25", "--image_size=32")
SHORT = (*TINY, "--epochs=1", "--prune_epochs=1", "--quantize_epochs=1")
LEARNT = (*TINY, "--epochs=8", "--prune_epochs=2", "--quantize_epochs=2")
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
        env={**os.environ, **environment},
    )


@functools.cache
def finished(base: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder in which `trainer --model_dir run` ran all stages on the digits, and the process.

    Made once under `tmp_path_factory.getbasetemp()`; copy it to change it.
    """
    place = base / "chain"
    place.mkdir()
    done = command("trainer", *LEARNT, "--model_dir=run", cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done


def report(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries of `report.json` by stage."""
    stages = json.loads((folder / "report.json").read_text())["stages"]
    return {entry["stage"]: entry for entry in stages}
