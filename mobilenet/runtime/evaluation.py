"""Top-1, top-5 and loss of a flatbuffer on the digits or class folders, on every core."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from mobilenet import class_folders, digits
from mobilenet.errors import UsageError, one_of
from mobilenet.metrics import Metrics, classification
from mobilenet.runtime.classifier import Classifier, Floats

DATASETS = ("digits", "image_folder")
SPLITS = ("train", "validation", "test")

Skip = Callable[[UsageError], None]


def evaluate(
    classifier: Classifier,
    dataset_name: str,
    data_dir: str | os.PathLike[str] | None = None,
    split: str = "test",
    limit: int | None = None,
    on_corrupt: Skip | None = None,
) -> Metrics:
    """Scores a classifier; images are decoded and run in the classifier's threads.

    Args:
        classifier: the net.
        dataset_name: `digits` or `image_folder`.
        data_dir: the root of the class folders.
        split: `train`, `validation` or `test`.
        limit: at most so many images, spread evenly over the split.
        on_corrupt: called with the fault of each image that cannot be decoded, which is then left
            out; without it the first such image ends the evaluation.

    Raises:
        UsageError: the data cannot be used, an image is corrupt, or the classes do not match the
            net's.
    """
    one_of("--dataset_name", dataset_name, DATASETS)
    one_of("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise UsageError("limit", limit, "a whole number of at least 1")
    load, items = (
        _digits(classifier, split)
        if dataset_name == "digits"
        else _folders(classifier, data_dir, split)
    )
    if limit is not None and limit < len(items):
        items = [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]

    def guarded(source: Any) -> Floats | None:
        try:
            pixels = load(source)
        except UsageError as error:
            if on_corrupt is None:
                raise
            on_corrupt(error)
            return None
        return classifier.run(pixels)

    outputs, labels = [], []
    for (_, label), row in zip(
        items, classifier.map(guarded, [source for source, _ in items]), strict=True
    ):
        if row is not None:
            outputs.append(row)
            labels.append(label)
    if not outputs:
        raise UsageError(f"{dataset_name} {split}", 0, "at least 1 image that can be decoded")
    return classification(
        np.stack(outputs), np.array(labels), classifier.card.outputs == "probabilities"
    )


Work = tuple[Callable[[Any], Floats], list[tuple[Any, int]]]


def _digits(classifier: Classifier, split: str) -> Work:
    data = digits.load()
    if len(classifier.labels) != len(digits.LABELS):
        raise UsageError(
            "classes",
            len(classifier.labels),
            f"{len(digits.LABELS)}, those of digits",
            "name its own data",
        )
    height, width, channels = classifier.input_shape

    def load(index: int) -> Floats:
        return data.image(index, (height, width), channels).astype(np.float32)

    return load, [(int(index), int(data.labels[index])) for index in data.indices(split)]


def _folders(classifier: Classifier, data_dir: str | os.PathLike[str] | None, split: str) -> Work:
    found = class_folders.find(data_dir)
    if split not in found.splits:
        raise UsageError("split", split, f"one of {', '.join(found.splits)}, which {data_dir} has")
    index = _classes(found.labels, classifier.labels)
    return classifier.pixels, [(path, index[label]) for path, label in found.splits[split]]


def _classes(folders: tuple[str, ...], labels: tuple[str, ...]) -> list[int]:
    """The net's class of each folder: by number where there are as many, else by name."""
    if len(folders) == len(labels):
        return list(range(len(labels)))
    places = {name: number for number, name in enumerate(labels)}
    unknown = [name for name in folders if name not in places]
    if unknown:
        raise UsageError(
            "--data_dir",
            f"{len(folders)} classes",
            f"the {len(labels)} classes of the net, or some of them by name ({unknown[0]} is none)",
            "give the folders that the net was trained for",
        )
    return [places[name] for name in folders]
