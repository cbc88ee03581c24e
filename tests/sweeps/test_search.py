"""Which settings are tried: all of a grid, random ones of the right distribution, Optuna's."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from mobilenet.configs.sweep import SweepConfig
from mobilenet.errors import UsageError
from mobilenet.sweeps import search
from mobilenet.sweeps.search import Tried

RANGES = {
    "train.lr": {"min": 1e-4, "max": 1e-1, "log": True},
    "train.label_smoothing": {"min": 0.05, "max": 0.25},
    "train.epochs": {"min": 1, "max": 4},
    "train.warmup_epochs": {"min": 2, "max": 3},
    "train.batch_size": {"min": 1, "max": 64, "log": True},
    "train.optimizer_name": ["adam", "lion", "sgd"],
}


def config(method: str = "random", trials: int | None = 5, **more: Any) -> SweepConfig:
    content = {"parameters": RANGES, **more, "method": method}
    return SweepConfig.from_json(content | ({} if trials is None else {"trials": trials}))


def test_a_grid_has_all_combinations_the_last_parameter_first() -> None:
    values = {"train.lr": [0.1, 0.2], "image_size": [32, [32, 64], 96], "pruning": ["dns"]}
    found = search.planned(config("grid", None, parameters=values))
    lists = ((0.1, 0.2), (32, (32, 64), 96), ("dns",))
    assert [tuple(settings.values()) for settings in found] == [*itertools.product(*lists)]
    assert all(list(settings) == list(values) for settings in found)


def test_random_settings_are_those_of_the_seed_and_more_trials_add_some() -> None:
    few, many = search.planned(config(trials=4)), search.planned(config(trials=9))
    assert many[:4] == few == search.planned(config(trials=4))
    assert search.planned(config(trials=4, seed=1))[0] != few[0]
    assert len({str(settings) for settings in many}) == 9


@pytest.fixture(scope="module")
def drawn() -> dict[str, Any]:
    settings = search.planned(config(trials=1000))
    return {path: np.array([one[path] for one in settings]) for path in RANGES}


def uniform_error(sample: np.ndarray, low: float, high: float) -> float:
    """The Kolmogorov-Smirnov distance of a sample from a uniform distribution."""
    expected = (np.sort(sample) - low) / (high - low)
    return float(np.abs(expected - (np.arange(len(sample)) + 0.5) / len(sample)).max())


def test_numbers_stay_in_their_range(drawn: dict[str, Any]) -> None:
    for path, values in RANGES.items():
        if isinstance(values, dict):
            assert drawn[path].min() >= values["min"]
            assert drawn[path].max() <= values["max"]
    assert drawn["train.lr"].dtype == float
    assert drawn["train.epochs"].dtype == drawn["train.batch_size"].dtype == int
    assert all(float(f"{rate:.4g}") == rate for rate in drawn["train.lr"])


def test_distributions_are_those_of_numpy(drawn: dict[str, Any]) -> None:
    assert uniform_error(np.log10(drawn["train.lr"]), -4, -1) < 0.05
    assert uniform_error(drawn["train.lr"], 1e-4, 1e-1) > 0.4
    assert uniform_error(drawn["train.label_smoothing"], 0.05, 0.25) < 0.05
    np.testing.assert_allclose(np.bincount(drawn["train.epochs"])[1:] / 1000, 0.25, atol=0.05)
    shares = np.bincount(drawn["train.batch_size"], minlength=65)[1:] / 1000
    edges = np.log(np.arange(1, 66) - 0.5)
    expected = np.diff(edges) / (edges[-1] - edges[0])
    np.testing.assert_allclose(shares, expected, atol=0.04)
    for name in RANGES["train.optimizer_name"]:
        assert abs((drawn["train.optimizer_name"] == name).mean() - 1 / 3) < 0.05


def test_more_trials_than_settings_are_refused_with_their_number() -> None:
    parameters = {"train.epochs": {"min": 1, "max": 2}, "pruning": ["dns", "channel"]}
    assert len(search.planned(config(trials=4, parameters=parameters))) == 4
    with pytest.raises(UsageError, match="trials: got 5, expected at most 4"):
        search.planned(config(trials=5, parameters=parameters))


def test_the_ends_of_every_range_are_among_the_settings_to_check() -> None:
    found = search.ends(config())
    for path, values in RANGES.items():
        if isinstance(values, dict):
            assert {values["min"], values["max"]} <= {settings[path] for settings in found}


def test_method_bayes_needs_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    search.check_installed(config())
    with pytest.raises(UsageError, match="method: got 'bayes'.*not installed; pip install optuna"):
        search.check_installed(config("bayes"))


def test_optuna_suggests_by_results_and_from_the_same_ones_the_same() -> None:
    pytest.importorskip("optuna")
    bayes = config("bayes", 24)
    tried: list[Tried] = []
    for number in range(24):
        settings = search.suggest(bayes, tried)
        assert settings is not None and set(settings) == set(RANGES)
        assert 1e-4 <= settings["train.lr"] <= 1e-1 and settings["train.epochs"] in range(1, 5)
        value = -abs(np.log10(settings["train.lr"]) + 3)
        tried.append(Tried(settings, None if number == 3 else float(value), is_running=number == 3))
    assert search.suggest(bayes, tried[:20]) == tried[20].settings
    errors = [abs(np.log10(one.settings["train.lr"]) + 3) for one in tried]
    assert np.mean(errors[16:]) < 0.6 * np.mean(errors[:10])  # of random ones about 1


def test_optuna_ends_where_all_settings_are_known() -> None:
    pytest.importorskip("optuna")
    bayes = config("bayes", 9, parameters={"image_size": [32, [32, 64]]})
    tried: list[Tried] = []
    while (settings := search.suggest(bayes, tried)) is not None:
        tried.append(Tried(settings, 1.0))
    assert sorted(str(one.settings["image_size"]) for one in tried) == ["(32, 64)", "32"]
