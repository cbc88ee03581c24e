"""A sweep: which fields of a run's config are varied, how settings are chosen, what ranks them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from mobilenet.errors import UsageError, one_of

from .base import Config, check_number, checked, fitted
from .parameters import field_types, parameters_of, value_of_field
from .run import STAGES, RunConfig

GRID, RANDOM, BAYES = "grid", "random", "bayes"
METHODS = (GRID, RANDOM, BAYES)
MAXIMIZE, MINIMIZE = "maximize", "minimize"
GOALS = (MAXIMIZE, MINIMIZE)
MOST_RUNS = 1000
VALIDATION = "val_"  # of the metrics of validation images, which stages that train have
METRICS = {
    **dict.fromkeys(("top1", "top5", "auc", "f1"), MAXIMIZE),
    **dict.fromkeys(("val_top1", "val_auc", "val_f1"), MAXIMIZE),
    **dict.fromkeys(("loss", "val_loss", "params", "macs", "nonzero_weights"), MINIMIZE),
    **dict.fromkeys(("bytes", "gzip_bytes", "latency_ms", "minutes"), MINIMIZE),
}


@dataclasses.dataclass(frozen=True)
class Choices(Config):
    """One of some values."""

    values: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Range(Config):
    """A number from `min` to `max`, whole where the field is.

    Attributes:
        min, max: both can be drawn.
        log: its logarithm is uniform.
    """

    min: float = 0.0
    max: float = 1.0
    log: bool = False

    @property
    def is_whole(self) -> bool:
        return isinstance(self.min, int) and isinstance(self.max, int)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("min", "max"):
            check_number(name, getattr(self, name))
        if self.min >= self.max:
            raise UsageError("min", self.min, f"a number below max, {self.max}")
        if self.log and self.min <= 0:
            raise UsageError("min", self.min, "a number above 0 with log")


Values: TypeAlias = Choices | Range


@dataclasses.dataclass(frozen=True)
class Metric(Config):
    """A figure of a run, by which settings are ranked.

    Attributes:
        name: one of `METRICS`, of the last stage that has it; or of another one, as in
            `prune/val_top1`.
        goal: `maximize` or `minimize`; `None` is that of `METRICS`.
    """

    name: str = "top1"
    goal: str | None = checked(None, choices=GOALS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage is not None:
            one_of("metric.name", self.stage, STAGES)
        one_of("metric.name", self.figure, METRICS)
        if self.stage == "convert" and self.figure.startswith(VALIDATION):
            raise UsageError("metric.name", self.name, "the metric of a stage that trains")

    @property
    def stage(self) -> str | None:
        return self.name.rpartition("/")[0] or None

    @property
    def figure(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def is_maximized(self) -> bool:
        return (self.goal or METRICS[self.figure]) == MAXIMIZE


@dataclasses.dataclass(frozen=True)
class SweepConfig(Config):
    """A sweep.

    Attributes:
        parameters: `Choices` or `Range` by the path of a field of `RunConfig`. Also as a file has
            them: a list, or a mapping with `values`, or with `min`, `max` and `log`.
        method: `grid` takes all combinations of values; `random` draws each parameter by itself;
            `bayes` draws where earlier settings were good (tree-structured Parzen estimator, by
            Optuna).
        trials: settings that `random` and `bayes` choose.
        seed: of their choice.
        seeds: of the runs: each setting is trained once with each, and has the mean of their
            metrics; the seed of the run's config when empty.
        metric: what ranks settings, and what `bayes` improves.
    """

    parameters: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    method: str = checked(GRID, choices=METHODS)
    trials: int | None = checked(None, least=1, most=MOST_RUNS, integer=True)
    seed: int = checked(0, least=0, integer=True)
    seeds: tuple[int, ...] = checked((), least=0, integer=True)
    metric: Metric = Metric()

    def __post_init__(self) -> None:
        if not isinstance(self.parameters, Mapping) or not self.parameters:
            expected = "paths of fields with their values"
            raise UsageError("parameters", self.parameters, expected, _EXAMPLE)
        super().__post_init__()
        values = {path: _values(path, value) for path, value in self.parameters.items()}
        object.__setattr__(self, "parameters", values)
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError("seeds", list(self.seeds), "each seed once")
        if self.method == GRID:
            self._check_grid()
        elif self.trials is None:
            expected = f"the number of settings that method {self.method} chooses"
            raise UsageError("trials", None, expected, "as in trials: 20")
        elif self.trials * self.runs_of_trial > MOST_RUNS:
            raise self._too_many("trials", self.trials)

    @property
    def runs_of_trial(self) -> int:
        """The number of runs that a setting has."""
        return max(1, len(self.seeds))

    def _check_grid(self) -> None:
        if self.trials is not None:
            raise UsageError("trials", self.trials, "none with method grid, which takes all")
        for path, values in self.parameters.items():
            if isinstance(values, Range):
                expected = "a list of values with method grid"
                raise UsageError(path, "a range", expected, "or take method random")
        count = math.prod(len(values.values) for values in self.parameters.values())
        if count * self.runs_of_trial > MOST_RUNS:
            raise self._too_many("parameters", count)

    def _too_many(self, name: str, trials: int) -> UsageError:
        got = f"{trials} settings with {self.runs_of_trial} seeds"
        expected = f"at most {MOST_RUNS} runs, not {trials * self.runs_of_trial}"
        return UsageError(name, got, expected, "take method random with fewer `trials`")


_EXAMPLE = "as in train.lr: [0.001, 0.01]"


def _values(path: object, value: Any) -> Values:
    """The values of a parameter, checked for the type of its field."""
    known = _fields()
    if not isinstance(path, str) or path not in known:
        expected = "the path of a field of RunConfig"
        raise UsageError("parameters", path, expected, f"did you mean {_nearest(str(path))}?")
    if path == "seed":
        raise UsageError(path, None, "no seed among `parameters`", "list them as `seeds`")
    try:
        if isinstance(value, (Choices, Range)):
            value = value.to_json()
        if isinstance(value, Mapping) and value.keys() & {"min", "max", "log"}:
            return _range(path, value)
        if isinstance(value, Mapping) and value.keys() - {"type"} == {"values"}:
            value = value["values"]
        return _choices(path, value)
    except UsageError as error:
        raise error if error.what == path else error.within(path) from None


def _nearest(name: str) -> str:
    """The path that is meant by another one, or by the name of a flag."""
    known = _fields()
    paths = {parameter.name: parameter.path for parameter in parameters_of(RunConfig)}
    name = name.replace("learning_rate", "lr")
    if name in known:
        return name
    near = difflib.get_close_matches(name, [*paths, *known], n=1, cutoff=0.0)[0]
    return paths.get(near, near)


def _choices(path: str, value: Any) -> Choices:
    if not isinstance(value, (list, tuple)):
        expected = "a list of values, or min and max"
        raise UsageError(path, value, expected, _EXAMPLE)
    if not value:
        raise UsageError(path, [], "at least one value", _EXAMPLE)
    values = tuple(_value(path, item) for item in value)
    for number, item in enumerate(values):
        if item in values[:number]:
            raise UsageError(path, item, "each value once")
    return Choices(values)


def _range(path: str, value: Mapping[str, Any]) -> Range:
    given = {name: item for name, item in value.items() if name != "type"}
    for name in given:
        one_of(path, name, ("min", "max", "log"))
    for name in ("min", "max"):
        if name not in given:
            raise UsageError(path, sorted(given), "both min and max")
        number = given[name]
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise UsageError(name, number, "a number")
    kind = float if _accepts(path, 0.5) else int
    for name in ("min", "max"):
        if not _accepts(path, kind(given[name])) or kind(given[name]) != given[name]:
            _value(path, given[name])
            raise UsageError(path, given[name], "a range of a number; this field has none")
        given[name] = kind(given[name])
    return Range(**{**given, "log": fitted("log", bool, given.get("log", False))})


def _accepts(path: str, value: Any) -> bool:
    try:
        _value(path, value)
    except UsageError:
        return False
    return True


def _value(path: str, value: Any) -> Any:
    """A value as the field stores it."""
    value = list(value) if isinstance(value, tuple) else value
    return value_of_field(path, path, _fields()[path], value)


@functools.cache
def _fields() -> dict[str, Any]:
    """Type by path of the fields of a run."""
    return field_types(RunConfig)
