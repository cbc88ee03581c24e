"""What a step makes small: cross-entropy with labels, and the distance to a teacher's answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

Loss = Callable[[Any, Any], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Whose answers a model trains towards.

    Attributes:
        answer: images as the model sees them, to float32 logits `[batch, classes]`.
        weight: share of it in the loss.
        temperature: divides the logits of both.
    """

    answer: Callable[[tf.Tensor], tf.Tensor]
    weight: float
    temperature: float

    def beside(self, labels: Any, images: Any) -> tf.Tensor:
        """Labels and answers as one target, float32 `[batch, 1 + classes]`, for `distilled`."""
        answers = tf.stop_gradient(self.answer(images))
        column = tf.reshape(tf.cast(labels, answers.dtype), [-1, 1])
        return tf.concat([column, answers], axis=1)


def cross_entropy(classes: int, smoothing: float) -> Loss:
    """Cross-entropy of labels `[batch]` or `[batch, 1]` and logits, an image each."""

    def smoothed(labels: Any, logits: Any) -> tf.Tensor:
        wanted = tf.one_hot(tf.reshape(tf.cast(labels, tf.int32), [-1]), classes)
        return tf_keras.losses.categorical_crossentropy(
            wanted, logits, from_logits=True, label_smoothing=smoothing
        )

    return smoothed


def distilled(by_labels: Loss, teacher: Teacher) -> Loss:
    """The loss of arXiv 1503.02531, of the targets that `teacher.beside` gives and logits.

    The gradient of its second part shrinks with the square of the temperature, which is therefore
    multiplied in.
    """

    def both(targets: Any, logits: Any) -> tf.Tensor:
        wanted = tf.nn.log_softmax(targets[:, 1:] / teacher.temperature)
        said = tf.nn.log_softmax(logits / teacher.temperature)
        divergence = tf.reduce_sum(tf.exp(wanted) * (wanted - said), axis=1)
        return (1.0 - teacher.weight) * by_labels(targets[:, 0], logits) + (
            teacher.weight * teacher.temperature**2 * divergence
        )

    return both
