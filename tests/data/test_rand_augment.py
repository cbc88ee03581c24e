"""RandAugment: each operation is Pillow's, and what is drawn is a function of the seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

tf = pytest.importorskip("tensorflow")
from data_sets import smooth_image  # noqa: E402

from mobilenet import data  # noqa: E402
from mobilenet.configs import dataset  # noqa: E402
from mobilenet.data import preprocessing, rand_augment  # noqa: E402
from mobilenet.data.preprocessing import training_pixels  # noqa: E402

GRAY = (128, 128, 128)


def photo(seed: int = 0) -> Image.Image:
    """Smooth colors and some noise, of few dark and bright values."""
    draw = np.random.default_rng(seed)
    smooth = np.asarray(smooth_image(seed).convert("RGB").resize((40, 30)), np.float64)
    noisy = 30 + 0.7 * smooth + draw.normal(0, 6, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def moved(a: float, b: float, c: float, d: float, e: float, f: float) -> Callable[..., Image.Image]:
    """Pillow's transform around the center, whose coordinates are those of corners of pixels."""

    def transform(image: Image.Image) -> Image.Image:
        x, y = image.width / 2, image.height / 2
        matrix = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
        affine = Image.Transform.AFFINE
        return image.transform(
            image.size, affine, matrix, Image.Resampling.BILINEAR, fillcolor=GRAY
        )

    return transform


ANGLE = math.radians(0.6 * 30)
LEVEL = 0.6
REFERENCES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "identity": lambda image: image,
    "shear_x": moved(1, 0.3 * LEVEL, 0, 0, 1, 0),
    "shear_y": moved(1, 0, 0, 0.3 * LEVEL, 1, 0),
    "translate_x": moved(1, 0, LEVEL * 150 / 331 * 40, 0, 1, 0),
    "translate_y": moved(1, 0, 0, 0, 1, LEVEL * 150 / 331 * 30),
    "rotate": moved(*(math.cos(ANGLE), -math.sin(ANGLE), 0, math.sin(ANGLE), math.cos(ANGLE), 0)),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1 + 0.9 * LEVEL),
    "color": lambda image: ImageEnhance.Color(image).enhance(1 + 0.9 * LEVEL),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1 + 0.9 * LEVEL),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * LEVEL),
    "posterize": lambda image: ImageOps.posterize(image, 8 - round(4 * LEVEL)),
    "solarize": lambda image: ImageOps.solarize(image, math.ceil(255 * (1 - LEVEL))),
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
}
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


@pytest.mark.parametrize("name", rand_augment.OPERATIONS)
def test_an_operation_is_pillows(name: str) -> None:
    image = photo()
    pixels = tf.constant(np.asarray(image), tf.float32)
    result = rand_augment.OPERATIONS[name](pixels, tf.constant(LEVEL)).numpy()
    expected = np.asarray(REFERENCES[name](image), np.float32)
    assert name == "identity" or np.abs(expected - np.asarray(image)).max() > 2
    if name in GEOMETRIC:  # at the border ours blends with gray, where Pillow repeats a pixel
        outside = (expected == 128).all(-1)
        inside = ndimage.binary_erosion(~outside, iterations=2)
        assert np.abs(result - expected)[inside].max() <= 1.01
        assert inside.mean() > 0.3 and outside.any()
        far = ndimage.binary_erosion(outside, iterations=2, border_value=1)
        assert (result[far] == 128).all()
        return
    assert np.abs(result - expected).max() <= 1.01  # Pillow cuts off where ours rounds
    assert np.array_equal(result, np.round(result)) and 0 <= result.min() <= result.max() <= 255


@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
def test_the_sign_weakens(name: str) -> None:
    image = photo()
    pixels = tf.constant(np.asarray(image), tf.float32)
    result = rand_augment.OPERATIONS[name](pixels, tf.constant(-LEVEL)).numpy()
    enhance = getattr(ImageEnhance, name.capitalize())
    expected = np.asarray(enhance(image).enhance(1 - 0.9 * LEVEL), np.float32)
    assert np.abs(result - expected).max() <= 1.01


def test_plain_images_stay_and_gray_ones_have_no_color() -> None:
    plain = tf.fill([6, 6, 3], 77.0)
    for name in ("autocontrast", "equalize", "contrast", "color", "sharpness"):
        np.testing.assert_array_equal(rand_augment.OPERATIONS[name](plain, tf.constant(0.9)), plain)
    gray = tf.constant(np.asarray(photo().convert("L")), tf.float32)[:, :, None]
    np.testing.assert_array_equal(rand_augment.color(gray, tf.constant(0.9)), gray)


def test_draws_depend_on_the_seed_and_reach_every_operation() -> None:
    pixels = tf.constant(np.asarray(photo()), tf.float32)
    vary = tf.function(lambda seed: rand_augment.vary(pixels, 1, 9.0, seed))
    results = [vary(tf.constant([3, n], tf.int64)).numpy() for n in range(240)]
    np.testing.assert_array_equal(results[7], vary(tf.constant([3, 7], tf.int64)))
    signed = (*GEOMETRIC, "brightness", "color", "contrast", "sharpness")
    possible = {(name, 1) for name in rand_augment.OPERATIONS} | {(name, -1) for name in signed}
    seen = set()
    for result in results:
        for name, sign in possible:
            expected = rand_augment.OPERATIONS[name](pixels, tf.constant(0.9 * sign))
            if np.abs(result - expected).mean() < 0.01:
                seen.add((name, sign))
    assert seen == possible
    twice = rand_augment.vary(pixels, 2, 9.0, tf.constant([3, 1], tf.int64))
    assert not np.array_equal(twice, results[1])


def test_training_images_are_varied_and_without_it_as_before() -> None:
    encoded = tf.io.encode_png(np.asarray(photo()))  # of the size of the model: whole numbers
    config = dataset.FOLDER.replace(area_min=1.0, color=0.0, flip=False)
    scaling = dataset.PREPROCESSING["inception"]

    def pixels(config: dataset.DatasetConfig, seed: int = 0) -> np.ndarray:
        seeds = tf.constant([5, seed], tf.int64)
        return training_pixels(encoded, config, scaling, (30, 40), 3, seeds).numpy()

    plain = pixels(config)
    varied = config.replace(rand_augment=1)
    resized = (plain * 127.5 + 127.5).round()
    expected = rand_augment.vary(tf.constant(resized), 1, 9.0, tf.constant([5, 0], tf.int64))
    np.testing.assert_allclose(pixels(varied), (expected - 127.5) / 127.5, atol=1e-5)
    assert preprocessing.is_varied(varied) and not preprocessing.is_varied(config)


def test_digits_are_varied_each_by_its_own_draw() -> None:
    config = dataset.DIGITS.replace(rotation=0, shift=0, zoom=0, shear=0, rand_augment=2)
    options = {"training": True, "image_size": 16, "seed": 1}
    one, other = (
        [
            images.numpy()
            for images, _ in data.load(config, "train", batch_size=n, **options).take(k)
        ]
        for n, k in ((8, 1), (4, 2))
    )
    np.testing.assert_array_equal(one[0][:4], other[0])
    assert np.isfinite(one[0]).all() and np.abs(one[0]).max() <= 1


def test_a_filter_is_drawn_for_each_image() -> None:
    encoded = tf.io.encode_png(np.asarray(photo().resize((400, 300))))
    config = dataset.FOLDER.replace(area_min=1.0, color=0.0, flip=False)
    scaling = dataset.PREPROCESSING["inception"]
    seeds = [tf.constant([5, n], tf.int64) for n in range(12)]

    def pixels(interpolation: str | None, seed: tf.Tensor) -> bytes:
        chosen = config.replace(train_interpolation=interpolation)
        return bytes(training_pixels(encoded, chosen, scaling, (20, 24), 3, seed).numpy().tobytes())

    smooth = pixels(dataset.ANTIALIASED_BILINEAR, seeds[0])
    cubic = pixels(dataset.ANTIALIASED_BICUBIC, seeds[0])
    assert pixels(None, seeds[0]) == pixels(dataset.BILINEAR, seeds[0]) not in (smooth, cubic)
    drawn = [pixels(dataset.RANDOM, seed) for seed in seeds]
    assert set(drawn) == {smooth, cubic}
