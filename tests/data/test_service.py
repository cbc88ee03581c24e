"""tf.data service with its dispatcher and workers in this process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from data_sets import write_class_folders

from mobilenet import data
from mobilenet.configs import dataset as datasets
from mobilenet.data import pipeline, service
from mobilenet.errors import UsageError

SERVICE = tf.data.experimental.service
OPTIONS: dict[str, Any] = {"image_size": 16, "batch_size": 4, "training": True, "seed": 3}


@pytest.fixture
def dispatcher() -> Iterator[Any]:
    yield SERVICE.DispatchServer()


def address_of(dispatcher: Any) -> str:
    return str(dispatcher.target.removeprefix("grpc://"))


def start_worker(dispatcher: Any) -> Any:
    return SERVICE.WorkerServer(SERVICE.WorkerConfig(dispatcher_address=address_of(dispatcher)))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_batches_are_those_of_reading_here(
    tmp_path: Path, dispatcher: Any, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_SERVICE_STEPS", 2)
    root = write_class_folders(tmp_path, train=14)
    config = datasets.get("image_folder").replace(data_dir=str(root), rotation=9.0)
    running = [start_worker(dispatcher) for _ in range(workers)]
    local = data.load(config, "train", start_step=1, **OPTIONS)
    remote = data.load(
        config, "train", start_step=1, data_service=address_of(dispatcher), **OPTIONS
    )
    expected = [images.numpy() for images, _ in islice(local, 40)]
    received = [images.numpy() for images, _ in islice(remote, 20)]
    keys = [images.tobytes() for images in expected]
    order = [keys.index(images.tobytes()) for images in received]
    assert len(set(order)) == 20
    if workers == 1:
        assert order == list(range(20))
    np.testing.assert_array_equal(received[0], expected[order[0]])
    del running


@pytest.mark.parametrize("address", ["localhost", "http://localhost:5000", "localhost:x"])
def test_an_address_is_checked(address: str) -> None:
    with pytest.raises(UsageError, match="data_service: got .*as in host:5000"):
        data.load("digits", "train", data_service=address, **OPTIONS)


def test_an_address_without_a_dispatcher_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with pytest.raises(UsageError, match="a dispatcher of tf.data service that answers"):
        data.load("digits", "train", data_service=f"localhost:{port}", **OPTIONS)
    monkeypatch.setattr(service, "_TIMEOUT", 1.0)
    with socket.create_server(("localhost", 0)) as other:  # it listens, and says nothing
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match="no answer in 1 seconds"):
            data.load("digits", "train", data_service=f"localhost:{port}", **OPTIONS)
