"""The folder of a run: one config, one process at a time, and what is finished stays finished."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from mobilenet import files
from mobilenet.configs.run import STAGES, RunConfig
from mobilenet.errors import UsageError

CONFIG, REPORT, ENVIRONMENT, LOG, METRICS = "config.json", "report.json", "environment.json", "log.txt", "metrics.csv"
EXPORT = "export"
_PACKAGES = ("tensorflow", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy", "mobilenet")
_LATER = ("stages",)  # fields that a second run into the same folder may change

Entry = dict[str, Any]
log = logging.getLogger("mobilenet")


@dataclasses.dataclass
class RunFolder:
    """An open run folder.

    Attributes:
        path: of the folder.
        config: of the run.
        entries: what each finished stage reached, in the order of the chain.
    """

    path: Path
    config: RunConfig
    entries: list[Entry] = dataclasses.field(default_factory=list)

    def stage(self, name: str) -> Path:
        """The folder of a stage's net (`export` for convert)."""
        return self.path / (EXPORT if name == "convert" else name)

    def checkpoints(self, name: str) -> Path:
        return self.path / "checkpoints" / name

    def finished(self, name: str) -> Entry | None:
        """The entry of a stage that ran to its end, if its files are still there."""
        entry = next((e for e in self.entries if e["stage"] == name), None)
        return entry if self.stage(name).is_dir() else None

    def record(self, entry: Entry) -> None:
        """Keeps what a stage reached; stages behind it in the chain are out of date and go."""
        place = STAGES.index(entry["stage"])
        kept = [e for e in self.entries if STAGES.index(e["stage"]) < place]
        self.entries = [*kept, entry]
        files.write_json(self.path / REPORT, {"config": self.config.to_json(), "stages": self.entries})

    def write_metrics(self, stage: str, rows: list[dict[str, float]]) -> None:
        """Rewrites `metrics.csv`: a line an epoch, all stages."""
        histories = {e["stage"]: e.get("history", []) for e in self.entries} | {stage: rows}
        lines = [
            {"stage": name, **row} for name in STAGES if name in histories for row in histories[name]
        ]
        if not lines:
            return
        head = list(lines[0])
        text = "\n".join([",".join(head), *(",".join(str(line.get(key, "")) for key in head) for line in lines)])
        files.write_text(self.path / METRICS, text + "\n")


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], config: RunConfig, overwrite: bool = False) -> Iterator[RunFolder]:
    """Opens the folder for this process alone, and checks that it is new or of the same config.

    Raises:
        UsageError: another process works in it, it holds a run of another config or things that are no run,
            or it cannot be written.
    """
    place = Path(path)
    _check_is_run(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(place / ".lock", blocking=False)
        lock.acquire()
    except filelock.Timeout:
        raise UsageError("--model_dir", str(place), "a folder that no other process trains in", "wait, or choose another") from None
    except (OSError, NotImplementedError) as error:
        raise UsageError(
            "--model_dir", str(place), f"a folder that can be written ({_reason(error)})", "choose another folder"
        ) from None
    try:
        if overwrite:
            _empty(place)
        run = RunFolder(place, config, _entries(place, config))
        if not (place / CONFIG).exists():
            files.write_json(place / CONFIG, config.to_json())
        files.write_json(place / ENVIRONMENT, environment())
        with _logging_to(place / LOG):
            yield run
    finally:
        lock.release()


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_is_run(place: Path) -> None:
    """Refuses to move into somebody else's folder."""
    if place.exists() and not place.is_dir():
        raise UsageError("--model_dir", str(place), "a folder", "choose another name")
    if not place.is_dir():
        return
    try:
        names = {p.name for p in place.iterdir()} - {".lock"}
    except OSError as error:
        raise UsageError("--model_dir", str(place), f"a folder that can be read ({_reason(error)})") from None
    if names and CONFIG not in names:
        raise UsageError("--model_dir", str(place), "a new folder or one that holds a run", "choose another folder")


def _empty(place: Path) -> None:
    for child in place.iterdir():
        if child.name == ".lock":
            continue
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()


def _entries(place: Path, config: RunConfig) -> list[Entry]:
    if not (place / CONFIG).exists():
        return []
    before = RunConfig.from_json(files.read_json(place / CONFIG))
    differences = list(_differences(before.to_json(), config.to_json()))
    if differences:
        name, old, new = differences[0]
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise UsageError(
            "--model_dir",
            str(place),
            f"a run of this config; there {name} is {old!r}, here {new!r}{more}",
            "choose another --model_dir, or --overwrite to start again",
        )
    report = place / REPORT
    return list(files.read_json(report)["stages"]) if report.exists() else []


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if not path and key in _LATER:
                continue
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


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
