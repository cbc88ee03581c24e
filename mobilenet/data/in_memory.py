"""Images in memory: arrays, or batches of a `tf.data.Dataset` or a generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mobilenet.errors import UsageError
from mobilenet.typing import Array, Float32Array

_INFINITE = -1  # `cardinality()` of a tf.data.Dataset without an end
_EXPECTED = "images [n, height, width, channels], (images, labels), or batches of either"


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images, and labels where there are some.

    Attributes:
        images: float32 `[n, height, width, channels]`, preprocessed as the model takes them.
        labels: of any form, `[n, ...]`.
    """

    images: Float32Array
    labels: Array | None = None


def load_examples(
    data: Any, shape: Sequence[int | None], limit: int | None = None, parameter: str = "images"
) -> Examples:
    """Images of a caller as one checked array.

    Args:
        data: images `[n, height, width, channels]`, a pair of images and labels, or an iterable of
            batches of either (`tf.data.Dataset`, `tf_keras.utils.Sequence`, a generator).
        shape: `[height, width, channels]` of the model; `None` for an open side.
        limit: the largest number of images: of arrays spread evenly, of batches the first ones.
        parameter: its name in errors.

    Raises:
        UsageError: these are no images, or of another shape, type or size than the model takes, or
            not finite.
    """
    images, labels = _read(data, limit, parameter)
    check_images(images, shape, parameter)
    if images.dtype.kind in "iu":
        raise UsageError(
            parameter,
            f"images of type {images.dtype}",
            "float images as the model takes them",
            "preprocess them as in training, and cast them to float32",
        )
    if labels is not None and len(labels) != len(images):
        counts = f"{len(images)} images, {len(labels)} labels"
        raise UsageError(parameter, counts, "as many labels as images")
    return Examples(images.astype(np.float32, copy=False), labels)


def check_images(images: Array, shape: Sequence[int | None], parameter: str = "images") -> None:
    """Checks the shape and the values of images.

    Raises:
        UsageError: there are none, they do not fit the model, or are not finite.
    """
    fits = images.ndim == 1 + len(shape) and all(
        side in (None, own) for side, own in zip(shape, images.shape[1:], strict=True)
    )
    if not fits:
        sides = ", ".join("any" if side is None else str(side) for side in shape)
        got = f"images of shape {list(images.shape)}"
        raise UsageError(parameter, got, f"images of shape [n, {sides}]")
    if not len(images):
        raise UsageError(parameter, "no images", "at least one image")
    if images.dtype.kind not in "iuf" and images.dtype.name != "bfloat16":
        raise UsageError(parameter, f"images of type {images.dtype}", "images of numbers")
    if not np.isfinite(images.astype(np.float32, copy=False)).all():
        raise UsageError(parameter, "images with NaN or infinity", "finite values")


def _read(data: Any, limit: int | None, parameter: str) -> tuple[Array, Array | None]:
    if _is_array(data) or _is_pair(data):
        images, labels = _split(data)
        if limit is not None and limit < len(images):
            chosen = np.linspace(0, len(images) - 1, limit).round().astype(int)
            images, labels = images[chosen], None if labels is None else labels[chosen]
        return images, labels
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise UsageError(parameter, type(data).__name__, _EXPECTED)
    return _first_of_batches(data, limit, parameter)


def _first_of_batches(
    batches: Iterable[Any], limit: int | None, parameter: str
) -> tuple[Array, Array | None]:
    parts: list[tuple[Array, Array | None]] = []
    count = 0
    for batch in _finite(batches, limit, parameter):
        if not (_is_array(batch) or (isinstance(batch, (tuple, list)) and len(batch))):
            raise UsageError(parameter, f"batches of {type(batch).__name__}", _EXPECTED)
        images, labels = _split(batch)
        if images.ndim == 3:
            expected = "batches [n, height, width, channels]"
            raise UsageError(parameter, list(images.shape), expected, "call its batch(32)")
        parts.append((images, labels))
        count += len(images)
        if limit is not None and count >= limit:
            break
    if not parts:
        raise UsageError(parameter, "no images", "at least one image")
    labels_of_parts = [part for _, part in parts if part is not None]
    joined = np.concatenate([images for images, _ in parts])[:limit]
    if len(labels_of_parts) < len(parts):
        return joined, None
    return joined, np.concatenate(labels_of_parts)[:limit]


def _finite(batches: Any, limit: int | None, parameter: str) -> Iterator[Any]:
    """The batches, of which there must be an end or a limit."""
    cardinality = getattr(batches, "cardinality", None)
    if limit is None and cardinality is not None and int(cardinality()) == _INFINITE:
        remedy = "call its take(batches)"
        raise UsageError(parameter, "a data set without an end", "every image once", remedy)
    if isinstance(batches, Sequence) or _is_keras_sequence(batches):
        return (batches[index] for index in range(len(batches)))
    return iter(batches)


def _split(batch: Any) -> tuple[Array, Array | None]:
    """Images and labels of a batch; further parts (sample weights) are left out."""
    if _is_array(batch):
        return np.asarray(batch), None
    return np.asarray(batch[0]), np.asarray(batch[1]) if len(batch) > 1 else None


def _is_keras_sequence(batches: Any) -> bool:
    """Whether these are a `tf_keras.utils.Sequence`, whose iterator has no end in some versions."""
    return hasattr(batches, "__getitem__") and hasattr(batches, "on_epoch_end")


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and 1 <= len(value) <= 3 and _is_array(value[0])
