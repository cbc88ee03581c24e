"""Calibration images: of a training split, a list, or a folder without classes."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilenet import data
from mobilenet.compression.quantization.int8.calibration import (
    CALIBRATION,
    MIN_IMAGES,
    check_images,
)
from mobilenet.configs import dataset as datasets
from mobilenet.configs.dataset import DatasetConfig, Preprocessing
from mobilenet.data import arrays
from mobilenet.errors import UsageError

log = logging.getLogger("mobilenet")
_FOLDERS = ("image_folder", "image_files", "image_list")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Images to calibrate on.

    Attributes:
        images: `[n, height, width, channels]`, preprocessed for the model.
        source: where they are from; empty where that is not known.
    """

    images: npt.NDArray[np.float32]
    source: str

    @property
    def summary(self) -> str:
        """Their number and source."""
        return f"{len(self.images)} images" + (f" of {self.source}" if self.source else "")


def require_calibration(calibration: Calibration | None, number_format: str | None) -> Calibration:
    """The calibration of a number format that takes activation ranges.

    Raises:
        UsageError: there is none.
    """
    if calibration is None:
        raise UsageError(CALIBRATION, None, f"images, as {number_format} takes ranges")
    return calibration


def load_calibration(
    name: str | None,
    directory: str | None,
    default: DatasetConfig,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    limit: int = 200,
) -> Calibration:
    """Reads calibration images, without their labels.

    Args:
        name: of the data set; `None` takes the data at `directory`. May be a path.
        directory: the `data_dir` of the data set, or a folder of images
            without classes. All images are used where there is no training split.
        default: the data set of the command, whose training split is used if neither is given.
        shape: `(height, width, channels)` of the model.
        preprocessing: that of the model.
        limit: maximum number of images, sampled evenly.

    Raises:
        UsageError: there are no or too few images, one is corrupt, or they cannot be a model's
            inputs (see `check_images`).
    """
    if (
        directory is None
        and name is not None
        and name not in datasets.KNOWN
        and Path(name).exists()
    ):
        name, directory = None, name
    chosen = _dataset(name, directory, default)
    try:
        info = data.describe(chosen)
        for note in info.notes:
            log.info("%s", note)
        split = "train" if info.sizes.get("train") else "test"
        if split == "test" and directory is None:
            raise UsageError(
                "calibration_dir",
                None,
                f"images to calibrate on; {chosen.name} has no training split",
                "give a folder of photos, or a list",
            )
        images = arrays.load_images(chosen, split, shape, preprocessing, limit)
    except UsageError as error:
        if error.what != "data_dir" or directory is None:
            raise
        raise UsageError("calibration_dir", error.got, error.expected, error.remedy) from None
    location = directory or chosen.data_dir or chosen.name
    if len(images) < MIN_IMAGES:
        count = f"{len(images)} images"
        raise UsageError(
            "calibration_images", count, f"at least {MIN_IMAGES}; {location} has no more"
        )
    check_images(images, preprocessing, CALIBRATION)
    return Calibration(images, str(location))


def _dataset(name: str | None, directory: str | None, default: DatasetConfig) -> DatasetConfig:
    """The data set of that name, or of the kind found at the directory."""
    if directory is None:
        return default if name is None else datasets.get(name)
    if name is None or name in _FOLDERS:
        name = _kind(Path(directory))
    return datasets.get(name).replace(data_dir=directory)


def _kind(directory: Path) -> str:
    """A list is a file; a folder that holds images itself has no classes."""
    if directory.is_file():
        return "image_list"
    try:
        children = [
            child for child in directory.iterdir() if not child.name.startswith((".", "__"))
        ]
    except OSError:  # reported by the reader of the folder
        children = []
    return "image_folder" if any(child.is_dir() for child in children) else "image_files"
