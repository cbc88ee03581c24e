"""Labeled images in memory as checked batches: pairs of arrays, or a `tf.data.Dataset`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mobilenet.configs.dataset import Preprocessing
from mobilenet.data.in_memory import check_range, load_batches
from mobilenet.errors import UsageError
from mobilenet.typing import Array, IntArray

_DATA = "data"
_EXPECTED = "a path, the name of a data set, (images, labels), or a batched tf.data.Dataset of them"

Batches = Iterator[tuple[Array, IntArray]]


def batches(
    data: Any,
    shape: Sequence[int | None],
    classes: int,
    batch_size: int,
    limit: int | None = None,
    preprocessing: Preprocessing | None = None,
    multi_label: bool = False,
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
        multi_label: labels may be `[n, classes]` of 0 and 1, any number of 1 an image; such labels
            are returned as they are.

    Raises:
        UsageError: names `data`, and what is wrong with it.
    """
    for images, labels in load_batches(_pairs(data), shape, limit, _DATA):
        assert labels is not None  # `_pairs` saw them
        if preprocessing is not None and images.dtype.kind not in "iu":
            check_range(images, preprocessing, _DATA)
        is_given = multi_label and labels.ndim == 2 and labels.shape[1] > 1
        indices = (_label_vectors if is_given else _class_indices)(labels, classes)
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            yield images[part], indices[part]


def _pairs(data: Any) -> Any:
    """The data if it is of images and labels; lists of them as arrays."""
    if hasattr(data, "element_spec"):
        spec = data.element_spec
        if not isinstance(spec, (tuple, list)) or len(spec) != 2:
            raise UsageError(_DATA, str(spec), "batches of (images, labels)")
        return data
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        count = f" of {len(data)}" if isinstance(data, (tuple, list)) else ""
        raise UsageError(_DATA, f"{type(data).__name__}{count}", _EXPECTED)
    try:
        return tuple(np.asarray(part) for part in data)
    except ValueError as error:  # lists of lists of other lengths
        raise UsageError(_DATA, None, f"images of one shape ({error})") from None


def _label_vectors(labels: Array, classes: int) -> IntArray:
    if labels.shape[1] != classes or not np.isin(labels, (0, 1)).all():
        got = f"labels of shape {list(labels.shape)}"
        raise UsageError(_DATA, got, f"0 or 1 for each label, [n, {classes}]")
    return labels.astype(np.int64)


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
