"""Feature maps of model and teacher, and the distance between them.

The distance is that of similarity-preserving distillation: it compares which images of a batch have
similar maps, so that the maps may differ in size and channels, and nothing else is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.errors import UsageError, shorten
from mobilenet.models import end_points
from mobilenet.models.graph.roles import Graph

_LAYERS = "distillation.feature_layers"
_STUDENT, _TEACHER = 0, 1  # sides of a pair of layers


def similarity_distance(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """The loss of arXiv 1907.09682 of each image, times the number of images.

    With Q the maps, one row an image, and G the rows of Q Q^T scaled to length 1, it is the squared
    distance of the image's rows of both G. It lies in 0..4 for any number of images, while the
    paper's loss shrinks with it; its weight of 3000 for batches of 128 to 256 is about 12 to 23
    here.

    Args:
        student, teacher: maps `[batch, height, width, channels]`, whose sizes may differ.

    Returns:
        float32 `[batch]`; all zero for a single image.
    """
    difference = _similarities(student) - _similarities(teacher)
    return tf.reduce_sum(tf.square(difference), axis=1)


def _similarities(maps: tf.Tensor) -> tf.Tensor:
    rows = tf.reshape(tf.cast(maps, tf.float32), [tf.shape(maps)[0], -1])
    return tf.math.l2_normalize(tf.matmul(rows, rows, transpose_b=True), axis=1)


def of_student(model: Any, layers: Sequence[str]) -> list[Any]:
    """The symbolic maps of the trained model; see `distillation.feature_layers`.

    Args:
        model: plain, or with the layers that a method wraps.
        layers: of the config.

    Raises:
        UsageError: the model has no such map.
    """
    return _select(model, layers, _STUDENT)


def of_teacher(model: Any, layers: Sequence[str]) -> list[Any]:
    """The symbolic maps of the teacher; see `of_student`."""
    return _select(model, layers, _TEACHER)


def with_outputs(model: Any, maps: Sequence[Any]) -> Callable[..., Any]:
    """A function of images that returns the model's outputs and, in a list, its maps.

    No Keras model, so that one that refers to it does not track the layers twice.
    """
    extended = tf_keras.Model(model.inputs, [*model.outputs, *maps])

    def call(images: Any, training: bool = False) -> tuple[tf.Tensor, list[tf.Tensor]]:
        outputs, *values = extended(images, training=training)
        return outputs, values

    return call


class Student:
    """The trained model with its feature maps, which the loss takes after the logits.

    Args:
        model: from images to logits.
        maps: its symbolic maps.
    """

    def __init__(self, model: Any, maps: Sequence[Any]) -> None:
        self._call = with_outputs(model, maps)
        self._of_logits: dict[Any, list[tf.Tensor]] = {}  # of replicas that are being traced

    def logits(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        """The float32 logits of images, whose maps `maps` returns."""
        outputs, maps = self._call(images, training=training)
        logits = tf.cast(outputs, tf.float32)
        self._of_logits[logits.ref()] = maps
        return logits

    def maps(self, logits: tf.Tensor) -> list[tf.Tensor]:
        """The maps of the images whose logits these are; once."""
        return self._of_logits.pop(logits.ref())


def _select(model: Any, layers: Sequence[str], side: int) -> list[Any]:
    points = end_points.end_points(model)
    what = ("model", "teacher")[side]
    if not layers:
        if not points:
            expected = f"0: the {what} has no feature map of a stride"
            raise UsageError("distillation.features", None, expected, "name `feature_layers`")
        return [points[max(points)]]
    graph = Graph(model)
    by_name = graph.by_name
    selected = []
    for text in layers:
        if text.isdigit():
            if int(text) not in points:
                expected = f"a stride of the {what}: {', '.join(map(str, points))}"
                raise UsageError(_LAYERS, text, expected)
            selected.append(points[int(text)])
            continue
        name = text.split("=")[side]
        if name not in by_name:
            expected = f"a layer of the {what}: {shorten(list(by_name))}"
            raise UsageError(_LAYERS, name, expected)
        selected.append(graph.output(by_name[name]))
    return selected
