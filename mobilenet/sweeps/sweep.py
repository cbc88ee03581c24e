"""A sweep in its folder: settings are chosen, trained with each seed in a process, compared."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mobilenet import files
from mobilenet.configs.run import RunConfig
from mobilenet.configs.sweep import BAYES, VALIDATION, SweepConfig
from mobilenet.errors import UsageError
from mobilenet.sweeps import processes, record, report, results, search
from mobilenet.sweeps.record import Record
from mobilenet.sweeps.results import SweepResult, TrialResult
from mobilenet.sweeps.search import Settings, Tried
from mobilenet.sweeps.trials import Run, Trial

TRAINER = (sys.executable, "-m", "mobilenet.trainer")
LOGS = "logs"
_LOCK = ".lock"

log = logging.getLogger("mobilenet")


@dataclasses.dataclass(frozen=True)
class Request:
    """A sweep that was asked for.

    Attributes:
        config: of the sweep.
        run: the config that all runs share.
        is_set: paths of the fields that are set for all runs.
        words: flags of the trainer that all runs share.
        config_of: the config of a run of a setting, checked as the trainer does.
        folder: of the sweep.
        jobs: runs at once.
        overwrite: replace the sweep in the folder.
        program: the words before the flags.
    """

    config: SweepConfig
    run: RunConfig
    is_set: frozenset[str]
    words: tuple[str, ...]
    config_of: Callable[[Settings], RunConfig]
    folder: Path
    jobs: int = 1
    overwrite: bool = False
    program: Sequence[str] = TRAINER

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.config.seeds or (self.run.seed,)


def execute(request: Request) -> SweepResult:
    """Runs what is not finished of a sweep, and writes its results.

    A run that fails does not end it. Progress goes to the log "mobilenet".

    Raises:
        UsageError: the sweep cannot be executed, or its folder holds something else. Before the
            first run, nothing is written.
    """
    planned = _checked(request)
    now = Record(request.config, request.run, request.words, request.seeds)
    now.trials = [Trial(settings, request.seeds) for settings in planned]
    with _opened(request, now) as before:
        if request.config.method == BAYES and before is not None:
            now.trials = [Trial(trial.settings, request.seeds) for trial in before.trials]
        sweep = _Sweep(request, now)
        sweep.execute()
        result = sweep.result()
        report.write(result)
    return result


def _checked(request: Request) -> list[Settings]:
    """The settings that are planned, each checked as the trainer would do."""
    config = request.config
    for path in config.parameters:
        if path in request.is_set:
            expected = "one value for all runs, or values as a parameter of the sweep, not both"
            raise UsageError(path, None, expected)
    if config.seeds and "seed" in request.is_set:
        raise UsageError("seed", request.run.seed, "no seed where the sweep has `seeds`")
    if request.run.distribution_strategy == "multi_worker":
        expected = "none, mirrored or tpu in a sweep, whose runs are processes of this machine"
        raise UsageError("distribution_strategy", "multi_worker", expected)
    _check_metric(request)
    search.check_installed(config)
    planned = search.planned(config)
    for settings in [*search.ends(config), *planned]:
        request.config_of(settings)
    return planned


def _check_metric(request: Request) -> None:
    metric, stages = request.config.metric, request.run.stages
    if "stages" in request.config.parameters:
        return
    if metric.stage is not None and metric.stage not in stages:
        expected = f"the metric of a stage that runs: {', '.join(stages)}"
        raise UsageError("metric.name", metric.name, expected)
    if metric.figure.startswith(VALIDATION) and stages == ("convert",):
        expected = "a metric of stage convert, which does not train"
        raise UsageError("metric.name", metric.name, expected, "top1 is one")


@contextlib.contextmanager
def _opened(request: Request, now: Record) -> Iterator[Record | None]:
    """The folder for this process alone, with what was recorded there; new ones are created."""
    import filelock

    folder = request.folder
    is_there = record.is_sweep(folder)
    if folder.exists() and not is_there and not _is_new(folder):
        expected = "a new folder or one that holds a sweep"
        raise UsageError("model_dir", str(folder), expected, "choose another folder")
    if not is_there:
        files.check_target(folder, "model_dir")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / _LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        expected = "a folder that no other sweep works in"
        raise UsageError("model_dir", str(folder), expected, "wait, or choose another") from None
    try:
        before = record.read(folder) if is_there and not request.overwrite else None
        if before is not None:
            record.check_continues(folder, before, now)
            now.errors = before.errors
        elif is_there:
            _clear(folder)
        yield before
    finally:
        lock.release()


def _is_new(folder: Path) -> bool:
    return folder.is_dir() and not [path for path in folder.iterdir() if path.name != _LOCK]


def _clear(folder: Path) -> None:
    """Removes a sweep; its record last, by which it is one."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == record.FILE):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


class _Sweep:
    """A sweep that runs.

    Args:
        request: what was asked for.
        known: its record, with the settings that are chosen.
    """

    def __init__(self, request: Request, known: Record) -> None:
        self.request, self.known = request, known
        self.queue = [run for trial in known.trials for run in trial.runs if not self._is_done(run)]
        self.started: dict[str, tuple[Run, float]] = {}
        self.running: set[str] = set()
        self.ended = len(known.trials) * len(request.seeds) - len(self.queue)

    @property
    def total(self) -> int:
        trials = self.request.config.trials if self.request.config.method == BAYES else None
        return (trials or len(self.known.trials)) * len(self.request.seeds)

    def execute(self) -> None:
        """Runs what is not finished."""
        log.info("%s", self._beginning())
        self.known.write(self.request.folder)
        processes.execute(self._next, self._ended, self.request.jobs)

    def result(self) -> SweepResult:
        """What all runs have reached so far."""
        return results.collect(self.request.folder, self.known)

    def _beginning(self) -> str:
        seeds = len(self.request.seeds)
        many = f"{self.total // seeds} settings" + (f" x {seeds} seeds" if seeds > 1 else "")
        done = f", {self.ended} finished before" if self.ended else ""
        return f"sweep of {self.total} runs ({many}){done} in {self.request.folder}"

    def _is_done(self, run: Run) -> bool:
        return results.is_finished(self.request.folder, self.request.run, run)

    def _next(self) -> processes.Job | None:
        if not self.queue and not self._suggest():
            return None
        run = self.queue.pop(0)
        folder = self.request.folder / run.name
        words = (*self.request.words, *run.words, f"--model_dir={folder}")
        self.started[run.name] = run, time.monotonic()
        self.running.add(run.name)
        self.known.errors.pop(run.name, None)
        output = self.request.folder / LOGS / f"{run.name}.txt"
        return processes.Job(run.name, [*self.request.program, *words], output)

    def _suggest(self) -> bool:
        """Chooses another setting by the results so far, if there is to be one."""
        config = self.request.config
        if config.method != BAYES or len(self.known.trials) >= (config.trials or 0):
            return False
        by_number = {trial.number: trial for trial in self.result().trials}
        tried = [self._tried(by_number[number + 1]) for number in range(len(by_number))]
        settings = search.suggest(config, tried)
        if settings is None:
            log.info("all settings that Optuna suggests are known")
            return False
        trial = Trial(settings, self.request.seeds)
        self.known.trials.append(trial)
        self.known.write(self.request.folder)
        self.queue += [run for run in trial.runs if not self._is_done(run)]
        return bool(self.queue)

    def _tried(self, trial: TrialResult) -> Tried:
        is_running = any(one.run.name in self.running for one in trial.runs)
        has_value = not is_running and not trial.has_failed
        return Tried(trial.settings, trial.mean if has_value else None, is_running)

    def _ended(self, job: processes.Job, error: str | None) -> None:
        run, start = self.started[job.name]
        self.running.discard(job.name)
        self.ended += 1
        if error is not None:
            self.known.errors[job.name] = error
            self.known.write(self.request.folder)
        one = results.read_run(self.request.folder, self.known, run)
        reached = f"failed: {error}"
        if error is None:
            metric = self.request.config.metric
            value = results.shown(metric.figure, one.value(metric))
            reached = f"{metric.name} {value}" if value else one.state
        seconds = time.monotonic() - start
        log.info("%d/%d  %s  %s  (%.0f s)", self.ended, self.total, job.name, reached, seconds)
