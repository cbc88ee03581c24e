"""What the runs of a sweep reached: figures by run, mean and spread by setting."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import files, text_tables
from mobilenet.configs.parameters import text_of
from mobilenet.configs.run import RunConfig
from mobilenet.configs.sweep import VALIDATION, Metric, SweepConfig
from mobilenet.errors import UsageError
from mobilenet.sweeps.record import Record
from mobilenet.sweeps.trials import Run, Trial, short_names
from mobilenet.training import run_folder
from mobilenet.training.stage_report import StageReport

FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"
JSON, CSV, PAGE = "results.json", "results.csv", "report.html"
_NAMES = {  # in tables; other metrics have their own
    "top1": "top-1 %",
    "top5": "top-5 %",
    "auc": "AUC",
    "f1": "F1",
    "latency_ms": "ms",
    "val_top1": "val top-1 %",
    "val_auc": "val AUC",
    "val_f1": "val F1",
}
_DECIMALS = {"top1": 2, "top5": 2, "val_top1": 2, "latency_ms": 3, "minutes": 1}
_OTHERS = ("top1", "bytes", "latency_ms")  # of the last stages, next to the metric
_LISTED = 10  # runs that failed
_COUNTS = ("params", "macs", "nonzero_weights", "bytes", "gzip_bytes")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A run of a sweep.

    Attributes:
        run: which one.
        folder: of it.
        state: finished, failed or unfinished.
        stages: the reports of its finished stages.
        error: why it failed, in one line.
    """

    run: Run
    folder: Path
    state: str
    stages: tuple[StageReport, ...] = ()
    error: str = ""

    def value(self, metric: Metric) -> float | None:
        """The metric of a finished run; `None` where it has none."""
        return _value(self.stages, metric) if self.state == FINISHED else None


def _value(stages: tuple[StageReport, ...], metric: Metric) -> float | None:
    for stage in reversed(stages):
        if metric.stage in (None, stage.part.name):
            value = _figure(stage, metric.figure)
            if value is not None or not metric.figure.startswith(VALIDATION):
                return value
    return None


def _figure(stage: StageReport, name: str) -> float | None:
    if not name.startswith(VALIDATION):
        return stage.known.get(name)
    best = [row for row in stage.history if row.get("kept")]  # the epoch that the stage ends with
    rows = best or list(stage.history)
    return rows[-1].get(name) if rows else None


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """A setting with its runs.

    Attributes:
        number: of the setting, from 1, in the order in which they were chosen.
        trial: the setting.
        runs: one for each seed.
        values: the metric of the finished runs.
    """

    number: int
    trial: Trial
    runs: tuple[RunResult, ...]
    values: tuple[float, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Value by path of a field."""
        return self.trial.settings

    @property
    def has_failed(self) -> bool:
        """Whether a run did; a mean of the others may be too good."""
        return any(run.state == FAILED for run in self.runs)

    @property
    def mean(self) -> float | None:
        """Of `values`; `None` without any."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation of `values` (n - 1); `None` of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def mean_of(self, figure: str) -> float | None:
        """The mean of another figure of the last stages; `None` without any."""
        values = [run.value(Metric(figure)) for run in self.runs]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """A sweep and what its runs reached; `str()` shows it as a table.

    Attributes:
        folder: of the sweep; each run has a folder in it.
        config: of the sweep.
        command: the words of the trainer that all runs share.
        trials: all settings, the best first; then those of which a run failed, and last those
            without a metric.
    """

    folder: Path
    config: SweepConfig
    command: tuple[str, ...]
    trials: tuple[TrialResult, ...]

    @property
    def best(self) -> TrialResult | None:
        """The first of `trials`; `None` if no run is finished."""
        return self.trials[0] if self.trials and self.trials[0].values else None

    @property
    def page(self) -> Path | None:
        """The page that compares the runs, once it is written."""
        path = self.folder / PAGE
        return path if path.is_file() else None

    @property
    def runs(self) -> list[RunResult]:
        """Those of all settings."""
        return [run for trial in self.trials for run in trial.runs]

    @property
    def failed(self) -> list[RunResult]:
        return [run for run in self.runs if run.state == FAILED]

    def command_of(self, trial: TrialResult) -> str:
        """The command that trains with a setting."""
        return shlex.join(
            ["python", "-m", "mobilenet.trainer", *self.command, *trial.trial.overrides]
        )

    def table(self) -> tuple[list[str], list[list[str | None]]]:
        """Headers and rows; figures that no run has, or that are the metric, have no column."""
        metric = self.config.metric
        names = short_names(self.config.parameters)
        label = _NAMES.get(metric.figure, metric.figure)
        headers = ["trial", *names.values(), f"{metric.stage} {label}" if metric.stage else label]
        headers += ["std", "n"]
        columns = {name: [trial.mean_of(name) for trial in self.trials] for name in _OTHERS}
        without = ([None] * len(self.trials), [trial.mean for trial in self.trials])
        columns = {name: column for name, column in columns.items() if column not in without}
        headers += [_NAMES.get(name, name) for name in columns]
        rows = []
        for index, trial in enumerate(self.trials):
            cells = [text_of(trial.settings[path]) for path in names]
            figures = [shown(metric.figure, trial.mean), shown(metric.figure, trial.std)]
            figures.append(str(len(trial.values)))
            figures += [shown(name, column[index]) for name, column in columns.items()]
            rows.append([str(trial.number), *cells, *figures])
        return headers, rows

    def __str__(self) -> str:
        lines = [text_tables.table(*self.table())]
        for run in self.failed[:_LISTED]:
            lines += ["", *text_tables.wrap(f"failed: {run.run.name}: {run.error}")]
        if len(self.failed) > _LISTED:
            lines += ["", f"{len(self.failed)} runs failed; {CSV} has all of them."]
        if unfinished := sum(run.state == UNFINISHED for run in self.runs):
            lines += ["", f"{unfinished} of {len(self.runs)} runs are not finished."]
        if self.best is not None:
            lines += ["", f"Best: trial {self.best.number}, {self.summary_of(self.best)}"]
            lines += _continued(shlex.split(self.command_of(self.best)))
        return "\n".join(lines)

    def summary_of(self, trial: TrialResult) -> str:
        """The metric of a setting, with its spread."""
        metric = self.config.metric
        text = f"{metric.name} {shown(metric.figure, trial.mean)}"
        if trial.std is not None:
            text += f" ± {shown(metric.figure, trial.std)} (n = {len(trial.values)})"
        return text

    def to_json(self) -> dict[str, Any]:
        """Settings and runs, the best first."""
        best = self.best
        return {
            "metric": {
                **self.config.metric.to_json(),
                "is_maximized": self.config.metric.is_maximized,
            },
            "command": list(self.command),
            "best": None
            if best is None
            else {"trial": best.number, "command": self.command_of(best)},
            "trials": [self._trial_json(trial) for trial in self.trials],
        }

    def _trial_json(self, trial: TrialResult) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "settings": dict(trial.settings),
            "mean": trial.mean,
            "std": trial.std,
            "n": len(trial.values),
            "overrides": list(trial.trial.overrides),
            "runs": [
                {
                    "seed": one.run.seed,
                    "folder": one.folder.name,
                    "state": one.state,
                    "value": one.value(self.config.metric),
                    **({"error": one.error} if one.error else {}),
                    "stages": [{"stage": s.part.name, **s.known} for s in one.stages],
                }
                for one in trial.runs
            ],
        }

    def save(self) -> None:
        """Writes `results.json`, and `results.csv` with a line a run."""
        files.write_json(self.folder / JSON, self.to_json())
        files.write_text(self.folder / CSV, "".join(self._csv_lines()))

    def _csv_lines(self) -> Iterator[str]:
        figures = list(dict.fromkeys(n for r in self.runs for s in r.stages[-1:] for n in s.known))
        paths = list(self.config.parameters)
        yield _csv_line(["trial", *paths, "seed", "state", "value", *figures, "folder", "error"])
        for trial in self.trials:
            for one in trial.runs:
                known = one.stages[-1].known if one.stages else {}
                settings = [text_of(trial.settings[path]) for path in paths]
                values = [one.value(self.config.metric), *(known.get(name) for name in figures)]
                row = [trial.number, *settings, one.run.seed, one.state, *values]
                yield _csv_line([*row, one.folder.name, one.error])


def _continued(words: Sequence[str]) -> list[str]:
    """A command as lines that fit the terminal, if no word is longer."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1] and len(lines[-1]) + len(word) > text_tables.width() - len("   \\"):
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    return [f" {line}" for line in lines]


def _csv_line(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(["" if c is None else c for c in cells])
    return text.getvalue()


def shown(figure: str, value: float | None) -> str | None:
    """A figure as text."""
    if value is None:
        return None
    if figure in _COUNTS:
        return f"{value:,.0f}"
    digits = _DECIMALS.get(figure, 4)
    return f"{value:.{digits}f}"


def collect(folder: Path, known: Record) -> SweepResult:
    """Reads what the runs of a sweep reached.

    Args:
        folder: of the sweep.
        known: its record.
    """
    config = known.config
    results = []
    for number, trial in enumerate(known.trials, 1):
        runs = tuple(read_run(folder, known, one) for one in trial.runs)
        values = [one.value(config.metric) for one in runs]
        finite = tuple(value for value in values if value is not None and math.isfinite(value))
        results.append(TrialResult(number, trial, runs, finite))
    sign = -1.0 if config.metric.is_maximized else 1.0
    results.sort(key=lambda r: (r.mean is None, r.has_failed, sign * (r.mean or 0.0), r.number))
    return SweepResult(folder, config, known.command, tuple(results))


def read_run(folder: Path, known: Record, run: Run) -> RunResult:
    """What a run reached, as its folder says."""
    path = folder / run.name
    try:
        stages = tuple(run_folder.read_reports(path))
    except UsageError as error:
        return RunResult(run, path, FAILED, error=str(error))
    state = FINISHED if is_finished(folder, known.run, run) else UNFINISHED
    if state == UNFINISHED and run.name in known.errors:
        return RunResult(run, path, FAILED, stages, known.errors[run.name])
    return RunResult(run, path, state, stages)


def is_finished(folder: Path, config: RunConfig, run: Run) -> bool:
    """Whether all stages of a run are finished."""
    path = folder / run.name
    opened = run_folder.RunFolder(path, config, run_folder.read_reports(path))
    return all(map(opened.is_done, config.parts(run.trial.settings.get("stages", config.stages))))
