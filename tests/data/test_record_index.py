"""The index of record files, its cache, and the order of records that it allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mobilenet.data import record_index, tfrecord
from mobilenet.data.record_scan import RecordKeys
from mobilenet.data.sources import index_cache
from mobilenet.data.split import Steps


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder; sets of more than three records have an index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST", 3)
    monkeypatch.setattr(index_cache, "_FRESH_NS", 0)
    return tmp_path / "cache"


def write(root: str, counts: tuple[int, ...]) -> list[str]:
    """Record files whose records are their numbers."""
    number = 0
    paths = [f"{root}/train-{file}" for file in range(len(counts))]
    for path, count in zip(paths, counts, strict=True):
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(count):
                writer.write(str(number).encode())
                number += 1
    return paths


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each time that files are scanned."""
    every: list[int] = []
    scan = record_index._scan

    def counted(files: tuple[str, ...]) -> record_index.RecordIndex:
        every.append(len(files))
        return scan(files)

    monkeypatch.setattr(record_index, "_scan", counted)
    return every


@pytest.mark.parametrize("root", ["", "ram://records"])
def test_records_are_scanned_once(tmp_path: Path, root: str, scans: list[int]) -> None:
    files = write(root or str(tmp_path), (3, 12))
    first, second = record_index.load(files), record_index.load(files)
    assert scans == [2]
    assert second.counts.tolist() == [3, 12]
    np.testing.assert_array_equal(first.offsets, second.offsets)
    # 8 bytes of length, 4 of checksum, the record, 4 of checksum
    assert second.offsets.tolist()[:6] == [0, 17, 34, 51, 0, 17]
    assert second.offsets[-1] == 7 * 17 + 5 * 18


def test_an_index_of_changed_or_damaged_files_is_made_again(
    tmp_path: Path, scans: list[int]
) -> None:
    files = write(str(tmp_path), (3, 4))
    record_index.load(files)
    stored = next(tmp_path.glob(".mobilenet-records-*"))
    content = stored.read_bytes()
    for damaged in (b"", content[:100], content[:-30], b"text", content[:200] + b"x" * 40):
        stored.write_bytes(damaged)
        assert record_index.load(files).size == 7
    assert len(scans) == 6
    other = tmp_path / "other"
    other.mkdir()
    os.utime(files[0], (1, 1))  # the size stays
    assert record_index.load(files).size == 7 and len(scans) == 7
    assert record_index.load(files[:1] + write(str(other), (9,))).size == 12


def test_where_the_data_cannot_be_written_the_users_cache_is(
    tmp_path: Path, cache: Path, scans: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write(str(tmp_path), (3, 4))
    written = index_cache.Storage.write

    def refuse(self: index_cache.Storage, path: str, content: bytes) -> None:
        if not path.startswith(str(cache)):
            raise PermissionError(path)
        written(self, path, content)

    monkeypatch.setattr(index_cache.Storage, "write", refuse)
    assert record_index.load(files).size == record_index.load(files).size == 7
    assert scans == [2] and len(list(cache.rglob("*.npz"))) == 1
    assert not list(tmp_path.glob(".mobilenet*"))


def read(split: tfrecord.RecordSplit, step: int, batch: int = 10) -> Iterator[int]:
    steps = Steps.of(split.size, batch)
    start, epoch = tf.constant(step, tf.int64), tf.constant(4, tf.int64)
    return (int(record) for record in split.epoch(7, epoch, start, steps).as_numpy_iterator())


def test_any_position_is_reached_without_the_records_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three windows of chunks from files of unequal sizes; two records are left out."""
    monkeypatch.setattr(tfrecord, "CHUNK", 4)
    monkeypatch.setattr(tfrecord, "WINDOW", 40)
    files = write(str(tmp_path), (30, 1, 55, 21, 13))
    index = record_index.load(files)
    split = tfrecord.RecordSplit(index, RecordKeys(), 0, 10, left_out=(2, 31))
    whole = list(read(split, 0))
    assert len(whole) == 110 and len(set(whole) - {2, 31}) == 110  # of 118
    successive = np.mean(np.diff(whole) == 1)
    assert successive < 0.1
    for step in (1, 4, 5, 10):
        assert list(read(split, step)) == whole[10 * step :]
    assert set(split.items(np.arange(118)).as_numpy_iterator()) == {
        str(n).encode() for n in range(120) if n not in (2, 31)
    }
    few = split.items(np.array([0, 50, 117]))  # 2 and 31 are left out
    assert list(few.as_numpy_iterator()) == [b"0", b"52", b"119"]
    # The chunks before the window cannot be read any more, those of the last window can.
    last = {index.file_of(np.array([number]))[0] for number in whole[80:]}
    for file in set(range(5)) - last:
        os.remove(files[file])
    assert list(read(split, 9)) == whole[90:]


@pytest.mark.parametrize("counts", [(30, 1, 55, 21, 13), (120,)])
def test_workers_read_parts_of_the_files(tmp_path: Path, counts: tuple[int, ...]) -> None:
    index = record_index.load(write(str(tmp_path), counts))
    split = tfrecord.RecordSplit(index, RecordKeys(), 0, 10)
    orders = []
    for number in (0, 1):
        for worker in range(3):
            context = tf.distribute.InputContext(3, worker, 3)
            steps = Steps.of(120, 24, context)
            epoch, start = tf.constant(number, tf.int64), tf.constant(0, tf.int64)
            items = split.epoch(7, epoch, start, steps).as_numpy_iterator()
            order = [int(record) for record in items]
            assert sorted(order) == list(range(40 * worker, 40 * worker + 40))
            rest = split.epoch(7, epoch, start + 3, steps).as_numpy_iterator()
            assert [int(record) for record in rest] == order[3 * 8 :]
            orders.append(order)
    assert orders[0] != orders[3] and orders[0] != sorted(orders[0])
