"""`sweep.json` in the folder of a sweep: what it is, which settings were chosen, what failed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilenet import files, strict_json
from mobilenet.configs.base import flat
from mobilenet.configs.run import RunConfig
from mobilenet.configs.sweep import BAYES, SweepConfig
from mobilenet.errors import UsageError, shown
from mobilenet.sweeps.trials import Trial
from mobilenet.training import run_folder

FILE = "sweep.json"
_ADDED = {"trials", "seeds"}  # fields that may change where no run is lost
_REMEDY = "choose another `model_dir`, or `overwrite` to start again"


@dataclasses.dataclass
class Record:
    """A sweep as its folder has it.

    Attributes:
        config: of the sweep.
        run: the config that all runs share.
        command: words of the trainer that all runs share.
        seeds: of the runs.
        trials: the settings that were chosen so far, in their order.
        errors: why runs failed, by their name.
    """

    config: SweepConfig
    run: RunConfig
    command: tuple[str, ...]
    seeds: tuple[int, ...]
    trials: list[Trial] = dataclasses.field(default_factory=list)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)

    def write(self, folder: Path) -> None:
        settings = [dict(trial.settings) for trial in self.trials]
        content = {
            "sweep": self.config.to_json(),
            "run": self.run.to_json(),
            "command": list(self.command),
            "seeds": list(self.seeds),
            "trials": settings,
            "errors": self.errors,
        }
        files.write_json(folder / FILE, content)


def is_sweep(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read(folder: Path) -> Record:
    """The record of the sweep in a folder.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    path = folder / FILE
    content = strict_json.read_object(path, "a sweep")
    try:
        config = SweepConfig.from_json(content["sweep"])
        seeds = tuple(int(seed) for seed in content["seeds"])
        trials = [Trial(_typed(config, one), seeds) for one in content["trials"]]
        errors = {str(name): str(line) for name, line in dict(content["errors"]).items()}
        command = tuple(str(word) for word in content["command"])
        run = RunConfig.from_json(content["run"])
    except (KeyError, TypeError, ValueError) as error:  # UsageError too
        expected = f"the record of a sweep ({error})"
        raise UsageError(str(path), None, expected, "restore it, or `overwrite`") from None
    return Record(config, run, command, seeds, trials, errors)


def _typed(config: SweepConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from JSON with the values of the config, as lists were tuples."""
    every = {path: getattr(values, "values", ()) for path, values in config.parameters.items()}
    as_json = {path: {json.dumps(v): v for v in values} for path, values in every.items()}
    return {path: as_json[path].get(json.dumps(x), x) for path, x in settings.items()}


def check_continues(folder: Path, before: Record, now: Record) -> None:
    """Checks that a sweep only adds runs to the one that its folder has.

    The metric may change too, but for method `bayes`, whose settings depend on it.

    Args:
        folder: of both.
        before: what is there.
        now: with the settings that it plans.

    Raises:
        UsageError: something else has changed; the first difference is named.
    """
    free = {"stages", *run_folder.HOW}
    runs = ({k: v for k, v in r.run.to_json().items() if k not in free} for r in (before, now))
    _check_equal(folder, *(flat(run) for run in runs))
    free = _ADDED if now.config.method == BAYES else {*_ADDED, "metric", "parameters"}
    sweeps = ({k: v for k, v in r.config.to_json().items() if k not in free} for r in (before, now))
    _check_equal(folder, *(flat(sweep) for sweep in sweeps))
    planned = [trial.settings for trial in now.trials]
    lost = [trial for trial in before.trials if trial.settings not in planned]
    if now.config.method == BAYES:
        lost = before.trials[now.config.trials :]
    for trial in lost[:1]:
        expected = f"a sweep with all its settings; {trial.runs[0].name} is none of the new ones"
        raise UsageError("model_dir", str(folder), expected, _REMEDY)
    if missing := [seed for seed in before.seeds if seed not in now.seeds]:
        expected = f"a sweep with all its seeds; {missing[0]} is none of the new ones"
        raise UsageError("model_dir", str(folder), expected, _REMEDY)


def _check_equal(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            there, here = shown(old.get(name)), shown(new.get(name))
            expected = f"the same sweep; there {name} is {there}, here {here}"
            raise UsageError("model_dir", str(folder), expected, _REMEDY)
