"""Losses and metrics of a sigmoid, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mobilenet import metrics
from mobilenet.training import losses

NOISE = np.random.default_rng(0)
LOGITS = NOISE.normal(size=(6, 3)).astype(np.float32) * 3
VECTORS = NOISE.integers(0, 2, (6, 3))


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values.astype(np.float64)))


def crossed(targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    shares = sigmoid(logits)
    return -(targets * np.log(shares) + (1 - targets) * np.log(1 - shares)).mean(axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_smoothing_spreads_a_target_over_both_values(smoothing: float) -> None:
    found = losses.binary_cross_entropy(3, smoothing)(tf.constant(VECTORS), tf.constant(LOGITS))
    targets = np.where(VECTORS == 1, 1 - smoothing / 2, smoothing / 2)
    np.testing.assert_allclose(found, crossed(targets, LOGITS), rtol=1e-5)


def test_class_indices_are_targets_of_one_output_or_of_one_hot_outputs() -> None:
    indices = tf.constant([0, 1, 1, 0, 1, 0])
    one = losses.binary_cross_entropy(1, 0.0)(indices, tf.constant(LOGITS[:, :1]))
    np.testing.assert_allclose(one, crossed(indices.numpy()[:, None], LOGITS[:, :1]), rtol=1e-5)
    three = losses.binary_cross_entropy(3, 0.0)(indices, tf.constant(LOGITS))
    np.testing.assert_allclose(three, crossed(np.eye(3)[indices], LOGITS), rtol=1e-5)


def test_distillation_adds_the_mean_divergence_of_the_outputs() -> None:
    teacher_logits = NOISE.normal(size=LOGITS.shape).astype(np.float32)
    teacher = losses.Teacher(lambda images: tf.constant(teacher_logits), 0.75, 2.0)
    own = losses.binary_cross_entropy(3, 0.0)
    targets = teacher.append_targets(tf.constant(VECTORS), tf.zeros((6, 4, 4, 3)))
    assert targets.shape == (6, 6)
    found = losses.distillation_loss(own, teacher, "sigmoid")(targets, tf.constant(LOGITS))
    first, second = sigmoid(teacher_logits / 2), sigmoid(LOGITS / 2)
    divergence = first * np.log(first / second) + (1 - first) * np.log((1 - first) / (1 - second))
    expected = 0.25 * crossed(VECTORS, LOGITS) + 0.75 * 4 * divergence.mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_labels_are_scored_one_by_one() -> None:
    found = metrics.multi_label(LOGITS, VECTORS)
    again = metrics.multi_label(sigmoid(LOGITS), VECTORS, probabilities=True)
    decided = LOGITS > 0
    assert found.top1 == pytest.approx(100 * (decided == VECTORS).mean())
    assert found.loss == pytest.approx(crossed(VECTORS, LOGITS).mean(), rel=1e-5)
    assert again.loss == pytest.approx(found.loss, rel=1e-5)
    for column, target, figures in zip(LOGITS.T, VECTORS.T, found.labels, strict=True):
        pairs = [(p > n) + 0.5 * (p == n) for p in column[target == 1] for n in column[target == 0]]
        assert figures.auc == pytest.approx(np.mean(pairs))
        hits = int(((column > 0) & (target == 1)).sum())
        assert figures.f1 == pytest.approx(2 * hits / ((column > 0).sum() + target.sum()))
        assert figures.positives == target.sum()
    assert found.selection == pytest.approx(100 * np.mean([row.auc for row in found.labels]))


def test_a_label_that_all_images_have_has_no_auc() -> None:
    vectors = np.column_stack([np.ones(6, int), VECTORS[:, 0]])
    found = metrics.multi_label(LOGITS[:, :2], vectors)
    assert found.labels[0].auc is None and found.auc == found.labels[1].auc


def test_labels_are_matched_by_name_or_index() -> None:
    matched = metrics.match_labels(2, ("sun", "sea"), ("sea", "sun"), "sigmoid")
    assert matched.indices == (1, 0) and not matched.note
    swapped = matched.score(LOGITS[:, :2], VECTORS[:, :2])
    straight = metrics.multi_label(LOGITS[:, 1::-1], VECTORS[:, :2])
    assert swapped.labels == straight.labels
    other = metrics.match_labels(2, ("sun", "sea"), ("ant", "bee"), None)
    assert other.indices == (0, 1) and "by index" in other.note
    for outputs, activation in ((3, "sigmoid"), (2, "softmax")):
        with pytest.raises(metrics.UsageError, match="2 outputs of a sigmoid"):
            metrics.match_labels(outputs, (), ("ant", "bee"), activation)
