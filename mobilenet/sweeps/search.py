"""Which settings a sweep tries: a grid, random ones, or those that Optuna suggests."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from mobilenet.configs.parameters import text_of
from mobilenet.configs.sweep import BAYES, GRID, Choices, Range, SweepConfig, Values
from mobilenet.errors import UsageError

Settings: TypeAlias = Mapping[str, Any]  # value by path of a field
_DIGITS = 4  # of a number that is drawn, so that it can be read and typed
_DRAWS = 100  # for each setting, until all that are drawn are known ones


def check_installed(config: SweepConfig) -> None:
    """Raises early what `suggest` would raise.

    Raises:
        UsageError: the method needs a package that is not installed.
    """
    if config.method == BAYES and importlib.util.find_spec("optuna") is None:
        expected = "the package optuna, which is not installed"
        raise UsageError("method", BAYES, expected, "pip install optuna, or take method random")


def planned(config: SweepConfig) -> list[Settings]:
    """The settings that do not depend on results, in order; more `trials` only add some.

    Raises:
        UsageError: there are fewer settings than `trials`.
    """
    if config.method == BAYES:
        return []
    if config.method == GRID:
        values = (choices.values for choices in config.parameters.values())
        combinations = itertools.product(*values)
        return [dict(zip(config.parameters, each, strict=True)) for each in combinations]
    return _random(config)


def _random(config: SweepConfig) -> list[Settings]:
    rng = np.random.default_rng(config.seed)
    assert config.trials is not None
    settings: list[Settings] = []
    for _ in range(_DRAWS * config.trials):
        drawn = {path: _draw(values, rng) for path, values in config.parameters.items()}
        if drawn not in settings:
            settings.append(drawn)
        if len(settings) == config.trials:
            return settings
    raise UsageError("trials", config.trials, f"at most {len(settings)}, all settings there are")


def _draw(values: Values, rng: np.random.Generator) -> Any:
    if isinstance(values, Choices):
        return values.values[rng.integers(len(values.values))]
    half = 0.5 if values.is_whole else 0.0  # each whole number is that far around itself
    low, high = values.min - half, values.max + half
    number = math.exp(rng.uniform(math.log(low), math.log(high))) if values.log else None
    return _in_range(values, rng.uniform(low, high) if number is None else number)


def _in_range(values: Range, number: float) -> float:
    """A number with few digits, of the range."""
    rounded = round(number) if values.is_whole else float(f"{number:.{_DIGITS}g}")
    return min(max(rounded, values.min), values.max)


def ends(config: SweepConfig) -> list[Settings]:
    """Settings with the least and the greatest value of each range, and the first or least values
    of the other parameters."""
    first = {
        path: values.values[0] if isinstance(values, Choices) else values.min
        for path, values in config.parameters.items()
    }
    ranges = {path: v for path, v in config.parameters.items() if isinstance(v, Range)}
    return [first, *({**first, path: values.max} for path, values in ranges.items())]


@dataclasses.dataclass(frozen=True)
class Tried:
    """A setting that was tried, or is.

    Attributes:
        settings: of it.
        value: its metric; `None` if it failed or has none yet.
        is_running: it has none yet.
    """

    settings: Settings
    value: float | None
    is_running: bool = False


def suggest(config: SweepConfig, tried: Sequence[Tried]) -> Settings | None:
    """The next setting of method `bayes`: a function of the config and of what was tried.

    Returns:
        A new one; `None` where only known ones are suggested.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {path: _distribution(values) for path, values in config.parameters.items()}
    trials = [_trial_of(one, config, distributions) for one in tried]
    direction = "maximize" if config.metric.is_maximized else "minimize"
    known = [one.settings for one in tried]
    for attempt in range(_DRAWS):
        # A sampler for each setting, with a seed of its own, so that a sweep can be continued.
        seeds = np.random.SeedSequence([config.seed, len(tried), attempt]).generate_state(1)
        sampler = optuna.samplers.TPESampler(seed=int(seeds[0]), constant_liar=True)
        study = optuna.create_study(sampler=sampler, direction=direction)
        study.add_trials(trials)
        drawn = study.ask(distributions).params
        settings = {path: _of_text(config.parameters[path], drawn[path]) for path in drawn}
        if settings not in known:
            return settings
    return None


def _trial_of(one: Tried, config: SweepConfig, distributions: Mapping[str, Any]) -> Any:
    import optuna

    states = optuna.trial.TrialState
    state = states.COMPLETE
    if one.value is None:
        state = states.RUNNING if one.is_running else states.FAIL
    params = {
        path: text_of(value) if isinstance(config.parameters[path], Choices) else value
        for path, value in one.settings.items()
    }
    return optuna.trial.create_trial(
        state=state, params=params, distributions=dict(distributions), value=one.value
    )


def _distribution(values: Values) -> Any:
    from optuna import distributions

    if isinstance(values, Choices):
        return distributions.CategoricalDistribution([text_of(value) for value in values.values])
    if values.is_whole:
        return distributions.IntDistribution(values.min, values.max, log=values.log)
    return distributions.FloatDistribution(values.min, values.max, log=values.log)


def _of_text(values: Values, drawn: Any) -> Any:
    if isinstance(values, Range):
        return _in_range(values, drawn)
    return next(value for value in values.values if text_of(value) == drawn)
