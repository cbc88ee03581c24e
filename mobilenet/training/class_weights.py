"""Weights of classes in the loss of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.configs.training import BALANCED, NO_CLASS_WEIGHTS, weights_by_class
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.training.losses import Loss

_PARAMETER = "class_weights"


def weights_of(
    setting: str, names: Sequence[str], labels: npt.NDArray[Any] | None
) -> tuple[float, ...] | None:
    """The weight of each class; `None` where all have the same.

    Args:
        setting: `none`; `balanced`, which gives every class the same share of the loss: images /
            (classes * images of the class), as scikit-learn's `compute_class_weight`; or weights
            by name as in `cat=2,dog=0.5`, 1 for the classes that are not named.
        names: of the classes.
        labels: class indices of the training images; `None` if they are not known before reading.

    Raises:
        UsageError: names `class_weights`: there is no such class, the counts are not known, or a
            class has no image.
    """
    if setting == NO_CLASS_WEIGHTS:
        return None
    if labels is not None and labels.ndim > 1:
        raise UsageError(_PARAMETER, setting, f"{NO_CLASS_WEIGHTS} for several labels an image")
    if setting != BALANCED:
        given = weights_by_class(setting)
        for name in given:
            one_of(_PARAMETER, name, names)
        return tuple(given.get(name, 1.0) for name in names)
    if labels is None:
        expected = "weights by class, as the images of records are not counted"
        raise UsageError(_PARAMETER, setting, expected, "as in `cat=2,dog=0.5`")
    counts = np.bincount(labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        expected = f"training images of every class, not none of {shorten(empty)}"
        raise UsageError(_PARAMETER, setting, expected, "add some, or give weights by class")
    return tuple((len(labels) / (len(names) * counts)).tolist())


def weighted(loss: Loss, weights: Sequence[float]) -> Loss:
    """The loss of each image times the weight of its class.

    Args:
        loss: of class indices `[batch]` or `[batch, 1]`, and logits.
        weights: of the classes.
    """

    def weigh(labels: Any, logits: Any) -> tf.Tensor:
        indices = tf.reshape(tf.cast(labels, tf.int32), [-1])
        values = loss(labels, logits)
        return values * tf.gather(tf.constant(weights, values.dtype), indices)

    return weigh
