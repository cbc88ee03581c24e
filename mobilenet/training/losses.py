"""Losses of training: cross-entropy with the labels, and distillation from a teacher's logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

Loss = Callable[[Any, Any], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The model whose outputs a student is trained towards.

    Attributes:
        predict: from images, as the student takes them, to float32 logits `[batch, classes]`.
        weight: share of distillation in the loss.
        temperature: divides the logits of both models.
    """

    predict: Callable[[tf.Tensor], tf.Tensor]
    weight: float
    temperature: float

    def append_targets(self, labels: Any, images: Any) -> tf.Tensor:
        """Labels and the teacher's logits as one target of `distillation_loss`.

        Args:
            labels: class indices, `[batch]` or `[batch, 1]`.
            images: `[batch, height, width, channels]`.

        Returns:
            float32 `[batch, 1 + classes]`: the label, then the logits.
        """
        logits = tf.stop_gradient(self.predict(images))
        column = tf.reshape(tf.cast(labels, logits.dtype), [-1, 1])
        return tf.concat([column, logits], axis=1)


def cross_entropy(classes: int, smoothing: float) -> Loss:
    """Cross-entropy of labels `[batch]` or `[batch, 1]` and logits, one value an image."""

    def smoothed(labels: Any, logits: Any) -> tf.Tensor:
        targets = tf.one_hot(tf.reshape(tf.cast(labels, tf.int32), [-1]), classes)
        return tf_keras.losses.categorical_crossentropy(
            targets, logits, from_logits=True, label_smoothing=smoothing
        )

    return smoothed


def distillation_loss(label_loss: Loss, teacher: Teacher) -> Loss:
    """The loss of arXiv 1503.02531, of the targets of `Teacher.append_targets` and logits.

    Gradients of its second part scale with 1 / temperature^2, so it is multiplied by the square of
    the temperature.
    """

    def combined(targets: Any, logits: Any) -> tf.Tensor:
        teacher_log = tf.nn.log_softmax(targets[:, 1:] / teacher.temperature)
        student_log = tf.nn.log_softmax(logits / teacher.temperature)
        divergence = tf.reduce_sum(tf.exp(teacher_log) * (teacher_log - student_log), axis=1)
        return (1.0 - teacher.weight) * label_loss(targets[:, 0], logits) + (
            teacher.weight * teacher.temperature**2 * divergence
        )

    return combined
