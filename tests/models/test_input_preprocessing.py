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
from mobilenet.models.input_preprocessing import complete_card, resolve

L = tf_keras.layers
IMAGENET = ([0.485, 0.456, 0.406], [0.0524, 0.0502, 0.0506])  # of pixels from 0 to 1
BATCH_NORM = L.BatchNormalization(
    moving_mean_initializer=tf_keras.initializers.Constant(120.0),
    moving_variance_initializer=tf_keras.initializers.Constant(3600.0),
)


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


def test_numbers_may_be_text() -> None:
    assert resolve(toy(), "127.5, 64") == Preprocessing("custom", (127.5,), (64.0,))
    text = "123.7,116.3,103.5,58.4,57.1,57.4"
    expected = Preprocessing("custom", (123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
    assert resolve(toy(), text) == expected
    assert resolve(toy(), "103.9,116.8,123.7,1").std == (1.0,)


def test_mean_and_std_of_pixels_to_1_are_refused() -> None:
    with pytest.raises(UsageError, match=r"123\.675, .*58\.395.* pixels from 0 to 1") as error:
        resolve(toy(), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert error.value.what == "preprocessing"


def test_a_card_is_completed_by_what_is_given_then_by_what_is_usual(
    log: pytest.LogCaptureFixture,
) -> None:
    usual = PREPROCESSING["inception_whole"]
    nothing = Card(assumed=("scaling", "crop"))
    card = complete_card(nothing, "model.keras", usual=usual)
    (line,) = log.messages
    assert (card.preprocessing, card.assumed, card.notes) == (usual, (), (line,))
    assert "model.keras" in line
    assert "the whole image scaled to [-1, 1]" in line
    card = complete_card(Card(assumed=("crop",)), "model.keras", usual=usual)
    assert "crop: the whole image" in log.messages[1]
    assert card.preprocessing.crop == "none"
    given = complete_card(nothing, "model.keras", "0,255", 0.5, usual)
    expected = Preprocessing("custom", (0.0,), (255.0,), crop_fraction=0.5)
    assert (given.preprocessing, given.assumed, given.notes) == (expected, (), ())
    arrays = complete_card(Card(assumed=("crop",)), "model.keras", from_files=False)
    assert arrays.assumed == ("crop",)
    assert len(log.messages) == 2


@pytest.mark.parametrize("crop", ["middle", 0, 1.5, "0.9x"])
def test_other_crops_are_refused(crop: Any) -> None:
    with pytest.raises(UsageError, match="crop: got") as error:
        complete_card(Card(), "model.keras", crop=crop)
    assert error.value.what == "crop"


@pytest.mark.parametrize(
    "value",
    [
        "imagnet",
        "1,2,3",
        "12x,4",
        127.5,
        (127.5,),
        (1, 2, 3),
        ("a", 1),
        (127.5, 0),
        (float("nan"), 1),
        (0, (1, 2)),
    ],
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(UsageError) as error:
        resolve(toy(), value)
    assert error.value.what == "preprocessing"


@pytest.mark.parametrize(
    "function",
    [
        L.Rescaling(1 / 255),
        L.Normalization(mean=[123.7, 116.3, 103.5], variance=[3410.0, 3263.0, 3292.0]),
        lambda x: L.Normalization(mean=IMAGENET[0], variance=IMAGENET[1])(L.Rescaling(1 / 255)(x)),
        lambda x: L.Rescaling(2.0, -1.0)(L.ZeroPadding2D()(L.Rescaling(1 / 255)(x))),
        lambda x: L.Add()([x, tf.constant([[[[-103.9, -116.8, -123.7]]]])]),
        lambda x: tf.math.subtract(tf.math.multiply(x, 1 / 127.5), [1.0, 1.0, 1.0]),
        BATCH_NORM,
        lambda x: tf_keras.applications.imagenet_utils.preprocess_input(x, mode="caffe"),
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


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (L.Rescaling(255.0), "unit"),
        (L.Rescaling(2.0, -1.0), "unit"),
        (L.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.05, 0.05, 0.05]), "unit"),
        (L.Rescaling(127.5, 127.5), "inception"),
        (L.Rescaling([0.5, 0.5, 0.5], 0.5), "inception"),
    ],
)
def test_a_model_may_scale_inputs_that_are_scaled_already(
    function: Any, name: str, log: pytest.LogCaptureFixture
) -> None:
    assert resolve(small(function)) == PREPROCESSING[name]
    assert log.messages == []


@pytest.mark.parametrize(
    "function",
    [
        L.Rescaling(1.0),
        L.Rescaling(0.0, 1.0),
        L.BatchNormalization(),
        L.Normalization(mean=[0.0, 0.1, -0.1], variance=[0.25, 0.25, 0.25]),
        lambda x: L.Concatenate()([L.Rescaling(1 / 255)(x), x]),
    ],
)
def test_constants_that_tell_nothing_are_an_assumption(
    function: Any, log: pytest.LogCaptureFixture
) -> None:
    assert resolve(small(function)) == Preprocessing()
    assert len(log.messages) == 1


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
