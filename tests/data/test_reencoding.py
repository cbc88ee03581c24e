"""Re-encoded sets: what their images are, and what a call that was ended leaves."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from data_sets import smooth_image, write_class_folders
from PIL import Image, ImageOps

from mobilenet import data
from mobilenet.configs import dataset as datasets
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.configs.reencoding import ReencodingConfig
from mobilenet.data.__main__ import run
from mobilenet.data.reencoding import reencode_image
from mobilenet.errors import UsageError

CONFIG = ReencodingConfig(short_side=24, shard_images=4)
FOLDER = datasets.get("image_folder")


def source(root: Path) -> DatasetConfig:
    return FOLDER.replace(data_dir=str(root))


def records(folder: Path, pattern: str = "*-of-*") -> list[tf.train.Example]:
    files = sorted(str(path) for path in folder.glob(pattern))
    return [
        tf.train.Example.FromString(record)
        for record in tf.data.TFRecordDataset(files).as_numpy_iterator()
    ]


def value(example: tf.train.Example, key: str) -> bytes | int:
    feature = example.features.feature[key]
    return (feature.bytes_list.value or feature.int64_list.value)[0]


def as_jpeg(image: Image.Image) -> np.ndarray:
    """Pixels after they were saved by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=90)
    return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_an_image_is_that_of_pillow_upright_and_without_metadata(orientation: int) -> None:
    photo, exif, buffer = smooth_image(2, 120, 200), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    photo.save(buffer, "jpeg", quality=95, exif=exif)
    written = Image.open(io.BytesIO(reencode_image(buffer.getvalue(), CONFIG, FOLDER)))
    expected = ImageOps.exif_transpose(Image.open(buffer))
    expected = expected.resize((24, 40) if orientation > 4 else (40, 24), Image.Resampling.BICUBIC)
    assert written.size == expected.size and not written.getexif()
    assert np.abs(np.asarray(written) - as_jpeg(expected)).mean() < 2  # libjpeg reduced it first


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_other_formats_and_modes_are_written_too(mode: str) -> None:
    photo, buffer = smooth_image(3, 30, 48), io.BytesIO()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) << 8)
    else:
        image = photo.convert(mode)
    image.save(buffer, "png")
    written = Image.open(io.BytesIO(reencode_image(buffer.getvalue(), CONFIG, FOLDER)))
    image = photo.convert("L") if mode == "I;16" else image
    expected = as_jpeg(image.convert("RGB").resize((38, 24), Image.Resampling.BICUBIC))
    assert written.size == (38, 24)
    assert np.abs(np.asarray(written.convert("RGB")) - expected).mean() < 1


def test_a_small_jpeg_without_metadata_is_copied() -> None:
    buffer = io.BytesIO()
    smooth_image(4, 24, 30).save(buffer, "jpeg", quality=60)
    assert reencode_image(buffer.getvalue(), CONFIG, FOLDER) == buffer.getvalue()


def test_classes_splits_and_counts_are_those_of_the_source(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "photos")
    shards = data.reencode(source(root), tmp_path / "shards", CONFIG)
    assert shards.sizes == {"train": 14, "validation": 6} and shards.written == 20
    assert shards.files == {"train": 4, "validation": 2}
    written = datasets.get("tfrecord").replace(data_dir=str(tmp_path / "shards"))
    ours, theirs = data.describe(written), data.describe(source(root))
    assert (ours.labels, ours.sizes, ours.splits) == (theirs.labels, theirs.sizes, theirs.splits)
    examples = records(tmp_path / "shards", "train*")
    labels = [value(example, "image/class/label") for example in examples]
    assert sorted(labels) == [1] * 7 + [2] * 7 and labels != sorted(labels)
    assert {value(e, "image/class/text") for e in examples} == {b"a", b"b"}
    batches = data.load(written, "train", image_size=16, batch_size=7, training=True)
    seen = [label for _, own in itertools.islice(batches, 2) for label in own.numpy().tolist()]
    assert sorted(seen) == [0] * 7 + [1] * 7
    again = data.reencode(written, tmp_path / "again", CONFIG)  # records, which keep their order
    assert again.sizes == shards.sizes
    copied = records(tmp_path / "again", "train*")
    assert [e.SerializeToString() for e in copied] == [e.SerializeToString() for e in examples]


def test_a_call_that_was_ended_goes_on_with_the_file_that_is_missing(tmp_path: Path) -> None:
    root, target = write_class_folders(tmp_path / "photos"), tmp_path / "shards"
    whole = data.reencode(source(root), tmp_path / "whole", CONFIG)

    def end(done: int, total: int) -> None:
        assert total == 20
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.reencode(source(root), target, CONFIG, end)
    assert len(list(target.glob("train-*"))) == 2 and not list(target.glob(".*"))
    assert data.reencode(source(root), target, CONFIG).written == whole.written - 8
    names = [path.name for path in sorted((tmp_path / "whole").iterdir())]
    assert names == [path.name for path in sorted(target.iterdir())]
    for name in names:
        assert (target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert data.reencode(source(root), target, CONFIG).written == 0
    with pytest.raises(UsageError, match="same data and settings"):
        data.reencode(source(root), target, CONFIG.replace(quality=70))
    path = target / "train-00001-of-00004"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UsageError, match="train-00001"):
        data.reencode(source(root), target, CONFIG)


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "photos")
    with pytest.raises(UsageError, match="digits"):
        data.reencode("digits", tmp_path / "a")
    with pytest.raises(UsageError, match="new or empty folder"):
        data.reencode(source(root), root)
    damaged = root / "train/a/03.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(UsageError, match=r"03\.jpg"):
        data.reencode(source(root), tmp_path / "b")
    skipping = source(root).replace(skip_corrupt=True)
    assert data.reencode(skipping, tmp_path / "c", CONFIG).sizes["train"] == 13


def test_the_command_names_the_flags_that_read_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, target = write_class_folders(tmp_path / "photos"), str(tmp_path / "shards")
    run(["reencode", "--data_dir", str(root), "--output", target, "--short_side=20"])
    printed = capsys.readouterr().out
    assert f"--dataset_name tfrecord --data_dir {target}" in printed
    assert "20 images were re-encoded" in printed
    for words, expected in (
        ([], "reencode"),
        (["reencode", "--output", target], "--data_dir"),
        (["reencode", "--data_dir", str(root)], "--output"),
        (["reencode", "--data_dir", str(root), "--output", target, "--quality=0"], "--quality"),
        (["reencode", "--data_dir", str(tmp_path / "x"), "--output", target], "there is no"),
    ):
        with pytest.raises(UsageError, match=expected):
            run(words)
