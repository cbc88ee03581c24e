"""Losses of training: cross-entropy with the labels, of a softmax or a sigmoid, and distillation
from a teacher's logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.configs.card import SIGMOID, SOFTMAX

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
            labels: class indices, `[batch]` or `[batch, 1]`; or `[batch, labels]` of 0 and 1.
            images: `[batch, height, width, channels]`.

        Returns:
            float32 `[batch, 1 + classes]`: the label, then the logits; `[batch, 2 * labels]` of
            several labels an image.
        """
        logits = tf.stop_gradient(self.predict(images))
        columns = tf.reshape(tf.cast(labels, logits.dtype), [tf.shape(logits)[0], -1])
        return tf.concat([columns, logits], axis=1)


def cross_entropy(classes: int, smoothing: float) -> Loss:
    """Cross-entropy of labels `[batch]` or `[batch, 1]` and logits, one value an image."""

    def smoothed(labels: Any, logits: Any) -> tf.Tensor:
        targets = tf.one_hot(tf.reshape(tf.cast(labels, tf.int32), [-1]), classes)
        return tf_keras.losses.categorical_crossentropy(
            targets, logits, from_logits=True, label_smoothing=smoothing
        )

    return smoothed


def binary_cross_entropy(outputs: int, smoothing: float) -> Loss:
    """Cross-entropy of a sigmoid, one value an image: the mean over its outputs.

    Smoothing s turns the targets 1 and 0 into 1 - s / 2 and s / 2, as Keras' `BinaryCrossentropy`
    does.

    Args:
        outputs: of the model.
        smoothing: share of the target that is spread over both values.

    Returns:
        The loss of logits `[batch, outputs]` and labels: `[batch, outputs]` of 0 and 1, or class
        indices `[batch]`; those of two classes where the model has one output.
    """

    def smoothed(labels: Any, logits: Any) -> tf.Tensor:
        is_index = labels.shape.rank == 1 and outputs > 1
        targets = tf.one_hot(tf.cast(labels, tf.int32), outputs) if is_index else labels
        return tf_keras.losses.binary_crossentropy(
            tf.reshape(tf.cast(targets, logits.dtype), tf.shape(logits)),
            logits,
            from_logits=True,
            label_smoothing=smoothing,
        )

    return smoothed


def distillation_loss(label_loss: Loss, teacher: Teacher, activation: str = SOFTMAX) -> Loss:
    """The loss of arXiv 1503.02531, of the targets of `Teacher.append_targets` and logits.

    Gradients of its second part scale with 1 / temperature^2, so it is multiplied by the square of
    the temperature. Of a sigmoid that part is the mean divergence of its outputs.

    Args:
        label_loss: of labels and logits.
        teacher: its weight and temperature.
        activation: which turns logits into probabilities.
    """

    def combined(targets: Any, logits: Any) -> tf.Tensor:
        labels = targets[:, : -logits.shape[1]]
        first, second = (x / teacher.temperature for x in (targets[:, -logits.shape[1] :], logits))
        divergence = (_of_sigmoid if activation == SIGMOID else _of_softmax)(first, second)
        own = label_loss(labels[:, 0] if labels.shape[1] == 1 else labels, logits)
        return (1.0 - teacher.weight) * own + (teacher.weight * teacher.temperature**2 * divergence)

    return combined


def _of_softmax(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """The Kullback-Leibler divergence of logits `[batch, classes]`, `[batch]`."""
    teacher_log, student_log = tf.nn.log_softmax(teacher), tf.nn.log_softmax(student)
    return tf.reduce_sum(tf.exp(teacher_log) * (teacher_log - student_log), axis=1)


def _of_sigmoid(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """The same of each output by itself, its mean over the outputs."""
    shares = tf.sigmoid(teacher)
    crossed, own = (
        tf.nn.sigmoid_cross_entropy_with_logits(shares, logits) for logits in (student, teacher)
    )
    return tf.reduce_mean(crossed - own, axis=1)
