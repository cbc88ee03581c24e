"""Record files: `tfrecord` with ImageNet's keys, and the reading that TFDS sets share with it.

The keys are those of tensorflow/models research/slim/datasets/build_imagenet_data.py:
`image/encoded`, `image/class/label` (1 to 1000 there, 0 is background) and, for names,
`image/class/text`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet import object_storage
from mobilenet.configs.base import MAX_CLASSES
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data import corrupt_images, record_index, record_scan
from mobilenet.data.sources import splits as split_names
from mobilenet.data.split import DatasetInfo, Steps, captured, order_seed, part_of
from mobilenet.errors import UsageError
from mobilenet.files import is_remote

CHUNK = 32  # records that are read at once; ImageNet's are 110 kB each
WINDOW = 4096  # records that are shuffled together, fewer of large ones; two are in memory
_WINDOW_BYTES = 1 << 27
_SCANNED = 20_000  # sets up to this many records are read once for their classes
_IMAGENET = 1000
_PATTERNS = {"train": "train*", "validation": "val*", "test": "test*"}
_NAME = 200  # bytes of a class name, on average over a million of them
_RANGE = "label out of range for label_offset"

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSplit:
    """Items are serialized records.

    An epoch's order are chunks of successive records in random order; the records are shuffled
    within windows of many chunks. So each window is read at once, from wherever it begins.

    Attributes:
        index: where the records are.
        keys: of image and label in a record.
        label_offset: stored label minus class index.
        num_classes: class indices end before this.
        left_out: numbers of records (over all files in order) that cannot be decoded.
    """

    index: record_index.RecordIndex
    keys: record_scan.RecordKeys
    label_offset: int
    num_classes: int
    left_out: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return self.index.files

    @property
    def size(self) -> int:
        return self.index.size - len(self.left_out)

    @functools.cached_property
    def _usable(self) -> Int64:
        """The numbers of the records that are not left out."""
        every = np.arange(self.index.size)
        return np.delete(every, np.array(self.left_out, np.int64)) if self.left_out else every

    @property
    def _window(self) -> int:
        """Records that are shuffled together."""
        return int(min(max(_WINDOW_BYTES / self.index.mean_bytes, CHUNK), WINDOW))

    def _chunks(self, numbers: Int64) -> tuple[tf.Tensor, tf.Tensor]:
        """Begin of each chunk in `numbers`, and after the last one the end; and the chunks' items.

        A chunk has at most `CHUNK` successive items of one file.
        """
        records = self._usable[numbers]
        files = self.index.file_of(records)
        jumps = np.flatnonzero((np.diff(files) != 0) | (np.diff(records) > CHUNK)) + 1
        runs = itertools.pairwise([0, *jumps.tolist(), len(numbers)])
        begins = [begin for first, last in runs for begin in range(first, last, CHUNK)]
        return captured([*begins, len(numbers)], tf.int64), captured(records, tf.int64)

    def _reader(self, numbers: Int64) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        """The number of items in each chunk, and what reads the records of a chunk."""
        begins, records = self._chunks(numbers)
        files, offsets = captured(self.files), captured(self.index.offsets)
        ends = captured(self.index.ends)

        def read(chunk: tf.Tensor) -> tf.Tensor:
            own = records[begins[chunk] : begins[chunk + 1]]
            first, last = own[0], own[-1]
            file = tf.searchsorted(ends, own[:1], side="right", out_type=tf.int64)[0]
            begin, end = offsets[first + file], offsets[last + file + 1]
            variant = tf.raw_ops.TFRecordDatasetV2(
                filenames=[files[file]],
                compression_type="",
                buffer_size=end - begin,
                byte_offsets=[begin],
            )
            spec = tf.TensorSpec([], tf.string)
            successive = tf.data.experimental.from_variant(variant, spec)
            batch = successive.take(last - first + 1).batch(last - first + 1)
            return tf.gather(batch.get_single_element(), own - first)

        return begins[1:] - begins[:-1], read

    def items(self, numbers: Int64) -> tf.data.Dataset:
        counts, read = self._reader(numbers)
        chunks = tf.data.Dataset.range(len(counts))
        return chunks.map(read, tf.data.AUTOTUNE, deterministic=True).unbatch()

    def epoch(
        self, seed: int, number: tf.Tensor, start: tf.Tensor, steps: Steps
    ) -> tf.data.Dataset:
        own = np.arange(*part_of(self.size, steps.worker, steps.workers))
        counts, read = self._reader(own)
        key = order_seed(seed, number)
        order = tf.random.experimental.stateless_shuffle(tf.range(len(counts), dtype=tf.int64), key)
        first = start * steps.share
        window, size = first // self._window, self._window
        before = window * size
        ends = tf.cumsum(tf.gather(counts, order))
        chunk = tf.searchsorted(ends, before[None], side="right", out_type=tf.int64)[0]
        read_before = ends[chunk] - counts[order[chunk]]

        def shuffle(number: tf.Tensor, records: tf.Tensor) -> tf.Tensor:
            positions = tf.range(tf.shape(records, tf.int64)[0])
            own_key = tf.random.fold_in(key, number)
            shuffled = tf.random.experimental.stateless_shuffle(positions, own_key)
            return tf.gather(records, shuffled)

        chunks = tf.data.Dataset.from_tensor_slices(order[chunk:])
        records = chunks.map(read, tf.data.AUTOTUNE, deterministic=True).unbatch()
        windows = records.skip(before - read_before).batch(size)
        numbered = tf.data.Dataset.zip((tf.data.Dataset.counter(window), windows))
        shuffled = numbered.map(shuffle).prefetch(1).unbatch()
        return shuffled.skip(first - before).take(steps.count * steps.share - first)

    def read(self, item: Any) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = self.keys.parse(item)
        index = label - self.label_offset
        legal = tf.logical_and(index >= 0, index < self.num_classes)
        with tf.control_dependencies([tf.debugging.Assert(legal, [_RANGE, label])]):
            return encoded, tf.cast(index, tf.int32)


def describe(config: DatasetConfig) -> DatasetInfo:
    """As `mobilenet.data.describe`, for `tfrecord`."""
    splits = _splits(config)
    sizes = {split: record_index.load(files).size for split, files in splits.items()}
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
    indices = {name: record_index.load(files) for name, files in splits.items()}
    classes = len(_labels(config, splits, sum(index.size for index in indices.values())))
    keys = record_scan.RecordKeys()
    opened = RecordSplit(indices[split], keys, config.label_offset, classes)
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
    if len(bad) == opened.index.size:
        raise UsageError(opened.files[0], None, f"a record that can be used ({bad[0].fault})")
    return dataclasses.replace(opened, left_out=tuple(record.number for record in bad))


def _list_files(config: DatasetConfig) -> dict[str, tuple[str, ...]]:
    """Record files by split, sorted by name."""
    root = config.data_dir
    if root and is_remote(root):
        object_storage.check(root, "data_dir")
    if not root or not tf.io.gfile.isdir(root):
        raise UsageError(
            "data_dir",
            root,
            "a folder of record files",
            "name them train-00000-of-00008, validation-...",
        )
    splits = {}
    for split, pattern in _PATTERNS.items():
        matching = tf.io.gfile.glob(os.path.join(root, pattern))
        own = sorted(path for path in matching if not tf.io.gfile.isdir(path))
        if own:
            splits[split] = tuple(own)
    if not splits:
        raise UsageError("data_dir", root, "files named train*, val* or test*; there are none")
    return splits


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
