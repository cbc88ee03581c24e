"""Metrics of a Keras model on a data set, defined as those of a flatbuffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet import metrics
from mobilenet.configs.card import SOFTMAX, activation_of
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.models.graph.inference import Infer
from mobilenet.runtime.classifier import Classifier
from mobilenet.typing import Array, FloatArray, IntArray

OnBatch = Callable[[Array, IntArray, FloatArray], None]  # images, labels, outputs


def run(
    infer: Infer, dataset: tf.data.Dataset, on_batch: OnBatch | None = None
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """Outputs and labels of each batch of a data set, see `outputs`.

    Args:
        infer: the model.
        dataset: batches of images and class indices.
        on_batch: is called with the images, labels and outputs of each batch.
    """
    for images, labels in dataset:
        outputs, indices = infer(images).numpy(), labels.numpy()
        if on_batch is not None:
            on_batch(images.numpy(), indices, outputs)
        yield outputs, indices


def outputs(
    infer: Infer, dataset: tf.data.Dataset, on_batch: OnBatch | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Outputs `[images, classes]` and labels, `[images]` or `[images, labels]`, of all batches, in
    the data's order."""
    batches = list(run(infer, dataset, on_batch))
    if not batches:
        raise UsageError("data set", None, "at least one image")
    return np.concatenate([scores for scores, _ in batches]), np.concatenate(
        [labels for _, labels in batches]
    )


def score(
    infer: Infer,
    dataset: tf.data.Dataset,
    probabilities: bool = False,
    matching: metrics.ClassMapping | None = None,
    activation: str = SOFTMAX,
    on_batch: OnBatch | None = None,
) -> metrics.Metrics:
    """Top-1, top-5 and loss of a compiled model; of several labels an image AUC and F1.

    Args:
        infer: the model.
        dataset: batches of images and class indices.
        probabilities: its outputs are probabilities, not logits.
        matching: its output for each class; class and output number alike when `None`.
        activation: which turns logits into probabilities.
        on_batch: is called with the images, labels and outputs of each batch.

    Raises:
        UsageError: a label is not below the number of classes.
    """
    scores, labels = outputs(infer, dataset, on_batch)
    if matching is None:
        is_binary = scores.shape[1] == 1 and labels.ndim == 1
        matching = (
            metrics.binary_mapping() if is_binary else metrics.identity_mapping(scores.shape[1])
        )
    return matching.score(scores, labels, probabilities, activation)


def score_flatbuffer(
    classifier: Classifier,
    dataset: tf.data.Dataset,
    preprocessing: Preprocessing,
    matching: metrics.ClassMapping | None = None,
    on_batch: OnBatch | None = None,
) -> metrics.Metrics:
    """As `score`, of a flatbuffer, in all its threads.

    Args:
        classifier: the file.
        dataset: batches of images, preprocessed for its float model, and class indices.
        preprocessing: of those images.
        matching: its output for each class; class and output number alike when `None`.
        on_batch: as of `score`.
    """
    infer, card = infer_flatbuffer(classifier, preprocessing), classifier.card
    activation = activation_of(card.activation, classifier.output_count)
    is_probable = card.outputs == "probabilities"
    return score(infer, dataset, is_probable, matching, activation, on_batch)


def infer_flatbuffer(classifier: Classifier, preprocessing: Preprocessing) -> Infer:
    """Runs a flatbuffer, in all its threads, on images that are preprocessed for its float model.

    Args:
        classifier: the file.
        preprocessing: of those images.
    """
    mean, std = (np.asarray(value, np.float32) for value in (preprocessing.mean, preprocessing.std))

    def infer(images: tf.Tensor) -> tf.Tensor:
        return tf.constant(classifier.logits(images.numpy() * std + mean))

    return infer
