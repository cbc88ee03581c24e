"""Labeled images in memory as checked batches: pairs of arrays, or a `tf.data.Dataset`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.typing import Array, IntArray

_DATA = "data"
_INFINITE = -1  # what `tf.data.Dataset.cardinality()` says of a data set that never ends
_TOLERANCE = 0.02  # of the range that pixels 0..255 become
_EXPECTED = "a path, the name of a data set, (images, labels), or a batched tf.data.Dataset of them"

Batches = Iterator[tuple[Array, IntArray]]


def batches(
    data: Any,
    shape: Sequence[int | None],
    classes: int,
    batch_size: int,
    limit: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> Batches:
    """Batches of images `[n, height, width, channels]` and class indices `[n]`.

    Args:
        data: `(images, labels)`, or a data set of batches of them. Labels are class indices `[n]`
            or `[n, 1]`, or one-hot `[n, classes]`.
        shape: `[height, width, channels]` of the model; `None` for an open side.
        classes: how many the model has.
        batch_size: images a batch; a data set keeps its own.
        limit: the largest number of images: of arrays spread evenly, of a data set the first ones.
        preprocessing: how pixels became the images; their range is checked where it is known.

    Raises:
        UsageError: names `data`, and what is wrong with it.
    """
    pairs = _of_dataset(data, limit) if hasattr(data, "element_spec") else _of_arrays(data, limit)
    is_empty = True
    for images, labels in pairs:
        _check_images(images, shape, preprocessing)
        indices = _class_indices(labels, classes)
        if len(images) != len(indices):
            counts = f"{len(images)} images, {len(indices)} labels"
            raise UsageError(_DATA, counts, "as many labels as images")
        is_empty = is_empty and not len(images)
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            yield images[part], indices[part]
    if is_empty:
        raise UsageError(_DATA, "no images", "at least one image")


def _of_arrays(data: Any, limit: int | None) -> Iterator[tuple[Array, Array]]:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        count = f" of {len(data)}" if isinstance(data, (tuple, list)) else ""
        raise UsageError(_DATA, f"{type(data).__name__}{count}", _EXPECTED)
    try:
        images, labels = (np.asarray(part) for part in data)
    except ValueError as error:  # lists of lists of other lengths
        raise UsageError(_DATA, None, f"images of one shape ({error})") from None
    if limit is not None and limit < len(images) == len(labels):
        chosen = np.linspace(0, len(images) - 1, limit).round().astype(int)
        images, labels = images[chosen], labels[chosen]
    yield images, labels


def _of_dataset(data: Any, limit: int | None) -> Iterator[tuple[Array, Array]]:
    spec = data.element_spec
    if not isinstance(spec, (tuple, list)) or len(spec) != 2:
        raise UsageError(_DATA, str(spec), "batches of (images, labels)")
    rank = getattr(spec[0], "shape", None) is not None and spec[0].shape.rank
    if rank == 3:
        raise UsageError(_DATA, str(spec[0].shape), "batches of images", "call its batch(32)")
    if int(data.cardinality()) == _INFINITE and limit is None:
        remedy = "call its take(batches), or set `limit`"
        raise UsageError(_DATA, "a data set without an end", "every image once", remedy)
    left = limit
    for images, labels in data:
        images, labels = np.asarray(images)[:left], np.asarray(labels)[:left]
        yield images, labels
        if left is not None:
            left -= len(images)
            if left <= 0:
                return


def _check_images(
    images: Array, shape: Sequence[int | None], preprocessing: Preprocessing | None
) -> None:
    fits = images.ndim == 1 + len(shape) and all(
        side in (None, own) for side, own in zip(shape, images.shape[1:], strict=True)
    )
    if not fits:
        sides = ", ".join("any" if side is None else str(side) for side in shape)
        expected = f"images of shape [n, {sides}]"
        raise UsageError(_DATA, f"images of shape {list(images.shape)}", expected)
    if images.dtype.kind not in "iuf" and images.dtype.name != "bfloat16":
        raise UsageError(_DATA, f"images of type {images.dtype}", "images of numbers")
    values = images.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise UsageError(_DATA, "images with NaN or infinity", "finite values")
    if preprocessing is None or not len(images) or images.dtype.kind not in "f":
        return
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    low, high = float(((0 - mean) / std).min()), float(((255 - mean) / std).max())
    least, most, slack = float(values.min()), float(values.max()), _TOLERANCE * (high - low)
    if least < low - slack or most > high + slack:
        raise UsageError(
            _DATA,
            f"images of {least:.3g} to {most:.3g}",
            f"values from {low:.3g} to {high:.3g}, as this model takes pixels 0 to 255",
            f"preprocess them as the model takes them ({preprocessing.name})",
        )


def _class_indices(labels: Array, classes: int) -> IntArray:
    expected = f"class indices [n], or one-hot vectors [n, {classes}]"
    if labels.ndim == 2 and labels.shape[1] == classes and classes > 1:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise UsageError(_DATA, "labels [n, classes] that are not one-hot", expected)
        chosen: IntArray = labels.argmax(axis=1)
        return chosen
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UsageError(_DATA, f"labels of shape {list(labels.shape)}", expected)
    if labels.dtype.kind not in "biuf":
        raise UsageError(_DATA, f"labels of type {labels.dtype}", expected)
    indices = labels.astype(np.int64)
    if not (indices == labels).all():
        raise UsageError(_DATA, "labels that are no whole numbers", expected)
    if len(indices) and not (indices.min() >= 0 and indices.max() < classes):
        raise UsageError(
            _DATA,
            f"labels from {indices.min()} to {indices.max()}",
            f"class indices 0 to {classes - 1}, as the model has {classes} classes",
        )
    return indices
