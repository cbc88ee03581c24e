"""Top-1, top-5 and loss: against scikit-learn, Keras and hand-crafted ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, top_k_accuracy_score

from mobilenet import metrics
from mobilenet.errors import UsageError

CLASSES = 12


def draw(seed: int, images: int = 200) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(seed)
    labels = noise.permutation(np.arange(images) % CLASSES)
    logits = noise.normal(scale=3, size=(images, CLASSES)).astype(np.float32)
    logits[np.arange(images), labels] += 2
    return logits, labels


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    logits, labels = draw(seed)
    scores = metrics.classification(logits, labels)
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    assert scores.top1 == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=1))
    assert scores.top5 == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5))
    assert scores.loss == pytest.approx(log_loss(labels, shares), rel=1e-6)
    assert scores.images == len(labels)


def test_probabilities_give_the_metrics_of_their_logits() -> None:
    logits, labels = draw(3)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = metrics.classification(shares, labels, probabilities=True)
    expected = metrics.classification(logits, labels)
    assert (scores.top1, scores.top5) == (expected.top1, expected.top5)
    assert scores.loss == pytest.approx(expected.loss, rel=1e-5)


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    """int8 outputs tie often; `argmax` is what a device does."""
    ties = np.zeros((CLASSES, CLASSES), np.float32)
    scores = metrics.classification(ties, np.arange(CLASSES))
    assert scores.top1 == pytest.approx(100 / CLASSES)
    assert scores.top5 == pytest.approx(500 / CLASSES)


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_top_1_is_argmax_with_ties(seed: int) -> None:
    noise = np.random.default_rng(seed)
    logits = noise.integers(-3, 3, (50, CLASSES)).astype(np.float32)
    labels = noise.integers(0, CLASSES, 50)
    best = np.argsort(-logits, axis=1, kind="stable")
    scores = metrics.classification(logits, labels)
    assert scores.top1 == pytest.approx(100 * np.mean(logits.argmax(axis=1) == labels))
    inside = (best[:, :5] == labels[:, None]).any(axis=1)
    assert scores.top5 == pytest.approx(100 * np.mean(inside))


def test_large_logits_and_few_classes_are_no_trouble() -> None:
    scores = metrics.classification(np.array([[1e4, 0.0], [0.0, -1e4]]), np.array([0, 1]))
    assert (scores.top1, scores.top5, scores.loss) == (50, 100, 5000)
    assert metrics.classification(np.ones((3, 1)), np.zeros(3, int)).loss == 0
    sure = metrics.classification(np.array([[1.0, 0.0]]), np.array([1]), probabilities=True)
    assert np.isfinite(sure.loss)


def test_json_has_plain_numbers() -> None:
    scores = metrics.classification(*draw(0)).to_json()
    assert set(scores) == {"top1", "top5", "loss", "images"}
    assert all(type(value) in (int, float) for value in scores.values())


def test_an_imagenet_model_of_1001_classes_on_a_list_of_some_of_the_1000() -> None:
    """Its first output is background also where the list does not reach class 999."""
    for classes, labels in ((996, [0, 995]), (1000, [999, 3])):
        matching = metrics.match_classes(1001, (), classes, (), "image_list")
        outputs = np.zeros((2, 1001))
        outputs[:, 0] = 9  # would win
        outputs[[0, 1], np.array(labels) + 1] = 2
        scores = matching.score(outputs, np.array(labels))
        assert (scores.top1, scores.images) == (100, 2)
        assert scores.loss == pytest.approx(np.log(np.exp(2) + 999) - 2)
        assert "1001 classes and the data 1000" in matching.note
        assert "list has 1 to 1000, give label_offset 1" in matching.note
    whole = metrics.match_classes(
        1001, (), 1001, (), "image_list"
    )  # labels reach 1000: background is 0
    assert whole.score(np.eye(1001)[[1000]], np.array([1000])).top1 == 100 and not whole.note
    fewer = metrics.match_classes(
        12, (), 11, (), "image_list"
    )  # one less, but no background is known
    assert fewer.score(np.eye(12)[[10]], np.array([10])).top1 == 100 and not fewer.note


def test_names_of_other_sets_are_ignored_where_counts_differ() -> None:
    digits = tuple("0123456789")
    assert metrics.match_classes(11, tuple(map(str, range(11))), 10, digits, "digits").background
    named = metrics.match_classes(10, tuple("abcdefghij"), 10, digits, "digits")
    assert named.indices == tuple(range(10)) and not named.note
    for outputs, model in ((9, ()), (12, ()), (20, digits * 2)):
        with pytest.raises(UsageError, match=f"{outputs} classes.*10 classes that digits"):
            metrics.match_classes(outputs, model, 10, digits, "digits")


def test_probabilities_without_background_are_brought_to_one() -> None:
    logits, labels = draw(4)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    matching = metrics.match_classes(CLASSES, (), CLASSES - 1, tuple("abcdefghijk"), "image_folder")
    foreground = labels > 0
    scores = matching.score(shares[foreground], labels[foreground] - 1, probabilities=True)
    rest = shares[foreground][:, 1:].astype(np.float64)
    rest /= rest.sum(axis=1, keepdims=True)
    assert scores.loss == pytest.approx(log_loss(labels[foreground], rest), rel=1e-5)
    assert scores.top1 == pytest.approx(
        100 * np.mean(rest.argmax(axis=1) == labels[foreground] - 1)
    )
    with pytest.raises(UsageError, match=r"labels: got \[0, 11\].*0 to 10"):
        matching.score(shares[:12], labels[:12] * 0 + np.arange(12))
