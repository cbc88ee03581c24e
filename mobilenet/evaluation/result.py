"""The figures of a model on held-out images, and what explains them: classes, confusions,
calibration and the prediction for each image.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mobilenet import metrics, text_tables
from mobilenet.evaluation import confusion
from mobilenet.evaluation.calibration_error import Calibration, calibration
from mobilenet.evaluation.confusion import ClassFigures, Confusion, Counts
from mobilenet.evaluation.predictions import Predictions
from mobilenet.metrics import LabelFigures

MOST_CLASSES = 20  # in a table on the terminal
_MOST_CONFUSIONS = 10


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of a classifier; `str()` shows them as a table.

    What explains them is computed when it is first asked for.

    Attributes:
        top1, top5: percent of the images whose class is the likeliest, or among the five likeliest;
            of several labels an image, percent of the labels decided right.
        loss: mean cross entropy in nats an image.
        images: their number.
        seconds: for reading the images and running the model.
        startup_seconds: those until the first call of the model was over, which may compile it.
        images_per_second: of the images after it, read and run; `None` where there are none.
        model, data: what was evaluated: a path or name.
        predictions: the prediction for each image: a sequence, and arrays.
        split: of a data set; empty for arrays and batches.
        notes: how the classes of model and data differ, and which images were left out.
        published: what was published of the model's weights.
        labels: AUC and F1 of each label of a sigmoid by its name, of one output for two classes
            those of the second; empty for other models, and where a sigmoid of several labels is
            evaluated on images of one class each.
    """

    top1: float
    top5: float
    loss: float
    images: int
    seconds: float
    startup_seconds: float
    images_per_second: float | None
    model: str
    data: str
    predictions: Predictions = dataclasses.field(repr=False, compare=False)
    split: str = ""
    notes: tuple[str, ...] = ()
    published: str = ""
    labels: Mapping[str, LabelFigures] = dataclasses.field(default_factory=dict)

    @property
    def auc(self) -> float | None:
        """Mean area under the ROC curve over the labels of a sigmoid."""
        return metrics.mean_of(figures.auc for figures in self.labels.values())

    @property
    def f1(self) -> float | None:
        """Mean F1 over the labels of a sigmoid."""
        return metrics.mean_of(figures.f1 for figures in self.labels.values())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by index, or of the labels."""
        return self.predictions.names

    @functools.cached_property
    def per_class(self) -> tuple[ClassFigures, ...]:
        """Images, precision, recall and F1 of each class, or label; of a sigmoid also AUC and
        average precision."""
        found = self.predictions
        if found.decided is None:
            return confusion.class_figures(found.labels, found.predicted, found.names)
        if found.has_several_labels:
            own = confusion.label_figures(found.labels, found.decided, found.names)
            return tuple(self._of_sigmoid(figures, index) for index, figures in enumerate(own))
        first, second = confusion.class_figures(found.labels, found.predicted, found.names)
        return first, self._of_sigmoid(second, 0)

    def _of_sigmoid(self, figures: ClassFigures, column: int) -> ClassFigures:
        """The figures with those over all thresholds of one output."""
        found, of_label = self.predictions, tuple(self.labels.values())[column]
        if of_label.auc is None:
            return figures
        from sklearn.metrics import average_precision_score

        assert found.label_probabilities is not None
        targets = found.labels[:, column] if found.has_several_labels else found.labels
        precision = average_precision_score(targets, found.label_probabilities[:, column])
        return dataclasses.replace(figures, auc=of_label.auc, average_precision=float(precision))

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes, or labels, that have images."""
        return metrics.mean_of(own.f1 for own in self.per_class if own.count) or 0.0

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes, or labels, that have images; 0 to 1."""
        return metrics.mean_of(own.recall for own in self.per_class if own.count) or 0.0

    @functools.cached_property
    def confusion(self) -> Counts:
        """Counts `[classes, classes]`: a row for each class, a column for what it was taken for.

        Of several labels an image `[labels, 2, 2]`, as scikit-learn's `multilabel_confusion_matrix`
        gives them: in a row images without and with the label, in a column those without and with
        the decision for it.
        """
        found = self.predictions
        if not found.has_several_labels:
            return confusion.confusion_matrix(found.labels, found.predicted, len(found.names))
        assert found.decided is not None
        flags = zip(found.labels.T, found.decided.T, strict=True)
        return np.stack([confusion.confusion_matrix(own, decided, 2) for own, decided in flags])

    @functools.cached_property
    def confusions(self) -> tuple[Confusion, ...]:
        """The pairs of classes that are taken for each other, that of most images first; none of
        several labels an image."""
        found = self.predictions
        if found.has_several_labels:
            return ()
        return confusion.top_confusions(found.labels, found.predicted, found.names)

    @functools.cached_property
    def calibration(self) -> Calibration:
        """How far probabilities are from the share that is right: the error, and its bins.

        Of the likeliest class of each image; of several labels an image, of every label.
        """
        found = self.predictions
        if found.has_several_labels:
            assert found.label_probabilities is not None
            return calibration(found.label_probabilities, found.labels.astype(bool))
        return calibration(found.probabilities[:, 0], found.right)

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, 0 to 1."""
        return self.calibration.error

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Writes everything as CSV, JSON and a picture: a folder, whole or not at all.

        Args:
            folder: for `evaluation.json`, `per_class.csv`, `confusion.csv`, `confusion.png`,
                `confusions.csv`, `calibration.csv`, `predictions.csv` and `predictions.jsonl`.
            overwrite: replace an evaluation that is there.

        Returns:
            The folder.

        Raises:
            UsageError: there is an evaluation and `overwrite` is false, the folder holds other
                files, or it cannot be written.
        """
        from mobilenet.evaluation import saving

        return saving.save(self, folder, overwrite)

    def classification_report(self) -> str:
        """Everything as text that is as wide as the terminal at most: the classes, the lowest F1
        first where there are many, confusions, calibration, times, and last the table of `str()`.
        """
        lines = [self._title, "", *self._class_table(), ""]
        if not self.predictions.has_several_labels:
            lines += [*self._confusion_lines(), ""]
        lines += [*text_tables.wrap(str(self.calibration)), *text_tables.wrap(self._speed)]
        return "\n".join([*lines, "", *self._summary()])

    def _class_table(self) -> Iterator[str]:
        every, kind = self.per_class, "label" if self.predictions.has_several_labels else "class"
        shown = list(every) if len(every) <= MOST_CLASSES else confusion.worst_first(every)
        shown = shown[:MOST_CLASSES]
        columns = ["precision", "recall", "F1", "images"]
        rows = [
            [own.name, _share(own.precision), _share(own.recall), _share(own.f1), f"{own.count:,}"]
            for own in shown
        ]
        if any(own.average_precision is not None for own in shown):
            columns += ["AUC", "average precision"]
            for row, own in zip(rows, shown, strict=True):
                row += [_share(own.auc), _share(own.average_precision)]
        yield text_tables.table([kind, *columns], rows)
        if len(every) > len(shown):
            yield from text_tables.wrap(
                f"{len(every) - len(shown):,} of {len(every):,} classes are left out: their F1 is "
                "no lower, or they have no images; per_class.csv of a saved evaluation has all"
            )
        mean = f"macro F1 {self.macro_f1:.4f}, balanced accuracy {100 * self.balanced_accuracy:.2f}"
        yield f"{mean} % (means over the {kind}{'es' if kind == 'class' else 's'} with images)"

    def _confusion_lines(self) -> Iterator[str]:
        every = self.confusions
        if not every:
            yield "no image was taken for another class"
            return
        wrong = sum(pair.images for pair in every)
        shown = every[:_MOST_CONFUSIONS]
        rest = wrong - sum(pair.images for pair in shown)
        yield f"{wrong:,} images were taken for another class, most often:"
        for pair in shown:
            yield from text_tables.wrap(f"- {pair}")
        if rest:
            yield f"- {len(every) - len(shown):,} other pairs: {rest:,}"

    @property
    def _speed(self) -> str:
        start = f"start-up {self.startup_seconds:.2f} s, with the first call of the model"
        if self.images_per_second is None:
            return start
        return f"{start}; then {self.images_per_second:,.0f} images/s, reading included"

    @property
    def _title(self) -> str:
        return f"{self.model} on {', '.join(filter(None, (self.data, self.split)))}"

    def _summary(self) -> Iterator[str]:
        first: dict[str, str | None] = {
            "top-1 %": f"{self.top1:.2f}",
            "top-5 %": f"{self.top5:.2f}",
        }
        if self.labels:
            first = {"accuracy %": f"{self.top1:.2f}", "AUC": _share(self.auc)}
            first["F1"] = _share(self.f1)
        row = [*first.values(), f"{self.loss:.4f}", f"{self.images:,}", f"{self.seconds:.1f}"]
        yield text_tables.table([*first, "loss", "images", "seconds"], [row])
        if self.published:
            yield f"published: {self.published}"

    def __str__(self) -> str:
        table, *rest = self._summary()
        lines = [self._title, table]
        if len(self.labels) > 1:
            rows = [
                [name, f"{figures.positives:,}", _share(figures.auc), _share(figures.f1)]
                for name, figures in self.labels.items()
            ]
            lines += ["", text_tables.table(["label", "images", "AUC", "F1"], rows)]
        return "\n".join([*lines, *rest])


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
