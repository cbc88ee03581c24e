"""Images in memory: arrays, or batches of a `tf.data.Dataset` or a generator."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.typing import Array, Float32Array, IntArray

log = logging.getLogger("mobilenet")
_TOLERANCE = 0.02  # of the range that pixels 0..255 become
_LEAST_OF_PIXELS = 20.0  # a wider range is that of pixels, less their mean or not
_MOST_NORMALIZED = 5.0  # of values that were divided by a standard deviation
_USUAL_RANGES = ((0.0, 1.0), (-1.0, 1.0))
_LEAST_IMAGES = 8  # so many photos use the whole range
_INFINITE = -1  # `cardinality()` of a tf.data.Dataset without an end
_EXPECTED = "images [n, height, width, channels], (images, labels), or batches of either"

Batch = tuple[Array, Array | None]  # images `[n, height, width, channels]`, labels `[n, ...]`


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
    data: Any,
    shape: Sequence[int | None],
    limit: int | None = None,
    parameter: str = "images",
    preprocessing: Preprocessing | None = None,
) -> Examples:
    """Images of a caller as one checked array.

    Args:
        data: images `[n, height, width, channels]`, a pair of images and labels, or an iterable of
            batches of either (`tf.data.Dataset`, `tf_keras.utils.Sequence`, a generator).
        shape: `[height, width, channels]` of the model; `None` for an open side.
        limit: the largest number of images: of arrays spread evenly, of batches the first ones.
        parameter: its name in errors.
        preprocessing: how pixels become the model's inputs; images of whole numbers are taken where
            it is known that it leaves pixels as they are.

    Raises:
        UsageError: these are no images, or of another shape, type or size than the model takes, or
            not finite.
    """
    batches = list(load_batches(data, shape, limit, parameter))
    is_whole = any(images.dtype.kind in "iu" for images, _ in batches)
    if is_whole and (preprocessing is None or not preprocessing.is_identity):
        raise UsageError(
            parameter,
            f"images of type {batches[0][0].dtype}",
            "float images as the model takes them",
            "scale them as in training, and cast them to float32",
        )
    images = np.concatenate([part.astype(np.float32, copy=False) for part, _ in batches])
    labels = [part for _, part in batches if part is not None]
    return Examples(images, np.concatenate(labels) if len(labels) == len(batches) else None)


def load_batches(
    data: Any, shape: Sequence[int | None], limit: int | None = None, parameter: str = "images"
) -> Iterator[Batch]:
    """Checked images and labels of a caller, of any type of numbers; arrays are one batch.

    Args:
        data, shape, limit, parameter: see `load_examples`.

    Raises:
        UsageError: see `load_examples`.
    """
    is_empty = True
    for images, labels in _read(data, limit, parameter):
        if images.shape[:1] == (0,):
            continue
        check_images(images, shape, parameter)
        if not _is_paired(images, labels):
            count = len(labels) if labels is not None and labels.ndim else "no list of"
            counts = f"{len(images)} images, {count} labels"
            raise UsageError(parameter, counts, "as many labels as images")
        is_empty = False
        yield images, labels
    if is_empty:
        raise UsageError(parameter, "no images", "at least one image")


def check_images(images: Array, shape: Sequence[int | None], parameter: str = "images") -> None:
    """Checks the shape and the values of images.

    Raises:
        UsageError: they do not fit the model, are no numbers, or are not finite.
    """
    fits = images.ndim == 1 + len(shape) and all(
        side in (None, own) for side, own in zip(shape, images.shape[1:], strict=True)
    )
    if not fits:
        sides = ", ".join("any" if side is None else str(side) for side in shape)
        got = f"images of shape {list(images.shape)}"
        raise UsageError(parameter, got, f"images of shape [n, {sides}]")
    if images.dtype.kind not in "iuf" and images.dtype.name != "bfloat16":
        raise UsageError(parameter, f"images of type {images.dtype}", "images of numbers")
    check_finite(images, parameter)


def check_finite(images: Array, parameter: str = "images") -> None:
    """Checks that images have no NaN and no infinity.

    Raises:
        UsageError: they have.
    """
    if not np.isfinite(images.astype(np.float32, copy=False)).all():
        raise UsageError(parameter, "NaN or infinity", "finite values", "check how they are read")


def check_range(images: Array, preprocessing: Preprocessing, parameter: str = "images") -> None:
    """Refuses images whose values cannot be a model's inputs; warns of a range that seems another.

    Args:
        images: finite, `[n, height, width, channels]`, preprocessed; at least one.
        preprocessing: how pixels 0..255 became them.
        parameter: their name in errors.

    Raises:
        UsageError: they are in another range than the model's inputs.
    """
    low, high = preprocessing.input_range
    tolerance = _TOLERANCE * (high - low)
    least, most = float(images.min()), float(images.max())
    is_outside = least < low - tolerance or most > high + tolerance
    if is_outside or (high - low >= _LEAST_OF_PIXELS and _is_scaled(images, least, most)):
        raise UsageError(
            parameter,
            f"values from {least:.3g} to {most:.3g}",
            f"values from {low + 0.0:.3g} to {high:.3g}, as this model takes pixels 0 to 255",
            "leave them as they are, the model scales them"
            if preprocessing.is_identity
            else f"scale them so ({preprocessing.name}), or say how they are by `preprocessing`",
        )
    for other in _USUAL_RANGES:
        if len(images) < _LEAST_IMAGES or np.allclose(other, (low, high), atol=_TOLERANCE):
            continue
        if np.allclose(other, (least, most), atol=_TOLERANCE):
            log.warning(
                "the %s have values from %.3g to %.3g, while the inputs of the model are pixels "
                "scaled to [%.3g, %.3g] (%s): were they scaled to another range?",
                *(parameter, least, most, low, high, preprocessing.name),
            )


def _is_scaled(images: Array, least: float, most: float) -> bool:
    """Whether values are those of pixels that were scaled to [0, 1] or around 0."""
    if least < 0:
        return max(-least, most) <= _MOST_NORMALIZED
    # Black photos have values up to 1 too, but whole ones.
    return most <= 1 + _TOLERANCE and bool((images != np.round(images)).any())


def _read(data: Any, limit: int | None, parameter: str) -> Iterator[Batch]:
    if _is_array(data) or _is_pair(data):
        yield _select(*_split(data), limit)
    elif isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise UsageError(parameter, type(data).__name__, _EXPECTED)
    else:
        yield from _first_of_batches(data, limit, parameter)


def _select(images: Array, labels: Array | None, limit: int | None) -> Batch:
    """At most `limit` of the images, spread evenly, where each has a label or none has."""
    if limit is None or not images.ndim or limit >= len(images) or not _is_paired(images, labels):
        return images, labels
    chosen = evenly_spaced(len(images), limit)
    return images[chosen], None if labels is None else labels[chosen]


def evenly_spaced(count: int, limit: int | None) -> IntArray:
    """The numbers of at most `limit` of so many images, spread evenly; all without a limit."""
    if limit is None or limit >= count:
        return np.arange(count)
    numbers: IntArray = np.linspace(0, count - 1, limit).round().astype(int)
    return numbers


def _is_paired(images: Array, labels: Array | None) -> bool:
    """Whether there is a label for each image, or none at all."""
    return labels is None or images.shape[:1] == labels.shape[:1]


def _first_of_batches(batches: Iterable[Any], limit: int | None, parameter: str) -> Iterator[Batch]:
    left = limit
    for batch in _finite(batches, limit, parameter):
        if not (_is_array(batch) or (isinstance(batch, (tuple, list)) and len(batch))):
            raise UsageError(parameter, f"batches of {type(batch).__name__}", _EXPECTED)
        images, labels = _split(batch)
        if images.ndim < 4:
            got, remedy = f"images of shape {list(images.shape)}", "call its batch(32)"
            raise UsageError(parameter, got, "batches of images", remedy)
        yield images[:left], None if labels is None else labels[:left]
        if left is not None:
            left -= len(images)
            if left <= 0:
                return


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
