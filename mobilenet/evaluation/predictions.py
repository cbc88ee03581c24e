"""What a classifier gave for each image of a data set, a batch at a time and in few bytes: ranks,
losses and the likeliest classes, not the outputs of all classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mobilenet import metrics
from mobilenet.configs.card import SIGMOID, SOFTMAX
from mobilenet.metrics import ClassMapping, Metrics
from mobilenet.runtime.predictions import Prediction
from mobilenet.typing import Array, Float32Array, FloatArray, IntArray

TOP = 5  # classes of each image that are kept


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions(Sequence[Prediction]):
    """The predictions for the images of a data set, in its order; each item is a `Prediction`.

    An image takes some 60 bytes and its path, for any number of classes; of several labels an image
    6 bytes a label.

    Attributes:
        paths: of the images; the number of an image that is no file.
        names: of the classes, or of the labels.
        labels: class indices `[images]`; of several labels an image 0 or 1 for each, `[images,
            labels]`.
        top: class indices `[images, k]` of the likeliest classes, best first.
        probabilities: float32 `[images, k]`, those of `top`.
        losses: float32 `[images]`, the cross entropy of each in nats; of several labels an image
            the mean over the labels.
        label_probabilities: float32 `[images, labels]` of several labels an image; of one output
            for two classes `[images, 1]`, that of the second class; else `None`.
        decided: of the same shape, whether that label, or the second class, is the likelier
            decision; else `None`.
    """

    paths: Sequence[str]
    names: tuple[str, ...]
    labels: IntArray
    top: IntArray
    probabilities: Float32Array
    losses: Float32Array
    label_probabilities: Float32Array | None = None
    decided: npt.NDArray[np.bool_] | None = None

    @property
    def has_several_labels(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.labels.ndim == 2

    @property
    def predicted(self) -> IntArray:
        """Class indices `[images]` of the likeliest class."""
        return self.top[:, 0]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each image's class, or all of its labels, were found: booleans `[images]`."""
        if self.has_several_labels:
            assert self.decided is not None
            return np.array((self.decided == self.labels).all(axis=1))
        return np.array(self.predicted == self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Prediction:  # type: ignore[override]
        number = range(len(self))[index]
        pairs = zip(self.top[number].tolist(), self.probabilities[number].tolist(), strict=True)
        ranking = [(self.names[index], share) for index, share in pairs]
        own, path = self.labels[number], self.paths[number]
        if not self.has_several_labels or self.decided is None:
            return Prediction(path, ranking, label=self.names[int(own)])
        decided, labels = self._named(self.decided[number]), self._named(own)
        return Prediction(path, ranking, decided, labels)

    def _named(self, flags: Array) -> tuple[str, ...]:
        return tuple(self.names[index] for index in np.flatnonzero(flags))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What is kept of a batch of images of one class each; see `Predictions`."""

    labels: IntArray
    ranks: IntArray
    losses: FloatArray
    top: IntArray
    probabilities: Float32Array


class Collector:
    """Takes the outputs of a model batch by batch, for its figures and its predictions.

    Args:
        matching: the output for each class of the data.
        probabilities: the outputs are probabilities, not logits.
        activation: which turns logits into probabilities.
    """

    def __init__(
        self, matching: ClassMapping, probabilities: bool = False, activation: str = SOFTMAX
    ) -> None:
        self.matching, self.is_probabilities = matching, probabilities
        self.activation = SOFTMAX if matching.is_binary else activation
        self._rows: list[_Rows] = []
        self._scores: list[Float32Array] = []  # of each label; of one output for two classes
        self._labels: list[IntArray] = []

    @property
    def has_several_labels(self) -> bool:
        """Whether there is a 0 or 1 for each label of an image."""
        return bool(self._labels)

    def __len__(self) -> int:
        """How many images there were."""
        return sum(map(len, self._labels)) or sum(len(rows.labels) for rows in self._rows)

    def add(self, outputs: FloatArray, labels: IntArray) -> None:
        """Takes a batch.

        Args:
            outputs: `[images, outputs]`.
            labels: class indices `[images]` of the data; or 0 or 1 for each label, `[images,
                labels]`.

        Raises:
            UsageError: a label is no class of the data.
        """
        labels, is_probable = np.asarray(labels), self.is_probabilities
        if labels.ndim == 2:
            self._scores.append(self.matching.label_scores(outputs).astype(np.float32))
            self._labels.append(labels.astype(np.uint8))
            return
        scores, own = self.matching.class_scores(outputs, labels, is_probable)
        top = metrics.top_classes(scores, TOP)
        likely = metrics.probabilities_of(scores, self.activation, not is_probable)
        if self.matching.is_binary:
            self._scores.append(np.asarray(outputs, np.float32))
        self._rows.append(
            _Rows(
                own.astype(np.int32),
                *metrics.ranks_and_losses(scores, own, is_probable, self.activation),
                top.astype(np.int32),
                np.take_along_axis(likely, top, axis=1).astype(np.float32),
            )
        )

    def with_one_class_each(self) -> Collector:
        """The same images with class indices, if each has exactly one label."""
        if not self._labels or any((part.sum(axis=1) != 1).any() for part in self._labels):
            return self
        collector = Collector(
            metrics.identity_mapping(self.matching.outputs), self.is_probabilities, self.activation
        )
        for scores, labels in zip(self._scores, self._labels, strict=True):
            collector.add(scores, labels.argmax(axis=1))
        return collector

    def metrics(self) -> Metrics:
        """Top-1, top-5 and loss of all images; of a sigmoid AUC and F1."""
        if self._labels:
            scores, labels = np.concatenate(self._scores), np.concatenate(self._labels)
            return metrics.multi_label(scores, labels, self.is_probabilities)
        found = metrics.of_ranks(self._joined("ranks"), self._joined("losses"))
        if not self.matching.is_binary:
            return found
        second, scores = self._joined("labels")[:, None], np.concatenate(self._scores)
        of_second = metrics.multi_label(scores, second, self.is_probabilities).labels
        return dataclasses.replace(found, labels=of_second)

    def predictions(self, paths: Sequence[str], names: Sequence[str]) -> Predictions:
        """The prediction for each image.

        Args:
            paths: one an image.
            names: of the classes of the model, without a background; or of the labels of the data.
        """
        likely, decided = self._of_labels() if self._scores else (None, None)
        if self._labels:
            assert likely is not None
            labels, scores = np.concatenate(self._labels), np.concatenate(self._scores)
            top = metrics.top_classes(likely, TOP)
            probabilities = np.take_along_axis(likely, top, axis=1)
            losses = metrics.label_losses(scores, labels, self.is_probabilities).mean(axis=1)
        else:
            columns = ("labels", "top", "probabilities", "losses")
            labels, top, probabilities, losses = map(self._joined, columns)
        return Predictions(
            *(paths, tuple(names), labels, top, probabilities),
            losses.astype(np.float32),
            likely,
            decided,
        )

    def _of_labels(self) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
        """Probability and decision of each label of a sigmoid."""
        scores, are_logits = np.concatenate(self._scores), not self.is_probabilities
        likely = metrics.probabilities_of(scores, SIGMOID, are_logits)
        decided = metrics.decisions(scores, SIGMOID, are_logits).astype(bool)
        return likely[:, -scores.shape[1] :].astype(np.float32), decided

    def _joined(self, name: str) -> Array:
        return np.concatenate([getattr(rows, name) for rows in self._rows])
