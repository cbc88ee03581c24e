"""Losses of training: cross-entropy with the labels, of a softmax or a sigmoid, and distillation
from a teacher's logits and feature maps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.configs.card import SIGMOID, SOFTMAX

Loss = Callable[[Any, Any], tf.Tensor]
Maps = Sequence[tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Features:
    """The feature maps of a teacher, which those of a student are compared with.

    Attributes:
        predict: from images, as the student takes them, to logits and maps.
        of_student: from the student to as many of its symbolic maps.
        distance: of a map of the student and one of the teacher, float32 `[batch]`.
        weight: multiplies the mean distance of the pairs in the loss.
    """

    predict: Callable[[tf.Tensor], tuple[tf.Tensor, Maps]]
    of_student: Callable[[Any], Maps]
    distance: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    weight: float

    def compare(self, student: Maps, teacher: Maps) -> tf.Tensor:
        """The weighted distance, float32 `[batch]`."""
        pairs = zip(student, teacher, strict=True)
        return self.weight * tf.reduce_mean([self.distance(*pair) for pair in pairs], axis=0)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The model whose outputs a student is trained towards.

    Attributes:
        predict: from images, as the student takes them, to float32 logits `[batch, classes]`.
        weight: share of distillation in the loss.
        temperature: divides the logits of both models.
        features: what else is compared.
        is_cached: labels come with the logits, as `append_targets` returns them.
    """

    predict: Callable[[tf.Tensor], tf.Tensor]
    weight: float
    temperature: float
    features: Features | None = None
    is_cached: bool = False

    def append_targets(self, labels: Any, images: Any, maps: Maps = ()) -> tf.Tensor:
        """Labels and what the teacher makes of the images as one target of `distillation_loss`.

        Args:
            labels: class indices, `[batch]` or `[batch, 1]`; or `[batch, labels]` of 0 and 1.
            images: `[batch, height, width, channels]`.
            maps: of the student, where feature maps are compared.

        Returns:
            float32 `[batch, 1 + classes]`: the label, then the logits; `[batch, 2 * labels]` of
            several labels an image. With feature maps their distance is in a column before these.
        """
        if self.is_cached:
            return labels
        own: Maps = ()
        if self.features is None:
            logits = self.predict(images)
        else:
            logits, own = self.features.predict(images)
        logits = tf.stop_gradient(logits)
        columns = [tf.reshape(tf.cast(labels, logits.dtype), [tf.shape(logits)[0], -1]), logits]
        if self.features is not None:
            distance = self.features.compare(maps, [tf.stop_gradient(values) for values in own])
            columns.insert(0, distance[:, None])
        return tf.concat(columns, axis=1)

    def labels_of(self, targets: Any, classes: int) -> Any:
        """The labels of targets that come with cached logits; other targets are labels."""
        return targets[:, :-classes] if self.is_cached else targets


def cross_entropy(classes: int, smoothing: float) -> Loss:
    """Cross-entropy of labels and logits, one value an image.

    Labels are class indices `[batch]` or `[batch, 1]`, or the shares of all classes `[batch,
    classes]`.
    """

    def smoothed(labels: Any, logits: Any) -> tf.Tensor:
        targets = labels
        if labels.shape.rank == 1 or labels.shape[1] == 1:
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
        teacher: its weight, temperature and features.
        activation: which turns logits into probabilities.
    """

    def combined(targets: Any, logits: Any) -> tf.Tensor:
        if teacher.features is None:
            return of_logits(targets, logits)
        return targets[:, 0] + of_logits(targets[:, 1:], logits)

    def of_logits(targets: Any, logits: Any) -> tf.Tensor:
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
