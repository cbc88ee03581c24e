"""What became of one case: accepted, refused in one clean line, or one of the failures."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.targets import Accepted, Target
from mobilenet.cli import process
from mobilenet.errors import UsageError

ACCEPTED, REFUSED, UNCLEAN, TRACEBACK, HANG, CRASH, LEFT = (
    "accepted",
    "clean lines",
    "other lines",
    "tracebacks",
    "hangs",
    "crashes",
    "files left",
)
FAILURES = (UNCLEAN, TRACEBACK, CRASH, HANG, LEFT)
SECONDS = 10.0  # longer ones hang
_AUTOGRAPH = "__autograph_generated_file"  # TensorFlow's own, removed when the process ends
_LONGEST = 1000  # characters of a line


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of one case.

    Attributes:
        kind: one of the names above.
        text: the line, or the traceback.
        seconds: that it took.
    """

    kind: str
    text: str = ""
    seconds: float = 0.0


def prepared(target: Target, number: int, seeds: Path, folder: Path) -> Path:
    """Makes the input of a case from the target's seed files: the same for the same number.

    Args:
        target: what is damaged.
        number: of the case.
        seeds: the folder that `target.make` filled.
        folder: of the case; what was in it goes. Gets `in` (the damaged files, the result), `out`
            (empty, where the case runs) and `tmp` (empty, for temporary files).
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds, folder / "in")
    for name in ("out", "tmp"):
        (folder / name).mkdir()
    target.damage(random.Random(f"{target.name} {number}"), folder / "in")
    return folder / "in"


def tried(target: Target, folder: Path) -> Outcome:
    """Uses the input of a case, as `prepared` made it, and looks at what comes of it."""
    before = _names(folder)
    started = time.monotonic()
    with _elsewhere(folder / "out", folder / "tmp"):
        kind, text = _ended(lambda: target.use(folder / "in"), str(folder / "tmp"))
    seconds = time.monotonic() - started
    left = _names(folder) - before
    if kind == ACCEPTED:
        left = {name for name in left if not name.startswith("out")}
    if kind in (ACCEPTED, REFUSED) and left:
        kind, text = LEFT, f"{', '.join(sorted(left)[:5])} after: {text or kind}"
    if kind not in FAILURES and seconds > SECONDS:
        kind = HANG
    return Outcome(kind, text, seconds)


def _ended(use: Callable[[], object], temporary: str) -> tuple[str, str]:
    output = io.TextIOWrapper(io.BytesIO(), "utf-8")  # refuses what a terminal would
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
            use()
            output.flush()
    except Accepted:
        return ACCEPTED, ""
    except UsageError as error:
        return _line(str(error), temporary)
    except SystemExit as end:  # of --help
        return (TRACEBACK if end.code else ACCEPTED), f"SystemExit: {end.code}"
    except Exception as error:
        line = process.line_of(error)
        return (TRACEBACK, traceback.format_exc()) if line is None else _line(line, temporary)
    return ACCEPTED, ""


def _line(line: str, temporary: str) -> tuple[str, str]:
    fault = _fault(line, temporary)
    return (UNCLEAN, f"{fault}: {line}") if fault else (REFUSED, line)


def _fault(line: str, temporary: str) -> str:
    if len(line) > _LONGEST:
        return f"a line of {len(line)} characters"
    if not line.isprintable():
        return "a line with control characters"
    return "a line that names a temporary file" if temporary in line else ""


def _names(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if not path.name.startswith(_AUTOGRAPH))
    return {str(path.relative_to(folder)) for path in paths}


@contextlib.contextmanager
def _elsewhere(working: Path, temporary: Path) -> Iterator[None]:
    """Another working folder, and another one for temporary files; warnings of ours are errors."""
    before, variable, base = Path.cwd(), os.environ.get("TMPDIR"), tempfile.tempdir
    os.chdir(working)
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore")
            warnings.filterwarnings("error", module="mobilenet")
            yield
    finally:
        os.chdir(before)
        tempfile.tempdir = base
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable
        _forget_models()


def _forget_models() -> None:
    """Keras keeps graphs of what it made in this process."""
    if keras := sys.modules.get("tf_keras"):
        keras.backend.clear_session()
