"""Top-1, top-5 and loss of a flatbuffer on the digits, class folders or a list of images, on every
core.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mobilenet.configs.card import activation_of
from mobilenet.configs.dataset import MAX_PIXELS
from mobilenet.data.in_memory import evenly_spaced
from mobilenet.data.sources import digits, image_csv, image_folder
from mobilenet.errors import UsageError, one_of
from mobilenet.metrics import ClassMapping, Metrics, match_classes, match_labels
from mobilenet.runtime.classifier import Classifier
from mobilenet.typing import Float32Array

DATASETS = ("digits", "image_folder", "image_list")
SPLITS = ("train", "validation", "test")

OnCorrupt = Callable[[UsageError], None]


def evaluate(
    classifier: Classifier,
    dataset_name: str,
    data_dir: str | os.PathLike[str] | None = None,
    split: str = "test",
    limit: int | None = None,
    on_corrupt: OnCorrupt | None = None,
    label_offset: int = 0,
    on_note: Callable[[str], object] | None = None,
    max_pixels: int = MAX_PIXELS,
    exif: bool | None = None,
) -> Metrics:
    """Scores a classifier; images are decoded and run in the classifier's threads.

    Args:
        classifier: the model.
        dataset_name: `digits`, `image_folder` or `image_list`.
        data_dir: the root of the class folders, or the list.
        split: `train`, `validation` or `test`.
        limit: maximum number of images, sampled evenly from the split.
        on_corrupt: called with the error of each image that cannot be decoded, which is then left
            out; without it the first such image ends the evaluation.
        label_offset: label in the list minus class index.
        on_note: called with a line on what is left out of the data or stands in for the split, and
            on how the classes of model and data differ.
        max_pixels: an image file of more is refused like a corrupt one.
        exif: turn images upright, by the orientation in their EXIF data; `None` is what the model's
            card says.

    Raises:
        UsageError: the data cannot be used, an image is corrupt, or the classes do not match the
            model's.
    """
    images = open_images(
        classifier, dataset_name, data_dir, split, limit, label_offset, on_note, max_pixels, exif
    )
    decoded = list(run(classifier, images, on_corrupt))
    if not decoded:
        raise no_images(dataset_name, split)
    _, outputs, labels = zip(*decoded, strict=True)
    card = classifier.card
    activation = activation_of(card.activation, classifier.output_count)
    return images.matching.score(
        np.stack(outputs), np.array(labels), card.outputs == "probabilities", activation
    )


Load = Callable[[Any], Float32Array]
Items = Sequence[tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class LabeledImages:
    """The images of a split.

    Attributes:
        load: an image by its source, as pixels of the classifier's size.
        items: source (a path, or the number of a digit in the split) and label of each image.
        matching: the output of the classifier for each class of the data.
        labels: names of the classes of the data.
        notes: what is left out of the data, or stands in for the split.
    """

    load: Load
    items: Items
    matching: ClassMapping
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()


def open_images(
    classifier: Classifier,
    dataset_name: str,
    data_dir: str | os.PathLike[str] | None = None,
    split: str = "test",
    limit: int | None = None,
    label_offset: int = 0,
    on_note: Callable[[str], object] | None = None,
    max_pixels: int = MAX_PIXELS,
    exif: bool | None = None,
) -> LabeledImages:
    """Lists the images of a split, and matches its classes to those of a classifier.

    Args:
        classifier, dataset_name, data_dir, split, limit, label_offset, on_note, max_pixels, exif:
            see `evaluate`.

    Raises:
        UsageError: the data cannot be used, or its classes do not match the model's.
    """
    one_of("dataset_name", dataset_name, DATASETS)
    one_of("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise UsageError("limit", limit, "a whole number of at least 1")
    images = (
        _digits(classifier, data_dir, split)
        if dataset_name == "digits"
        else _files(classifier, dataset_name, data_dir, split, label_offset, max_pixels, exif)
    )
    for note in (*images.notes, images.matching.note):
        if note and on_note is not None:
            on_note(note)
    if limit is None or limit >= len(images.items):
        return images
    chosen = evenly_spaced(len(images.items), limit)
    return dataclasses.replace(images, items=[images.items[i] for i in chosen])


def run(
    classifier: Classifier, images: LabeledImages, on_corrupt: OnCorrupt | None = None
) -> Iterator[tuple[Any, Float32Array, Any]]:
    """Runs a classifier on images, in its threads and in their order.

    Args:
        classifier, on_corrupt: see `evaluate`.
        images: of `open_images`.

    Yields:
        Source, outputs `[outputs]` and label of each image that can be decoded.
    """

    def guarded(item: tuple[Any, Any]) -> tuple[Any, Float32Array, Any] | None:
        source, label = item
        try:
            pixels = images.load(source)
        except UsageError as error:
            if on_corrupt is None:
                raise
            on_corrupt(error)
            return None
        return source, classifier.run(pixels), label

    return (row for row in classifier.map(guarded, images.items) if row is not None)


def no_images(dataset_name: str, split: str) -> UsageError:
    """The error of a split of which no image can be decoded."""
    return UsageError(f"{dataset_name} {split}", 0, "at least 1 image that can be decoded")


def names(classifier: Classifier) -> tuple[str, ...]:
    """The names of its classes; none if the file has no card with them."""
    numbers = tuple(str(index) for index in range(len(classifier.labels)))
    return () if classifier.is_bare and classifier.labels == numbers else classifier.labels


def _digits(
    classifier: Classifier, data_dir: str | os.PathLike[str] | None, split: str
) -> LabeledImages:
    data = digits.load(data_dir)
    matching = _match(classifier, digits.LABELS, "digits")
    height, width, channels = classifier.input_shape

    indices = data.indices(split).tolist()

    def load(number: int) -> Float32Array:
        return data.image(indices[number], (height, width), channels).astype(np.float32)

    items = [(number, int(data.labels[index])) for number, index in enumerate(indices)]
    return LabeledImages(load, items, matching, digits.LABELS)


def _files(
    classifier: Classifier,
    dataset_name: str,
    data_dir: str | os.PathLike[str] | None,
    split: str,
    label_offset: int,
    max_pixels: int,
    exif: bool | None,
) -> LabeledImages:
    listing = (
        image_folder.list_images(data_dir)
        if dataset_name == "image_folder"
        else image_csv.read_list(data_dir, label_offset)
    )
    if split not in listing.splits:
        raise UsageError(
            "split", split, f"one of {', '.join(listing.splits)}, which {data_dir} has"
        )
    if isinstance(listing, image_csv.ImageList) and listing.multi_label:
        own, known = classifier.card.activation, names(classifier)
        matching = match_labels(classifier.output_count, known, listing.labels, own)
    else:
        matching = _match(classifier, listing.labels, dataset_name)
    load = functools.partial(classifier.pixels, max_pixels=max_pixels, exif=exif)
    notes = (*listing.notes, listing.assumed.get(split, ""))
    return LabeledImages(load, listing.splits[split], matching, listing.labels, notes)


def _match(classifier: Classifier, labels: tuple[str, ...], dataset: str) -> ClassMapping:
    return match_classes(classifier.output_count, names(classifier), len(labels), labels, dataset)
