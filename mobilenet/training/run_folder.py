"""The folder of a run: one config, one process at a time, and what is finished stays finished."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from mobilenet import files, strict_json
from mobilenet.configs.run import STAGES, RunConfig, place_of, stage_of
from mobilenet.errors import UsageError, shown

CONFIG, REPORT, ENVIRONMENT, LOG, METRICS = (
    "config.json",
    "report.json",
    "environment.json",
    "log.txt",
    "metrics.csv",
)
EXPORT, CHECKPOINTS = "export", "checkpoints"
_PACKAGES = (
    "tensorflow",
    "tf_keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "numpy",
    "mobilenet",
)
# Fields that decide nothing until their stage has begun: until then a second run into the same
# folder may change them.
_FIELDS_OF = {"prune": ("prune", "pruning"), "quantize": ("quantize", "quantization")}
_TAUGHT = ("prune", "quantize")  # by what they start with; a teacher of its own serves train too
_FLIPS = 3  # figures an epoch of surgery: the epoch, weights removed, weights that came back
_LARGEST = 2**53  # of a figure; what is larger is damage, and no float may hold it
_LOCK, _ASIDE, _TRASH = ".lock", ".replaced", ".removed"

Entry = dict[str, Any]
log = logging.getLogger("mobilenet")


@dataclasses.dataclass
class RunFolder:
    """An open run folder.

    Attributes:
        path: of the folder.
        config: of the run.
        entries: what each finished stage reached, in the order of the chain.
        begun: training has begun in it; before that an error leaves the place as it was.
    """

    path: Path
    config: RunConfig
    entries: list[Entry] = dataclasses.field(default_factory=list)
    begun: bool = False

    def begin(self) -> None:
        """Input has been checked: the folder stays, and what `--overwrite` replaces goes."""
        self.begun = True
        if (
            self.path / _ASIDE
        ).is_dir():  # renamed first, so that a half-removed run is never put back
            (self.path / _ASIDE).rename(self.path / _TRASH)
        shutil.rmtree(self.path / _TRASH, ignore_errors=True)

    def stage(self, name: str) -> Path:
        """The folder of a stage's model (`export` for convert)."""
        return self.path / (EXPORT if name == "convert" else name)

    def checkpoints(self, name: str) -> Path:
        return self.path / CHECKPOINTS / name

    def finished(self, name: str) -> Entry | None:
        """The entry of a stage that ran to its end, if its files are still there."""
        entry = next((e for e in self.entries if e["stage"] == name), None)
        return entry if self.stage(name).is_dir() else None

    def record(self, entry: Entry) -> None:
        """Keeps what a stage reached; stages behind it in the chain are out of date and go."""
        place = place_of(entry["stage"])
        kept = [e for e in self.entries if place_of(e["stage"]) < place]
        self.entries = [*kept, entry]
        files.write_json(
            self.path / REPORT, {"config": self.config.to_json(), "stages": self.entries}
        )

    def remove_resume_states(self) -> None:
        """Removes those of finished stages, also where a process was killed before it did so."""
        for folder in (self.path / CHECKPOINTS).glob("*"):
            if self.finished(folder.name) or self.finished(stage_of(folder.name)):
                shutil.rmtree(folder, ignore_errors=True)

    def write_metrics(self, stage: str, rows: list[dict[str, float]]) -> None:
        """Rewrites `metrics.csv`: a line an epoch, all stages."""
        histories = {e["stage"]: e.get("history", []) for e in self.entries} | {stage: rows}
        lines = [
            {"stage": name, **row}
            for name in sorted(histories, key=place_of)
            for row in histories[name]
        ]
        if not lines:
            return
        head = list(dict.fromkeys(key for line in lines for key in line))
        text = "\n".join(
            [",".join(head), *(",".join(str(line.get(key, "")) for key in head) for line in lines)]
        )
        files.write_text(self.path / METRICS, text + "\n")


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str], config: RunConfig, overwrite: bool = False
) -> Iterator[RunFolder]:
    """Opens the folder for this process alone, and checks that it is new or of the same config.

    Until `begin` is called on what it yields, an error or a signal leaves the place as it was.

    Raises:
        UsageError: another process works in it, it holds a run of another config or things that are
            no run, or it cannot be written.
    """
    place = Path(path)
    _check_is_run(place)
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    lock = _locked(place)
    run: RunFolder | None = None
    old: list[str] = []
    try:
        _put_back(place)  # of a process that was killed before it began
        _remove(place, [_TRASH])  # and of one that was killed as it began
        old = [child.name for child in place.iterdir() if child.name != _LOCK]
        before = None if overwrite or not old else _same_run(place, config)
        if before is None:
            _move(place, place / _ASIDE, old)
            run = RunFolder(place, config)
        else:
            both = tuple(stage for stage in STAGES if stage in (*before.stages, *config.stages))
            run = RunFolder(place, config.replace(stages=both), _entries(place), begun=True)
            run.remove_resume_states()
        files.write_json(place / CONFIG, run.config.to_json())
        files.write_json(place / ENVIRONMENT, environment())
        with _logging_to(place / LOG):
            yield run
    finally:
        if run is not None and not run.begun:
            made = [child.name for child in place.iterdir() if child.name not in (_LOCK, _ASIDE)]
            _remove(place, made)
            _put_back(place)
        lock.release()
        if not old and (run is None or not run.begun):
            _remove(place, [_LOCK])
            for folder in missing:
                with contextlib.suppress(OSError):  # another process has put something there
                    folder.rmdir()


def _locked(place: Path) -> filelock.BaseFileLock:
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(place / _LOCK, blocking=False)
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(
            "--model_dir",
            str(place),
            "a folder that no other process trains in",
            "wait, or choose another",
        ) from None
    except (OSError, NotImplementedError) as error:
        raise UsageError(
            "--model_dir",
            str(place),
            f"a folder that can be written ({_reason(error)})",
            "choose another folder",
        ) from None
    return lock


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_is_run(place: Path) -> None:
    """Refuses to move into somebody else's folder."""
    if place.exists() and not place.is_dir():
        raise UsageError("--model_dir", str(place), "a folder", "choose another name")
    if not place.is_dir():
        return
    try:
        names = {p.name for p in place.iterdir()} - {_LOCK, _ASIDE, _TRASH}
    except OSError as error:
        raise UsageError(
            "--model_dir", str(place), f"a folder that can be read ({_reason(error)})"
        ) from None
    if names and CONFIG not in names:
        raise UsageError(
            "--model_dir",
            str(place),
            "a new folder or one that holds a run",
            "choose another folder",
        )


def _remove(place: Path, names: Iterable[str]) -> None:
    for name in names:
        child = place / name
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink(missing_ok=True)


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        target.mkdir(exist_ok=True)
        (source / name).rename(target / name)


def _put_back(place: Path) -> None:
    """Undoes an `--overwrite` that did not get as far as training."""
    aside = place / _ASIDE
    if aside.is_dir():
        names = [child.name for child in aside.iterdir()]
        _remove(place, names)
        _move(aside, place, names)
        aside.rmdir()


def _same_run(place: Path, config: RunConfig) -> RunConfig:
    """The config of the run that is there; refuses one that computes something else."""
    before = RunConfig.from_file(place / CONFIG)
    free = {"stages"}
    begun = {
        stage
        for stage in STAGES
        if any([*place.glob(f"{stage}*"), *(place / CHECKPOINTS).glob(f"{stage}*")])
    }
    for stage, fields in _FIELDS_OF.items():
        if stage not in begun:
            free.update(fields)
    other = before.distillation.model or config.distillation.model
    if not begun.intersection(("train", *_TAUGHT) if other else _TAUGHT):
        free.add("distillation")
    old, new = (
        {key: value for key, value in one.to_json().items() if key not in free}
        for one in (before, config)
    )
    differences = list(_differences(old, new))
    if differences:
        name, there, here = differences[0]
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise UsageError(
            "--model_dir",
            str(place),
            f"a run of this config; there {name} is {shown(there)}, here {shown(here)}{more}",
            "choose another --model_dir, or --overwrite to start again",
        )
    return before


def _entries(place: Path) -> list[Entry]:
    report = place / REPORT
    if not report.exists():
        return []
    stages = strict_json.read_object(report, "the report of a run").get("stages")
    if not isinstance(stages, list) or not all(map(_is_entry, stages)):
        expected = "the report of a run: its stages with their figures"
        raise UsageError(str(report), None, expected, "restore it, or --overwrite to start again")
    return stages


def _is_entry(value: Any) -> bool:
    """Whether a value has what a finished stage is summarized by."""
    if not isinstance(value, dict):
        return False
    stage, _, part = str(value.get("stage")).partition("_")
    if stage not in STAGES or not (part == "" or (part.isascii() and part.isdigit())):
        return False
    rows, flips = value.get("history", []), value.get("flips", [[0] * _FLIPS])
    return (
        all(_is_number(value.get(name)) for name in ("top1", "top5"))
        and isinstance(rows, list)
        and all(isinstance(row, dict) for row in rows)
        and isinstance(flips, list)
        and len(flips) > 0
        and all(_is_flips(row) for row in flips)
    )


def _is_flips(row: Any) -> bool:
    return isinstance(row, list) and len(row) == _FLIPS and all(map(_is_number, row))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < _LARGEST


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def environment() -> dict[str, Any]:
    """What the run runs on: versions, processor, cores."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "command": sys.argv,
        "packages": versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class _LogFile(logging.FileHandler):
    """A full disk ends the run in one line, as it does for every other file."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        raise


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
