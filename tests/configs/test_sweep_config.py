"""The config of a sweep: what it refuses, and that JSON has all of it."""

from __future__ import annotations

from typing import Any

import pytest

from mobilenet.configs.sweep import Choices, Metric, Range, SweepConfig
from mobilenet.errors import UsageError

LR = {"train.lr": [0.001, 0.01]}
RANGE = {"min": 0.001, "max": 0.1, "log": True}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({}, ["parameters: got {}", "as in train.lr: [0.001, 0.01]"]),
        ({"parameters": {"train.learning_rate": [1]}}, ["did you mean train.lr?"]),
        ({"parameters": {"lr": [1]}}, ["got 'lr'", "did you mean train.lr?"]),
        ({"parameters": {"prune_lr": [1]}}, ["did you mean prune.lr?"]),
        ({"parameters": {"seed": [1]}}, ["seed", "list them as `seeds`"]),
        ({"parameters": {"train.lr": []}}, ["train.lr: got []", "at least one value"]),
        ({"parameters": {"train.lr": 0.1}}, ["train.lr: got 0.1", "a list of values"]),
        ({"parameters": {"train.lr": ["fast"]}}, ["train.lr: got 'fast'", "of type float"]),
        ({"parameters": {"train.epochs": [1.5]}}, ["train.epochs: got 1.5", "of type int"]),
        ({"parameters": {"train.lr": [0.1, 0.1]}}, ["train.lr: got 0.1", "each value once"]),
        ({"parameters": {"train.lr": {"min": 1}}}, ["train.lr", "both min and max"]),
        ({"parameters": {"train.lr": {"min": 2, "max": 1}}}, ["got 2.0", "below max, 1"]),
        ({"parameters": {"train.lr": {**RANGE, "min": 0}}}, ["got 0.0", "above 0 with log"]),
        ({"parameters": {"train.lr": {**RANGE, "log": "yes"}}}, ["log", "'yes'", "bool"]),
        ({"parameters": {"train.lr": {**RANGE, "q": 1}}}, ["got 'q'", "one of min, max, log"]),
        ({"parameters": {"train.lr": RANGE}}, ["train.lr: got 'a range'", "method random"]),
        ({"parameters": {"pruning": {"min": 1, "max": 2}}}, ["pruning: got 1", "of type str"]),
        ({"parameters": LR, "trials": 3}, ["trials: got 3", "none with method grid"]),
        ({"parameters": LR, "method": "random"}, ["trials", "as in trials: 20"]),
        ({"parameters": LR, "method": "gird"}, ["got 'gird'", "did you mean grid?"]),
        ({"parameters": LR, "seeds": [1, 1]}, ["seeds: got [1, 1]", "each seed once"]),
        ({"parameters": LR, "seeds": [-1]}, ["seeds: got -1", "at least 0"]),
        ({"parameters": LR, "metric": {"name": "top2"}}, ["metric.name: got 'top2'", "top1"]),
        ({"parameters": LR, "metric": {"name": "tune/top1"}}, ["'tune'", "did you mean prune?"]),
        ({"parameters": LR, "metric": {"goal": "max"}}, ["did you mean maximize?"]),
        (
            {"parameters": LR, "metric": {"name": "convert/val_top1"}},
            ["the metric of a stage that trains"],
        ),
        (
            {"parameters": {"train.epochs": list(range(600))}, "seeds": [0, 1]},
            ["600 settings with 2 seeds", "at most 1000 runs, not 1200", "random"],
        ),
        (
            {"parameters": LR, "method": "random", "trials": 600, "seeds": [0, 1]},
            ["trials", "at most 1000 runs, not 1200"],
        ),
        ({"parameters": LR, "metod": "grid"}, ["got 'metod'", "did you mean method?"]),
    ],
)
def test_what_is_wrong_is_one_line(content: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        SweepConfig.from_json(content)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_values_have_the_type_of_their_field() -> None:
    parameters = {
        "train.lr": {"min": 1, "max": 2},
        "train.epochs": {"min": 1, "max": 3.0},
        "image_size": [32, [32, 48]],
        "pruning.final_sparsity": {"values": [0.5, {"depthwise": 0.25}]},
    }
    config = SweepConfig.from_json({"parameters": parameters, "method": "random", "trials": 2})
    assert config.parameters == {
        "train.lr": Range(1.0, 2.0),
        "train.epochs": Range(1, 3),
        "image_size": Choices((32, (32, 48))),
        "pruning.final_sparsity": Choices(({"pointwise": 0.5}, {"depthwise": 0.25})),
    }
    assert config.parameters["train.epochs"].is_whole
    assert not config.parameters["train.lr"].is_whole
    assert SweepConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("metric", "stage", "is_maximized"),
    [
        (Metric(), None, True),
        (Metric("prune/val_loss"), "prune", False),
        (Metric("latency_ms"), None, False),
        (Metric("bytes", "maximize"), None, True),
    ],
)
def test_a_metric_has_a_stage_and_a_goal(
    metric: Metric, stage: str | None, is_maximized: bool
) -> None:
    assert (metric.stage, metric.is_maximized) == (stage, is_maximized)
