"""Records that are damaged in their payload, under checksums that are true; records on object
storage.
"""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from data_sets import encode_example, jpeg, write_records

from mobilenet import data, object_storage
from mobilenet.configs import dataset as datasets
from mobilenet.configs.base import MAX_CLASSES
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data import tfrecord
from mobilenet.data.record_scan import RecordKeys
from mobilenet.errors import UsageError
from mobilenet.evaluation import data_source

SMALL: dict[str, Any] = {"image_size": 16, "batch_size": 2}
LABEL, IMAGE = "image/class/label", "image/encoded"


def ints(*values: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def images(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def record(features: dict[str, tf.train.Feature]) -> bytes:
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


DAMAGED = {
    "two bytes": (b"ab", "not a tf.train.Example"),
    "no label": (record({IMAGE: images(jpeg(1))}), f"0 numbers in {LABEL}"),
    "two labels": (record({IMAGE: images(jpeg(1)), LABEL: ints(1, 2)}), f"2 numbers in {LABEL}"),
    "no image": (record({LABEL: ints(1)}), f"0 byte strings in {IMAGE}"),
    "two images": (record({IMAGE: images(b"", b""), LABEL: ints(1)}), "2 byte strings"),
    "large label": (encode_example(jpeg(1), 10**9), "label is 1000000000, expected 0 to 1,000,000"),
    "negative label": (encode_example(jpeg(1), -5), "label is -5"),
    "label beyond 32 bits": (encode_example(jpeg(1), 2**32 + 1), "label is 4294967297"),
    "cut image": (encode_example(jpeg(1)[:300], 1), "damaged JPEG data"),
    "cut record": (encode_example(jpeg(1), 1)[:-9], "not a tf.train.Example"),
}


def write(path: Path, *payloads: bytes) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)


def folder(root: Path, bad: bytes) -> DatasetConfig:
    write(root / "train-0", encode_example(jpeg(1), 1, "one"), bad, encode_example(jpeg(3), 2))
    write(root / "validation-0", encode_example(jpeg(4), 1))
    return datasets.get("tfrecord").replace(data_dir=str(root))


def labels_of(config: DatasetConfig) -> list[int]:
    return [int(n) for _, batch in data.load(config, "train", **SMALL) for n in batch]


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_record_is_named_or_left_out(case: str, tmp_path: Path) -> None:
    payload, fragment = DAMAGED[case]
    config = folder(tmp_path, payload)
    with pytest.raises((UsageError, tf.errors.OpError)) as caught:
        labels_of(config)
    message = data.explain(caught.value, config, "train")
    assert f"{tmp_path}/train-0 record 1: expected" in str(message) and fragment in str(message)
    lenient = config.replace(skip_corrupt=True)
    info = data.describe(lenient)
    assert (info.sizes["train"], info.skipped["train"]) == (2, 1)
    assert info.labels == ("one", "1")
    assert labels_of(lenient) == [0, 1]


@pytest.mark.parametrize("case", ["two bytes", "two labels", "cut image"])
def test_a_damaged_record_of_a_large_set_is_named_on_reading(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload, fragment = DAMAGED[case]
    config = folder(tmp_path, payload)
    monkeypatch.setattr(tfrecord, "_SCANNED", 0)  # as of a set that is too large to be scanned
    with pytest.raises((tf.errors.OpError, UnicodeDecodeError)) as caught:
        labels_of(config)
    message = str(data.explain(caught.value, config, "train"))
    assert "train-0 record 1: expected" in message and fragment in message


def test_only_damaged_records_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train-0", b"ab", encode_example(b"", 1))
    config = datasets.get("tfrecord").replace(data_dir=str(tmp_path), skip_corrupt=True)
    with pytest.raises(UsageError, match=r"a record that can be used \(it is not"):
        data.load(config, "train", **SMALL)


def test_a_wrong_checksum_is_named_with_its_record(tmp_path: Path) -> None:
    config = folder(tmp_path, encode_example(jpeg(2), 2))
    content = bytearray((tmp_path / "train-0").read_bytes())
    content[len(content) // 2] ^= 1  # the second of three records of one size
    (tmp_path / "train-0").write_bytes(content)
    for lenient in (config, config.replace(skip_corrupt=True)):
        with pytest.raises(UsageError, match=r"train-0: .* \(record 1 is damaged\)"):
            data.load(lenient, "train", **SMALL)


def test_wrong_lengths_end_in_an_error_and_never_in_other_values() -> None:
    """Against protobuf in Python, which is another implementation."""
    sound = encode_example(jpeg(1), 3, "three")
    parse = tf.function(RecordKeys().parse, input_signature=[tf.TensorSpec([], tf.string)])
    noise = random.Random(1)
    positions = [n for n in range(len(sound)) if n < 50 or n > len(sound) - 60]
    agreed = 0
    for position in positions:
        for value in (0, 127, 128, 255, noise.randrange(256)):
            changed = sound[:position] + bytes([value]) + sound[position + 1 :]
            try:
                expected = RecordKeys().read(changed)
            except ValueError:
                expected = None
            try:
                encoded, label = parse(changed)
            except (tf.errors.OpError, UnicodeDecodeError):
                assert expected is None
                continue
            assert expected is None or (encoded.numpy(), int(label)) == expected
            agreed += expected is not None
    assert agreed > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 names"),
        (b"a\xff\n", "UTF-8"),
        (b"a\n" * (MAX_CLASSES + 1), "1 to 1,000,000 class names"),
    ],
)
def test_label_files_that_cannot_be_used(content: bytes, message: str, tmp_path: Path) -> None:
    config = folder(tmp_path, encode_example(jpeg(2), 2))
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        data.describe(config)


def test_a_label_beyond_the_classes_names_its_record(tmp_path: Path) -> None:
    config = folder(tmp_path, encode_example(jpeg(2), 2**32 + 1))
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(tf.errors.OpError) as caught:
        labels_of(config)
    message = str(data.explain(caught.value, config, "train"))
    assert f"train-0 record 1 holds {2**32 + 1}" in message


def test_images_of_too_many_pixels_are_left_out_like_corrupt_ones(tmp_path: Path) -> None:
    config = folder(tmp_path, encode_example(jpeg(2), 2)).replace(max_pixels=1999)
    with pytest.raises(tf.errors.OpError) as caught:
        labels_of(config)
    message = str(data.explain(caught.value, config, "train"))
    assert "50 x 40 pixels, more than 1,999 (max_pixels)" in message
    with pytest.raises(UsageError, match="a record that can be used"):
        labels_of(config.replace(skip_corrupt=True))
    assert labels_of(config.replace(max_pixels=2000)) == [0, 1, 1]


@pytest.mark.parametrize(
    "fields", [{"max_pixels": 0}, {"max_pixels": 2**28}, {"label_offset": MAX_CLASSES + 1}]
)
def test_bounds_of_the_config(fields: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        DatasetConfig("tfrecord", **fields)


def test_records_on_object_storage_are_those_of_a_folder(tmp_path: Path) -> None:
    write_records(tmp_path / "local", [1 + n % 3 for n in range(14)])
    write_records(tmp_path / "local", [1, 2, 3], split="val")
    remote = f"ram://{tmp_path}/records"
    for path in (tmp_path / "local").iterdir():
        object_storage.upload_file(path, f"{remote}/{path.name}")
    config = datasets.get("tfrecord")
    both = [config.replace(data_dir=root) for root in (str(tmp_path / "local"), remote)]
    local, far = (data.describe(one) for one in both)
    assert (far.sizes, far.labels) == (local.sizes, local.labels)
    streams = [
        data.load(one, "train", image_size=16, batch_size=5, training=True, seed=3) for one in both
    ]
    for (images, labels), (others, own) in itertools.islice(zip(*streams, strict=True), 3):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, own)
    assert data_source.find_dataset(remote) == both[1]


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("tfrecord", "ram://nothing/there", "a folder of record files"),
        ("tfrecord", "s4://bucket/records", "a scheme that TensorFlow reads (ram://"),
        ("image_folder", "gs://bucket/photos", "`python -m mobilenet.data` writes them"),
        ("image_list", "gs://bucket/list.csv", "`python -m mobilenet.data` writes them"),
    ],
)
def test_what_is_not_read_from_object_storage_is_one_line(
    name: str, root: str, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        data.describe(datasets.get(name).replace(data_dir=root))
    assert error.value.what == "data_dir" and root in str(error.value)
