"""Learning rates and the smoothed loss, against their formulas in numpy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from mobilenet.configs.training import TrainConfig  # noqa: E402
from mobilenet.training import losses  # noqa: E402
from mobilenet.training.optimization.learning_rate import LearningRate  # noqa: E402

STEPS = 7  # an epoch; no divisor of the periods below
EPOCHS = 12


def rates(**fields: Any) -> np.ndarray:
    config = TrainConfig(epochs=EPOCHS, lr=0.3, **fields)
    rate = LearningRate(config, STEPS)
    return np.array([float(rate(tf.constant(t, tf.int64))) for t in range(EPOCHS * STEPS)])


def exponential(t: int, factor: float, period: float) -> float:
    return 0.3 * factor ** ((t * 10) // int(10 * period * STEPS))


def stepwise(t: int, factor: float, boundaries: tuple[float, ...]) -> float:
    return 0.3 * factor ** sum(t >= boundary * STEPS for boundary in boundaries)


def cosine(t: int) -> float:
    return 0.3 * (1 + np.cos(np.pi * t / (EPOCHS * STEPS))) / 2


def constant(t: int) -> float:
    del t
    return 0.3


Formula = Callable[[int], float]
SCHEDULES: dict[str, tuple[dict[str, Any], Formula]] = {
    "exponential": (
        {"lr_decay_rate": 0.94, "lr_decay_epochs": 2.5},
        lambda t: exponential(t, 0.94, 2.5),
    ),
    "exponential, whole periods": (
        {"lr_decay_rate": 0.5, "lr_decay_epochs": 1.0},
        lambda t: exponential(t, 0.5, 1.0),
    ),
    "stepwise": (
        {"lr_decay_rate": 0.2, "lr_boundaries": (3.0, 5.0, 9.5)},
        lambda t: stepwise(t, 0.2, (3.0, 5.0, 9.5)),
    ),
    "stepwise, no boundaries": ({}, lambda t: stepwise(t, 0.1, (EPOCHS / 2, EPOCHS * 3 / 4))),
    "cosine": ({}, cosine),
    "constant": ({}, constant),
}


@pytest.mark.parametrize("warmup", [0.0, 3.0, 1.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_its_formula(name: str, warmup: float) -> None:
    """The warm-up of tensorflow/models' trainer: linear to the base rate over W epochs, then the
    schedule at the absolute step."""
    fields, formula = SCHEDULES[name]
    result = rates(learning_scheduler_name=name.partition(",")[0], warmup_epochs=warmup, **fields)
    until = warmup * STEPS
    expected = [0.3 * t / until if t < until else formula(t) for t in range(EPOCHS * STEPS)]
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-7)


def test_a_staircase_falls_on_the_first_step_of_a_period_in_a_long_run() -> None:
    """float32 must not land below a whole number of periods: ImageNet's V2 decays each epoch."""
    steps = 1_281_167 // 96
    config = TrainConfig(epochs=300, lr=1.0, lr_decay_rate=0.98, lr_decay_epochs=1.0)
    rate = LearningRate(config, steps)
    for epoch in range(1, 300):
        before, at = float(rate(epoch * steps - 2)), float(rate(epoch * steps))
        assert before == pytest.approx(0.98 ** (epoch - 1), rel=1e-4)
        assert at == pytest.approx(0.98**epoch, rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_spreads_its_share_over_all_classes(smoothing: float) -> None:
    noise = np.random.default_rng(1)
    logits, labels = noise.normal(size=(6, 4)).astype(np.float32), np.array([0, 3, 1, 1, 2, 0])
    targets = np.full((6, 4), smoothing / 4)
    for row, label in itertools.zip_longest(targets, labels):
        row[label] += 1 - smoothing
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(targets * logs).sum(axis=1)
    result = losses.cross_entropy(4, smoothing)(tf.constant(labels), tf.constant(logits))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5)
