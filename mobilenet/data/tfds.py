"""TFDS image classification sets, read from their prepared record files.

TFDS downloads, prepares and describes a set; the records are read by the same code as `tfrecord`,
so that order and resuming are exact. The package is imported only when such a set is used.
"""

from __future__ import annotations

import difflib
import os
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import tensorflow as tf

from mobilenet import object_storage
from mobilenet.configs.base import MAX_CLASSES
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data import record_index
from mobilenet.data.record_scan import RecordKeys, find_damaged
from mobilenet.data.sources import splits as split_names
from mobilenet.data.sources.splits import SPLITS
from mobilenet.data.split import DatasetInfo
from mobilenet.data.tfrecord import RecordSplit, without_corrupt
from mobilenet.errors import UsageError
from mobilenet.files import is_remote

OWN = ("digits", "image_folder", "image_list", "tfrecord")
_OFFLINE = "`dataset_name=digits`, image_folder or tfrecord needs no network"
_RESOLVE_TIMEOUT = 5.0  # seconds for a name to resolve
_UNLABELED_TEST = ("imagenet2012", "imagenet_v2_missing_labels")


def _unknown(name: str, known: list[str]) -> UsageError:
    names = [*OWN, *known]
    near = difflib.get_close_matches(name.split("/")[0], names, n=1, cutoff=0.6)
    remedy = (
        f"did you mean {near[0]}?"
        if near
        else "https://www.tensorflow.org/datasets lists the names"
    )
    return UsageError("dataset_name", name, "digits, image_folder, tfrecord or a TFDS name", remedy)


def _package(name: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError:
        near = difflib.get_close_matches(name, OWN, n=1, cutoff=0.7)
        if near:
            raise _unknown(name, []) from None
        raise UsageError(
            "dataset_name",
            name,
            "digits, image_folder or tfrecord, or the package of TFDS names",
            "pip install tensorflow-datasets importlib_resources",
        ) from None
    return tensorflow_datasets


def _builder(config: DatasetConfig) -> Any:
    """The builder of a prepared set, which is downloaded if necessary."""
    tfds = _package(config.name)
    folder = config.data_dir
    if folder and is_remote(folder):
        object_storage.check(folder, "data_dir")
    if folder and tf.io.gfile.exists(os.path.join(folder, "dataset_info.json")):
        return tfds.builder_from_directory(folder)
    try:
        builder = tfds.builder(config.name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        raise _unknown(config.name, tfds.list_builders(with_community_datasets=False)) from None
    except (ValueError, ImportError, AssertionError) as error:
        raise UsageError(
            "dataset_name", config.name, f"a set that TFDS can open ({_first_line(error)})"
        ) from None
    if not _is_prepared(builder):
        _prepare(builder, config)
    return builder


def _is_prepared(builder: Any) -> bool:
    return bool(builder.info.splits) and tf.io.gfile.isdir(str(builder.data_dir))


def _has_network() -> bool:
    """Whether names resolve, or a proxy does that; TFDS itself would retry for minutes."""
    if urllib.request.getproxies():
        return True
    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(socket.getaddrinfo, "www.tensorflow.org", 443).result(timeout=_RESOLVE_TIMEOUT)
    except (OSError, FutureTimeout):
        return False
    finally:
        pool.shutdown(wait=False)
    return True


def _prepare(builder: Any, config: DatasetConfig) -> None:
    folder = config.data_dir or "~/tensorflow_datasets"
    if not _has_network():
        raise UsageError(
            "data_dir",
            folder,
            f"{config.name}, prepared by TFDS, or a network to fetch it",
            _OFFLINE,
        )
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise UsageError(
            config.name,
            None,
            f"the package {error.name}, which TFDS needs to prepare it",
            f"pip install {error.name}",
        ) from None
    except Exception as error:  # TFDS lets through whatever its many parts raise
        raise UsageError(
            "data_dir",
            folder,
            f"{config.name}, prepared by TFDS, or a network ({_first_line(error)})",
            _OFFLINE,
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _keys(builder: Any) -> tuple[str, str]:
    """The features that hold image and label."""
    tfds = _package(builder.name)
    features = builder.info.features
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    candidates = [[key for key in features if isinstance(features[key], kind)] for kind in kinds]
    if not all(candidates):
        raise UsageError("dataset_name", builder.name, "a set with an image and a class label")
    supervised = builder.info.supervised_keys or ()
    image, label = ([key for key in keys if key in supervised] or keys for keys in candidates)
    return str(image[0]), str(label[0])


def _splits(builder: Any) -> dict[str, str]:
    """TFDS' split by the name of ours."""
    existing = [split for split in SPLITS if split in builder.info.splits]
    if builder.name.startswith(_UNLABELED_TEST) and "test" in existing:
        existing.remove("test")
    return split_names.with_shared({split: split for split in existing})


def _stored(builder: Any, split: str) -> Any:
    """What TFDS knows of a split: files, and the number of records in each."""
    tfds = _package(builder.name)
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise UsageError(
            "dataset_name", builder.name, "a set prepared as TFRecord files", "prepare it again"
        )
    return builder.info.splits[_splits(builder)[split]]


def _files(stored: Any) -> list[str]:
    """The record files of a split, without empty ones."""
    paths = zip(stored.filepaths, stored.shard_lengths, strict=True)
    return [str(path) for path, count in paths if count]


def _count_classes(builder: Any, config: DatasetConfig) -> int:
    _, label = _keys(builder)
    classes = (builder.info.features[label].num_classes or 0) - config.label_offset
    if not 0 < classes <= MAX_CLASSES:
        bounds = f"1 to {MAX_CLASSES:,} classes after `label_offset`"
        raise UsageError("dataset_name", builder.name, f"a set of {bounds}; it has {classes}")
    return classes


def describe(config: DatasetConfig) -> DatasetInfo:
    """As `mobilenet.data.describe`, for a TFDS name; the sizes are those that TFDS has stored."""
    builder = _builder(config)
    image, label = _keys(builder)
    _count_classes(builder, config)
    names = tuple(builder.info.features[label].names[config.label_offset :])
    stored = {split: _stored(builder, split) for split in _splits(builder)}
    sizes = {split: sum(one.shard_lengths) for split, one in stored.items()}
    skipped = {}
    if config.skip_corrupt:
        keys = RecordKeys(image, label)
        skipped = {
            split: len(find_damaged(_files(one), keys, config.max_pixels))
            for split, one in stored.items()
        }
        sizes = {split: size - skipped[split] for split, size in sizes.items()}
    own = {split for split, source in _splits(builder).items() if split == source}
    assumed = split_names.assumptions(own, config.name)
    return DatasetInfo(len(names), names, sizes, tuple(sizes), skipped, assumed=assumed)


def open_split(config: DatasetConfig, split: str) -> RecordSplit:
    """As `datasets.open_split`, for a TFDS name."""
    builder = _builder(config)
    splits = _splits(builder)
    if split not in splits:
        raise UsageError("split", split, f"one of {', '.join(splits)} in {config.name}")
    index = record_index.load(_files(_stored(builder, split)))
    keys, classes = RecordKeys(*_keys(builder)), _count_classes(builder, config)
    return without_corrupt(RecordSplit(index, keys, config.label_offset, classes), config)
