"""Record files: `tfrecord` with ImageNet's keys, and the reading that TFDS sets share with it.

The keys are those of tensorflow/models research/slim/datasets/build_imagenet_data.py:
`image/encoded`, `image/class/label` (1 to 1000 there, 0 is background) and, for names,
`image/class/text`.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from mobilenet.configs.base import MAX_CLASSES
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data import corrupt_images, record_scan
from mobilenet.data.sources import splits as split_names
from mobilenet.data.split import DatasetInfo, Steps, order_seed
from mobilenet.errors import UsageError

BUFFER = 4096  # records in the shuffle buffer; ImageNet's are 110 kB each
OPEN_FILES = 16
_SCANNED = 20_000  # sets up to this many records are read once for their classes
_IMAGENET = 1000
_PATTERNS = {"train": "train*", "validation": "val*", "test": "test*"}
_NAME = 200  # bytes of a class name, on average over a million of them
_RANGE = "label out of range for label_offset"


@dataclasses.dataclass(frozen=True)
class RecordSplit:
    """Items are serialized records.

    Attributes:
        files: in their sorted order.
        counts: records in each file.
        keys: of image and label in a record.
        label_offset: stored label minus class index.
        num_classes: class indices end before this.
        left_out: numbers of records (over all files in order) that cannot be decoded.
    """

    files: tuple[str, ...]
    counts: tuple[int, ...]
    keys: record_scan.RecordKeys
    label_offset: int
    num_classes: int
    left_out: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return sum(self.counts) - len(self.left_out)

    def _records(self, file: tf.Tensor) -> tf.data.Dataset:
        records = tf.data.TFRecordDataset(tf.gather(tf.constant(self.files), file))
        if not self.left_out:
            return records
        before = [sum(self.counts[:n]) for n in range(len(self.files))]
        numbered = records.enumerate(tf.gather(tf.constant(before, tf.int64), file))
        bad = tf.constant(self.left_out, tf.int64)
        return numbered.filter(lambda n, _: tf.reduce_all(n != bad)).map(lambda _, record: record)

    def in_order(self) -> tf.data.Dataset:
        return tf.data.Dataset.range(len(self.files)).flat_map(self._records)

    def epoch(
        self, seed: int, number: tf.Tensor, start: tf.Tensor, steps: Steps
    ) -> tf.data.Dataset:
        # tf.data mixes the graph's seed into every order: fix it, so that only ours counts.
        tf.compat.v1.get_default_graph().seed = 1
        key = order_seed(seed, number)
        files = tf.random.experimental.stateless_shuffle(
            tf.range(len(self.files), dtype=tf.int64), key
        )
        records = tf.data.Dataset.from_tensor_slices(files).interleave(
            self._records, OPEN_FILES, 1, tf.data.AUTOTUNE, deterministic=True
        )
        buffer_seed = tf.random.stateless_uniform([], key, None, None, tf.int64)
        buffer = min(BUFFER, self.size)
        shuffled = records.shuffle(buffer, seed=buffer_seed, reshuffle_each_iteration=False)
        used = shuffled.take(steps.count * steps.batch_size)
        return used.skip(start * steps.batch_size)

    def read(self, item: Any) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = self.keys.parse(item)
        index = label - self.label_offset
        legal = tf.logical_and(index >= 0, index < self.num_classes)
        with tf.control_dependencies([tf.debugging.Assert(legal, [_RANGE, label])]):
            return encoded, tf.cast(index, tf.int32)


def describe(config: DatasetConfig) -> DatasetInfo:
    """As `mobilenet.data.describe`, for `tfrecord`."""
    splits = _splits(config)
    sizes = {split: sum(count_records(files)) for split, files in splits.items()}
    labels = _labels(config, splits, sum(sizes.values()))
    skipped = {}
    if config.skip_corrupt:
        keys, most = record_scan.RecordKeys(), config.max_pixels
        skipped = {
            split: len(record_scan.find_damaged(splits[split], keys, most)) for split in sizes
        }
        sizes = {split: sizes[split] - skipped[split] for split in sizes}
    assumed = split_names.assumptions(_list_files(config), str(config.data_dir))
    return DatasetInfo(len(labels), labels, sizes, tuple(sizes), skipped, assumed=assumed)


def open_split(config: DatasetConfig, split: str) -> RecordSplit:
    """As `datasets.open_split`, for `tfrecord`."""
    splits = _splits(config)
    if split not in splits:
        raise UsageError("split", split, f"one of {', '.join(splits)} in {config.data_dir}")
    counts = {name: count_records(files) for name, files in splits.items()}
    classes = len(_labels(config, splits, sum(map(sum, counts.values()))))
    keys = record_scan.RecordKeys()
    opened = RecordSplit(splits[split], counts[split], keys, config.label_offset, classes)
    return without_corrupt(opened, config)


def _splits(config: DatasetConfig) -> dict[str, tuple[str, ...]]:
    """Record files by split; where one set is held out, validation and test are both that set."""
    return split_names.with_shared(_list_files(config))


def without_corrupt(opened: RecordSplit, config: DatasetConfig) -> RecordSplit:
    """The split without its corrupt records, if the config skips them (decodes all records)."""
    if not config.skip_corrupt:
        return opened
    bad = record_scan.find_damaged(opened.files, opened.keys, config.max_pixels)
    if bad:
        corrupt_images.log_skipped(record.name for record in bad)
    if len(bad) == sum(opened.counts):
        raise UsageError(opened.files[0], None, f"a record that can be used ({bad[0].fault})")
    return dataclasses.replace(opened, left_out=tuple(record.number for record in bad))


def _list_files(config: DatasetConfig) -> dict[str, tuple[str, ...]]:
    """Record files by split, sorted by name."""
    root = config.data_dir
    if not root or not tf.io.gfile.isdir(root):
        raise UsageError(
            "data_dir",
            root,
            "a folder of record files",
            "name them train-00000-of-00008, validation-...",
        )
    splits = {}
    for split, pattern in _PATTERNS.items():
        files = sorted(
            f for f in tf.io.gfile.glob(os.path.join(root, pattern)) if not tf.io.gfile.isdir(f)
        )
        if files:
            splits[split] = tuple(files)
    if not splits:
        raise UsageError("data_dir", root, "files named train*, val* or test*; there are none")
    return splits


def count_records(files: Sequence[str]) -> tuple[int, ...]:
    """Records in each file, from their length prefixes alone.

    Raises:
        UsageError: a file is empty, is cut short, or holds something else.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return tuple(pool.map(_count_records, files))


def _count_records(path: str) -> int:
    reader = tf.io.gfile.GFile if "://" in path else open
    size, position, records = tf.io.gfile.stat(path).length, 0, 0
    try:
        with reader(path, "rb") as file:
            while position < size:
                file.seek(position)
                head = file.read(8)
                position += 16 + (struct.unpack("<Q", head)[0] if len(head) == 8 else size)
                records += 1
    except OSError as error:
        raise UsageError(path, None, f"a file that can be read ({error.strerror})") from None
    if position != size or not records:
        raise UsageError(
            path, None, "a whole, uncompressed TFRecord file", "copy it again, or remove it"
        )
    return records


def _labels(
    config: DatasetConfig, splits: dict[str, tuple[str, ...]], total: int
) -> tuple[str, ...]:
    """Class names: `labels.txt`, else the names in the records of small sets, else 1000 numbers."""
    path = os.path.join(str(config.data_dir), "labels.txt")
    if tf.io.gfile.exists(path):
        return _listed_names(path)
    if total > _SCANNED:
        return tuple(str(index) for index in range(_IMAGENET + 1 - min(config.label_offset, 1)))
    files = sorted({file for names in splits.values() for file in names})
    texts = record_scan.read_labels(files, config.skip_corrupt)
    lowest, highest = min(texts), max(texts)
    if lowest < config.label_offset:
        raise UsageError(
            "label_offset",
            config.label_offset,
            f"at most the lowest label in the records, {lowest}",
            f"give `label_offset={lowest}`",
        )
    indices = range(config.label_offset, highest + 1)
    return tuple(texts.get(index) or str(index - config.label_offset) for index in indices)


def _listed_names(path: str) -> tuple[str, ...]:
    """The lines of `labels.txt`."""
    if tf.io.gfile.stat(path).length > _NAME * MAX_CLASSES:
        raise UsageError(path, None, f"at most {MAX_CLASSES:,} class names")
    try:
        with tf.io.gfile.GFile(path) as file:
            names = tuple(line.strip() for line in file.read().splitlines() if line.strip())
    except UnicodeDecodeError:
        raise UsageError(path, None, "a class name a line, in UTF-8") from None
    except tf.errors.OpError as error:
        raise UsageError(path, None, f"a file that can be read ({error.message})") from None
    if not 0 < len(names) <= MAX_CLASSES:
        raise UsageError(path, f"{len(names)} names", f"1 to {MAX_CLASSES:,} class names")
    return names


def explain(error: Exception, opened: RecordSplit, config: DatasetConfig) -> UsageError | None:
    """The input error behind an error of TensorFlow while reading a split, or `None`."""
    message = str(error)
    if _RANGE in message:
        label = int(message.split(_RANGE, 1)[1].split("[", 1)[-1].split("]", 1)[0])
        return UsageError(
            "label_offset",
            config.label_offset,
            f"labels from the offset to below offset plus {opened.num_classes}; "
            f"{record_scan.find_label(label, opened.files, opened.keys)} holds {label}",
            "slim's ImageNet records (1 to 1000) take 1, or 0 with 1001 classes",
        )
    bad = record_scan.find_damaged(opened.files, opened.keys, config.max_pixels)
    return corrupt_images.corrupt_error([one.name for one in bad], bad[0].fault) if bad else None
