"""Mixup, CutMix and random erasing, against numpy with the numbers that were drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
from short_training import CONFIG, STEPS, Signal, make_job  # noqa: E402
from small_models import CLASSES, dropout_model, two_layer_model  # noqa: E402

from mobilenet.configs.training import TrainConfig  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.training import batch_augmentation, engine, losses  # noqa: E402
from mobilenet.training.batch_augmentation import BatchAugmentation  # noqa: E402

SEED = tf.constant([3, 4], tf.int64)
IMAGES = np.random.default_rng(0).normal(size=(6, 9, 12, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 1, 0], np.int32)


def test_mixup_blends_with_the_batch_in_reversed_order() -> None:
    mixed, share = batch_augmentation.mixup(tf.constant(IMAGES), tf.constant(0.3))
    np.testing.assert_allclose(mixed, 0.3 * IMAGES + 0.7 * IMAGES[::-1], rtol=1e-5, atol=1e-6)
    assert float(share) == np.float32(0.3)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.75, 1.0])
def test_cutmix_replaces_a_rectangle_and_counts_its_area(share: float) -> None:
    mixed, stays = batch_augmentation.cutmix(tf.constant(IMAGES), tf.constant(share), SEED)
    center = tf.random.stateless_uniform([2], SEED).numpy()
    expected = IMAGES.copy()
    (low, high), (left, right) = (
        (max(first, 0), min(first + length, size))
        for size, middle in zip((9, 12), center, strict=True)
        for length in [int(np.float32(np.sqrt(1 - share)) * size)]
        for first in [int(middle * size) - length // 2]
    )
    expected[:, low:high, left:right] = IMAGES[::-1, low:high, left:right]
    np.testing.assert_array_equal(mixed, expected)
    assert float(stays) == pytest.approx(1 - (high - low) * (right - left) / 108)


def test_erasing_replaces_one_rectangle_of_some_images_by_noise() -> None:
    images = np.random.default_rng(1).normal(5.0, 2.0, (400, 20, 20, 2)).astype(np.float32)
    seeds = [SEED, SEED + 1]
    erased = batch_augmentation.erase(tf.constant(images), 0.25, seeds).numpy()
    changed = (erased != images).all(-1)
    chosen = changed.any((1, 2))
    assert 0.18 < chosen.mean() < 0.32
    for one in changed[chosen]:
        rows, columns = one.any(1), one.any(0)
        assert one.sum() == rows.sum() * columns.sum()  # a rectangle without a gap
        assert np.diff(np.flatnonzero(rows)).max(initial=1) == 1
        assert np.diff(np.flatnonzero(columns)).max(initial=1) == 1
        assert 1 <= one.sum() <= 0.36 * 400
    assert erased[changed].mean() == pytest.approx(5.0, abs=0.1)
    assert erased[changed].std() == pytest.approx(2.0, abs=0.1)
    again = batch_augmentation.erase(tf.constant(images), 0.25, seeds).numpy()
    np.testing.assert_array_equal(erased, again)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_shares_have_the_variance_of_their_distribution(alpha: float) -> None:
    """Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1))."""
    draw = tf.function(lambda n: batch_augmentation.beta(alpha, tf.stack([n, 7])))
    shares = np.array([draw(tf.constant(n, tf.int64)) for n in range(800)])
    assert np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=0.06)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def applied(labels: Any, classes: int, vectors: bool = False, **fields: Any) -> Any:
    config = TrainConfig(**fields)
    augmentation = BatchAugmentation(config, 1, classes, vectors)
    images, soft = augmentation.apply(
        tf.constant(IMAGES), tf.constant(labels), tf.constant(5, tf.int64)
    )
    return images.numpy(), soft.numpy(), augmentation.decided(soft).numpy()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_by_the_share_of_the_images(kind: str) -> None:
    images, soft, decided = applied(LABELS, 4, **{kind: 0.8})
    assert soft[0, 0] == pytest.approx(1.0)  # the partner of image 0 is of the same class
    first, other = np.eye(4, dtype=np.float32)[LABELS], np.eye(4, dtype=np.float32)[LABELS[::-1]]
    share = float(soft[2, 2])
    np.testing.assert_allclose(soft, share * first + (1 - share) * other, atol=1e-6)
    if kind == "mixup":
        np.testing.assert_allclose(
            images, share * IMAGES + (1 - share) * IMAGES[::-1], rtol=1e-4, atol=1e-5
        )
    else:
        same = (images == IMAGES).all(-1).mean((1, 2))
        np.testing.assert_allclose(same, share, atol=1e-6)
    np.testing.assert_array_equal(decided, LABELS if share > 0.5 else LABELS[::-1])


def test_labels_of_a_sigmoid_are_mixed_too() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 1]], np.int32)
    _, soft, decided = applied(vectors, 2, True, mixup=1.0)
    share = float(soft[2, 0])
    np.testing.assert_allclose(soft, share * vectors + (1 - share) * vectors[::-1], atol=1e-6)
    np.testing.assert_array_equal(decided, np.round(soft))
    binary = np.array([1, 0, 1, 0, 1, 0], np.int32)
    _, soft, _ = applied(binary, 1, mixup=1.0)
    np.testing.assert_allclose(soft, share * binary + (1 - share) * binary[::-1], atol=1e-6)


def test_the_loss_of_shares_is_the_shared_loss() -> None:
    logits = tf.constant(np.random.default_rng(2).normal(size=(6, 4)), tf.float32)
    loss = losses.cross_entropy(4, 0.1)
    one, other = loss(tf.constant(LABELS), logits), loss(tf.constant(LABELS[::-1].copy()), logits)
    eye = np.eye(4, dtype=np.float32)
    soft = tf.constant(0.7 * eye[LABELS] + 0.3 * eye[LABELS[::-1]])
    np.testing.assert_allclose(loss(soft, logits), 0.7 * one + 0.3 * other, rtol=1e-5)


def test_steps_draw_different_numbers_and_the_same_step_the_same() -> None:
    augmentation = BatchAugmentation(TrainConfig(mixup=0.5, cutmix=0.5, random_erasing=0.5), 1, 4)
    images, labels = tf.constant(IMAGES), tf.constant(LABELS)
    results = [
        augmentation.apply(images, labels, tf.constant(step, tf.int64))[0].numpy()
        for step in (0, 1, 2, 3, 0)
    ]
    np.testing.assert_array_equal(results[0], results[4])
    assert all(np.any(a != b) for a, b in zip(results, results[1:], strict=False))


def test_a_killed_run_continues_with_the_same_bits(tmp_path: Path) -> None:
    config = CONFIG.replace(
        mixup=0.4, cutmix=1.0, random_erasing=0.3, accumulation_steps=2, batch_size=4
    )
    ends = []
    for name, step in (("whole", 0), ("killed", STEPS + 2)):
        job = dataclasses.replace(make_job(tmp_path / name, config), seed=7)
        if step:
            with pytest.raises(KeyboardInterrupt):
                interrupted = dataclasses.replace(job, callbacks=(Signal(step),))
                engine.fit(dropout_model(), None, interrupted)
        model = dropout_model()
        rows = engine.fit(model, None, job)
        ends.append((model.get_weights(), [row["top1"] for row in rows]))
    assert ends[0][1] == ends[1][1]
    for one, other in zip(ends[0][0], ends[1][0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_learns_from_mixed_batches(tmp_path: Path) -> None:
    model = two_layer_model()
    config = CONFIG.replace(mixup=0.2, cutmix=0.5, epochs=10)
    rows = engine.fit(model, None, make_job(tmp_path, config))
    assert rows[-1]["val_top1"] > 1.5 * 100 / CLASSES
    assert rows[-1]["top1"] > 1.5 * 100 / CLASSES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": -0.1}, "mixup: got -0.1, expected a number at least 0"),
        ({"random_erasing": 1.5}, "random_erasing: got 1.5, expected a number at least 0 and at"),
        ({"cutmix": 1.0, "batch_size": 1}, "cutmix: got 1.0, expected 0 with batches of one im"),
    ],
)
def test_values_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(**settings)
    assert str(error.value).startswith(message)
