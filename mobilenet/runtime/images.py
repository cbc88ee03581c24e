"""Preprocessing of images with Pillow and numpy, equal to TensorFlow's own operators.

Crops and resizing follow `tf.image.central_crop`, `tf.image.resize(..., "bilinear",
antialias=False)` and `official/vision/image_classification/preprocessing.py` of tensorflow/models
to the pixel. Antialiased filters are Pillow's own.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenet import image_files, image_orientation
from mobilenet.configs.dataset import (
    ANTIALIASED_BICUBIC,
    BILINEAR,
    MAX_PIXELS,
    Preprocessing,
)
from mobilenet.errors import UsageError
from mobilenet.typing import Float32Array

_CROP_PADDING = 32  # of the square crop: side = min(H, W) * size / (size + 32)

Pixels = npt.NDArray[np.uint8]
Size = int | tuple[int, int]


def decode(
    path: str | os.PathLike[str],
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    exif: bool = True,
) -> Pixels:
    """Reads a JPEG, PNG, BMP, GIF (its first frame) or WebP as `[height, width, channels]`.

    Gray is repeated, CMYK and palettes become RGB, transparency is dropped, and 16 bits are reduced
    to the upper 8. `mobilenet.data` reads the same formats (`mobilenet.image_files`).

    Args:
        path: the file.
        channels: 3 (RGB) or 1 (luma; of a JPEG, the stored one).
        max_pixels: an image of more, as its header states, is refused before it is decoded.
        exif: turn the image upright, by the orientation in its EXIF data.

    Raises:
        UsageError: the file is missing, is no image of these formats, has too many pixels, or is
            corrupt or cut off.
    """
    if not Path(path).is_file():
        raise UsageError(str(path), None, "an image file; there is none")
    try:
        content = image_files.read(path)
        with image_files.decode(content, max_pixels, "L" if channels == 1 else None) as image:
            pixels = _pixels(image, channels)
        return image_orientation.turn(pixels, image_orientation.read(content)) if exif else pixels
    except image_files.ImageError as error:
        raise image_files.refused([str(path)], error) from None


def _pixels(image: Image.Image, channels: int) -> Pixels:
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], channels, axis=2)
    if channels == 1:
        return np.array(image.convert("L"))[:, :, None]
    if image.mode in (
        "RGBA",
        "RGBa",
        "LA",
        "La",
    ):  # the colors as stored: no blending with a background
        colors = np.asarray(image)[:, :, :-1]
        return np.ascontiguousarray(np.broadcast_to(colors, (*colors.shape[:2], 3)))
    return np.array(image.convert("RGB"))


def crop_box(
    height: int, width: int, preprocessing: Preprocessing, size: Size
) -> tuple[int, int, int, int]:
    """Top, left, height and width of the crop of an image."""
    if preprocessing.crop == "none":
        return 0, 0, height, width
    if preprocessing.crop == "central":
        top, left = (
            int((side - side * preprocessing.crop_fraction) / 2) for side in (height, width)
        )
        return top, left, height - 2 * top, width - 2 * left
    target = size if isinstance(size, int) else min(size)
    share = np.float32(target / (target + _CROP_PADDING))
    side = max(1, int(share * np.float32(min(height, width))))
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def center_window(
    height: int, width: int, share: float, size: Size
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sides of an image after its resize, and the corner of its centered part of `size`.

    As timm and torchvision round them: the shorter side becomes `size / share`, rounded down, the
    other in proportion.

    Args:
        height, width: of the image.
        share: of the shorter side that remains.
        size: of the result.
    """
    target = (size, size) if isinstance(size, int) else size
    least = [int(side / share) for side in target]
    if height * least[1] >= width * least[0]:
        resized = least[1] * height // width, least[1]
    else:
        resized = least[0], least[0] * width // height
    rest = [max(0, side - inner) for side, inner in zip(resized, target, strict=True)]
    top, left = (round(side / 2) for side in rest)  # of halves to the even number
    return resized, (top, left)


def _taps(
    length: int, size: int, resized: int, corner: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Float32Array]:
    """Along a side: the two neighbors of each output pixel, the weight of the second."""
    scale = np.float32(length) / np.float32(resized)
    position = np.arange(corner, corner + size, dtype=np.float32) + np.float32(0.5)
    position = position * scale - np.float32(0.5)
    floor = np.floor(position)
    lower = np.maximum(floor, 0).astype(np.intp)
    upper = np.minimum(np.ceil(position), length - 1).astype(np.intp)
    return lower, np.maximum(upper, 0), (position - floor).astype(np.float32)


def resize(
    image: npt.NDArray[np.generic],
    size: Size,
    window: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> Float32Array:
    """Bilinear, half-pixel centers, not antialiased: `[H, W, C]` to `[height, width, C]`.

    Args:
        image: pixels.
        size: of the result.
        window: cuts it out of a larger image: the sides of that, and the corner in it.
    """
    height, width = (size, size) if isinstance(size, int) else size
    resized, corner = ((height, width), (0, 0)) if window is None else window
    if image.shape[:2] == (height, width) == resized:
        return image.astype(np.float32)
    top, bottom, down = _taps(image.shape[0], height, resized[0], corner[0])
    left, right, across = _taps(image.shape[1], width, resized[1], corner[1])
    share = across[None, :, None]

    def row(rows: npt.NDArray[np.intp]) -> Float32Array:
        lines = image[rows]
        first = lines[:, left].astype(np.float32)
        mixed: Float32Array = first + (lines[:, right].astype(np.float32) - first) * share
        return mixed

    above = row(top)
    out: Float32Array = above + (row(bottom) - above) * down[:, None, None]
    return out


def _resize_by_pillow(
    image: npt.NDArray[np.generic],
    interpolation: str,
    size: Size,
    window: tuple[tuple[int, int], tuple[int, int]] | None,
) -> Float32Array:
    """As `resize`, by one of Pillow's filters; pixels of 8 bits are rounded, as Pillow does.

    Across, then down: which of them Pillow does first depends on its version and the sides.
    """
    target = (size, size) if isinstance(size, int) else size
    (high, wide), (top, left) = (target, (0, 0)) if window is None else window
    (height, width), down, across = target, image.shape[0] / high, image.shape[1] / wide
    rows = top * down, min((top + height) * down, image.shape[0])
    columns = left * across, min((left + width) * across, image.shape[1])
    is_cubic = interpolation == ANTIALIASED_BICUBIC
    how = Image.Resampling.BICUBIC if is_cubic else Image.Resampling.BILINEAR

    def resized(band: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        picture = Image.fromarray(np.ascontiguousarray(band, kind))
        box = columns[0], 0, columns[1], band.shape[0]
        picture = picture.resize((width, band.shape[0]), how, box)
        return np.asarray(picture.resize((width, height), how, (0, rows[0], width, rows[1])))

    kind = np.uint8 if image.dtype == np.uint8 else np.float32
    bands = [resized(band) for band in np.moveaxis(image, 2, 0)]
    return np.clip(np.stack(bands, axis=-1), 0, 255).astype(np.float32)


def preprocess(
    image: npt.NDArray[np.generic], preprocessing: Preprocessing, size: Size
) -> Float32Array:
    """Crops and resizes pixels `[H, W, C]` to float32 `[height, width, C]`, still 0..255."""
    window = None
    if preprocessing.crop == "center":
        height, width = image.shape[:2]
        window = center_window(height, width, preprocessing.crop_fraction, size)
    else:
        top, left, height, width = crop_box(image.shape[0], image.shape[1], preprocessing, size)
        image = image[top : top + height, left : left + width]
    if preprocessing.interpolation == BILINEAR:
        return resize(image, size, window)
    return _resize_by_pillow(image, preprocessing.interpolation, size, window)


def normalize(pixels: npt.NDArray[np.generic], preprocessing: Preprocessing) -> Float32Array:
    """`(pixel - mean) / std`, per channel where there are several."""
    mean, std = (np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    return (pixels.astype(np.float32) - mean) / std
