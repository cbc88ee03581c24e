"""Balanced sampling: how often each class and each image comes, from any step on, by workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
from PIL import Image  # noqa: E402

from mobilenet import data  # noqa: E402
from mobilenet.configs import dataset as datasets_configs  # noqa: E402
from mobilenet.data import datasets  # noqa: E402
from mobilenet.data.datasets import DigitSplit  # noqa: E402
from mobilenet.data.split import Steps  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402

LABELS = np.repeat([4, 0, 7, 2], [60, 25, 10, 3]).astype(np.int32)  # 98 images of four classes
SPLIT = DigitSplit(LABELS, np.zeros((98, 8, 8), np.uint8), is_balanced=True)


def epoch(number: int, start: int = 0, workers: int = 1, worker: int = 0, batch: int = 2) -> Any:
    steps = Steps(batch, 98 // batch, worker, workers)
    items = SPLIT.epoch(5, tf.constant(number, tf.int64), tf.constant(start, tf.int64), steps)
    return np.array(list(items.as_numpy_iterator()))


@pytest.mark.parametrize("number", [0, 1, 9])
def test_an_epoch_has_as_many_images_of_each_class(number: int) -> None:
    items = epoch(number)
    assert len(items) == 98
    classes = np.bincount(LABELS[items], minlength=8)[[4, 0, 7, 2]]
    assert set(classes) == {24, 25}
    for label, count in zip((4, 0, 7, 2), (60, 25, 10, 3), strict=True):
        times = np.bincount(items, minlength=98)[np.flatnonzero(label == LABELS)]
        slots = times.sum()
        assert times.min() == slots // count and times.max() <= slots // count + 1
    assert len(set(LABELS[items[:12]])) > 1  # classes are mixed


def test_over_many_epochs_images_of_a_class_come_equally_often() -> None:
    times = sum(np.bincount(epoch(number), minlength=98) for number in range(200))
    assert isinstance(times, np.ndarray)
    large = times[:60]  # 24.5 of 60 each epoch
    assert abs(large.mean() - 200 * 24.5 / 60) < 1
    assert large.std() < 12


def test_an_epoch_continues_from_any_step_and_is_shared_by_workers() -> None:
    whole = epoch(3)
    np.testing.assert_array_equal(epoch(3, start=11), whole[22:])
    assert np.any(epoch(4) != whole)
    shares = [epoch(3, workers=2, worker=index) for index in (0, 1)]
    np.testing.assert_array_equal(np.stack(shares, 1).reshape(-1), whole)


def test_it_is_read_from_the_config(tmp_path: Path) -> None:
    for name, count in (("train/cat", 6), ("train/dog", 2), ("val/cat", 1), ("val/dog", 1)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9), (number * 9, 0, 0)).save(tmp_path / name / f"{number}.png")
    config = datasets_configs.FOLDER.replace(data_dir=str(tmp_path), sampling="balanced")
    batches = data.load(config, "train", image_size=8, batch_size=8, training=True)
    for _, labels in batches.take(3).as_numpy_iterator():
        assert np.bincount(labels).tolist() == [4, 4]
    uniform = config.replace(sampling="uniform")
    (_, labels), *_ = data.load(uniform, "train", image_size=8, batch_size=8, training=True).take(1)
    assert np.bincount(labels).tolist() == [6, 2]


def test_records_are_refused(tmp_path: Path) -> None:
    config = datasets_configs.RECORDS.replace(data_dir=str(tmp_path), sampling="balanced")
    with pytest.raises(UsageError, match="^sampling: got 'balanced', expected uniform for records"):
        datasets.open_split(config, "train")
