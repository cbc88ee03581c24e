"""What the inputs of a model are taken to be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import tf_keras
from small_models import toy

import mobilenet
from mobilenet.configs import archs
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import PREPROCESSING, Preprocessing
from mobilenet.errors import UsageError
from mobilenet.models.input_preprocessing import resolve

L = tf_keras.layers


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("mobilenet"), "propagate", True)
    caplog.set_level(logging.INFO, "mobilenet")
    return caplog


def small(function: Callable[[Any], Any], dtype: str = "float32") -> Any:
    source = L.Input((8, 8, 3), dtype=dtype)
    return tf_keras.Model(source, L.Conv2D(2, 3)(function(source)))


def test_a_preprocessing_is_a_name_a_config_or_mean_and_std() -> None:
    model = toy()
    assert resolve(model, "imagenet") == PREPROCESSING["imagenet"]
    assert resolve(model, PREPROCESSING["raw"]) == PREPROCESSING["raw"]
    given = resolve(model, (128, [1.0, 2.0, 3.0]))
    assert (given.mean, given.std) == ((128.0,), (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    "value",
    ["imagnet", 127.5, (127.5,), (1, 2, 3), ("a", 1), (127.5, 0), (float("nan"), 1), (0, (1, 2))],
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(UsageError) as error:
        resolve(toy(), value)
    assert error.value.what == "preprocessing"


@pytest.mark.parametrize(
    "function",
    [
        L.Rescaling(1 / 255),
        L.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0]),
        tf_keras.applications.mobilenet_v2.preprocess_input,
        lambda x: L.Rescaling(1 / 127.5, -1)(L.Resizing(4, 4)(L.RandomFlip()(x))),
        tf_keras.Sequential([L.RandomRotation(0.1), L.Rescaling(1 / 255)]),
    ],
)
def test_a_model_that_scales_its_inputs_takes_pixels(
    function: Any, log: pytest.LogCaptureFixture
) -> None:
    assert resolve(small(function)) == PREPROCESSING["raw"]
    assert log.messages == []


def test_a_cast_of_whole_numbers_takes_pixels() -> None:
    model = small(lambda x: tf.cast(x, tf.float32) / 255.0, "uint8")
    assert resolve(model) == PREPROCESSING["raw"]


def test_an_assumption_is_one_line(log: pytest.LogCaptureFixture) -> None:
    model = small(lambda x: L.Conv2D(2, 1)(x) * 2 + 1)
    assert resolve(model) == Preprocessing()
    (line,) = log.messages
    assert "[-1, 1]" in line
    assert "'raw'" in line


def test_what_is_stored_with_a_model_is_taken(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    built = mobilenet.build(archs.get("mobilenet_v1", width_multiplier=0.25), (32, 32, 3))
    assert resolve(built) == Preprocessing()
    card = Card(input_shape=(8, 8, 3), preprocessing=PREPROCESSING["imagenet"])
    mobilenet.save_model(small(L.ReLU()), tmp_path / "model", card)
    loaded = mobilenet.load_model(tmp_path / "model").model
    assert resolve(loaded) == PREPROCESSING["imagenet"]
    assert log.messages == []
