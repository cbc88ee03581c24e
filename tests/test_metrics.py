"""Top-1, top-5 and loss: against scikit-learn, Keras and hand-made ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, top_k_accuracy_score

from mobilenet import metrics

CLASSES = 12


def draw(seed: int, images: int = 200) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(seed)
    labels = noise.permutation(np.arange(images) % CLASSES)
    logits = noise.normal(scale=3, size=(images, CLASSES)).astype(np.float32)
    logits[np.arange(images), labels] += 2
    return logits, labels


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    logits, labels = draw(seed)
    found = metrics.classification(logits, labels)
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    assert found.top1 == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=1))
    assert found.top5 == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5))
    assert found.loss == pytest.approx(log_loss(labels, shares), rel=1e-6)
    assert found.images == len(labels)


def test_probabilities_give_the_figures_of_their_logits() -> None:
    logits, labels = draw(3)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = metrics.classification(shares, labels, probabilities=True)
    expected = metrics.classification(logits, labels)
    assert (found.top1, found.top5) == (expected.top1, expected.top5)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    """int8 outputs tie often; `argmax` is what a device does."""
    ties = np.zeros((CLASSES, CLASSES), np.float32)
    found = metrics.classification(ties, np.arange(CLASSES))
    assert found.top1 == pytest.approx(100 / CLASSES)
    assert found.top5 == pytest.approx(500 / CLASSES)


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_top_1_is_argmax_with_ties(seed: int) -> None:
    noise = np.random.default_rng(seed)
    codes = noise.integers(-3, 3, (50, CLASSES)).astype(np.float32)
    labels = noise.integers(0, CLASSES, 50)
    best = np.argsort(-codes, axis=1, kind="stable")
    found = metrics.classification(codes, labels)
    assert found.top1 == pytest.approx(100 * np.mean(codes.argmax(axis=1) == labels))
    inside = (best[:, :5] == labels[:, None]).any(axis=1)
    assert found.top5 == pytest.approx(100 * np.mean(inside))


def test_large_logits_and_few_classes_are_no_trouble() -> None:
    found = metrics.classification(np.array([[1e4, 0.0], [0.0, -1e4]]), np.array([0, 1]))
    assert (found.top1, found.top5, found.loss) == (50, 100, 5000)
    assert metrics.classification(np.ones((3, 1)), np.zeros(3, int)).loss == 0
    sure = metrics.classification(np.array([[1.0, 0.0]]), np.array([1]), probabilities=True)
    assert np.isfinite(sure.loss)


def test_json_has_plain_numbers() -> None:
    found = metrics.classification(*draw(0)).to_json()
    assert set(found) == {"top1", "top5", "loss", "images"}
    assert all(type(value) in (int, float) for value in found.values())
