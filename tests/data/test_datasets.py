"""Sources of images: their content, and the errors of wrong ones."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets
from data_sets import encode_example, jpeg, write_class_folders, write_records

from mobilenet import data
from mobilenet.configs import dataset as dataset_configs
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data import corrupt_images, datasets, record_index, tfds
from mobilenet.errors import UsageError

SMALL: dict[str, Any] = {"image_size": 16, "batch_size": 4}


def folder_set(root: Path, **fields: Any) -> DatasetConfig:
    return dataset_configs.get("image_folder").replace(data_dir=str(root), **fields)


def record_set(root: Path, **fields: Any) -> DatasetConfig:
    return dataset_configs.get("tfrecord").replace(data_dir=str(root), **fields)


def labels_of(config: DatasetConfig, split: str = "train") -> list[int]:
    return [int(n) for _, batch in data.load(config, split, **SMALL) for n in batch]


def test_a_list_that_starts_at_1_has_a_class_without_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    rows = "".join(f"a.jpg,{label},train\n" for label in (1, 2, 3)) + "a.jpg,1,val\n"
    (tmp_path / "list.csv").write_text("File;Label;Split\n" + rows.replace(",", ";"))
    config = dataset_configs.get("image_list").replace(data_dir=str(tmp_path / "list.csv"))
    info = data.describe(config)
    assert (info.num_classes, info.empty) == (4, ("0",))
    assert list(info.assumed) == ["test"]
    info = data.describe(config.replace(label_offset=1))
    assert (info.num_classes, info.empty) == (3, ())


def test_records_in_place_of_others_are_announced(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_records(tmp_path, [1, 2], files=1, split=split)
    assumed = data.describe(record_set(tmp_path)).assumed
    assert assumed == {
        "test": f"{tmp_path} has no test images: those of validation are used for both"
    }


def test_digits_are_described() -> None:
    info = data.describe("digits")
    assert info.sizes == {"train": 1257, "validation": 180, "test": 360}
    assert (info.num_classes, info.labels) == (10, tuple("0123456789"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "^batch_size: got 0"),
        ({"image_size": 0}, "^image_size: got 0"),
        ({"image_size": (16, -1)}, "^image_size: got -1"),
        ({"start_step": -1}, "start_step"),
        ({"channels": 4}, "channels"),
        ({"preprocessing": "incepton"}, "did you mean inception"),
        ({"preprocessing": "imagenet", "channels": 1}, "one mean and std"),
        ({"split": "tests"}, "did you mean test"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    settings = {"split": "train", **SMALL, **arguments}
    with pytest.raises(UsageError, match=message):
        data.load("digits", settings.pop("split"), **settings)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"text"])
def test_a_corrupt_image_is_named_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    write_class_folders(tmp_path / "f")
    bad = tmp_path / "f/train/b/03.jpg"
    bad.write_bytes(damage(bad.read_bytes()))
    config = folder_set(tmp_path / "f")
    with pytest.raises(UsageError, match=r"b/03\.jpg: expected an image that can be decoded"):
        data.load(config, "train", **SMALL)
    lenient = config.replace(skip_corrupt=True)
    with caplog.at_level(logging.WARNING):
        assert labels_of(lenient) == [0] * 7 + [1] * 6
    assert "left out 1 corrupt" in caplog.text and str(bad) in caplog.text
    info = data.describe(lenient)
    assert info.sizes["train"] == 13 and info.skipped == {"train": 1, "validation": 0, "test": 0}


def test_an_error_on_reading_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        datasets, "_CHECKED", 0
    )  # as with a set that is too large to check at the start
    write_class_folders(tmp_path / "f")
    bad = tmp_path / "f/train/a/01.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    config = folder_set(tmp_path / "f")
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        labels_of(config)
    assert str(bad) in str(data.explain(caught.value, config, "train"))
    assert data.explain(caught.value, config, "test") is None
    assert data.explain(ValueError("other"), config) is None


def test_records_hold_images_labels_and_names(tmp_path: Path) -> None:
    labels = [1, 2, 3, 2, 1, 3, 3]
    config = record_set(write_records(write_records(tmp_path, labels), [2, 3], 1, "validation"))
    info = data.describe(config)
    assert info.sizes == {"train": 7, "validation": 2, "test": 2}
    assert info.labels == ("class 1", "class 2", "class 3") and info.num_classes == 3
    assert labels_of(config) == [n - 1 for n in labels[0::3] + labels[1::3] + labels[2::3]]
    whole = config.replace(label_offset=0)
    assert data.describe(whole).num_classes == 4
    assert labels_of(whole, "test") == [2, 3]


def test_labels_outside_the_classes_name_the_flag(tmp_path: Path) -> None:
    config = record_set(write_records(tmp_path, [0, 1, 2]))
    with pytest.raises(UsageError, match="give `label_offset=0`"):
        data.describe(config)
    for names, offset, bad_label in (("one\ntwo\n", 1, 0), ("zero\none\n", 0, 2)):
        (tmp_path / "labels.txt").write_text(names)
        config = config.replace(label_offset=offset)
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            labels_of(config)
        message = str(data.explain(caught.value, config))
        assert message.startswith("label_offset: got") and f"holds {bad_label}" in message


def test_corrupt_records_are_named_or_left_out(tmp_path: Path) -> None:
    write_records(tmp_path, [1, 2, 1], 1)
    with tf.io.TFRecordWriter(str(tmp_path / "train-1")) as writer:
        for encoded, label in ((jpeg(1), 1), (jpeg(2)[:200], 2), (jpeg(3), 2)):
            writer.write(encode_example(encoded, label))
    config = record_set(tmp_path)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        labels_of(config)
    assert "train-1 record 1" in str(data.explain(caught.value, config))
    lenient = config.replace(skip_corrupt=True)
    assert labels_of(lenient) == [0, 1, 0, 0, 1]
    assert data.describe(lenient).skipped["train"] == 1
    varied = data.load(lenient, "train", training=True, **{**SMALL, "batch_size": 5})
    assert sorted(next(iter(varied))[1].numpy()) == [0, 0, 0, 1, 1]


def test_wrong_record_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder of record files"):
        data.describe(record_set(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="there are none"):
        data.describe(record_set(tmp_path))
    (tmp_path / "train.txt").write_text("not a record, but long enough to hold a length")
    with pytest.raises(UsageError, match="whole, uncompressed TFRecord"):
        data.describe(record_set(tmp_path))
    (tmp_path / "train.txt").unlink()
    with tf.io.TFRecordWriter(str(tmp_path / "train-0")) as writer:
        writer.write(tf.train.Example().SerializeToString())
    with pytest.raises(UsageError, match="image/encoded"):
        data.describe(record_set(tmp_path))


def test_records_are_counted_by_their_lengths(tmp_path: Path) -> None:
    path = tmp_path / "train-0"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for n in range(5):
            writer.write(b"x" * n)
    assert record_index.load([str(path)]).counts.tolist() == [5]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UsageError, match="whole"):
        record_index.load([str(path)])


def test_a_missing_split_is_refused(tmp_path: Path) -> None:
    for config in (
        record_set(write_records(tmp_path / "r", [1, 2], 1)),
        folder_set(tmp_path / "f"),
    ):
        for name in "ab":
            (tmp_path / "f/val" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "f/val" / name / "1.jpg").write_bytes(jpeg(1))
        absent = "test" if config.name == "tfrecord" else "train"
        with pytest.raises(UsageError, match=f"split: got '{absent}'"):
            data.load(config, absent, **SMALL)


def test_tfds_names_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UsageError, match=r"pip install tensorflow-datasets"):
        data.describe("imagenette")
    with pytest.raises(UsageError, match="did you mean digits"):
        data.describe("digts")


def test_unknown_tfds_names_suggest_the_nearest(tmp_path: Path) -> None:
    config = DatasetConfig("imagenete", data_dir=str(tmp_path))
    with pytest.raises(UsageError, match="did you mean imagenette"):
        data.describe(config)


@pytest.mark.parametrize("network", [True, False])
def test_a_tfds_set_that_cannot_be_fetched_names_the_offline_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: bool
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "download_and_prepare", offline)
    monkeypatch.setattr(tfds, "_has_network", lambda: network)
    with pytest.raises(UsageError, match="=digits`, image_folder or tfrecord needs no") as caught:
        data.load(DatasetConfig("cifar10", data_dir=str(tmp_path)), "train", **SMALL)
    assert ("no route to host" in str(caught.value)) is network
    assert not list(tmp_path.iterdir())


def test_a_prepared_tfds_set_is_read(tmp_path: Path) -> None:
    class TinyGreys(tensorflow_datasets.core.GeneratorBasedBuilder):  # type: ignore[misc]
        """Ten gray images whose level is twenty times their label."""

        VERSION = tensorflow_datasets.core.Version("1.0.0")

        def _info(self) -> Any:
            features = tensorflow_datasets.features.FeaturesDict(
                {
                    "image": tensorflow_datasets.features.Image(shape=(8, 8, 1)),
                    "label": tensorflow_datasets.features.ClassLabel(names=["x", "y", "z"]),
                }
            )
            return tensorflow_datasets.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label")
            )

        def _split_generators(self, _: Any) -> Any:
            return {"train": self._generate_examples(7), "test": self._generate_examples(3)}

        def _generate_examples(self, count: int) -> Any:
            for n in range(count):
                yield n, {"image": np.full((8, 8, 1), 20 * (n % 3), np.uint8), "label": n % 3}

    TinyGreys(data_dir=str(tmp_path), file_format="tfrecord").download_and_prepare()
    raw = dataset_configs.get("mnist").replace(name="tiny_greys", data_dir=str(tmp_path), color=0.0)
    info = data.describe(raw)
    assert info.sizes == {"train": 7, "validation": 3, "test": 3} and info.labels == ("x", "y", "z")
    images, labels = next(
        iter(data.load(raw, "train", image_size=8, batch_size=7, preprocessing="raw"))
    )
    assert images.shape == (7, 8, 8, 3) and sorted(labels.numpy()) == [0, 0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(images[:, 4, 4, 1], 20 * labels.numpy())
    by_folder = raw.replace(name="anything", data_dir=str(tmp_path / "tiny_greys/1.0.0"))
    assert data.describe(by_folder).sizes == info.sizes
    varied = data.load(raw, "train", training=True, **SMALL)
    assert next(iter(varied))[0].shape == (4, 16, 16, 3)


def test_corrupt_names_are_cut_after_five() -> None:
    message = str(corrupt_images.corrupt_error([f"{n}.jpg" for n in range(9)]))
    assert "4.jpg" in message and "5.jpg" not in message and "(9)" in message
