"""Reads record files outside the pipeline: their labels, and which records are damaged.

Records are parsed by protobuf, here in Python and in the pipeline in the graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from mobilenet.configs.base import MAX_CLASSES
from mobilenet.data import corrupt_images
from mobilenet.errors import UsageError
from mobilenet.image_files import ImageError

IMAGE, LABEL, TEXT = "image/encoded", "image/class/label", "image/class/text"
_BATCH = 64  # records that are checked at a time, by all cores


@dataclasses.dataclass(frozen=True)
class DamagedRecord:
    """A record that cannot be used.

    Attributes:
        number: its index over all files in order.
        name: its file and its index there.
        fault: what is wrong.
    """

    number: int
    name: str
    fault: ImageError


@dataclasses.dataclass(frozen=True)
class RecordKeys:
    """The keys of image and label in a record."""

    image: str = IMAGE
    label: str = LABEL

    @tf.autograph.experimental.do_not_convert
    def parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Encoded image and stored label of a record, in the graph.

        By the parser of protobuf: `tf.io.parse_single_example` and `tf.io.parse_example` of
        TensorFlow 2.21 read beyond their memory where a length within a record is wrong.
        """
        (features,) = _values(record[None], "Example", features=tf.string)
        (entries,) = _values(features, "Features", feature=tf.string)
        names, stored = _values(entries, "Features.FeatureEntry", key=tf.string, value=tf.string)

        def only(name: str, kind: str, message: str, dtype: tf.DType) -> tf.Tensor:
            named = tf.gather(stored, tf.where(names == name)[:, 0])
            (lists,) = _values(named, "Feature", **{kind: tf.string})
            (values,) = _values(lists, message, value=dtype)
            return tf.reshape(values, [])  # else an error

        image = only(self.image, "bytes_list", "BytesList", tf.string)
        return image, only(self.label, "int64_list", "Int64List", tf.int64)

    def read(self, record: bytes) -> tuple[bytes, int]:
        """The same outside of the graph.

        Raises:
            ValueError: what the record lacks, in a few words.
        """
        feature = _features(record)
        image = _only(feature, self.image, "bytes_list", "byte strings")
        return image, _label(feature, self.label)


def _values(messages: tf.Tensor, kind: str, **fields: tf.DType) -> list[tf.Tensor]:
    """All values of each field of serialized messages of TensorFlow's `example.proto`."""
    names, types = list(fields), list(fields.values())
    _, values = tf.io.decode_proto(messages, f"tensorflow.{kind}", names, types)
    return [tf.reshape(value, [-1]) for value in values]


def _features(record: bytes) -> Any:
    """The features of a record by name."""
    try:
        return tf.train.Example.FromString(record).features.feature
    except Exception:  # protobuf's own error, whose class depends on its implementation
        raise ValueError("it is not a tf.train.Example") from None


def _only(feature: Any, name: str, kind: str, noun: str) -> Any:
    """The one value of a feature."""
    values: Sequence[Any] = getattr(feature[name], kind).value if name in feature else ()
    if len(values) != 1:
        raise ValueError(f"it has {len(values)} {noun} in {name}, expected 1")
    return values[0]


def _label(feature: Any, name: str) -> int:
    label = int(_only(feature, name, "int64_list", "numbers"))
    if not 0 <= label <= MAX_CLASSES:
        raise ValueError(f"{name} is {label}, expected 0 to {MAX_CLASSES:,}")
    return label


def read_labels(files: Sequence[str], skip_corrupt: bool) -> dict[int, str]:
    """Name, maybe empty, of each label in the records.

    Raises:
        UsageError: a record lacks its label, unless such records are skipped; or all do.
    """
    texts: dict[int, str] = {}
    for path in files:
        for index, record in enumerate(_records(path)):
            try:
                feature = _features(record)
                label = _label(feature, LABEL)
            except ValueError as error:
                if skip_corrupt:
                    continue
                raise _damaged_error(f"{path} record {index}", str(error)) from None
            names = feature[TEXT].bytes_list.value if TEXT in feature else ()
            name = names[0].decode(errors="replace") if names else ""
            texts[label] = name or texts.get(label, "")
    if not texts:
        raise UsageError(files[0], None, f"a record with {LABEL}")
    return texts


def _records(path: str) -> Iterator[bytes]:
    """The records of a file.

    Raises:
        UsageError: a checksum is wrong.
    """
    count = 0
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            yield record
            count += 1
    except corrupt_images.ERRORS:
        fault = f"a TFRecord file without damage (record {count} is damaged)"
        raise UsageError(path, None, fault, "copy it again") from None


def find_damaged(files: Sequence[str], keys: RecordKeys, max_pixels: int) -> list[DamagedRecord]:
    """The records that cannot be parsed, or whose image cannot be decoded.

    Raises:
        UsageError: a file is damaged outside of its records.
    """
    return list(_damaged(files, keys, max_pixels))


def _damaged(files: Sequence[str], keys: RecordKeys, max_pixels: int) -> Iterator[DamagedRecord]:
    number = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for path in files:
            records = enumerate(_records(path))
            while batch := list(itertools.islice(records, _BATCH)):
                faults = pool.map(lambda item: _fault(item[1], keys, max_pixels), batch)
                for (index, _), fault in zip(batch, faults, strict=True):
                    if fault is not None:
                        yield DamagedRecord(number, f"{path} record {index}", fault)
                    number += 1


def _fault(record: bytes, keys: RecordKeys, max_pixels: int) -> ImageError | None:
    """What is wrong with a record; `None` where it can be used."""
    try:
        encoded, _ = keys.read(record)
        keys.parse(tf.constant(record))
    except ValueError as error:
        return ImageError(str(error))
    except corrupt_images.ERRORS:  # a record that only the parser in Python understands
        return ImageError("it cannot be parsed")
    return corrupt_images.find_fault(encoded, max_pixels)


def _damaged_error(name: str, reason: str) -> UsageError:
    return UsageError(
        name,
        None,
        f"a record with {IMAGE} and {LABEL} ({reason})",
        "write ImageNet's keys, or leave such records out with `skip_corrupt`",
    )


def find_label(label: int, files: Sequence[str], keys: RecordKeys) -> str:
    """The name of the first record with a label."""
    for path in files:
        for index, record in enumerate(_records(path)):
            with contextlib.suppress(ValueError):  # another record that is damaged
                if _only(_features(record), keys.label, "int64_list", "numbers") == label:
                    return f"{path} record {index}"
    return "a record"
