"""timm's evaluation transform, with Pillow's filters, in the runtime and in TensorFlow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from mobilenet.configs.dataset import (
    ANTIALIASED_BICUBIC,
    ANTIALIASED_BILINEAR,
    BILINEAR,
    Preprocessing,
)
from mobilenet.runtime import images

PILLOW = {
    ANTIALIASED_BILINEAR: Image.Resampling.BILINEAR,
    ANTIALIASED_BICUBIC: Image.Resampling.BICUBIC,
}
CASES = [  # height and width, size, share
    ((375, 500), 224, 0.875),
    ((501, 333), 224, 0.95),
    ((97, 64), 96, 0.9),
    ((64, 64), 64, 1.0),
    ((33, 121), 32, 0.875),
    ((240, 320), 65, 0.875),
]


def photo_like(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth colors with edges and noise."""
    noise = np.random.default_rng(0).normal(0, 12, (height, width, channels))
    y, x = np.mgrid[:height, :width]
    base = 128 + 90 * np.sin(x / 11 + y / 17) + 60 * ((x // 23 + y // 19) % 2)
    return np.clip(base[..., None] + noise, 0, 255).astype(np.uint8)


def timms(image: np.ndarray, size: int, share: float, how: Image.Resampling) -> np.ndarray:
    """`Resize(int(size / share))` and `CenterCrop(size)` of torchvision on a Pillow image."""
    picture = Image.fromarray(image)
    width, height = picture.size
    scaled = math.floor(size / share)
    short, long = sorted((width, height))
    longer = int(scaled * long / short)
    picture = picture.resize((scaled, longer) if width <= height else (longer, scaled), how)
    left, top = (int(round((side - size) / 2.0)) for side in picture.size)
    return np.asarray(picture.crop((left, top, left + size, top + size)), np.float32)


def check_close(pixels: np.ndarray, expected: np.ndarray, interpolation: str) -> None:
    """Equal but for values that are halves before they are rounded, as many bilinear ones are."""
    is_cubic = interpolation == ANTIALIASED_BICUBIC
    assert pixels.shape == expected.shape
    difference = np.abs(pixels - expected)
    assert difference.max() <= (1 if is_cubic else 2)
    assert (difference > 0).mean() < (3e-3 if is_cubic else 0.1)


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize(("shape", "size", "share"), CASES)
def test_the_runtime_is_timms_transform(
    shape: tuple[int, int], size: int, share: float, interpolation: str
) -> None:
    image = photo_like(*shape)
    how = Preprocessing("timm", crop="center", crop_fraction=share, interpolation=interpolation)
    expected = timms(image, size, share, PILLOW[interpolation])
    check_close(images.preprocess(image, how, size), expected, interpolation)


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize(("shape", "size", "share"), CASES)
def test_tensorflow_reads_what_the_runtime_reads(
    shape: tuple[int, int], size: int, share: float, interpolation: str
) -> None:
    preprocessing = pytest.importorskip("mobilenet.data.preprocessing")
    image = photo_like(*shape)
    for crop in ("center", "central", "square", "none"):
        how = Preprocessing("timm", crop=crop, crop_fraction=share, interpolation=interpolation)
        ours = preprocessing.evaluation_pixels(image, how, (size, size)).numpy()
        check_close(ours, images.preprocess(image, how, size), interpolation)


@pytest.mark.parametrize("shape", [(61, 33), (50, 41), (24, 24)])
@pytest.mark.parametrize("size", [(24, 24), (31, 47)])
def test_the_center_without_antialiasing(shape: tuple[int, int], size: tuple[int, int]) -> None:
    tf = pytest.importorskip("tensorflow")
    preprocessing = pytest.importorskip("mobilenet.data.preprocessing")
    image, how = photo_like(*shape), Preprocessing(crop="center", crop_fraction=0.8)
    assert how.interpolation == BILINEAR
    (height, width), (top, left) = images.center_window(*shape, 0.8, size)
    assert min(height / size[0], width / size[1]) >= 1.2
    whole = tf.image.resize(image, (height, width), "bilinear", antialias=False).numpy()
    expected = whole[top : top + size[0], left : left + size[1]]
    assert np.abs(images.preprocess(image, how, size) - expected).max() < 1e-3
    assert np.abs(preprocessing.evaluation_pixels(image, how, size) - expected).max() < 1e-3


def test_training_averages_the_pixels_that_become_one() -> None:
    """A checkerboard of single pixels becomes gray where it is reduced, not a pattern."""
    tf = pytest.importorskip("tensorflow")
    preprocessing = pytest.importorskip("mobilenet.data.preprocessing")
    from mobilenet.configs.dataset import FOLDER

    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    config = FOLDER.replace(area_min=1.0, color=0.0, flip=False)
    for interpolation in PILLOW:
        how = Preprocessing("timm", (0.0,), (1.0,), interpolation=interpolation)
        pixels = preprocessing.training_pixels(
            tf.io.encode_png(board), config, how, (16, 16), 3, tf.constant([0, 0], tf.int64)
        )
        assert np.abs(pixels.numpy()[2:-2, 2:-2] - 127.5).max() < 1
    for name in (BILINEAR,):
        how = Preprocessing("timm", (0.0,), (1.0,), interpolation=name)
        pixels = preprocessing.training_pixels(
            tf.io.encode_png(board), config, how, (15, 15), 3, tf.constant([0, 0], tf.int64)
        )
        assert pixels.numpy().std() > 10
