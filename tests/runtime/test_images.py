"""Decoding and geometry against TensorFlow's own operators."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilenet.configs.dataset import PREPROCESSING, Preprocessing
from mobilenet.errors import UsageError
from mobilenet.runtime import images

PIXEL = 1e-3  # of 0..255: float32 rounding of two products
SIZES = [
    ((37, 53), 24),
    ((24, 24), 24),
    ((61, 33), 96),
    ((128, 171), 64),
    ((9, 7), 33),
    ((50, 41), (31, 47)),
]


def random_image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """An image that JPEG preserves well, with a different slope in each channel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 80 * np.sin(x / 9)], axis=-1).astype(
        np.uint8
    )


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_resize_is_tensorflows(shape: tuple[int, int], size: int | tuple[int, int]) -> None:
    tf = pytest.importorskip("tensorflow")
    image = random_image(*shape)
    target = (size, size) if isinstance(size, int) else size
    expected = tf.image.resize(image, target, "bilinear", antialias=False).numpy()
    assert np.abs(images.resize(image, size) - expected).max() < PIXEL


@pytest.mark.parametrize(("shape", "size"), SIZES)
@pytest.mark.parametrize("fraction", [0.875, 0.5, 0.93, 1.0])
def test_central_crop_is_tensorflows(
    shape: tuple[int, int], size: int | tuple[int, int], fraction: float
) -> None:
    tf = pytest.importorskip("tensorflow")
    image = random_image(*shape)
    target = (size, size) if isinstance(size, int) else size
    expected = tf.image.resize(tf.image.central_crop(image, fraction), target, "bilinear").numpy()
    ours = images.preprocess(image, Preprocessing(crop_fraction=fraction), size)
    assert ours.dtype == np.float32
    assert np.abs(ours - expected).max() < PIXEL


def test_crop_boxes_of_all_sides_match_central_crop() -> None:
    tf = pytest.importorskip("tensorflow")
    for side in range(1, 80):
        remaining = tf.image.central_crop(np.zeros((side, 3, 1), np.uint8), 0.875).shape[0]
        top, _, height, _ = images.crop_box(side, 3, Preprocessing(), 8)
        assert (top, height) == ((side - remaining) // 2, remaining)


@pytest.mark.parametrize(
    ("height", "width", "size", "box"),
    [
        (256, 256, 224, (16, 16, 224, 224)),
        (375, 500, 224, (24, 86, 328, 328)),
        (33, 40, 96, (5, 8, 24, 24)),
    ],
)
def test_square_crop(height: int, width: int, size: int, box: tuple[int, int, int, int]) -> None:
    # 375 * 224/256 = 328.1; offsets are (H - side + 1) // 2, worked out by hand
    assert images.crop_box(height, width, PREPROCESSING["imagenet"], size) == box


def test_normalize_works_per_channel() -> None:
    pixels = np.full((1, 1, 3), 128, np.float32)
    expected = [(128 - 123.675) / 58.395, (128 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    np.testing.assert_allclose(
        images.normalize(pixels, PREPROCESSING["imagenet"])[0, 0], expected, rtol=1e-6
    )


def test_photos_decode_as_in_tensorflow(shared_data: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    for path in sorted((shared_data / "photos10" / "val").glob("*/*.jpg"))[::25]:
        expected = tf.io.decode_jpeg(
            path.read_bytes(), channels=3, dct_method="INTEGER_ACCURATE"
        ).numpy()
        ours = images.decode(path)
        assert ours.shape == expected.shape
        assert (
            np.abs(ours.astype(int) - expected).max() <= 3
        )  # chroma upsampling differs between libjpeg versions


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_png_modes_as_in_tensorflow(mode: str, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    image = Image.fromarray(smooth(21, 30)).convert("RGBA" if mode == "LA" else mode)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(smooth(21, 30)[:, :, 0]))
    image.save(tmp_path / "a.png")
    expected = tf.io.decode_png((tmp_path / "a.png").read_bytes(), channels=3).numpy()
    np.testing.assert_array_equal(images.decode(tmp_path / "a.png"), expected)


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 257, np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.png")
    ours = images.decode(tmp_path / "a.png")
    np.testing.assert_array_equal(ours, np.repeat((values >> 8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_modes_as_in_tensorflow(mode: str, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    Image.fromarray(smooth(40, 56)).convert(mode).save(tmp_path / "a.jpg", quality=95)
    expected = tf.io.decode_jpeg(
        (tmp_path / "a.jpg").read_bytes(), channels=3, dct_method="INTEGER_ACCURATE"
    ).numpy()
    ours = images.decode(tmp_path / "a.jpg")
    assert ours.shape == (40, 56, 3)
    assert np.abs(ours.astype(int) - expected).max() <= 2


def test_one_channel_is_the_stored_luma(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    Image.fromarray(random_image(40, 56)).save(tmp_path / "a.jpg", quality=95)
    expected = tf.io.decode_jpeg(
        (tmp_path / "a.jpg").read_bytes(), channels=1, dct_method="INTEGER_ACCURATE"
    ).numpy()
    np.testing.assert_array_equal(images.decode(tmp_path / "a.jpg", channels=1), expected)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth(40, 56)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"no image", jpeg()[:200], jpeg()[:-200], b"\x89PNG\r\n\x1a\n" + bytes(40)]
)
def test_corrupt_image_is_named_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.jpg") as caught:
        images.decode(path)
    assert "\n" not in str(caught.value)


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.jpg"):
        images.decode(tmp_path / "none.jpg")
