"""The images that ranges are taken from: a training split, a list, or a folder without classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilenet import data
from mobilenet.compression.quantization.int8.calibration import MIN_IMAGES, check_images
from mobilenet.configs import dataset as datasets
from mobilenet.configs.dataset import DatasetConfig, Preprocessing
from mobilenet.data import arrays
from mobilenet.errors import UsageError

_FOLDERS = ("image_folder", "image_files", "image_list")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Images to calibrate on.

    Attributes:
        images: `[n, height, width, channels]`, preprocessed as the model takes them.
        source: where they are from, in words.
    """

    images: npt.NDArray[np.float32]
    source: str

    @property
    def summary(self) -> str:
        """Their number and source."""
        return f"{len(self.images)} images of {self.source}"


def load(
    name: str | None,
    place: str | None,
    default: DatasetConfig,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    limit: int = 200,
) -> Calibration:
    """Reads calibration images, without their labels.

    Args:
        name: `--calibration_dataset`; `None` takes what lies at `place`. A path will do as well.
        place: `--calibration_dir`: what `--data_dir` is to a data set, or a folder of images
            without classes. Of data without a training split all images are taken.
        default: the data set of the command, whose training split is taken where neither is given.
        shape: `(height, width, channels)` of the model.
        preprocessing: that of the model.
        limit: at most so many images, spread evenly.

    Raises:
        UsageError: there are no or too few images, one is corrupt, or they cannot be a model's
            inputs (see `check_images`).
    """
    if place is None and name is not None and name not in datasets.KNOWN and Path(name).exists():
        name, place = None, name
    chosen = _dataset(name, place, default)
    try:
        info = data.describe(chosen)
        split = "train" if info.sizes.get("train") else "test"
        if split == "test" and place is None:
            raise UsageError(
                "--calibration_dir",
                None,
                f"images to calibrate on; {chosen.name} has no training split",
                "give a folder of photos, or a list",
            )
        images = arrays.load_images(chosen, split, shape, preprocessing, limit)
    except UsageError as error:
        if error.what != "--data_dir" or place is None:
            raise
        raise UsageError("--calibration_dir", error.got, error.expected, error.remedy) from None
    where = place or chosen.data_dir or chosen.name
    if len(images) < MIN_IMAGES:
        count = f"{len(images)} images"
        raise UsageError(
            "--calibration_images", count, f"at least {MIN_IMAGES}; {where} has no more"
        )
    check_images(images, preprocessing)
    return Calibration(images, str(where))


def _dataset(name: str | None, place: str | None, default: DatasetConfig) -> DatasetConfig:
    """The data set that was asked for, by its name or by what lies at its place."""
    if place is None:
        return default if name is None else datasets.get(name)
    if name is None or name in _FOLDERS:
        name = _kind(Path(place))
    return datasets.get(name).replace(data_dir=place)


def _kind(place: Path) -> str:
    """A list is a file; a folder that holds images itself has no classes."""
    if place.is_file():
        return "image_list"
    try:
        children = [child for child in place.iterdir() if not child.name.startswith((".", "__"))]
    except OSError:  # told by what reads the folder
        children = []
    return "image_folder" if any(child.is_dir() for child in children) else "image_files"
