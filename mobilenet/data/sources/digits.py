"""The embedded data set: 1,797 real handwritten digits, 8x8, with a fixed split.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository (1998), https://doi.org/10.24432/C50P49, licence CC BY 4.0; the part and the scaling that
scikit-learn's `load_digits` gives. `digits.npz` holds the images, the labels and the split;
TensorFlow is not needed to read it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from importlib import resources

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError, one_of

SIDE = 8
LEVELS = 16  # a value of 16 is a fully inked cell
SPLITS = ("train", "validation", "test")
LABELS = tuple("0123456789")

_HALF = 0.5 + 1e-6  # halves go up on every machine, whatever the last bit of a matrix product

UInt8 = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Digits:
    """All digits, in scikit-learn's order.

    Attributes:
        images: `[1797, 8, 8]` ink in each cell, 0 to 16, white on black.
        labels: `[1797]` the digit, 0 to 9.
        split: `[1797]` 0 train (1,257), 1 validation (180), 2 test (360); stratified by label.
    """

    images: UInt8
    labels: UInt8
    split: UInt8

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Indices of the digits of a split (`train`, `validation` or `test`), ascending.

        Raises:
            UsageError: there is no such split.
        """
        one_of("split", split, SPLITS)
        indices: npt.NDArray[np.int64] = np.flatnonzero(self.split == SPLITS.index(split))
        return indices

    def image(self, index: int, size: int | tuple[int, int], channels: int = 3) -> UInt8:
        """One digit as an image `[height, width, channels]`; see `enlarge`."""
        drawn: UInt8 = enlarge(self.images[index : index + 1], size, channels)[0]
        return drawn


def load(data_dir: str | os.PathLike[str] | None = None) -> Digits:
    """Reads the embedded digits (46 kB, a few milliseconds).

    Args:
        data_dir: the setting of other data sets; must be `None`.

    Raises:
        UsageError: `data_dir` is set, so that another data set is meant.
    """
    if data_dir is not None:
        raise UsageError(
            "data_dir",
            os.fspath(data_dir),
            "none with the digits, which are part of the package",
            "name the data set there: `dataset_name=image_folder`, image_list or tfrecord",
        )
    path = resources.files("mobilenet").joinpath("digits.npz")
    with path.open("rb") as file, np.load(file) as arrays:
        return Digits(arrays["images"], arrays["labels"], arrays["split"])


def interpolation(size: int) -> npt.NDArray[np.float64]:
    """The `[size, 8]` matrix that resizes a digit: bilinear, half-pixel centers, clamped edges.

    The matrix product with an image equals `tf.image.resize(..., "bilinear", antialias=False)`.
    """
    if size < 1:
        raise UsageError("image size", size, "a whole number of at least 1")
    centers = np.clip((np.arange(size) + 0.5) * SIDE / size - 0.5, 0, SIDE - 1)
    below = np.minimum(np.floor(centers).astype(int), SIDE - 2)
    share = centers - below
    matrix = np.zeros((size, SIDE))
    rows = np.arange(size)
    matrix[rows, below] = 1 - share
    matrix[rows, below + 1] = share
    return matrix


def enlarge(cells: UInt8, size: int | Sequence[int], channels: int = 3) -> UInt8:
    """Turns digits `[n, 8, 8]` of 0..16 into images `[n, height, width, channels]` of 0..255.

    The one definition of how a digit becomes an image: `round(255 / 16 * bilinear(cells))`, the
    same in each channel.

    Args:
        cells: ink, 0 to 16.
        size: side in pixels, or `(height, width)`.
        channels: 3 or 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = interpolation(height), interpolation(width)
    ink = rows @ (cells.astype(np.float64) @ columns.T)
    pixels: UInt8 = np.floor(ink * (255 / LEVELS) + _HALF).astype(np.uint8)
    return np.repeat(pixels[..., None], channels, axis=-1)
