"""The folder of a run: one config, one process at a time; finished stages are not run again."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet import files, strict_json
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.configs.run import STAGES, Part, RunConfig
from mobilenet.errors import UsageError, shown
from mobilenet.training.stage_report import StageReport

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from mobilenet.training.working_copy import WorkingCopy

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
# How a run is computed, not what: another command may change them.
HOW = (
    *("checkpoint_minutes", "keep_checkpoints", "data_service"),
    *("steps_per_execution", "jit_compile", "log_to", "histogram_epochs"),
)
# Fields that decide nothing until their stage has begun: until then a second run into the same
# folder may change them.
_FIELDS_OF = {"prune": ("prune", "pruning"), "quantize": ("quantize", "quantization")}
_DISTILLED = ("prune", "quantize")  # by what they start from; another teacher serves train too
_LOCK, _ASIDE, _TRASH = ".lock", ".replaced", ".removed"

log = logging.getLogger("mobilenet")


@dataclasses.dataclass
class RunFolder:
    """An open run folder.

    Attributes:
        path: of the folder.
        config: of the run.
        reports: of the finished stages, in the order in which they run.
        begun: training has begun in it; before that an error leaves the folder as it was.
        is_written: by this process; not by workers other than the chief.
        storage: the folder of which this one is a local copy, if it lies on object storage.
    """

    path: Path
    config: RunConfig
    reports: list[StageReport] = dataclasses.field(default_factory=list)
    begun: bool = False
    is_written: bool = True
    storage: WorkingCopy | None = None

    def begin(self) -> None:
        """Keeps the folder from now on, and removes the run that `overwrite` replaces."""
        self.begun = True
        if not self.is_written:
            return
        if (self.path / _ASIDE).is_dir():  # renamed first: a half-removed run is never restored
            (self.path / _ASIDE).rename(self.path / _TRASH)
        shutil.rmtree(self.path / _TRASH, ignore_errors=True)
        if self.storage is not None:
            self.storage.start()

    def publish(self) -> None:
        """Copies what is complete to object storage, if the folder lies there."""
        if self.storage is not None and self.is_written:
            self.storage.publish()

    def folder(self, part: Part) -> Path:
        """The folder of a stage's model (`export` for convert)."""
        return folder_of(self.path, part)

    def checkpoints(self, part: Part) -> Path:
        return self.path / CHECKPOINTS / part.name

    def finished(self, part: Part) -> StageReport | None:
        """The report of a finished stage, if its folder is still there."""
        report = next((report for report in self.reports if report.part == part), None)
        return report if self.folder(part).is_dir() else None

    def is_done(self, part: Part) -> bool:
        """Whether a part need not run: it is finished, or its whole stage is."""
        return any(self.finished(p) is not None for p in (part, Part(part.stage)))

    def record(self, report: StageReport) -> None:
        """Writes the report of a stage; those of later stages are out of date and removed.

        The stage counts as finished with `report.json`, which is written last.
        """
        earlier = [r for r in self.reports if r.part.order < report.part.order]
        self.reports = [*earlier, report]
        self._write_metrics()
        stages = [report.to_json() for report in self.reports]
        files.write_json(self.path / REPORT, {"config": self.config.to_json(), "stages": stages})
        self.publish()

    def reload(self) -> None:
        """Reads the reports that another worker has written."""
        if self.storage is not None:
            self.storage.download()
        self.reports = read_reports(self.path)

    def remove_resume_states(self) -> None:
        """Removes the resume states of finished stages, which a killed process may have left."""
        for report in self.reports:
            finished = self.finished(report.part)
            rounds = f"{report.part.stage}*" if report.part.is_last else report.part.name
            for folder in (self.path / CHECKPOINTS).glob(rounds) if finished else ():
                shutil.rmtree(folder, ignore_errors=True)

    def _write_metrics(self) -> None:
        """Rewrites `metrics.csv`: one line an epoch, of all finished stages."""
        lines = [
            {"stage": report.part.name, **row} for report in self.reports for row in report.history
        ]
        if not lines:
            return
        head = list(dict.fromkeys(key for line in lines for key in line))
        text = "\n".join(
            [",".join(head), *(",".join(str(line.get(key, "")) for key in head) for line in lines)]
        )
        files.write_text(self.path / METRICS, text + "\n")


def folder_of(path: Path, part: Part) -> Path:
    """The folder of a stage's model in the run at `path`."""
    return path / (EXPORT if part.stage == "convert" else part.name)


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str],
    config: RunConfig,
    overwrite: bool = False,
    storage: WorkingCopy | None = None,
) -> Iterator[RunFolder]:
    """Opens the folder for this process alone, and checks that it is new or of the same config.

    Until `begin` is called on what it yields, an error or a signal leaves the folder as it was.

    Args:
        path: of the folder.
        config: of the run.
        overwrite: replace the run that is there.
        storage: see `RunFolder`.

    Raises:
        UsageError: another process works in it, it holds a run of another config or things that are
            no run, or it cannot be written.
    """
    folder = Path(path)
    _check_is_run(folder)
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    lock = _locked(folder)
    run: RunFolder | None = None
    old: list[str] = []
    try:
        _restore_replaced(folder)  # of a process that was killed before it began
        _remove(folder, [_TRASH])  # and of one that was killed as it began
        old = [child.name for child in folder.iterdir() if child.name != _LOCK]
        before = None if overwrite or not old else _same_run(folder, config)
        if before is None:
            _move(folder, folder / _ASIDE, old)
            run = RunFolder(folder, config, storage=storage)
        else:
            merged = _with_stages_of(before, config)
            reports = read_reports(folder)
            run = RunFolder(folder, merged, reports, begun=True, storage=storage)
            run.remove_resume_states()
        files.write_json(folder / CONFIG, run.config.to_json())
        files.write_json(folder / ENVIRONMENT, environment())
        if run.begun:
            run.publish()
        with _logging_to(folder / LOG):
            yield run
    finally:
        if run is not None and not run.begun:
            new = [child.name for child in folder.iterdir() if child.name not in (_LOCK, _ASIDE)]
            _remove(folder, new)
            _restore_replaced(folder)
        lock.release()
        if not old and (run is None or not run.begun):
            _remove(folder, [_LOCK])
            for parent in missing:
                with contextlib.suppress(OSError):  # another process has put something there
                    parent.rmdir()


def joined(
    path: str | os.PathLike[str],
    config: RunConfig,
    overwrite: bool = False,
    storage: WorkingCopy | None = None,
) -> RunFolder:
    """The folder as a worker that is not the chief reads it; without the lock, and as it is before
    the chief opens it.

    Raises:
        UsageError: as of `opened`, so that all workers refuse alike.
    """
    folder = Path(path)
    _check_is_run(folder)
    if overwrite and storage is not None:
        storage.clear()
    if overwrite or not (folder / CONFIG).exists():
        return RunFolder(folder, config, is_written=False, storage=storage)
    merged = _with_stages_of(_same_run(folder, config), config)
    reports = read_reports(folder)
    return RunFolder(folder, merged, reports, begun=True, is_written=False, storage=storage)


def stored_config(path: str | os.PathLike[str]) -> RunConfig | None:
    """The config of the run in a folder; `None` if there is none, or if it is being replaced.

    Raises:
        UsageError: it is damaged.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file() or (folder / _ASIDE).exists() or (folder / _TRASH).exists():
        return None
    return RunConfig.from_file(folder / CONFIG)


def training_data(model: str | os.PathLike[str], name: str) -> DatasetConfig | None:
    """The data set of the run whose folder has a model, where it lies at a path.

    Args:
        model: path of the model: of a stage, of the export folder, or of a file in one of these.
        name: of the data set, as in the model's card.

    Returns:
        The run's config of it. A relative `data_dir` is that of the folder in which the run was
        started, if it is there still. `None` if there is no such run, or its config is damaged.
    """
    path = Path(model).resolve()
    for folder in path.parents[:2] if path.exists() else ():
        with contextlib.suppress(UsageError, OSError):
            config = stored_config(folder)
            if config is not None and config.dataset.name == name and config.dataset.data_dir:
                return config.dataset.replace(data_dir=_data_dir(folder, config.dataset.data_dir))
    return None


def _data_dir(folder: Path, data_dir: str) -> str:
    """The path of a run's data, as it is seen from the working folder of this process."""
    with contextlib.suppress(UsageError, OSError):
        environment = strict_json.read_object(folder / ENVIRONMENT, "the environment of a run")
        started_in = environment.get("folder")
        if isinstance(started_in, str) and Path(started_in) != Path.cwd():
            path = Path(started_in, data_dir)
            return str(path) if path.exists() else data_dir
    return data_dir


def finished_reports(
    path: str | os.PathLike[str], config: RunConfig, is_chief: bool = True
) -> list[StageReport] | None:
    """The reports of the run in a folder, if opening it with `config` would change nothing.

    Args:
        path: of a folder with a `stored_config`.
        config: resolved; its stages are those in question.
        is_chief: other workers read the folder without its lock.

    Returns:
        All reports of the run; `None` if a stage has still to run or its config to be written.

    Raises:
        UsageError: another process works in the folder, the run has another config, or its report
            is damaged.
    """
    folder = Path(path)
    lock = _locked(folder) if is_chief else None
    try:
        before = _same_run(folder, config)
        run = RunFolder(folder, _with_stages_of(before, config), read_reports(folder))
        is_finished = all(map(run.is_done, config.parts(config.stages)))
        return run.reports if is_finished and run.config == before else None
    finally:
        if lock is not None:
            lock.release()


def _with_stages_of(before: RunConfig, config: RunConfig) -> RunConfig:
    stages = tuple(stage for stage in STAGES if stage in (*before.stages, *config.stages))
    return config.replace(stages=stages)


def _locked(folder: Path) -> BaseFileLock:
    import filelock  # not needed to refuse bad flags

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / _LOCK, blocking=False)
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(
            "model_dir",
            str(folder),
            "a folder that no other process trains in",
            "wait, or choose another",
        ) from None
    except (OSError, NotImplementedError) as error:
        raise UsageError(
            "model_dir",
            str(folder),
            f"a folder that can be written ({_reason(error)})",
            "choose another folder",
        ) from None
    return lock


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_is_run(folder: Path) -> None:
    """Refuses a folder that holds something other than a run."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("model_dir", str(folder), "a folder", "choose another name")
    if not folder.is_dir():
        return
    try:
        names = {p.name for p in folder.iterdir()} - {_LOCK, _ASIDE, _TRASH}
    except OSError as error:
        raise UsageError(
            "model_dir", str(folder), f"a folder that can be read ({_reason(error)})"
        ) from None
    if names and CONFIG not in names:
        raise UsageError(
            "model_dir",
            str(folder),
            "a new folder or one that holds a run",
            "choose another folder",
        )


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        child = folder / name
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink(missing_ok=True)


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        target.mkdir(exist_ok=True)
        (source / name).rename(target / name)


def _restore_replaced(folder: Path) -> None:
    """Undoes an `overwrite` that did not get as far as training."""
    aside = folder / _ASIDE
    if aside.is_dir():
        names = [child.name for child in aside.iterdir()]
        _remove(folder, names)
        _move(aside, folder, names)
        aside.rmdir()


def _same_run(folder: Path, config: RunConfig) -> RunConfig:
    """The config of the run that is there; refuses one that computes something else."""
    before = RunConfig.from_file(folder / CONFIG)
    free = {"stages", *HOW}
    begun = {
        stage
        for stage in STAGES
        if any([*folder.glob(f"{stage}*"), *(folder / CHECKPOINTS).glob(f"{stage}*")])
    }
    for stage, fields in _FIELDS_OF.items():
        if stage not in begun:
            free.update(fields)
    other = before.distillation.model or config.distillation.model
    if not begun.intersection(("train", *_DISTILLED) if other else _DISTILLED):
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
            "model_dir",
            str(folder),
            f"a run of this config; there {name} is {shown(there)}, here {shown(here)}{more}",
            "choose another `model_dir`, or `overwrite` to start again",
        )
    return before


def read_reports(folder: Path) -> list[StageReport]:
    """The reports of the finished stages of the run in a folder; none before the first.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / REPORT
    if not path.exists():
        return []
    stages = strict_json.read_object(path, "the report of a run").get("stages")
    try:
        if not isinstance(stages, list):
            raise ValueError("no list of stages")
        return [StageReport.from_json(entry) for entry in stages]
    except ValueError:
        expected = "the report of a run: its stages with their figures"
        remedy = "restore it, or `overwrite` to start again"
        raise UsageError(str(path), None, expected, remedy) from None


def unfinished_histories(path: str | os.PathLike[str]) -> dict[Part, list[dict[str, float]]]:
    """Rows, one an epoch, of stages that have begun, from their newest resume states.

    States that cannot be read are left out: the run continues from another one, or says why not.
    """
    found: dict[Part, list[dict[str, float]]] = {}
    for position in sorted((Path(path) / CHECKPOINTS).glob("*/state-*/position.json")):
        with contextlib.suppress(ValueError, OSError):  # UsageError too
            rows = strict_json.read_object(position, "a resume state").get("rows")
            part = Part.parse(position.parents[1].name)
            if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
                found[part] = rows
    return found


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def environment() -> dict[str, Any]:
    """Versions, processor, command and time of this process, and the commit that it runs in."""
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
        "folder": os.getcwd(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **({"commit": commit} if (commit := _commit()) else {}),
        "packages": versions,
    }


def _commit() -> str | None:
    """The commit of the user's repository, if the process runs in one; `-dirty` with changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


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


class _ToParent(logging.Handler):
    """Passes on what the log showed before its level was lowered for a file."""

    def emit(self, record: logging.LogRecord) -> None:
        if log.parent is not None:
            log.parent.callHandlers(record)


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Writes the log to a file too, from INFO on, whatever of it is shown elsewhere."""
    handlers: list[logging.Handler] = [_LogFile(path, encoding="utf-8")]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before, shown_level = (log.level, log.propagate), log.getEffectiveLevel()
    if shown_level > logging.INFO:
        log.setLevel(logging.INFO)
        if log.propagate:
            handlers.append(_ToParent(shown_level))
            log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(before[0])
        log.propagate = before[1]
