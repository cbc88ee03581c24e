"""Which classes a classifier takes for which: the confusion matrix and its picture, and precision,
recall and F1 of each class.

Counts are numpy's: a device that only runs files has no scikit-learn.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilenet import files
from mobilenet.text_tables import one_line
from mobilenet.typing import IntArray

MOST_DRAWN = 40  # classes in a picture, of which the names can be read
_MOST_COUNTED = 25  # classes of which the counts can be read
_LONGEST_NAME = 24  # characters of a class in a picture
_DOTS = 100

Counts = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """Figures of one class, or of one label of a model with several labels an image.

    Attributes:
        name: of the class.
        count: images of the class.
        predicted: images that were taken for it.
        precision: the share of `predicted` that is of the class; `None` without any.
        recall: the share of `count` that was taken for it; `None` without any.
        f1: the harmonic mean of both; `None` where the class is neither in labels nor predictions.
        auc: of a sigmoid, the area under the receiver operating characteristic; `None` where all or
            no images have the label.
        average_precision: of a sigmoid, the mean of the precision over all thresholds, weighted
            by the recall that each adds; `None` as for `auc`.
    """

    name: str
    count: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None
    auc: float | None = None
    average_precision: float | None = None


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another; `str()` is one line.

    Attributes:
        label: the class of the images.
        prediction: the class that they were taken for.
        images: their number.
        count: all images of the class.

    Examples:
        >>> str(Confusion("cat", "dog", 12, 50))
        'cat taken for dog: 12 of 50'
    """

    label: str
    prediction: str
    images: int
    count: int

    def __str__(self) -> str:
        return f"{self.label} taken for {self.prediction}: {self.images:,} of {self.count:,}"


def confusion_matrix(labels: IntArray, predictions: IntArray, classes: int) -> Counts:
    """Counts `[classes, classes]`: a row for each class, a column for what it was taken for.

    Args:
        labels: class indices `[images]`.
        predictions: class indices `[images]`.
        classes: how many there are.
    """
    pairs = np.asarray(labels, np.int64) * classes + predictions
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_figures(
    labels: IntArray, predictions: IntArray, names: Sequence[str]
) -> tuple[ClassFigures, ...]:
    """The figures of each class, in the order of `names`.

    Args:
        labels: class indices `[images]`.
        predictions: class indices `[images]`.
        names: of the classes.
    """
    right = np.asarray(labels) == predictions
    columns = (np.asarray(labels)[right], labels, predictions)
    counts = (np.bincount(column, minlength=len(names)).tolist() for column in columns)
    return tuple(_figures(*values) for values in zip(names, *counts, strict=True))


def label_figures(
    targets: IntArray, decided: npt.NDArray[np.bool_], names: Sequence[str]
) -> tuple[ClassFigures, ...]:
    """The figures of each label, of images with any number of them.

    Args:
        targets: `[images, labels]`, 1 where an image has the label, else 0.
        decided: `[images, labels]`, whether the classifier found it.
        names: of the labels.
    """
    has_label = np.asarray(targets).astype(bool)
    found = (has_label & decided).sum(axis=0).tolist()
    counts = (found, has_label.sum(axis=0).tolist(), decided.sum(axis=0).tolist())
    return tuple(_figures(*values) for values in zip(names, *counts, strict=True))


def _figures(name: str, right: int, count: int, predicted: int) -> ClassFigures:
    def share(part: float, whole: int) -> float | None:
        return part / whole if whole else None

    return ClassFigures(
        name,
        count,
        predicted,
        precision=share(right, predicted),
        recall=share(right, count),
        f1=share(2 * right, count + predicted),
    )


def worst_first(figures: Iterable[ClassFigures]) -> list[ClassFigures]:
    """The classes that have images, the lowest F1 first, of equal ones the class with more."""
    present = [own for own in figures if own.count]
    return sorted(present, key=lambda own: (own.f1 or 0.0, -own.count))


def top_confusions(
    labels: IntArray, predictions: IntArray, names: Sequence[str], limit: int | None = None
) -> tuple[Confusion, ...]:
    """The pairs of classes that are taken for each other, the one with most images first.

    Args:
        labels: class indices `[images]`.
        predictions: class indices `[images]`.
        names: of the classes.
        limit: how many pairs; all by default.
    """
    labels, predictions = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
    wrong = labels != predictions
    totals = np.bincount(labels, minlength=len(names))
    pairs, counts = np.unique(labels[wrong] * len(names) + predictions[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    rows = zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    return tuple(
        Confusion(names[label], names[prediction], count, int(totals[label]))
        for (label, prediction), count in (
            (divmod(pair, len(names)), count) for pair, count in rows
        )
    )


def draw(matrix: Counts, names: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """Draws a confusion matrix as a PNG, its colors the shares of each row.

    Of more than `MOST_DRAWN` classes those with most errors are drawn, which the title says.

    Args:
        matrix: counts `[classes, classes]`, see `confusion_matrix`.
        names: of the classes.
        path: the file, replaced where there is one.

    Raises:
        UsageError: it cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    title = f"{matrix.sum():,} images, {np.trace(matrix):,} of them right"
    chosen, shares, counts = drawn_part(matrix)
    if len(chosen) < len(names):
        title = f"{len(chosen)} classes with most errors of {len(names):,}"
    names = [names[index] for index in chosen.tolist()]
    side = min(4 + 0.3 * len(names), 14)
    figure = Figure(figsize=(side + 1, side), dpi=_DOTS, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks, shown = range(len(names)), [one_line(name, _LONGEST_NAME) for name in names]
    axes.set_xticks(ticks, shown, rotation=90, parse_math=False)
    axes.set_yticks(ticks, shown, parse_math=False)
    axes.set(title=title, xlabel="prediction", ylabel="class")
    figure.colorbar(image, label="share of the class", shrink=0.8)
    if len(names) <= _MOST_COUNTED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            count = f"{counts[row, column]}"
            axes.text(column, row, count, ha="center", va="center", fontsize=8, color=color)
    with files.replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of a script the font lacks
        figure.savefig(temporary)
    return Path(path)


def drawn_part(matrix: Counts) -> tuple[Counts, npt.NDArray[np.float64], Counts]:
    """The part of a confusion matrix of which the names can be read in a picture.

    Args:
        matrix: counts `[classes, classes]`, see `confusion_matrix`.

    Returns:
        The indices of its classes: all, or of more than `MOST_DRAWN` those with most errors. The
        shares of all images of each class, and the counts, `[chosen, chosen]`.
    """
    errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    chosen: Counts = np.sort(np.argsort(-errors, kind="stable")[:MOST_DRAWN])
    part = np.ix_(chosen, chosen)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return chosen, shares[part], matrix[part]
