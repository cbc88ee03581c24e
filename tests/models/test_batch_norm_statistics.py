"""Moving statistics that are of another model: a warning, and none where they fit."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import tf_keras
from short_training import stage_context, train
from small_models import L, inputs, randomize_batch_norm, toy

from mobilenet.compression import method as methods
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.models.graph import batch_norm_statistics
from mobilenet.models.graph.roles import kind


def batch_norms(model: Any) -> list[Any]:
    return [layer for layer in model.layers if kind(layer) == "BatchNormalization"]


def trained(decay: float, steps: int = 12) -> Any:
    """A toy of wide kernels after a few steps, at a decay of its statistics."""
    model = toy()
    for layer in batch_norms(model):
        layer.momentum = decay
    for name in "abc":
        kernel = model.get_layer(name).weights[0]
        kernel.assign(40.0 * kernel)
    train(model, None, steps)
    return model


def test_a_high_decay_is_reported_with_its_remedy() -> None:
    line = batch_norm_statistics.statistics_warning(trained(0.9997), inputs(8))
    assert "moving statistics of 2 of 3 batch norms" in line
    assert "from b_norm on" in line
    assert "lower momentum (`batch_norm_decay` of MobileNets) than 0.9997, or for more" in line
    assert "\n" not in line


def test_own_statistics_give_no_warning() -> None:
    assert batch_norm_statistics.statistics_warning(trained(0.5), inputs(8)) == ""
    assert (
        batch_norm_statistics.statistics_warning(randomize_batch_norm(toy()), inputs(8, seed=3))
        == ""
    )


@pytest.mark.parametrize(
    ("factor", "warned"), [(10.0, False), (20.0, True), (1 / 10, False), (1 / 20, True)]
)
def test_the_limit_is_a_factor_of_fifteen_of_the_deviation(factor: float, warned: bool) -> None:
    """One layer alone, in both modes; the value is recomputed here from what the layer is fed."""
    model = randomize_batch_norm(toy())
    norm = model.get_layer("b_norm")
    fed = tf_keras.Model(model.input, norm.input)(inputs(8), training=False).numpy().reshape(-1, 8)
    norm.moving_mean.assign(fed.mean(0))
    norm.moving_variance.assign(fed.var(0) / factor**2 - norm.epsilon)
    line = batch_norm_statistics.statistics_warning(
        tf_keras.Model(model.input, norm.output), inputs(8)
    )
    assert (f"up to {factor:.2g} times" in line) == warned
    assert bool(line) == warned


def test_dead_channels_and_models_without_batch_norm_give_no_warning() -> None:
    model = randomize_batch_norm(toy())
    kernel, norm = model.get_layer("b").weights[0], model.get_layer("b_norm")
    kernel.assign(np.where(np.arange(8)[:, None] < 6, 0.0, kernel))
    for value in (norm.moving_mean, norm.moving_variance):
        value.assign(np.where(np.arange(8) < 6, 0.0, value))
    assert (
        batch_norm_statistics.statistics_warning(
            tf_keras.Model(model.input, norm.output), inputs(8)
        )
        == ""
    )
    source = L.Input((16, 16, 3))
    assert (
        batch_norm_statistics.statistics_warning(
            tf_keras.Model(source, L.ReLU()(source)), inputs(8)
        )
        == ""
    )


def test_values_that_overflow_are_reported() -> None:
    model = randomize_batch_norm(toy())
    model.get_layer("a").weights[0].assign(np.full((3, 3, 3, 8), 3e38, np.float32))
    assert "up to inf times" in batch_norm_statistics.statistics_warning(model, inputs(8))


def test_the_quantize_stage_warns_once_and_notes_it(caplog: pytest.LogCaptureFixture) -> None:
    config = QuantizationAwareTraining(calibration_images=16)
    method = methods.create(config, stage_context())
    with caplog.at_level(logging.WARNING, "mobilenet"):
        wrapped = method.apply(trained(0.9997))
    (record,) = caplog.records
    assert record.getMessage() in method.notes(wrapped)
    assert "batch norms are not those of the images" in record.getMessage()
    caplog.clear()
    method = methods.create(config, stage_context())
    method.apply(randomize_batch_norm(toy()))
    assert not caplog.records


def test_before_a_delay_statistics_may_still_come(caplog: pytest.LogCaptureFixture) -> None:
    method = methods.create(QuantizationAwareTraining(quant_delay=2), stage_context())
    with caplog.at_level(logging.WARNING, "mobilenet"):
        method.apply(trained(0.9997))
    assert not caplog.records
