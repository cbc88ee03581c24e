"""Pixels: evaluation against the published recipe, training against what its strengths promise."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from data_sets import jpeg, smooth_image, write_class_folders
from PIL import Image

from mobilenet import data
from mobilenet.configs import dataset as datasets
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data import preprocessing
from mobilenet.data.sources import digits

INCEPTION = datasets.PREPROCESSING["inception"]
RAW = datasets.PREPROCESSING["raw"]


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True} if kind == "webp" else {}))
    return buffer.getvalue()


def test_evaluation_is_slims_recipe_on_real_photos(shared_data: Path) -> None:
    for path in sorted((shared_data / "photos/imagenet_samples").glob("*.jpg"))[:40:8]:
        image = tf.io.decode_jpeg(path.read_bytes(), channels=3, dct_method="INTEGER_ACCURATE")
        image = tf.image.central_crop(tf.image.convert_image_dtype(image, tf.float32), 0.875)
        expected = (tf.image.resize(image, [128, 128], "bilinear", antialias=False) - 0.5) * 2
        pixels = preprocessing.evaluation_pixels(
            preprocessing.decode(tf.constant(path.read_bytes())), INCEPTION, (128, 128)
        )
        ours = preprocessing.normalize(pixels, INCEPTION)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_evaluation_is_slims_recipe_on_written_images(seed: int) -> None:
    encoded = tf.constant(encode(smooth_image(seed, 61 + seed, 90 - 7 * seed), "jpeg"))
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    image = tf.image.central_crop(tf.image.convert_image_dtype(image, tf.float32), 0.875)
    expected = (tf.image.resize(image, [32, 40], "bilinear", antialias=False) - 0.5) * 2
    ours = preprocessing.evaluation_pixels(preprocessing.decode(encoded), INCEPTION, (32, 40))
    np.testing.assert_allclose(
        preprocessing.normalize(ours, INCEPTION), expected, rtol=0, atol=1e-6
    )


def test_photos10_is_preprocessed_by_the_recipe(shared_data: Path) -> None:
    config = datasets.get("image_folder").replace(data_dir=str(shared_data / "photos10"))
    info = data.describe(config)
    assert info.sizes == {"train": 650, "validation": 250, "test": 250}
    images, labels = next(iter(data.load(config, "test", image_size=96, batch_size=3)))
    paths = sorted((shared_data / "photos10/val/n01440764").iterdir())[:3]
    for path, ours in zip(paths, images, strict=True):
        image = tf.io.decode_jpeg(path.read_bytes(), channels=3, dct_method="INTEGER_ACCURATE")
        image = tf.image.central_crop(tf.image.convert_image_dtype(image, tf.float32), 0.875)
        expected = (tf.image.resize(image, [96, 96], "bilinear", antialias=False) - 0.5) * 2
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    assert labels.numpy().tolist() == [0, 0, 0]


def test_square_crop_is_the_officials() -> None:
    image = np.arange(101 * 60 * 3, dtype=np.float32).reshape(101, 60, 3) / 100
    square = datasets.PREPROCESSING["imagenet"]
    ours = preprocessing.evaluation_pixels(tf.constant(image), square, (224, 224))
    side = int(60 * 224 / 256)
    top, left = (101 - side + 1) // 2, (60 - side + 1) // 2
    expected = tf.image.resize(image[top : top + side, left : left + side], (224, 224))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    scaled = preprocessing.normalize(tf.constant([[[255.0, 0.0, 127.5]]]), square).numpy()[0, 0]
    expected_scaled = (np.array([1, 0, 0.5]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(scaled, expected_scaled, atol=1e-5)


@pytest.mark.parametrize("kind", ["png", "bmp", "webp", "gif"])
def test_other_formats_are_read_as_pillow_reads_them(kind: str) -> None:
    encoded = encode(smooth_image(1), kind)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(preprocessing.decode(tf.constant(encoded)), expected)
    gray = preprocessing.decode(tf.constant(encoded), 1).numpy()[..., 0].astype(int)
    assert np.abs(gray - np.asarray(Image.fromarray(expected).convert("L"))).max() <= 1


def test_grey_images_become_rgb() -> None:
    for kind in ("png", "jpeg"):
        encoded = encode(smooth_image(1).convert("L"), kind)
        image = preprocessing.decode(tf.constant(encoded)).numpy()
        assert image.shape == (40, 50, 3)
        np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_training_crop_covers_what_it_may(kind: str) -> None:
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(100)[None], np.arange(100)[:, None]
    encoded = tf.constant(encode(Image.fromarray(ramp), kind))
    config = DatasetConfig(area_min=0.3, aspect_max=1.5, flip=False, color=0.0)
    shares, ratios = [], []
    for number in range(60):
        seed = tf.constant([5, number], tf.int64)
        crop = preprocessing.training_pixels(encoded, config, RAW, (100, 100), 3, seed).numpy()
        width = np.ptp(crop[50, :, 0]) + 1
        height = np.ptp(crop[:, 50, 1]) + 1
        shares.append(width * height / 10_000)
        ratios.append(width / height)
    assert 0.25 < min(shares) < 0.45 and max(shares) > 0.8  # JPEG moves a value by some levels
    assert 1 / 1.65 < min(ratios) < 0.85 and 1.15 < max(ratios) < 1.65


def test_mirroring_and_color_changes_have_their_documented_effect() -> None:
    encoded = tf.constant(encode(smooth_image(4), "png"))
    image = np.asarray(smooth_image(4)).astype(int)
    unvaried = DatasetConfig(area_min=1.0, flip=False, color=0.0)
    seeds = [tf.constant([1, n], tf.int64) for n in range(40)]

    def vary(config: DatasetConfig) -> list[np.ndarray]:
        size = (40, 50)
        images = [
            preprocessing.training_pixels(encoded, config, RAW, size, 3, seed) for seed in seeds
        ]
        return [one.numpy() for one in images]

    assert all(np.array_equal(one, image) for one in vary(unvaried))
    mirrored = [np.array_equal(one, image[:, ::-1]) for one in vary(unvaried.replace(flip=True))]
    assert 10 < sum(mirrored) < 30
    gray = preprocessing.adjust_brightness(tf.fill([200, 4, 4, 1], 128.0), 0.5, seeds[0]).numpy()
    levels = gray[:, 0, 0, 0] - 128
    assert -16 <= levels.min() < -12 and 12 < levels.max() <= 16 and np.ptp(gray[0]) == 0
    spread = [np.ptp(one, axis=-1).mean() for one in vary(unvaried.replace(color=1.0))]
    assert min(spread) < 0.8 * np.ptp(image, axis=-1).mean() < max(spread)


@pytest.mark.parametrize("size", [(12, 10), (5, 7)])
def test_saturation_blends_with_the_luma(size: tuple[int, int]) -> None:
    stored = np.random.default_rng(3).uniform(0, 255, (*size, 3)).astype(np.float32)
    luma = (stored * [0.299, 0.587, 0.114]).sum(axis=-1, keepdims=True)
    for factor in (0.0, 0.5, 1.0, 1.5):
        ours = preprocessing.saturate(tf.constant(stored), tf.constant(factor))
        expected = luma + factor * (stored - luma)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["raw", "inception"])
def test_training_draws_colors_evenly_and_mirrors_half_of_the_images(name: str) -> None:
    """A pixel of gray and one of a color give the numbers that were drawn."""
    scaling = datasets.PREPROCESSING[name]
    low, high = scaling.input_range
    stored = np.full((4, 2, 3), 120, np.uint8)
    stored[:, 1] = 140, 100, 120
    encoded = tf.constant(encode(Image.fromarray(stored), "png"))
    config = DatasetConfig(area_min=1.0, color=1.0)
    train = tf.function(preprocessing.training_pixels, autograph=False)
    drawn = []
    for number in range(300):
        seed = tf.constant([9, number], tf.int64)
        scaled = train(encoded, config, scaling, (4, 2), 3, seed).numpy()[0]
        image = (scaled - low) / (high - low) * 255
        spread = np.ptp(image, axis=-1)
        colored = int(spread.argmax())
        drawn.append((1 - colored, image[1 - colored, 0] - 120, spread[colored] / 40))
    mirrored, brightness, saturation = np.transpose(drawn)
    assert 0.4 < mirrored.mean() < 0.6
    for values, least, most in ((brightness, -32, 32), (saturation, 0.5, 1.5)):
        counts, _ = np.histogram(values, 4, (least - 1e-3, most + 1e-3))
        assert counts.sum() == 300 and counts.min() > 45 and counts.max() < 105, counts
    assert np.abs(np.corrcoef([mirrored, brightness, saturation]) - np.eye(3)).max() < 0.2
    bright = tf.constant(encode(Image.new("RGB", (4, 2), (255, 250, 0)), "png"))
    images = [
        train(bright, config, scaling, (4, 2), 3, tf.constant([9, n], tf.int64)) for n in range(9)
    ]
    assert np.min(images) == low and np.max(images) == high


def test_three_means_are_those_of_the_channels() -> None:
    scaling = datasets.PREPROCESSING["imagenet"]
    pixels = np.random.default_rng(5).integers(0, 256, (2, 6, 5, 3), np.uint8)
    expected = (pixels.astype(np.float32) - np.float32(scaling.mean)) / np.float32(scaling.std)
    np.testing.assert_array_equal(preprocessing.normalize(tf.constant(pixels), scaling), expected)
    traced = tf.function(lambda x: preprocessing.normalize(x, scaling), autograph=False)
    batch = tf.TensorSpec([None, 6, 5, 3], tf.uint8)
    assert traced.get_concrete_function(batch).structured_outputs.shape.as_list() == [None, 6, 5, 3]
    encoded = tf.constant(encode(Image.fromarray(pixels[0]), "png"))
    config, seed = DatasetConfig(area_min=1.0, flip=False, color=0.0), tf.constant([1, 1], tf.int64)
    trained = preprocessing.training_pixels(encoded, config, scaling, (6, 5), 3, seed)
    np.testing.assert_allclose(trained, expected[0], rtol=0, atol=1e-6)


def test_turning_moving_and_zooming_stay_within_their_strengths() -> None:
    spot = np.zeros((64, 41, 41, 1), np.float32)
    spot[:, 19:22, 29:32] = 255  # 10 pixels right of the centre
    seed = tf.constant([1, 2], tf.int64)
    rows, columns = np.mgrid[:41, :41] - 20

    def centres(**strengths: float) -> tuple[np.ndarray, np.ndarray]:
        moved = preprocessing.random_affine(
            tf.constant(spot), DatasetConfig(**strengths), seed
        ).numpy()
        mass = moved[..., 0] / moved.sum(axis=(1, 2, 3))[:, None, None]
        return (mass * columns).sum((1, 2)), (mass * rows).sum((1, 2))

    x, y = centres(rotation=30.0)
    angles = np.degrees(np.arctan2(y, x))
    assert -30.5 < angles.min() < -24 and 24 < angles.max() < 30.5
    assert np.abs(np.hypot(x, y) - 10).max() < 0.3
    x, y = centres(shift=0.1)
    assert -4.2 < (x - 10).min() < -3.3 and 3.3 < y.max() < 4.2
    x, y = centres(zoom=0.2)
    assert 8.2 < x.min() < 8.8 and 11.8 < x.max() < 12.6 and np.abs(y).max() < 0.1


def test_digits_are_evaluated_as_the_digits_module_draws_them() -> None:
    embedded = digits.load()
    images, labels = next(iter(data.load("digits", "test", image_size=48, batch_size=1000)))
    chosen = embedded.indices("test")
    expected = digits.enlarge(embedded.images[chosen], 48).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(images, expected, atol=1e-6)
    np.testing.assert_array_equal(labels, embedded.labels[chosen])


def test_unvaried_training_digits_are_the_evaluated_ones_but_for_rounding() -> None:
    unvaried = datasets.get("digits").replace(
        rotation=0.0, shift=0.0, zoom=0.0, shear=0.0, color=0.0
    )
    settings = {"image_size": 20, "batch_size": 1257, "preprocessing": "raw"}
    trained, _ = next(iter(data.load(unvaried, "train", training=True, **settings)))
    raw = datasets.PREPROCESSING["raw"].replace(crop="none")
    stored, _ = next(iter(data.load(unvaried, "train", **{**settings, "preprocessing": raw})))
    one = np.sort(trained.numpy().sum(axis=(1, 2, 3)))
    other = np.sort(stored.numpy().sum(axis=(1, 2, 3)))
    assert np.abs(one - other).max() < 0.5 * 20 * 20 * 3


def test_photo_training_batches_vary_and_stay_in_range(tmp_path: Path) -> None:
    config = datasets.get("image_folder").replace(
        data_dir=str(write_class_folders(tmp_path / "f")), rotation=15.0
    )
    for images, _ in islice(
        data.load(config, "train", image_size=24, batch_size=8, training=True, channels=1), 3
    ):
        assert images.shape == (8, 24, 24, 1)
        assert -1 <= images.numpy().min() < images.numpy().max() <= 1


def test_jpeg_decoder_is_the_exact_one() -> None:
    encoded = tf.constant(jpeg(3))
    exact = tf.io.decode_jpeg(encoded, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(preprocessing.decode(encoded), exact)
