"""Record files: `tfrecord` with ImageNet's keys, and the reading that TFDS sets share with it.

The keys are those of tensorflow/models research/slim/datasets/build_imagenet_data.py:
`image/encoded`, `image/class/label` (1 to 1000 there, 0 is background) and, for names,
`image/class/text`.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.configs.base import MAX_CLASSES
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data import checking
from mobilenet.data.order import SPLITS, DatasetInfo, epochs, order_seed
from mobilenet.errors import UsageError

BUFFER = 4096  # records in the shuffle buffer; ImageNet's are 110 kB each
OPEN_FILES = 16
_SCANNED = 20_000  # sets up to this many records are read once for their classes
_IMAGENET = 1000
_PATTERNS = {"train": "train*", "validation": "val*", "test": "test*"}
_IMAGE, _LABEL, _TEXT = "image/encoded", "image/class/label", "image/class/text"
_NAME = 200  # bytes of a class name, on average over a million of them
_BATCH = 256  # records of which the labels are parsed at once
_RANGE = "label out of range for --label_offset"


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A record that cannot be used.

    Attributes:
        number: its index over all files in order.
        name: its file and its index there.
        reason: what is wrong, in a few words.
    """

    number: int
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Keys:
    """Under which names a record holds its image and its label."""

    image: str = _IMAGE
    label: str = _LABEL

    def parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Encoded image and stored label of a record.

        Not by `tf.io.parse_single_example`: one wrong length within a record makes it read beyond
        its memory (TensorFlow 2.21), where `tf.io.parse_example` raises an error.
        """
        features = tf.io.parse_example(tf.expand_dims(record, 0), self.features())
        return features[self.image][0], features[self.label][0]

    def features(self) -> dict[str, tf.io.FixedLenFeature]:
        """What `tf.io.parse_example` takes."""
        return {
            self.image: tf.io.FixedLenFeature([], tf.string),
            self.label: tf.io.FixedLenFeature([], tf.int64),
        }

    def lacks(self, record: bytes) -> str:
        """What is wrong with a record that cannot be parsed."""
        try:
            stored = tf.train.Example.FromString(record).features.feature
        except Exception:  # protobuf's own error, whose class depends on its implementation
            return "it is not a tf.train.Example"
        for name, kind in ((self.image, "bytes_list"), (self.label, "int64_list")):
            count = len(getattr(stored[name], kind).value)
            if count != 1:
                values = "values" if kind == "int64_list" else "byte strings"
                return f"it has {count} {values} in {name}, expected 1"
        return "it cannot be parsed"


@dataclasses.dataclass(frozen=True)
class RecordSplit:
    """Items are serialized records.

    Attributes:
        files: in their sorted order.
        counts: records in each file.
        keys: where a record holds its image and its label.
        label_offset: stored label minus class index.
        num_classes: class indices end before this.
        left_out: numbers of records (over all files in order) that cannot be decoded.
    """

    files: tuple[str, ...]
    counts: tuple[int, ...]
    keys: Keys
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

    def shuffled(self, seed: int, start: int) -> tf.data.Dataset:
        def order(epoch: tf.Tensor) -> tf.data.Dataset:
            # tf.data mixes the graph's seed into every order: fix it, so that only ours counts.
            tf.compat.v1.get_default_graph().seed = 1
            key = order_seed(seed, epoch)
            files = tf.random.experimental.stateless_shuffle(
                tf.range(len(self.files), dtype=tf.int64), key
            )
            records = tf.data.Dataset.from_tensor_slices(files).interleave(
                self._records, OPEN_FILES, 1, tf.data.AUTOTUNE, deterministic=True
            )
            mixed = tf.random.stateless_uniform([], key, None, None, tf.int64)
            buffer = min(BUFFER, self.size)
            return records.shuffle(buffer, seed=mixed, reshuffle_each_iteration=False)

        return epochs(self.size, start, order)

    def read(self, item: Any) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = self.keys.parse(item)
        index = label - self.label_offset
        legal = tf.logical_and(index >= 0, index < self.num_classes)
        with tf.control_dependencies([tf.debugging.Assert(legal, [_RANGE, label])]):
            return encoded, tf.cast(index, tf.int32)


def describe(config: DatasetConfig) -> DatasetInfo:
    """As `mobilenet.data.describe`, for `tfrecord`."""
    found = _find(config)
    held_out = [split for split in ("test", "validation") if split in found]
    if held_out:
        found = {"validation": found[held_out[0]], "test": found[held_out[0]], **found}
    counts = {split: count(files) for split, files in found.items()}
    sizes = {split: sum(counts[split]) for split in SPLITS if split in found}
    labels = _labels(config, found, sum(sizes.values()))
    skipped = {}
    if config.skip_corrupt:
        skipped = {split: len(damaged(found[split], Keys(), config.max_pixels)) for split in sizes}
        sizes = {split: sizes[split] - skipped[split] for split in sizes}
    return DatasetInfo(len(labels), labels, sizes, tuple(sizes), skipped)


def open_split(config: DatasetConfig, split: str) -> RecordSplit:
    """As `sources.open_split`, for `tfrecord`."""
    found = _find(config)
    info = describe(config.replace(skip_corrupt=False))
    if split not in info.splits:
        raise UsageError("split", split, f"one of {', '.join(info.splits)} in {config.data_dir}")
    other = "validation" if split == "test" else "test"
    files = found.get(split) or found[other]
    opened = RecordSplit(files, count(files), Keys(), config.label_offset, info.num_classes)
    return without_corrupt(opened, config)


def without_corrupt(opened: RecordSplit, config: DatasetConfig) -> RecordSplit:
    """The split without its corrupt records, where the config asks for that (decodes them all)."""
    if not config.skip_corrupt:
        return opened
    bad = damaged(opened.files, opened.keys, config.max_pixels)
    if bad:
        checking.log_skipped(record.name for record in bad)
    if len(bad) == sum(opened.counts):
        raise UsageError(opened.files[0], None, f"a record that can be used ({bad[0].reason})")
    return dataclasses.replace(opened, left_out=tuple(record.number for record in bad))


def _find(config: DatasetConfig) -> dict[str, tuple[str, ...]]:
    """Record files by split, sorted by name."""
    root = config.data_dir
    if not root or not tf.io.gfile.isdir(root):
        raise UsageError(
            "--data_dir",
            root,
            "a folder of record files",
            "name them train-00000-of-00008, validation-...",
        )
    found = {}
    for split, pattern in _PATTERNS.items():
        files = sorted(
            f for f in tf.io.gfile.glob(os.path.join(root, pattern)) if not tf.io.gfile.isdir(f)
        )
        if files:
            found[split] = tuple(files)
    if not found:
        raise UsageError("--data_dir", root, "files named train*, val* or test*; there are none")
    return found


def count(files: Sequence[str]) -> tuple[int, ...]:
    """Records in each file, from the lengths in front of them alone.

    Raises:
        UsageError: a file is empty, is cut short, or holds something else.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return tuple(pool.map(_count, files))


def _count(path: str) -> int:
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
    config: DatasetConfig, found: dict[str, tuple[str, ...]], total: int
) -> tuple[str, ...]:
    """Class names: `labels.txt`, else of small sets what the records say, else 1000 numbers."""
    path = os.path.join(str(config.data_dir), "labels.txt")
    if tf.io.gfile.exists(path):
        return _listed_names(path)
    if total > _SCANNED:
        return tuple(str(index) for index in range(_IMAGENET + 1 - min(config.label_offset, 1)))
    files = sorted({file for names in found.values() for file in names})
    texts = _scanned(files, config.skip_corrupt)
    lowest, highest = min(texts), max(texts)
    if lowest < config.label_offset:
        raise UsageError(
            "--label_offset",
            config.label_offset,
            f"at most the lowest label in the records, {lowest}",
            f"give --label_offset {lowest}",
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


def _scanned(files: Sequence[str], skip_corrupt: bool) -> dict[int, str]:
    """Name, maybe empty, of each label in the records."""
    texts: dict[int, str] = {}
    for path in files:
        for start, batch in _batches(path):
            labels, names, faults = _parsed_labels(batch)
            for index, reason in faults.items():
                if not skip_corrupt:
                    raise _damaged_error(f"{path} record {start + index}", reason)
            texts.update(
                (int(label), name.decode(errors="replace"))
                for label, name in zip(labels, names, strict=True)
            )
    if not texts:
        raise UsageError(files[0], None, f"a record with {_LABEL}")
    return texts


def _batches(path: str) -> Iterator[tuple[int, npt.NDArray[np.object_]]]:
    """Records of a file by 256, each time with the index of the first.

    Raises:
        UsageError: a checksum is wrong.
    """
    start = 0
    try:
        for batch in tf.data.TFRecordDataset(path).batch(_BATCH).as_numpy_iterator():
            yield start, batch
            start += len(batch)
    except checking.ERRORS:
        raise UsageError(
            path,
            None,
            f"a TFRecord file without damage (after record {start - 1})",
            "copy it again",
        ) from None


def _parsed_labels(
    batch: npt.NDArray[np.object_],
) -> tuple[list[int], list[bytes], dict[int, str]]:
    """Labels and names of the records that can be used; by index, what is wrong with the others."""
    features = {
        _LABEL: Keys().features()[_LABEL],
        _TEXT: tf.io.FixedLenFeature([], tf.string, ""),
    }
    try:
        parsed = tf.io.parse_example(batch, features)
    except checking.ERRORS:
        if len(batch) == 1:
            return [], [], {0: Keys().lacks(batch[0])}
        return _one_by_one(batch)
    labels, names = parsed[_LABEL].numpy(), parsed[_TEXT].numpy()
    legal = (labels >= 0) & (labels <= MAX_CLASSES)
    faults = {
        int(index): f"label {labels[index]}, expected 0 to {MAX_CLASSES:,}"
        for index in np.flatnonzero(~legal)
    }
    return labels[legal].tolist(), names[legal].tolist(), faults


def _one_by_one(
    batch: npt.NDArray[np.object_],
) -> tuple[list[int], list[bytes], dict[int, str]]:
    labels: list[int] = []
    names: list[bytes] = []
    faults: dict[int, str] = {}
    for index in range(len(batch)):
        some_labels, some_names, some_faults = _parsed_labels(batch[index : index + 1])
        labels += some_labels
        names += some_names
        faults.update((index, reason) for reason in some_faults.values())
    return labels, names, faults


def damaged(files: Sequence[str], keys: Keys, max_pixels: int) -> list[Damaged]:
    """The records that cannot be parsed, or whose image cannot be decoded.

    Raises:
        UsageError: a file is damaged outside of its records.
    """
    return list(_damaged(files, keys, max_pixels))


def _damaged(files: Sequence[str], keys: Keys, max_pixels: int) -> Iterator[Damaged]:
    number = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for path in files:
            for start, batch in _batches(path):
                faults = pool.map(lambda record: _fault(record, keys, max_pixels), batch)
                for index, reason in enumerate(faults, start):
                    if reason:
                        yield Damaged(number, f"{path} record {index}", reason)
                    number += 1


def _fault(record: bytes, keys: Keys, max_pixels: int) -> str:
    """What is wrong with a record; empty where it can be used."""
    try:
        encoded, label = keys.parse(tf.constant(record))
    except checking.ERRORS:
        return keys.lacks(record)
    if not 0 <= int(label) <= MAX_CLASSES:
        return f"label {int(label)}, expected 0 to {MAX_CLASSES:,}"
    return checking.fault(encoded.numpy(), max_pixels)


def _damaged_error(name: str, reason: str) -> UsageError:
    return UsageError(
        name,
        None,
        f"a record with {_IMAGE} and {_LABEL} ({reason})",
        "write ImageNet's keys, or leave such records out with --skip_corrupt",
    )


def explained(error: Exception, opened: RecordSplit, config: DatasetConfig) -> UsageError | None:
    """The usage error that an error of TensorFlow's on reading a split stands for, or `None`."""
    message = str(error)
    if _RANGE in message:
        label = int(message.split(_RANGE, 1)[1].split("[", 1)[-1].split("]", 1)[0])
        return UsageError(
            "--label_offset",
            config.label_offset,
            f"labels from the offset to below offset plus {opened.num_classes}; "
            f"{_first_with(label, opened)} holds {label}",
            "slim's ImageNet records (1 to 1000) take 1, or 0 with 1001 classes",
        )
    bad = damaged(opened.files, opened.keys, config.max_pixels)
    return checking.corrupt_error([one.name for one in bad], bad[0].reason) if bad else None


def _first_with(label: int, opened: RecordSplit) -> str:
    """The first record with a label, by its name."""
    feature = {opened.keys.label: opened.keys.features()[opened.keys.label]}
    for path in opened.files:
        for start, batch in _batches(path):
            try:
                labels = tf.io.parse_example(batch, feature)[opened.keys.label].numpy()
            except checking.ERRORS:  # of a damaged record in the batch: it hides the others
                continue
            if label in labels:
                return f"{path} record {start + int(np.argmax(labels == label))}"
    return "a record"
