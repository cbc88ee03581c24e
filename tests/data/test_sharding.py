"""Several workers that read the parts of an epoch, as `tf.distribute` asks for them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from data_sets import write_class_folders, write_records

from mobilenet import data
from mobilenet.configs import dataset as datasets
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.errors import UsageError


def read(
    config: DatasetConfig,
    worker: int,
    workers: int,
    replicas: int = 1,
    count: int | None = None,
    **options: Any,
) -> list[tuple[Any, Any]]:
    """The batches of a worker with so many replicas."""
    context = tf.distribute.InputContext(workers, worker, workers * replicas)
    settings = {"image_size": 16, "batch_size": 4, "split": "train", **options}
    split = settings.pop("split")
    stream = data.load(config, split, input_context=context, **settings)
    return [(x.numpy(), y.numpy()) for x, y in islice(stream, count)]


def images_of(batches: list[tuple[Any, Any]]) -> list[bytes]:
    return [image.tobytes() for images, _ in batches for image in images]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    root = write_class_folders(tmp_path_factory.mktemp("f"))  # 14 and 6 images
    return datasets.get("image_folder").replace(data_dir=str(root))


def records(root: Path, files: int) -> DatasetConfig:
    """14 images."""
    write_records(root, [1 + n % 5 for n in range(14)], files)
    return datasets.get("tfrecord").replace(data_dir=str(root))


@pytest.mark.parametrize("name", ["image_folder", "digits"])
def test_the_batches_of_a_step_are_the_batch_of_one_worker(
    folders: DatasetConfig, name: str
) -> None:
    workers = replicas = 2
    config = folders.replace(rotation=9.0) if name == "image_folder" else datasets.get("digits")
    options = {"training": True, "seed": 5, "start_step": 2}
    whole = read(config, 0, 1, count=3, **options)  # of 14 images a new epoch begins
    shares = [read(config, n, workers, replicas, 3 * replicas, **options) for n in range(workers)]
    for step, (images, labels) in enumerate(whole):
        own = [part for share in shares for part in share[step * replicas : (step + 1) * replicas]]
        assert {len(part) for part, _ in own} == {4 // (workers * replicas)}
        np.testing.assert_array_equal(np.concatenate([part for part, _ in own]), images)
        np.testing.assert_array_equal(np.concatenate([part for _, part in own]), labels)


@pytest.mark.parametrize("name", ["image_folder", "tfrecord"])
def test_workers_evaluate_each_image_once(
    folders: DatasetConfig, tmp_path: Path, name: str
) -> None:
    config = folders if name == "image_folder" else records(tmp_path, 3)
    whole = read(config, 0, 1)
    shares = [read(config, worker, 3, batch_size=6) for worker in range(3)]
    assert images_of(whole) == [image for share in shares for image in images_of(share)]
    limited = [read(config, worker, 3, batch_size=60, limit=2) for worker in range(3)]
    assert [len(images_of(share)) for share in limited] == [0, 1, 1]


def test_replicas_have_batches_of_one_size(folders: DatasetConfig) -> None:
    with pytest.raises(UsageError, match="batch_size: got 5, expected a multiple of the 2 repl"):
        read(folders, 0, 2, batch_size=5, training=True)
    with pytest.raises(UsageError, match="data_dir: got '14 images', expected at least 20"):
        read(folders, 0, 20, batch_size=40, training=True)
    small = read(folders, 0, 2, batch_size=40, training=True, count=1)
    assert small[0][0].shape[0] == 7
