"""Confusion matrix, figures of each class and calibration, against scikit-learn and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from mobilenet.evaluation import confusion
from mobilenet.evaluation.calibration_error import calibration

NAMES = tuple("abcdefg")
NOISE = np.random.default_rng(3)
LABELS = NOISE.integers(0, 6, 300)  # no image is of the last class
PREDICTED = np.where(NOISE.random(300) < 0.6, LABELS, NOISE.integers(1, 7, 300))


def test_counts_and_figures_are_those_of_scikit_learn() -> None:
    matrix = confusion.confusion_matrix(LABELS, PREDICTED, len(NAMES))
    np.testing.assert_array_equal(
        matrix, reference.confusion_matrix(LABELS, PREDICTED, labels=range(7))
    )
    expected = reference.precision_recall_fscore_support(
        LABELS, PREDICTED, labels=range(7), zero_division=np.nan
    )
    figures = confusion.class_figures(LABELS, PREDICTED, NAMES)
    for own, precision, recall, f1, count in zip(figures, *expected, strict=True):
        assert (own.count, own.predicted) == (count, (NAMES.index(own.name) == PREDICTED).sum())
        values = [np.nan if v is None else v for v in (own.precision, own.recall, own.f1)]
        np.testing.assert_allclose(values, [precision, recall, f1])
    assert figures[6].recall is None


def test_a_class_that_is_nowhere_has_no_figures() -> None:
    figures = confusion.class_figures(np.array([0, 0]), np.array([0, 1]), ("a", "b", "c"))
    assert (figures[2].precision, figures[2].recall, figures[2].f1) == (None, None, None)
    assert (figures[1].precision, figures[1].recall, figures[1].f1) == (0, None, 0)


def test_labels_have_the_figures_of_scikit_learn() -> None:
    targets, decided = NOISE.integers(0, 2, (80, 4)), NOISE.random((80, 4)) < 0.3
    expected = reference.precision_recall_fscore_support(targets, decided)
    figures = confusion.label_figures(targets, decided, NAMES[:4])
    found = [(own.precision, own.recall, own.f1, own.count) for own in figures]
    np.testing.assert_allclose(found, np.transpose(expected))


def test_the_worst_class_and_the_most_frequent_confusion_come_first() -> None:
    labels = np.array([0] * 50 + [1] * 50 + [2] * 10)
    predicted = np.array([1] * 12 + [0] * 38 + [2] * 3 + [1] * 47 + [2] * 10)
    pairs = confusion.top_confusions(labels, predicted, ("cat", "dog", "owl"))
    assert [str(pair) for pair in pairs] == [
        "cat taken for dog: 12 of 50",
        "dog taken for owl: 3 of 50",
    ]
    assert len(confusion.top_confusions(labels, predicted, ("cat", "dog", "owl"), 1)) == 1
    figures = confusion.class_figures(labels, predicted, ("cat", "dog", "owl"))
    f1 = {"cat": 76 / 88, "dog": 94 / 109, "owl": 20 / 23}
    assert [own.name for own in confusion.worst_first(figures)] == sorted(f1, key=f1.__getitem__)


@pytest.mark.parametrize("classes", [3, 60])
def test_the_picture_shows_at_most_the_classes_that_can_be_read(
    classes: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Names may be of any script, and have what matplotlib takes for formulas."""
    names = ["a $x_$ b", "猫\n,=1", *(f"class {n}" for n in range(classes - 2))]
    matrix = np.eye(classes, dtype=np.int64) * 9
    matrix[1, classes - 1] = 4
    path = confusion.draw(matrix, names, tmp_path / "new/confusion.png")
    with Image.open(path) as picture:
        assert min(picture.size) > 400
        assert max(picture.size) < 1600
    assert not recwarn.list


def test_the_calibration_error_is_that_of_the_definition() -> None:
    probabilities = np.clip(NOISE.beta(3, 1, 500), 0.01, 1)
    right = NOISE.random(500) < probabilities**2
    found = calibration(probabilities, right)
    bounds = np.arange(16) / 15
    error = 0.0
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        inside = (probabilities > low) & (probabilities <= high)
        if inside.any():
            gap = abs(probabilities[inside].mean() - right[inside].mean())
            error += inside.mean() * gap
    assert found.error == pytest.approx(error)
    assert sum(part.count for part in found.bins) == 500
    shares, means = calibration_curve(right, probabilities, n_bins=15)
    filled = [part for part in found.bins if part.count]
    np.testing.assert_allclose([part.right for part in filled], shares)
    np.testing.assert_allclose([part.probability for part in filled], means)
    assert f"differs from the share that is right by {100 * error:.1f} points" in str(found)


def test_certain_and_right_is_no_error() -> None:
    found = calibration(np.array([1.0, 1.0, 0.0]), np.array([True, True, False]))
    assert found.error == 0
    assert [found.bins[0].count, found.bins[-1].count] == [1, 2]
    assert found.bins[5].right is None


def test_a_bin_has_its_upper_bound() -> None:
    found = calibration(np.array([0.25, 0.25, 0.5, 1.0]), np.ones(4, bool), bins=4)
    assert [part.count for part in found.bins] == [2, 1, 0, 1]
