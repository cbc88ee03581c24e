"""The orientation of photos: both decoders turn pixels as Pillow's `exif_transpose` does."""

from __future__ import annotations

import functools
import io
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from data_sets import smooth_image
from PIL import Image, ImageOps

from mobilenet import data, image_orientation
from mobilenet.configs import dataset as datasets
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import PREPROCESSING, DatasetConfig
from mobilenet.data import decoding, orientation, preprocessing
from mobilenet.data.sources import image_folder
from mobilenet.runtime import images

KINDS = {"JPEG": {"quality": 90}, "PNG": {}, "WebP": {"lossless": True}}
TAG = 0x0112


def tagged(kind: str, number: int, image: Image.Image | None = None, **options: object) -> bytes:
    """An image with an orientation among other tags."""
    exif = Image.Exif()
    exif[0x010F], exif[TAG], exif[0x0131] = "a maker", number, "software"
    buffer = io.BytesIO()
    (image or smooth_image(3)).save(buffer, kind, exif=exif, **KINDS[kind], **options)
    return buffer.getvalue()


def turned_by_pillow(content: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    return np.asarray(image.convert("RGB"))


@functools.cache
def graph(exif: bool, channels: int = 3) -> Callable[[bytes], tf.Tensor]:
    return tf.function(
        lambda content: decoding.decode(content, channels, exif=exif),
        input_signature=[tf.TensorSpec([], tf.string)],
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_both_decoders_turn_as_pillow_does(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo"
    for number in range(10):  # 0 and 9 have no meaning
        content = tagged(kind, number)
        path.write_bytes(content)
        expected = turned_by_pillow(content)
        assert expected.shape == ((50, 40, 3) if 5 <= number <= 8 else (40, 50, 3))
        np.testing.assert_array_equal(graph(True)(content), expected, str(number))
        np.testing.assert_array_equal(images.decode(path), expected, str(number))
        stored = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(graph(False)(content), stored)
        np.testing.assert_array_equal(images.decode(path, exif=False), stored)


def test_gray_is_turned_too(tmp_path: Path) -> None:
    for kind in KINDS:
        content = tagged(kind, 6)
        (tmp_path / kind).write_bytes(content)
        expected = images.decode(tmp_path / kind, 1, exif=False).swapaxes(0, 1)[:, ::-1]
        np.testing.assert_array_equal(images.decode(tmp_path / kind, 1), expected)
        assert np.abs(graph(True, 1)(content).numpy().astype(int) - expected).max() <= 1


def test_a_training_crop_is_that_of_the_upright_photo() -> None:
    """Of a JPEG only the window is decoded, in which the pixels are those of the whole image."""
    config = DatasetConfig("image_folder", area_min=0.2)
    crop = tf.function(
        lambda encoded, seed, to_end: preprocessing.training_pixels(
            encoded, config, PREPROCESSING["raw"], (32, 48), 3, seed, to_end
        ),
        input_signature=[
            tf.TensorSpec([], tf.string),
            tf.TensorSpec([2], tf.int64),
            tf.TensorSpec([], tf.bool),
        ],
        autograph=False,
    )
    photo = smooth_image(5, 150, 203)
    for subsampling in range(3):
        for number in range(1, 9):
            content = tagged("JPEG", number, photo, subsampling=subsampling)
            upright = io.BytesIO()
            Image.fromarray(turned_by_pillow(content)).save(upright, "PNG")
            for seed in range(3):
                drawn = tf.constant([seed, number], tf.int64)
                expected = crop(upright.getvalue(), drawn, True)
                for to_end in (True, False):
                    cut = crop(content, drawn, to_end)
                    np.testing.assert_array_equal(
                        cut, expected, err_msg=f"{subsampling} {number} {seed}"
                    )


def tiff(order: str, entries: list[tuple[int, int, int, int]], offset: int = 8) -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    head += struct.pack(order + "I", offset)
    return head + b"".join(
        [struct.pack(order + "H", len(entries))]
        + [struct.pack(order + "HHIHH", *entry, 0) for entry in entries]
    )


@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        (tiff(">", [(TAG, 3, 1, 6)]), 6),
        (tiff("<", [(0x010F, 3, 1, 7), (TAG, 3, 1, 8)]), 8),
        (tiff("<", [(TAG, 3, 1, 0), (TAG, 3, 1, 3)]), 3),
        (tiff("<", [(TAG, 4, 1, 6)]), 1),  # another type
        (tiff("<", [(TAG, 3, 2, 6)]), 1),  # two numbers
        (tiff("<", [(TAG, 3, 1, 9)]), 1),
        (tiff("<", [(TAG, 3, 1, 6)], offset=2**31), 1),
        (tiff("<", [(TAG, 3, 1, 6)])[:-1], 1),
        (b"II*\0", 1),
        (b"", 1),
    ],
)
def test_what_is_damaged_counts_as_upright(exif: bytes, expected: int) -> None:
    buffer = io.BytesIO()
    smooth_image(3).save(buffer, "JPEG", exif=b"Exif\0\0" + exif)
    content = buffer.getvalue()
    assert image_orientation.read(content) == expected
    assert int(orientation.of_jpeg(tf.constant(content))) == expected


def test_both_readers_agree_on_damaged_metadata() -> None:
    readers = {
        "JPEG": orientation.of_jpeg,
        "PNG": orientation.of_png,
        "WebP": lambda content: orientation.of_webp(content, tf.constant(True)),
    }
    noise, turned = random.Random(0), 0
    for kind, reader in readers.items():
        sound = tagged(kind, 6)
        size = len(sound)
        for _ in range(150):
            start = max(16, size - 120) if kind == "WebP" else 12  # its EXIF data are at the end
            content = bytearray(sound)
            for _ in range(noise.randint(1, 3)):
                content[noise.randrange(start, min(start + 110, size))] = noise.choice(
                    [0, 1, 255, noise.randrange(256)]
                )
            content = content[: noise.choice([size, noise.randrange(30, size)])]
            expected = image_orientation.read(bytes(content))
            assert int(reader(tf.constant(bytes(content)))) == expected, (kind, bytes(content))
            turned += expected != 1
    assert 50 < turned < 400


def write_folder(root: Path, number: int | None) -> None:
    """Photos with random tags, of one number or, with 0, upright without a tag."""
    noise = random.Random(1)
    for split in ("train", "val"):
        for name in "ab":
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                content = tagged("PNG", noise.randint(1, 8), smooth_image(index, 36, 44))
                if number == 0:
                    Image.fromarray(turned_by_pillow(content)).save(folder / f"{index}.png")
                else:
                    (folder / f"{index}.png").write_bytes(content)


def test_a_data_set_is_read_upright_unless_it_is_switched_off(tmp_path: Path) -> None:
    write_folder(tmp_path / "tagged", None)
    write_folder(tmp_path / "upright", 0)
    config = datasets.get("image_folder")
    size = {"image_size": 24, "batch_size": 4}

    def batch(name: str, exif: bool | None = None, **options: object) -> np.ndarray:
        folder = config.replace(data_dir=str(tmp_path / name), exif=exif)
        return next(iter(data.load(folder, "train", **size, **options)))[0].numpy()

    for training in (False, True):
        expected = batch("upright", training=training)
        np.testing.assert_array_equal(batch("tagged", training=training), expected)
    trained_without = config.replace(exif=False).model_preprocessing
    stored = batch("tagged", preprocessing=trained_without)
    np.testing.assert_array_equal(batch("tagged", False), stored)
    upright = batch("tagged", True, preprocessing=trained_without)
    assert np.abs(upright - stored).max() > 0.5
    paths = [p for p, _ in image_folder.list_images(tmp_path / "tagged").splits["train"]]
    for path, expected in zip(paths, upright, strict=True):
        pixels = images.preprocess(images.decode(path), trained_without, 24)
        np.testing.assert_allclose(
            images.normalize(pixels, trained_without), expected, rtol=0, atol=1e-4
        )


def test_a_card_keeps_the_choice() -> None:
    off = DatasetConfig("image_folder", exif=False)
    card = Card.from_json(Card(stage="train", preprocessing=off.model_preprocessing).to_json())
    assert not card.preprocessing.exif
    assert not DatasetConfig("image_folder").with_exif(card.preprocessing).exif
    assert DatasetConfig("image_folder", exif=True).with_exif(card.preprocessing).exif
    assert DatasetConfig("image_folder").model_preprocessing.exif
