"""Figures of a Keras net on a data set, by the same definitions as for a flatbuffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet import metrics
from mobilenet.errors import UsageError

Infer = Callable[[tf.Tensor], tf.Tensor]


def inference(net: Any) -> Infer:
    """`net` in inference mode, compiled: images to float32 outputs `[images, classes]`."""

    # One trace for every batch size: the last batch of a data set is smaller.
    @tf.function(input_signature=[tf.TensorSpec((None, *net.input_shape[1:]), tf.float32)])
    def infer(images: tf.Tensor) -> tf.Tensor:
        found = tf.cast(net(images, training=False), tf.float32)
        return tf.reshape(found, (tf.shape(images)[0], -1))

    compiled: Infer = infer
    return compiled


def outputs(
    infer: Infer, dataset: tf.data.Dataset
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Outputs `[images, classes]` and labels of all batches, in the data's order."""
    found = [(infer(images).numpy(), labels.numpy()) for images, labels in dataset]
    if not found:
        raise UsageError("data set", None, "at least one image")
    return np.concatenate([scores for scores, _ in found]), np.concatenate(
        [labels for _, labels in found]
    )


def score(infer: Infer, dataset: tf.data.Dataset, probabilities: bool = False) -> metrics.Metrics:
    """Top-1, top-5 and loss of a compiled net.

    Raises:
        UsageError: a label is not below the number of classes.
    """
    scores, labels = outputs(infer, dataset)
    check_labels(labels, scores.shape[1])
    return metrics.classification(scores, labels, probabilities)


def check_labels(labels: npt.NDArray[np.integer], classes: int) -> None:
    if labels.max() >= classes or labels.min() < 0:
        raise UsageError(
            "labels",
            [int(labels.min()), int(labels.max())],
            f"class indices 0 to {classes - 1}, as the net has {classes} classes",
            "set --num_classes or --override dataset.label_offset",
        )
