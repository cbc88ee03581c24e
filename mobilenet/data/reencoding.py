"""Writes a data set again as record files of small JPEGs, which training reads in less time.

Of a photo of 500x375 pixels or more, most of the time of an epoch is decoding. The records have
ImageNet's keys and labels from 1, so that `tfrecord` reads them with its defaults.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image, JpegImagePlugin

from mobilenet import files, image_files, image_orientation, strict_json
from mobilenet.configs import dataset as dataset_configs
from mobilenet.configs.dataset import MAX_PIXELS, RECORDS, DatasetConfig
from mobilenet.configs.reencoding import ReencodingConfig
from mobilenet.data import corrupt_images, datasets, record_index, record_scan, tfrecord
from mobilenet.data.decoding import decode
from mobilenet.errors import UsageError
from mobilenet.image_files import ImageError

MANIFEST = "manifest.json"
LABELS = "labels.txt"
_FORMAT = 1
_SETTINGS = (  # with which all files of a folder are written
    *("name", "data_dir", "label_offset", "skip_corrupt", "max_pixels", "exif"),
    *("short_side", "quality", "shard_images"),
)
_SEED = 0  # of the order of training images
_JPEG_MODES = ("L", "RGB")
_GAP = 2  # libjpeg reduces to this many times the size, and the resampling does the rest
_AHEAD = 4  # images a thread that are read before they are required

Example = tuple[bytes, int]


@dataclasses.dataclass(frozen=True)
class Shards:
    """The record files of a data set.

    Attributes:
        folder: where they are.
        sizes: images by split, without one that stands in for another.
        files: number of them by split.
        bytes: of them by split.
        written: images that this call re-encoded; the others were there.
    """

    folder: Path
    sizes: dict[str, int]
    files: dict[str, int]
    bytes: dict[str, int]
    written: int


def reencode(
    dataset: DatasetConfig | str,
    output: str | os.PathLike[str],
    config: ReencodingConfig | None = None,
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> Shards:
    """Writes a data set as record files of JPEGs with a small short side.

    Images are turned upright by their EXIF data, and lose it. A JPEG that is small enough and has
    no metadata is copied as it is. Training images are written in random order, so that each file
    has images of all classes; those of records, and held-out images, keep their order.

    A file has its name once it is whole and each of its images was decoded. After a kill the same
    call goes on with the first file that is missing.

    Args:
        dataset: class folders, a list, records or a TFDS set.
        output: the folder to write: new, empty, or begun by the same call.
        config: size and quality of the images.
        on_images: is called with the numbers of images that are written, and of all.

    Raises:
        UsageError: the data set cannot be used or written so, an image is corrupt, or the folder
            holds something else.
    """
    source = dataset_configs.get(dataset) if isinstance(dataset, str) else dataset
    config = config or ReencodingConfig()
    folder = Path(output)
    info = datasets.describe(source)
    _check_source(source, info.multi_label)
    sizes = {split: info.sizes[split] for split in _own_splits(info.splits, info.assumed)}
    stored = {**source.to_json(), **config.to_json(), "data_dir": _absolute(source.data_dir)}
    manifest = {
        "format": _FORMAT,
        "settings": {name: stored[name] for name in _SETTINGS},
        "sizes": sizes,
    }
    _open_folder(folder, manifest, info.labels)
    writer = _Writer(source, folder, config, sum(sizes.values()), on_images)
    for split, size in sizes.items():
        writer.write_split(split, size, info.labels)
    counts = {split: _count(folder, split, size, config) for split, size in sizes.items()}
    files.write_json(folder / MANIFEST, {**manifest, "counts": counts})
    paths = {split: _shards(folder, split, size, config) for split, size in sizes.items()}
    return Shards(
        folder,
        sizes,
        {split: len(own) for split, own in paths.items()},
        {split: sum(path.stat().st_size for path in own) for split, own in paths.items()},
        writer.written,
    )


def _absolute(path: str | None) -> str | None:
    return path if path is None or "://" in path else os.path.abspath(path)


def _check_source(source: DatasetConfig, multi_label: bool) -> None:
    if source.name == "digits":
        expected = "a data set of image files; the digits are part of the package"
        raise UsageError("dataset_name", source.name, expected)
    if multi_label:
        expected = "images with one class each; records have no other labels"
        raise UsageError("data_dir", source.data_dir, expected)


def _own_splits(splits: tuple[str, ...], assumed: Any) -> list[str]:
    """The splits without those for which another stands in; of two equal ones the first."""
    own = [split for split in splits if split not in assumed]
    held_out = [split for split in splits if split != "train"]
    return own if set(own) & set(held_out) else [*own, *held_out[:1]]


def _open_folder(folder: Path, manifest: dict[str, Any], labels: tuple[str, ...]) -> None:
    """Writes manifest and class names, or compares the manifest that is there."""
    path = folder / MANIFEST
    if path.is_file():
        try:
            stored = strict_json.loads(path.read_text(encoding="utf-8"))
            stored.pop("counts", None)
        except (ValueError, AttributeError):
            stored = None
        if stored != json.loads(json.dumps(manifest)):
            expected = "a new folder, or one that the same data and settings began"
            remedy = f"{path} lists its own; choose another folder, or remove this one"
            raise UsageError("output", str(folder), expected, remedy)
        return
    if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise UsageError("output", str(folder), "a new or empty folder")
    files.write_text(folder / LABELS, "".join(f"{name}\n" for name in labels))
    files.write_json(path, manifest)


def _shards(folder: Path, split: str, size: int, config: ReencodingConfig) -> list[Path]:
    count = -(-size // config.shard_images)
    return [folder / f"{split}-{number:05d}-of-{count:05d}" for number in range(count)]


def _count(folder: Path, split: str, size: int, config: ReencodingConfig) -> list[int]:
    """The records in each file of a split, by the index that the reader uses, which is made here.

    Raises:
        UsageError: a file is damaged, or has another number than was written.
    """
    paths = _shards(folder, split, size, config)
    counts: list[int] = record_index.load([str(path) for path in paths]).counts.tolist()
    for path, numbers, count in zip(paths, _numbers(size, config), counts, strict=True):
        if count != len(numbers):
            expected = f"{len(numbers)} records, as were written; it has {count}"
            raise UsageError(str(path), None, expected, "remove it, and give the command again")
    return counts


def _numbers(size: int, config: ReencodingConfig) -> list[range]:
    """The positions of the images of each file."""
    step = config.shard_images
    return [range(begin, min(begin + step, size)) for begin in range(0, size, step)]


class _Writer:
    """Writes the files of a data set that are not there."""

    def __init__(
        self,
        source: DatasetConfig,
        folder: Path,
        config: ReencodingConfig,
        total: int,
        on_images: Callable[[int, int], None],
    ) -> None:
        self.source, self.folder, self.config, self.total = source, folder, config, total
        self.on_images = on_images
        self.done = self.written = 0

    def write_split(self, split: str, size: int, labels: tuple[str, ...]) -> None:
        paths = _shards(self.folder, split, size, self.config)
        missing = [not path.is_file() for path in paths]
        if any(missing):
            opened = datasets.open_split(self.source, split)
            order = _order(opened, split)
        for path, numbers, is_missing in zip(
            paths, _numbers(size, self.config), missing, strict=True
        ):
            if is_missing:
                self._write(path, split, opened, order[numbers.start : numbers.stop], labels)
            else:
                self._advance(len(numbers))

    def _advance(self, count: int) -> None:
        self.done += count
        self.on_images(self.done, self.total)

    def _write(
        self,
        path: Path,
        split: str,
        opened: Any,
        numbers: npt.NDArray[np.int64],
        labels: tuple[str, ...],
    ) -> None:
        with files.replacing(path) as temporary:
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                for encoded, label in self._reencoded(split, opened, numbers):
                    writer.write(_record(encoded, label, labels[label]))
                    self.written += 1
                    self._advance(1)
            _verify(temporary, len(numbers))

    def _reencoded(
        self, split: str, opened: Any, numbers: npt.NDArray[np.int64]
    ) -> Iterator[Example]:
        """The images with these numbers, re-encoded by several threads, and their classes."""
        threads = self.config.threads or os.cpu_count() or 1

        def name(position: int) -> str:
            number = int(numbers[position])
            if isinstance(opened, datasets.FileSplit):
                return str(opened.files.path(number))
            return f"{self.source.data_dir} {split} image {number}"

        def reencoded(item: tuple[int, Example]) -> Example:
            position, (content, label) = item
            try:
                return reencode_image(content, self.config, self.source), label
            except ImageError as error:
                raise corrupt_images.corrupt_error([name(position)], error) from None

        with ThreadPoolExecutor(threads) as pool:
            items = enumerate(self._read(split, opened, numbers))
            yield from _in_order(pool, reencoded, items, _AHEAD * threads)

    def _read(self, split: str, opened: Any, numbers: npt.NDArray[np.int64]) -> Iterator[Example]:
        examples = opened.items(numbers).map(opened.read, tf.data.AUTOTUNE, deterministic=True)
        try:
            for encoded, label in examples.prefetch(_AHEAD).as_numpy_iterator():
                yield encoded, int(label)
        except corrupt_images.ERRORS as error:
            raise (datasets.explain(error, self.source, split) or error) from None


def _order(opened: Any, split: str) -> npt.NDArray[np.int64]:
    """The numbers of a split's images in the order in which they are written."""
    if split != "train" or isinstance(opened, tfrecord.RecordSplit):
        return np.arange(opened.size)
    return np.random.default_rng(_SEED).permutation(opened.size)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """The results of a function in the order of its items, of which few are in memory."""
    running: collections.deque[Future[Any]] = collections.deque()
    source = iter(items)
    try:
        for item in itertools.islice(source, ahead):
            running.append(pool.submit(function, item))
        while running:
            yield running.popleft().result()
            for item in itertools.islice(source, 1):
                running.append(pool.submit(function, item))
    finally:
        for future in running:
            future.cancel()


def reencode_image(content: bytes, config: ReencodingConfig, source: DatasetConfig) -> bytes:
    """An image file as a JPEG whose short side is at most `short_side`, upright, without metadata.

    Raises:
        ImageError: it cannot be decoded, or has more pixels than the data set's `max_pixels`.
    """
    if _is_final(content, config, source.max_pixels):
        return content
    image = _decoded(content, config, source.max_pixels)
    width, height = image.size
    scale = config.short_side / min(width, height)
    if scale < 1:
        size = max(round(scale * width), 1), max(round(scale * height), 1)
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(image)  # which leaves comments and all other metadata behind
    if source.exif is not False:
        pixels = image_orientation.turn(pixels, image_orientation.read(content))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=config.quality)
    return buffer.getvalue()


def _is_final(content: bytes, config: ReencodingConfig, max_pixels: int) -> bool:
    """Whether an image is a JPEG already that is small, and has no metadata."""
    kind, _ = image_files.check_content(content, max_pixels)
    if kind != "JPEG" or not image_orientation.is_bare_jpeg(content):
        return False
    with JpegImagePlugin.JpegImageFile(io.BytesIO(content)) as image:
        return min(image.size) <= config.short_side and image.mode in _JPEG_MODES


def _decoded(content: bytes, config: ReencodingConfig, max_pixels: int) -> Image.Image:
    """RGB or gray pixels as they are stored, of a large JPEG at an eighth to half of its sides.

    Pillow reads JPEGs; what has a palette, transparency or four colors becomes RGB as in training.
    """
    if content[:2] == b"\xff\xd8":
        image = image_files.decode(content, max_pixels, short_side=_GAP * config.short_side)
        if image.mode in _JPEG_MODES:
            return image
    try:
        return Image.fromarray(_decoder(max_pixels)(content).numpy())
    except corrupt_images.ERRORS:
        raise ImageError("damaged data") from None


@functools.cache
def _decoder(max_pixels: int) -> Callable[[bytes], tf.Tensor]:
    traced: Callable[[bytes], tf.Tensor] = tf.function(
        lambda encoded: decode(encoded, 3, max_pixels, exif=False),
        input_signature=[tf.TensorSpec([], tf.string)],
    )
    return traced


def _record(encoded: bytes, label: int, name: str) -> bytes:
    def feature(kind: str, message: Any, value: Any) -> Any:
        return tf.train.Feature(**{kind: message(value=[value])})

    features = {
        record_scan.IMAGE: feature("bytes_list", tf.train.BytesList, encoded),
        record_scan.LABEL: feature("int64_list", tf.train.Int64List, label + RECORDS.label_offset),
        record_scan.TEXT: feature("bytes_list", tf.train.BytesList, name.encode()),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    content: bytes = example.SerializeToString(deterministic=True)
    return content


def _verify(path: Path, expected: int) -> None:
    """Reads a file as training does, and decodes each image.

    Raises:
        UsageError: a checksum or an image is wrong, or a record is missing.
    """
    index = record_index.load([str(path)])
    bad = record_scan.find_damaged([str(path)], record_scan.RecordKeys(), MAX_PIXELS)
    if bad or index.size != expected:
        expected_text = f"{expected} images that can be decoded; {index.size} were written"
        raise UsageError(str(path), bad[0].name if bad else None, expected_text)
