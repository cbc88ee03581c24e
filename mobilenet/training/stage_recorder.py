"""Records what a report shows of a stage, while the stage is scored."""

from __future__ import annotations

from typing import Any

import numpy as np

from mobilenet import metrics
from mobilenet.configs.card import SIGMOID, SOFTMAX
from mobilenet.configs.dataset import Preprocessing
from mobilenet.models.graph.roles import Graph, empty_outputs
from mobilenet.training.stage_data import Kernel, Pixels, ScoredImages
from mobilenet.typing import Array, FloatArray, IntArray

SHOWN = 24  # images of each kind
_LONGEST_SIDE = 96  # of a reduced image, in pixels
_BINS = 48


class TestImageRecorder:
    """Takes test images with their outputs, batch by batch.

    Args:
        preprocessing: how pixels became the images.
        activation: which turns logits into probabilities.
        shown: how many of the worst and of the least certain images are recorded.
    """

    __test__ = False  # pytest

    def __init__(
        self, preprocessing: Preprocessing, activation: str = SOFTMAX, shown: int = SHOWN
    ) -> None:
        self.preprocessing, self.activation, self.shown = preprocessing, activation, shown
        self._rows: list[tuple[Array, ...]] = []
        self._count = 0
        self._chosen: dict[str, list[tuple[float, int, Pixels]]] = {"worst": [], "uncertain": []}

    def __call__(self, images: Array, labels: IntArray, logits: FloatArray) -> None:
        """Takes a batch.

        Args:
            images: `[batch, height, width, channels]`, as the model takes them.
            labels: class indices `[batch]`, or `[batch, labels]` of 0 and 1.
            logits: `[batch, outputs]`.
        """
        score = _score_labels if labels.ndim == 2 else self._score_classes
        row = score(np.asarray(logits, np.float64), labels)
        *_, margins, losses = row
        for name, values in (("worst", -losses), ("uncertain", margins)):
            self._choose(name, values, images)
        self._rows.append((labels, *row))
        self._count += len(labels)

    def _score_classes(self, logits: FloatArray, labels: IntArray) -> tuple[Array, ...]:
        mapping = metrics.binary_mapping() if logits.shape[1] == 1 else None
        if mapping is not None:
            logits, labels = mapping.class_scores(logits, labels)
        activation = SOFTMAX if mapping is not None else self.activation
        top = metrics.top_classes(logits, 2)
        likely = metrics.probabilities_of(logits, activation)
        two = np.take_along_axis(likely, top, axis=1)
        _, losses = metrics.ranks_and_losses(logits, labels, activation=activation)
        return top[:, 0], two[:, 0], two[:, 0] - two[:, 1], losses

    def _choose(self, name: str, values: FloatArray, images: Array) -> None:
        """Records the images of the smallest values."""
        chosen = self._chosen[name]
        limit = chosen[-1][0] if len(chosen) == self.shown else np.inf
        for number in np.argsort(values, kind="stable")[: self.shown].tolist():
            if values[number] >= limit:
                break
            pixels = _reduced(images[number], self.preprocessing)
            chosen.append((float(values[number]), self._count + number, pixels))
        chosen.sort(key=lambda entry: entry[:2])
        del chosen[self.shown :]

    def result(self) -> ScoredImages:
        """All images; there must be one."""
        labels, predictions, probabilities, margins, losses = (
            np.concatenate(column) for column in zip(*self._rows, strict=True)
        )
        worst, uncertain = self._chosen["worst"], self._chosen["uncertain"]
        narrow = np.uint8 if labels.ndim == 2 else np.int32
        return ScoredImages(
            labels=labels.astype(narrow),
            predictions=predictions.astype(narrow),
            probabilities=probabilities.astype(np.float32),
            margins=margins.astype(np.float32),
            losses=losses.astype(np.float32),
            worst=np.array([index for _, index, _ in worst], np.int64),
            uncertain=np.array([index for _, index, _ in uncertain], np.int64),
            pixels=np.stack([pixels for _, _, pixels in (*worst, *uncertain)]),
        )


def _score_labels(logits: FloatArray, labels: IntArray) -> tuple[Array, ...]:
    likely = metrics.probabilities_of(logits, SIGMOID)[:, -labels.shape[1] :]
    margins = np.abs(likely - 0.5).mean(axis=1)
    return likely > 0.5, likely, margins, metrics.label_losses(logits, labels).mean(axis=1)


def pixels_of(images: Array, preprocessing: Preprocessing) -> Pixels:
    """Images as the model takes them, reduced and as pixels that can be shown.

    Args:
        images: `[n, height, width, channels]`.
        preprocessing: how pixels became them.
    """
    return np.stack([_reduced(image, preprocessing) for image in images])


def _reduced(image: Array, preprocessing: Preprocessing) -> Pixels:
    from PIL import Image

    values = np.asarray(image, np.float32) * np.asarray(preprocessing.std, np.float32)
    values = values + np.asarray(preprocessing.mean, np.float32)
    pixels = np.clip(np.round(values), 0, 255).astype(np.uint8)
    height, width, channels = pixels.shape
    scale = _LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    smaller = Image.fromarray(pixels[..., 0] if channels == 1 else pixels).resize(size)
    return np.asarray(smaller).reshape(size[1], size[0], channels)


def kernels_of(model: Any) -> list[Kernel]:
    """The values of every kernel, in the order of execution."""
    return [_kernel(*entry) for entry in Graph(model).kernels()]


def _kernel(layer: Any, role: str, values: FloatArray) -> Kernel:
    empty = empty_outputs(layer, values)
    filled = values[values != 0].astype(np.float64)
    counts, bounds = np.histogram(filled, _BINS)
    return Kernel(
        layer=layer.name,
        role=role,
        weights=values.size,
        zeros=values.size - filled.size,
        outputs=empty.size,
        zero_outputs=int(empty.sum()),
        low=float(bounds[0]),
        high=float(bounds[-1]),
        counts=tuple(counts.tolist()),
    )
