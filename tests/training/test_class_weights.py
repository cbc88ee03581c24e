"""Class weights: scikit-learn's, by name, and in the loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
from short_training import CONFIG, make_job  # noqa: E402
from small_models import two_layer_model  # noqa: E402

from mobilenet.configs import dataset  # noqa: E402
from mobilenet.configs.run import RunConfig  # noqa: E402
from mobilenet.configs.training import TrainConfig  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.training import class_weights, engine, losses  # noqa: E402

NAMES = ("cat", "dog", "emu", "fox")
LABELS = np.array([0] * 9 + [1] * 3 + [2] * 1 + [3] * 7, np.int32)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    weights = class_weights.weights_of("balanced", NAMES, LABELS)
    np.testing.assert_allclose(np.asarray(weights), expected)


def test_weights_by_name_leave_the_others_at_one() -> None:
    assert class_weights.weights_of("dog=2,fox=0.5", NAMES, None) == (1.0, 2.0, 1.0, 0.5)
    assert class_weights.weights_of("none", NAMES, None) is None


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_the_loss_of_an_image_is_multiplied_by_the_weight_of_its_class(shape: Any) -> None:
    labels = np.array([0, 1, 2, 3, 3, 0])
    logits = tf.constant(np.random.default_rng(2).normal(size=(6, 4)), tf.float32)
    plain = losses.cross_entropy(4, 0.1)
    weights = (1.0, 2.0, 0.5, 3.0)
    weighted = class_weights.weighted(plain, weights)(tf.constant(labels.reshape(shape)), logits)
    expected = np.array(weights)[labels] * plain(tf.constant(labels), logits)
    np.testing.assert_allclose(weighted, expected, rtol=1e-6)


def test_training_uses_them(tmp_path: Path) -> None:
    """The weights multiply the loss of training, not that of validation."""
    job = make_job(tmp_path, CONFIG.replace(epochs=1, lr=1e-6))
    plain = engine.fit(
        two_layer_model(), None, dataclasses.replace(job, checkpoints=tmp_path / "a")
    )
    doubled = dataclasses.replace(job, checkpoints=tmp_path / "b", class_weights=[2.0] * 4)
    rows = engine.fit(two_layer_model(), None, doubled)
    assert rows[0]["loss"] == pytest.approx(2 * plain[0]["loss"], rel=1e-4)
    assert rows[0]["val_loss"] == pytest.approx(plain[0]["val_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": "cats"}, "class_weights: got 'cats', expected none, balanced, or posi"),
        ({"class_weights": "cat=-1"}, "class_weights: got 'cat=-1', expected none, balanced, or"),
        ({"class_weights": "cat=nan"}, "class_weights: got 'cat=nan', expected none, balanced,"),
        (
            {"class_weights": "balanced", "mixup": 0.2},
            "class_weights: got 'balanced', expected none with `mixup`, whose images are of two",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(**settings)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("stage", ["train", "prune", "quantize"])
def test_rare_classes_are_not_corrected_twice(stage: str) -> None:
    sampled = dataset.DIGITS.replace(sampling="balanced")
    with pytest.raises(UsageError) as error:
        RunConfig(dataset=sampled, **{stage: TrainConfig(class_weights="balanced")})
    assert str(error.value) == (
        "class_weights: got 'balanced', expected none or weights by class with "
        "`sampling=balanced`; both make up for rare classes: choose one"
    )
    RunConfig(dataset=sampled, **{stage: TrainConfig(class_weights="1=2")})


def test_classes_and_counts_are_checked() -> None:
    with pytest.raises(UsageError, match="^class_weights: got 'cow', expected one of cat, dog"):
        class_weights.weights_of("cow=2", NAMES, LABELS)
    with pytest.raises(
        UsageError, match="expected training images of every class, not none of dog,"
    ):
        class_weights.weights_of("balanced", NAMES, LABELS[LABELS % 2 == 0])
    with pytest.raises(UsageError, match="as the images of records are not counted"):
        class_weights.weights_of("balanced", NAMES, None)
    with pytest.raises(UsageError, match="expected none for several labels an image"):
        class_weights.weights_of("cat=2", NAMES, np.zeros((3, 4), np.int32))
