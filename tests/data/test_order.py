"""Order and variation as functions of (seed, step), for each kind of source."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from data_sets import write_class_folders, write_records

from mobilenet import data
from mobilenet.configs import dataset as datasets
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.errors import UsageError

SOURCES = ("digits", "image_folder", "tfrecord")
UNVARIED: dict[str, Any] = {"area_min": 1.0, "flip": False, "color": 0.0}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DatasetConfig]:
    root = tmp_path_factory.mktemp("sets")
    labels = [1 + n % 5 for n in range(14)]
    return {
        "digits": datasets.get("digits"),
        "image_folder": datasets.get("image_folder").replace(
            data_dir=str(write_class_folders(root / "f"))
        ),
        "tfrecord": datasets.get("tfrecord").replace(
            data_dir=str(write_records(root / "r", labels))
        ),
    }


def batches(config: DatasetConfig, count: int, **arguments: Any) -> list[tuple[Any, Any]]:
    settings = {"image_size": 16, "batch_size": 4, "training": True, "seed": 3, **arguments}
    stream = data.load(config, settings.pop("split", "train"), **settings)
    return [(x.numpy(), y.numpy()) for x, y in islice(stream, count)]


def same(one: list[tuple[Any, Any]], other: list[tuple[Any, Any]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a, c) and np.array_equal(b, d) for (a, b), (c, d) in pairs)


@pytest.mark.parametrize("name", SOURCES)
def test_a_later_start_continues_the_same_run(sets: dict[str, DatasetConfig], name: str) -> None:
    options = {"batch_size": 500, "image_size": 8} if name == "digits" else {}
    steps = 2 if name == "digits" else 3  # of 1,257 digits, or of 14 images
    tf.random.set_seed(5)
    whole = batches(sets[name], 3 * steps, **options)
    rest = batches(sets[name], 3 * steps - 1, start_step=1, **options)
    assert same(rest, whole[1:])
    rest = batches(sets[name], steps, start_epoch=1, start_step=1, **options)
    assert same(rest, whole[steps + 1 : 2 * steps + 1])
    tf.random.set_seed(77)
    assert same(batches(sets[name], 3 * steps, **options), whole)


@pytest.mark.parametrize("name", SOURCES)
def test_the_seed_decides_the_order(sets: dict[str, DatasetConfig], name: str) -> None:
    unvaried = sets[name].replace(**UNVARIED, rotation=0.0, shift=0.0, zoom=0.0, shear=0.0)
    both = [batches(unvaried, 1, batch_size=14, seed=seed) for seed in (1, 2)]
    assert not same(*both)


def test_the_seed_decides_the_variation(sets: dict[str, DatasetConfig]) -> None:
    first, second = (
        batches(sets["image_folder"], 1, batch_size=14, seed=seed)[0][0] for seed in (1, 2)
    )
    assert not {x.tobytes() for x in first} & {x.tobytes() for x in second}


@pytest.mark.parametrize("name", SOURCES)
def test_every_epoch_holds_each_image_once_in_an_order_of_its_own(
    sets: dict[str, DatasetConfig], name: str
) -> None:
    config = sets[name].replace(**UNVARIED, rotation=0.0, shift=0.0, zoom=0.0, shear=0.0)
    size = data.describe(config).sizes["train"]
    stream = batches(config, 2, batch_size=size)
    keys = [[x.tobytes() for x in images] for images, _ in stream]
    stored = next(iter(data.load(config, "train", image_size=16, batch_size=size)))
    assert Counter(keys[0]) == Counter(keys[1])
    assert keys[0] != keys[1]
    assert Counter(stream[0][1].tolist()) == Counter(stored[1].numpy().tolist())


def test_variation_differs_from_epoch_to_epoch(sets: dict[str, DatasetConfig]) -> None:
    first, second = batches(sets["image_folder"], 2, batch_size=14)
    assert not {x.tobytes() for x in first[0]} & {x.tobytes() for x in second[0]}


@pytest.mark.parametrize("name", ["image_folder", "tfrecord"])
def test_a_batch_has_images_of_one_epoch(sets: dict[str, DatasetConfig], name: str) -> None:
    config = sets[name].replace(**UNVARIED)
    every = Counter(x.tobytes() for x in batches(config, 1, batch_size=14)[0][0])
    stream = batches(config, 9)
    for epoch in range(3):  # of 14 images, three batches of 4
        images = [x.tobytes() for batch, _ in stream[3 * epoch : 3 * epoch + 3] for x in batch]
        left_out = every - Counter(images)
        assert len(images) == 12 and sum(left_out.values()) == 2


@pytest.mark.parametrize("name", SOURCES)
def test_a_set_smaller_than_a_batch_is_one_batch(sets: dict[str, DatasetConfig], name: str) -> None:
    size = data.describe(sets[name]).sizes["train"]
    options = {"batch_size": 2000, "image_size": 8, "start_epoch": 1}
    first, second = batches(sets[name], 2, **options)
    assert first[0].shape == second[0].shape == (size, 8, 8, 3)
    assert not np.array_equal(first[1], second[1])


@pytest.mark.parametrize("name", SOURCES)
def test_evaluation_gives_each_image_once_and_the_rest_last(
    sets: dict[str, DatasetConfig], name: str
) -> None:
    split = "train" if name == "tfrecord" else "test"
    count = data.describe(sets[name]).sizes[split]
    stream = data.load(sets[name], split, image_size=(16, 20), batch_size=5, channels=1)
    shapes = [(tuple(x.shape), x.dtype, y.dtype) for x, y in stream]
    sides = [5] * (count // 5) + ([count % 5] if count % 5 else [])
    assert shapes == [((n, 16, 20, 1), tf.float32, tf.int32) for n in sides]
    assert len(stream) == len(sides)


def test_folder_evaluation_is_in_file_order(sets: dict[str, DatasetConfig]) -> None:
    stream = data.load(sets["image_folder"], "test", image_size=16, batch_size=100)
    assert next(iter(stream))[1].numpy().tolist() == [0, 0, 0, 1, 1, 1]


def test_a_limit_takes_images_evenly_and_is_at_least_one(sets: dict[str, DatasetConfig]) -> None:
    stream = data.load(sets["image_folder"], "test", image_size=16, batch_size=9, limit=2)
    assert [labels.numpy().tolist() for _, labels in stream] == [[0, 1]]
    with pytest.raises(UsageError, match="limit: got 0, expected a whole number at least 1"):
        data.load(sets["image_folder"], "test", image_size=16, batch_size=9, limit=0)
