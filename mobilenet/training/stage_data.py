"""What a report shows of a stage beyond its figures: scored test images, and the values of kernels.

Small files in the run folder, written when a stage is scored and read without TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet import archives, files, image_files, strict_json
from mobilenet.errors import UsageError
from mobilenet.typing import Array, Float32Array, IntArray

log = logging.getLogger("mobilenet")
FOLDER = "report_data"
START = "start"  # stands for a stage: the weights that the first one starts from
_SCORED, _KERNELS = "scored_images.npz", "kernels.json"
# TensorFlow's ram:// lists a file whose name begins with that of a folder next to it, such as a
# stage, as if it were in that folder.
_TRAINING = "augmented_images"
_COLUMNS = 8  # of a contact sheet
_SMALL = 48  # pixels; up to this side a sheet is lossless
_QUALITY = 85  # of a JPEG
_REMEDY = "run the stage again, or remove the file"

Pixels = npt.NDArray[np.uint8]


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """An error inside becomes a warning: a report is no reason to end a run."""
    try:
        yield
    except Exception as error:  # whatever the libraries raise
        log.warning("%s is left out of the report: %s", what, " ".join(str(error).split()))


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredImages:
    """What a model gave for the test images, in the order of the data.

    Attributes:
        labels: class indices `[images]`; of several labels an image 0 or 1, `[images, labels]`.
        predictions: of the likeliest class; of several labels an image which are likely.
        probabilities: float32, that of `predictions`; of several labels that each is there.
        margins: float32 `[images]`, the difference of the two highest probabilities; of several
            labels the distance of their probabilities from 0.5, on average.
        losses: float32 `[images]`, the cross entropy of each.
        worst: indices of the images of the highest loss, the highest first.
        uncertain: indices of the images of the smallest margin, the smallest first.
        pixels: uint8 `[worst and uncertain, height, width, channels]`, reduced.
        names: of the files of the worst and the uncertain images, relative to the folder of the
            data; none of images that are no files.
    """

    labels: IntArray
    predictions: IntArray
    probabilities: Float32Array
    margins: Float32Array
    losses: Float32Array
    worst: IntArray
    uncertain: IntArray
    pixels: Pixels
    names: tuple[str, ...] = ()

    @property
    def has_several_labels(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.labels.ndim == 2

    @property
    def shown(self) -> list[int]:
        """Indices of the worst and of the uncertain images, in the order of `pixels`."""
        return [*self.worst.tolist(), *self.uncertain.tolist()]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The values of one kernel.

    Attributes:
        layer, role: of the kernel.
        weights, zeros: number of values, and of those that are zero.
        outputs, zero_outputs: channels, and those whose weights are all zero.
        low, high: of the values that are not zero.
        counts: of those values in bins of equal width from `low` to `high`.
    """

    layer: str
    role: str
    weights: int
    zeros: int
    outputs: int
    zero_outputs: int
    low: float
    high: float
    counts: tuple[int, ...]

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return self.zeros / max(self.weights, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingImages:
    """Training images as the model sees them.

    Attributes:
        pixels: uint8 `[images, height, width, channels]`, reduced.
        labels: class indices `[images]`, or `[images, labels]` of 0 and 1; of mixed images floats,
            the shares of the classes, of two classes with one output `[images]`.
    """

    pixels: Pixels
    labels: Array


def folder_of(run: Path, stage: str) -> Path:
    """Where the files of a stage are."""
    return run / FOLDER / stage


def save_scored(run: Path, stage: str, scored: ScoredImages) -> None:
    """Writes the scored images of a stage: an `.npz` file, and a contact sheet next to it.

    Raises:
        UsageError: they cannot be written.
    """
    fields = dataclasses.asdict(scored)
    pixels = fields.pop("pixels")
    _save_sheet(folder_of(run, stage) / "scored_images", pixels)
    fields["sheet"] = np.asarray(pixels.shape, np.int64)
    fields["names"] = np.asarray(scored.names, np.str_)
    with files.replacing(folder_of(run, stage) / _SCORED) as temporary:
        np.savez_compressed(temporary, **fields)


def load_scored(run: Path, stage: str) -> ScoredImages | None:
    """The scored images of a stage; `None` if they were not recorded.

    Raises:
        UsageError: a file is damaged.
    """
    path = folder_of(run, stage) / _SCORED
    if not path.is_file():
        return None
    what = "the scored test images of a stage"
    arrays = archives.load_npz(path, what, _REMEDY)
    try:
        shape = tuple(arrays.pop("sheet").tolist())
        pixels = _load_sheet(folder_of(run, stage) / "scored_images", shape)
        names = tuple(map(str, arrays.pop("names").tolist()))
        scored = ScoredImages(**arrays, pixels=pixels, names=names)
        _check_scored(scored)
        return scored
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UsageError(str(path), None, f"{what} ({error})", _REMEDY) from None


def save_kernels(run: Path, stage: str, kernels: list[Kernel]) -> None:
    """Writes the values of a stage's kernels.

    Raises:
        UsageError: they cannot be written.
    """
    rows = [dataclasses.asdict(kernel) for kernel in kernels]
    files.write_json(folder_of(run, stage) / _KERNELS, {"kernels": rows})


def load_kernels(run: Path, stage: str) -> list[Kernel]:
    """The values of a stage's kernels; none if they were not recorded.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder_of(run, stage) / _KERNELS
    if not path.is_file():
        return []
    what = "the kernels of a stage"
    rows = strict_json.read_object(path, what).get("kernels")
    try:
        return [_kernel(row) for row in rows]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise UsageError(str(path), None, what, _REMEDY) from None


def save_training_images(run: Path, images: TrainingImages) -> Path:
    """Writes training images and their labels.

    Returns:
        The path of the picture.

    Raises:
        UsageError: they cannot be written.
    """
    picture = _save_sheet(run / FOLDER / _TRAINING, images.pixels)
    content = {"sheet": list(images.pixels.shape), "labels": images.labels.tolist()}
    files.write_json(run / FOLDER / f"{_TRAINING}.json", content)
    return picture


def has_training_images(run: Path) -> bool:
    """Whether training images were recorded."""
    return (run / FOLDER / f"{_TRAINING}.json").is_file()


def load_training_images(run: Path) -> TrainingImages | None:
    """The training images; `None` if they were not recorded.

    Raises:
        UsageError: a file is damaged.
    """
    path = run / FOLDER / f"{_TRAINING}.json"
    if not path.is_file():
        return None
    what = "the training images of a run"
    content = strict_json.read_object(path, what)
    try:
        pixels = _load_sheet(run / FOLDER / _TRAINING, tuple(content["sheet"]))
        labels = np.asarray(content["labels"])
        _check(labels.dtype.kind in "iuf" and len(labels) == len(pixels), "labels")
        return TrainingImages(pixels, labels)
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(str(path), None, f"{what} ({error})", _REMEDY) from None


def is_small(pixels: Pixels) -> bool:
    """Whether an image, or several, has so few pixels that each of them is to be seen."""
    height, width = pixels.shape[-3:-1]
    return bool(max(height, width) <= _SMALL)


def encoded(pixels: Pixels) -> tuple[str, bytes]:
    """One image as a file: its media type and content.

    Args:
        pixels: uint8 `[height, width, channels]`.
    """
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    content = io.BytesIO()
    if is_small(pixels):
        image.save(content, "PNG", optimize=True)
        return "image/png", content.getvalue()
    image.save(content, "JPEG", quality=_QUALITY)
    return "image/jpeg", content.getvalue()


def _save_sheet(stem: Path, pixels: Pixels) -> Path:
    """Writes images side by side as `stem.png`, or `stem.jpg` of larger ones; returns the path."""
    count, height, width, channels = pixels.shape
    rows = -(-count // _COLUMNS)
    sheet = np.zeros((rows * _COLUMNS, height, width, channels), np.uint8)
    sheet[:count] = pixels
    grid = sheet.reshape(rows, _COLUMNS, height, width, channels).swapaxes(1, 2)
    whole = grid.reshape(rows * height, _COLUMNS * width, channels)
    from PIL import Image

    lossless = is_small(pixels)
    image = Image.fromarray(whole[..., 0] if channels == 1 else whole)
    content = io.BytesIO()
    image.save(content, "PNG" if lossless else "JPEG", quality=_QUALITY)
    path = stem.with_suffix(".png" if lossless else ".jpg")
    files.write_bytes(path, content.getvalue())
    return path


def _load_sheet(stem: Path, shape: tuple[int, ...]) -> Pixels:
    """The images of a sheet.

    Raises:
        ValueError: it is damaged, or has another shape.
    """
    _check(len(shape) == 4 and all(type(n) is int and 0 < n < 1000 for n in shape), "shape")
    count, height, width, channels = shape
    suffix = ".png" if max(height, width) <= _SMALL else ".jpg"
    try:
        image = image_files.decode(image_files.read(stem.with_suffix(suffix)))
    except OSError as error:
        raise ValueError(error.strerror) from None
    whole = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    rows = -(-count // _COLUMNS)
    _check(whole.shape[:2] == (rows * height, _COLUMNS * width), "size of the sheet")
    grid = whole.reshape(rows, height, _COLUMNS, width, channels).swapaxes(1, 2)
    images: Pixels = grid.reshape(rows * _COLUMNS, height, width, channels)[:count]
    return images


def _check(is_right: bool, what: str) -> None:
    if not is_right:
        raise ValueError(what)


def _check_scored(scored: ScoredImages) -> None:
    count = len(scored.labels)
    _check(scored.labels.ndim in (1, 2) and count > 0, "labels")
    for name in ("labels", "predictions", "probabilities"):
        _check(getattr(scored, name).shape == scored.labels.shape, name)
    for name in ("margins", "losses"):
        _check(getattr(scored, name).shape == (count,), name)
    for name in ("labels", "predictions", "worst", "uncertain"):
        values: Array = getattr(scored, name)
        _check(values.dtype.kind in "iub" and not (values.size and values.min() < 0), name)
    shown = scored.shown
    _check(all(index < count for index in shown) and len(shown) == len(scored.pixels), "indices")
    _check(len(scored.names) in (0, len(shown)), "names")
    for name in ("probabilities", "margins", "losses"):
        _check(bool(np.isfinite(getattr(scored, name)).all()), name)


def _kernel(row: Mapping[str, Any]) -> Kernel:
    kernel = Kernel(**{**row, "counts": tuple(row["counts"])})
    whole = (kernel.weights, kernel.zeros, kernel.outputs, kernel.zero_outputs, *kernel.counts)
    _check(all(type(value) is int and value >= 0 for value in whole), "counts")
    _check(kernel.zeros <= kernel.weights, "zeros")
    _check(all(type(value) in (int, float) for value in (kernel.low, kernel.high)), "bounds")
    _check(isinstance(kernel.layer, str) and isinstance(kernel.role, str), "names")
    return kernel
