"""Sources of images: the embedded digits, class folders, lists, record files, TFDS.

A split yields *items* (an index, a record) that cost nothing to skip, in file order or in the order
of an epoch, and reads one item at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.configs import dataset as dataset_configs
from mobilenet.configs.dataset import BALANCED, DatasetConfig
from mobilenet.data import corrupt_images, tfds, tfrecord
from mobilenet.data.sources import digits, image_csv, image_folder
from mobilenet.data.sources.file_items import FileItems
from mobilenet.data.sources.splits import SPLITS
from mobilenet.data.split import DatasetInfo, Split, Steps, captured, order_seed
from mobilenet.errors import UsageError, one_of
from mobilenet.image_files import ImageError

_CHECKED = 10_000  # folders and lists up to this many images are decoded once before a run starts
_FILES = ("image_folder", "image_list", "image_files")


@dataclasses.dataclass(frozen=True)
class _Indexed:
    """A split whose items are indices into arrays.

    Attributes:
        labels: class indices `[images]`, or `[images, labels]` of 0 and 1.
        is_balanced: an epoch has as many items of each class.
    """

    labels: npt.NDArray[np.int32]
    is_balanced: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def size(self) -> int:
        return len(self.labels)

    def items(self, numbers: npt.NDArray[np.int64]) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(numbers)

    def epoch(
        self, seed: int, number: tf.Tensor, start: tf.Tensor, steps: Steps
    ) -> tf.data.Dataset:
        key = order_seed(seed, number)
        order = _shuffle(tf.range(self.size, dtype=tf.int64), key)
        if self.is_balanced:
            order = _balanced(self.labels, order, key)
        used = order[: steps.count * steps.batch_size]
        shares = tf.reshape(used, [steps.count, steps.workers, steps.share])
        own = tf.reshape(shares[start:, steps.worker], [-1])
        return tf.data.Dataset.from_tensor_slices(own)


@dataclasses.dataclass(frozen=True)
class DigitSplit(_Indexed):
    """Embedded digits: `read` takes many items at once and returns cells `[n, 8, 8]`, not files."""

    cells: npt.NDArray[np.uint8]

    def read(self, item: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(self.cells, item), tf.gather(self.labels, item)


@dataclasses.dataclass(frozen=True, eq=False)
class FileSplit(_Indexed):
    """Image files with a class index each, or a 0 or 1 for each label."""

    files: FileItems

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        files = self.files
        spans = np.stack([files.bounds[:-1], np.diff(files.bounds)], axis=1)
        return captured(files.names), captured(spans), captured(files.labels)

    def read(self, item: Any) -> tuple[tf.Tensor, tf.Tensor]:
        names, spans, labels = self._tensors
        begin, length = tf.unstack(tf.gather(spans, item))
        path = tf.strings.join([self.files.prefix, tf.strings.substr(names, begin, length)])
        return tf.io.read_file(path), tf.gather(labels, item)


_shuffle = tf.random.experimental.stateless_shuffle


def _balanced(labels: npt.NDArray[np.int32], order: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """As many items, those of each class equally often (or once more), and of a class each equally
    often (or once more).

    Args:
        labels: class indices `[images]`.
        order: all items in a random order, `[images]`.
        seed: int64 `[2]`.
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    seeds = tf.random.split(seed, 2)
    of_class = tf.argsort(tf.gather(captured(classes, tf.int64), order), stable=True)
    grouped = tf.gather(order, of_class)
    slots = tf.range(len(labels), dtype=tf.int64)
    chosen = tf.gather(
        _shuffle(tf.range(len(counts), dtype=tf.int64), seeds[0]), slots % len(counts)
    )
    begin = tf.gather(captured(np.cumsum(counts) - counts, tf.int64), chosen)
    inside = slots // len(counts) % tf.gather(captured(counts, tf.int64), chosen)
    return _shuffle(tf.gather(grouped, begin + inside), seeds[1])


def has_numbers(split: Split) -> bool:
    """Whether the items of a split are the numbers of its images; those of records are not."""
    return isinstance(split, _Indexed)


def _config(dataset: DatasetConfig | str) -> DatasetConfig:
    return dataset_configs.get(dataset) if isinstance(dataset, str) else dataset


def describe(dataset: DatasetConfig | str) -> DatasetInfo:
    """Counts the classes and images of a data set, without decoding one (but see `skip_corrupt`).

    Raises:
        UsageError: the data set is unknown, missing or malformed.
    """
    config = _config(dataset)
    if config.name == "digits":
        embedded = digits.load(config.data_dir)
        sizes = {split: len(embedded.indices(split)) for split in SPLITS}
        return DatasetInfo(len(digits.LABELS), digits.LABELS, sizes, SPLITS)
    if config.name in _FILES:
        listed = _listed(config)
        sizes = {split: len(items) for split, items in listed.splits.items()}
        skipped = {}
        if config.skip_corrupt:
            for split in sizes:
                skipped[split] = sizes[split] - _files(config, listed.splits[split], split).size
                sizes[split] -= skipped[split]
        trained = listed.splits.get("train")
        has_vectors = isinstance(listed, image_csv.ImageList) and listed.multi_label
        with_images = _with_images(trained.labels) if trained else set()
        return DatasetInfo(
            len(listed.labels),
            listed.labels,
            sizes,
            tuple(sizes),
            skipped,
            listed.notes,
            listed.assumed,
            tuple(n for i, n in enumerate(listed.labels) if trained and i not in with_images),
            has_vectors,
        )
    return tfrecord.describe(config) if config.name == "tfrecord" else tfds.describe(config)


def _with_images(labels: npt.NDArray[np.int32]) -> set[int]:
    """The classes, or labels, that some image has."""
    present = np.flatnonzero(labels.any(axis=0)) if labels.ndim > 1 else np.unique(labels)
    return set(present.tolist())


def open_split(dataset: DatasetConfig | str, split: str) -> Split:
    """Opens `train`, `validation` or `test` of a data set.

    Raises:
        UsageError: the data set or the split does not exist, or holds a corrupt image.
    """
    config = _config(dataset)
    one_of("split", split, SPLITS)
    if config.name == "digits":
        embedded = digits.load(config.data_dir)
        indices = embedded.indices(split)
        labels = embedded.labels[indices].astype(np.int32)
        cells = embedded.images[indices]
        return DigitSplit(labels, cells, is_balanced=config.sampling == BALANCED)
    if config.name in _FILES:
        listed = _listed(config)
        if split not in listed.splits:
            raise UsageError(
                "split", split, f"one of {', '.join(listed.splits)} in {config.data_dir}"
            )
        return _files(config, listed.splits[split], split)
    return _open_records(config, split)


def _open_records(config: DatasetConfig, split: str) -> tfrecord.RecordSplit:
    if config.sampling == BALANCED:
        expected = f"{dataset_configs.UNIFORM} for records, which are read in their order"
        raise UsageError("sampling", config.sampling, expected, "`class_weights` weighs their loss")
    if config.name == "tfrecord":
        return tfrecord.open_split(config, split)
    return tfds.open_split(config, split)


def image_names(opened: Split, numbers: npt.NDArray[np.int64]) -> list[str]:
    """Paths of the images with these numbers; the numbers of images that are no files."""
    if isinstance(opened, FileSplit):
        return [str(opened.files.path(number)) for number in numbers.tolist()]
    return list(map(str, numbers.tolist()))


def explain(
    error: Exception, dataset: DatasetConfig | str, split: str = "train"
) -> UsageError | None:
    """Finds the input that caused an error while batches of `load` were read.

    TensorFlow's message does not name the file; here the files are decoded to find the corrupt
    ones.

    Args:
        error: raised by the loop over the batches.
        dataset, split: the data that was read.

    Returns:
        The error to show, or `None` if the input did not cause it.
    """
    if isinstance(error, UsageError):
        return error
    if not isinstance(error, corrupt_images.ERRORS):
        return None
    config = _config(dataset)
    if config.name == "digits":
        return None
    if config.name in _FILES:
        items = _listed(config).splits.get(split)
        return None if items is None else _corrupt_error(_corrupt(config, items))
    opened = _open_records(config.replace(skip_corrupt=False), split)
    return tfrecord.explain(error, opened, config)


def _corrupt(config: DatasetConfig, items: FileItems) -> dict[str, ImageError]:
    """The images that cannot be decoded: the fault by path."""
    return corrupt_images.corrupt_files(list(items.paths()), config.max_pixels)


def _corrupt_error(corrupt: Mapping[str, ImageError]) -> UsageError | None:
    if not corrupt:
        return None
    return corrupt_images.corrupt_error(list(corrupt), next(iter(corrupt.values())))


def _listed(config: DatasetConfig) -> image_folder.ClassFolders | image_csv.ImageList:
    """The image files and labels of a data set of files."""
    if config.name == "image_list":
        return image_csv.read_list(config.data_dir, config.label_offset)
    if config.name == "image_files":
        return image_folder.list_unlabeled_images(config.data_dir or "")
    return image_folder.list_images(config.data_dir)


def _files(config: DatasetConfig, items: FileItems, split: str) -> FileSplit:
    if config.skip_corrupt or len(items) <= _CHECKED:
        corrupt = _corrupt(config, items)
        error = _corrupt_error(corrupt)
        if error is not None and not config.skip_corrupt:
            raise error
        if corrupt:
            corrupt_images.log_skipped(corrupt)
            items = items.select([n for n, path in enumerate(items.paths()) if path not in corrupt])
    if not items:
        raise UsageError("data_dir", config.data_dir, f"an image of {split} that can be decoded")
    is_balanced = config.sampling == BALANCED
    if is_balanced and items.labels.ndim > 1:
        expected = f"{dataset_configs.UNIFORM} for several labels an image"
        raise UsageError("sampling", config.sampling, expected)
    return FileSplit(items.labels, items, is_balanced=is_balanced)
