"""Which images are read: the same ones by TensorFlow, in the graph, and by Pillow."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from data_sets import jpeg, smooth_image
from PIL import Image

from mobilenet import image_files
from mobilenet.configs.dataset import PREPROCESSING, DatasetConfig
from mobilenet.data import corrupt_images, decoding, preprocessing
from mobilenet.errors import UsageError
from mobilenet.runtime import images

MOST = 100_000  # pixels; the images have 2000


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or smooth_image(3)).save(buffer, kind, **options)
    return buffer.getvalue()


def transparent() -> Image.Image:
    image = smooth_image(3).convert("RGBA")
    image.putalpha(smooth_image(4).convert("L"))
    return image


def sixteen_bits(channels: int) -> np.ndarray:
    noise = np.random.default_rng(7)
    return noise.integers(0, 2**16, (40, 50, channels), np.uint16)


@functools.cache
def readable() -> dict[str, bytes]:
    colors = smooth_image(3).quantize(64)
    return {
        "jpeg": jpeg(3),
        "progressive jpeg": encoded("jpeg", progressive=True),
        "jpeg with restarts": encoded("jpeg", restart_marker_blocks=2),
        "gray jpeg": encoded("jpeg", smooth_image(3).convert("L")),
        "cmyk jpeg": encoded("jpeg", smooth_image(3).convert("CMYK")),
        "rgb jpeg": encoded("jpeg", keep_rgb=True),
        "jpeg of full color": encoded("jpeg", subsampling="4:4:4"),
        "jpeg of 4:2:2": encoded("jpeg", subsampling="4:2:2"),
        "jpeg with a preview": encoded("mpo", save_all=True, append_images=[smooth_image(4)]),
        "png": encoded("png"),
        "transparent png": encoded("png", transparent()),
        "palette png": encoded("png", colors),
        "one-bit png": encoded("png", smooth_image(3).convert("1")),
        "four-bit png": encoded("png", smooth_image(3).quantize(12)),
        "gray png": encoded("png", smooth_image(3).convert("L")),
        "gray transparent png": encoded("png", transparent().convert("LA")),
        "palette png with transparency": encoded("png", colors, transparency=bytes(range(64))),
        "png with a transparent color": encoded("png", transparency=(9, 9, 9)),
        "moving png": encoded("png", save_all=True, append_images=[smooth_image(4)]),
        **{
            f"sixteen-bit png of {channels}": tf.io.encode_png(sixteen_bits(channels)).numpy()
            for channels in (1, 2, 3, 4)
        },
        "bmp": encoded("bmp"),
        "transparent bmp": encoded("bmp", transparent()),
        "gray bmp": encoded("bmp", smooth_image(3).convert("L")),
        "gif": encoded("gif", colors),
        "transparent gif": encoded("gif", colors, transparency=5),
        "moving gif": encoded("gif", colors, save_all=True, append_images=[colors.rotate(90)]),
        "webp": encoded("webp"),
        "lossless webp": encoded("webp", lossless=True),
        "transparent webp": encoded("webp", transparent()),
        "transparent lossless webp": encoded("webp", transparent(), lossless=True),
    }


@functools.cache
def graph(channels: int = 3) -> Callable[[bytes], tf.Tensor]:
    return tf.function(
        lambda content: decoding.decode(content, channels, MOST),
        input_signature=[tf.TensorSpec([], tf.string)],
    )


def by_tensorflow(content: bytes, channels: int = 3) -> np.ndarray | None:
    try:
        return graph(channels)(content).numpy()
    except tf.errors.InvalidArgumentError:
        return None


def by_pillow(content: bytes, folder: Path, channels: int = 3) -> np.ndarray | None:
    path = folder / "image"
    path.write_bytes(content)
    try:
        return images.decode(path, channels, MOST)
    except UsageError as error:
        assert "\n" not in str(error)
        return None


@pytest.mark.parametrize("name", list(readable()))
def test_training_and_prediction_see_the_same_pixels(name: str, tmp_path: Path) -> None:
    content = readable()[name]
    for channels in (3, 1):
        expected, ours = by_tensorflow(content, channels), by_pillow(content, tmp_path, channels)
        assert expected is not None and ours is not None
        assert ours.shape == expected.shape == (40, 50, channels)
        assert np.abs(ours.astype(int) - expected).max() <= 1  # of 255


def test_transparency_is_left_out_and_the_upper_eight_bits_remain(tmp_path: Path) -> None:
    """By what was written, and not by the other decoder."""
    stored = np.asarray(transparent())[:, :, :3]
    for name in ("transparent png", "transparent bmp"):
        np.testing.assert_array_equal(by_pillow(readable()[name], tmp_path), stored, name)
    for channels in (1, 3):
        upper = np.broadcast_to(sixteen_bits(channels) >> 8, (40, 50, 3))
        content = readable()[f"sixteen-bit png of {channels}"]
        np.testing.assert_array_equal(by_pillow(content, tmp_path), upper)


def damaged(content: bytes, seed: int) -> list[bytes]:
    noise, size = random.Random(seed), len(content)
    variants = [content[:-cut] for cut in (1, 2, 4, 12, size // 3, size // 2)]
    for _ in range(6):
        index, changed = noise.randrange(min(size, 64)), bytearray(content)
        changed[index] ^= 1 << noise.randrange(8)
        variants.append(bytes(changed))
        index, changed = noise.randrange(size), bytearray(content)
        changed[index] ^= 1 << noise.randrange(8)
        variants.append(bytes(changed))
        index, count = noise.randrange(size), 1 + noise.randrange(size // 8)
        variants.append(content[:index] + content[index + count :])
        variants.append(content[:index] + noise.randbytes(count) + content[index + count :])
    return [*variants, content + b"\0", content + b"text behind the end"]


DAMAGED = (
    *("jpeg", "progressive jpeg", "jpeg with restarts", "gray jpeg", "cmyk jpeg", "png"),
    *("transparent png", "palette png", "one-bit png", "bmp", "transparent bmp", "gray bmp"),
    *("webp", "lossless webp", "transparent webp", "transparent lossless webp"),
)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_read_by_both_or_by_none(name: str, tmp_path: Path) -> None:
    for number, content in enumerate(damaged(readable()[name], len(name))):
        decoded = by_tensorflow(content), by_pillow(content, tmp_path)
        assert (decoded[0] is None) == (decoded[1] is None), (number, decoded)
        is_sound = corrupt_images.find_fault(content, MOST) is None
        assert is_sound == (decoded[1] is not None), number


def test_gif_damage_that_tensorflow_overlooks_is_found_where_files_are_checked(
    tmp_path: Path,
) -> None:
    for content in damaged(readable()["gif"], 2):
        ours = by_pillow(content, tmp_path)
        assert (corrupt_images.find_fault(content, MOST) is None) == (ours is not None)
        assert ours is None or by_tensorflow(content) is not None


def png(width: int, height: int, *extra: tuple[bytes, bytes], rows: int | None = None) -> bytes:
    def chunk(name: bytes, payload: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + payload))
        return struct.pack(">I", len(payload)) + name + payload + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + min(width, 9999)) * (height if rows is None else rows)))
    parts = ((b"IHDR", header), *extra, (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def oversized() -> dict[str, bytes]:
    """Files of which the header states more pixels than are there."""
    sound = readable()
    start = sound["jpeg"].index(b"\xff\xc0") + 5
    extended = bytearray(sound["transparent webp"])
    extended[24:30] = b"\xff\x0f\0\xff\x0f\0"
    wide = struct.pack("<HH", 5000, 5000)
    return {
        "JPEG": sound["jpeg"][:start] + b"\x20\x00\x20\x00" + sound["jpeg"][start + 4 :],
        "PNG": png(30_000, 30_000, rows=1),
        "BMP": sound["bmp"][:18] + struct.pack("<ii", 9000, -9000) + sound["bmp"][26:],
        "GIF": sound["gif"][:6] + wide + sound["gif"][10:],
        "WebP": sound["webp"][:26] + wide + sound["webp"][30:],
        "extended WebP": bytes(extended),
        "lossless WebP": sound["lossless webp"][:21]
        + b"\xff\xff\xff\x0f"
        + sound["lossless webp"][25:],
    }


@pytest.mark.parametrize("name", list(oversized()))
def test_too_many_pixels_are_refused_before_decoding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    content = oversized()[name]
    path = tmp_path / "large"
    path.write_bytes(content)
    larger = r"pixels, more than 100,000 \(max_pixels\)\); make it smaller, or allow more"
    with pytest.raises(UsageError, match=larger):
        images.decode(path, max_pixels=MOST)
    assert "more than 100,000 (max_pixels)" in str(corrupt_images.find_fault(content, MOST))
    with pytest.raises(tf.errors.InvalidArgumentError, match="refused"):
        graph()(content)


def test_the_bound_is_inclusive(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(jpeg(1))
    assert images.decode(tmp_path / "a", max_pixels=2000).shape == (40, 50, 3)
    with pytest.raises(UsageError, match="50 x 40 pixels, more than 1,999"):
        images.decode(tmp_path / "a", max_pixels=1999)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("tiff", "TIFF"),
        ("avif", "AVIF"),
        ("jpeg2000", "JPEG 2000"),
        ("ico", "ICO"),
        ("ppm", "no image format"),
    ],
)
def test_other_formats_are_refused_by_name(kind: str, named: str, tmp_path: Path) -> None:
    """By the content: the name may be that of another format."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(kind))
    reason = f"{named}.*JPEG, PNG, BMP, GIF and WebP are read.*convert it to JPEG or PNG"
    assert by_tensorflow(path.read_bytes()) is None
    with pytest.raises(UsageError, match=reason):
        images.decode(path)
    faults = corrupt_images.corrupt_files([str(path)], MOST)
    with pytest.raises(UsageError, match=reason):
        raise corrupt_images.corrupt_error(list(faults), faults[str(path)])


def test_kinds_that_only_one_decoder_reads_are_refused(tmp_path: Path) -> None:
    """Among them the animated WebP, of which TensorFlow 2.21 writes beyond its memory."""
    colors = smooth_image(3).quantize(64)
    partial = bytearray(encoded("gif", colors))
    frame = 13 + 3 * 64
    while partial[frame] != 0x2C:
        frame += 8  # the block of the delay
    partial[frame + 5] -= 1  # one column less than the screen
    kinds = {
        "animated": encoded("webp", save_all=True, append_images=[smooth_image(4)]),
        "colors": encoded("bmp", colors),
        "bits": encoded("bmp", smooth_image(3).convert("1")),
        "cover": bytes(partial),
    }
    for message, content in kinds.items():
        assert by_tensorflow(content) is None and by_pillow(content, tmp_path) is None, message
        assert message in str(corrupt_images.find_fault(content, MOST))


def test_png_chunks_without_pixels_do_not_matter(tmp_path: Path) -> None:
    content = bytearray(png(30, 20, (b"tEXt", b"Comment\0text")))
    content[content.index(b"Comment")] ^= 1  # its checksum is now wrong
    for readable in (bytes(content), png(30, 20, rows=22)):
        reference, ours = by_tensorflow(readable), by_pillow(readable, tmp_path)
        assert reference is not None and ours is not None and (reference == ours).all()
    for lost in (png(30, 20)[:-12], png(30, 20, rows=19), png(30, 20, (b"NEED", b""))):
        assert by_tensorflow(lost) is None and by_pillow(lost, tmp_path) is None


def test_a_png_is_not_inflated_beyond_its_header() -> None:
    bomb = png(30, 20, rows=2_000_000)  # 62 MB in 60 kB
    pieces = iter([bomb[bomb.index(b"IDAT") + 4 : -16]])
    image_files._inflate(pieces, 620)
    with pytest.raises(image_files.ImageError, match="fewer pixels"):
        image_files._inflate(iter([zlib.compress(bytes(619))]), 620)


def test_large_jpegs_are_decoded_at_half_their_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "JPEG_SAMPLES", 6000)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(5))
    expected = tf.io.decode_jpeg(jpeg(5), 3, ratio=2, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(decoding.decode(tf.constant(jpeg(5))), expected)
    assert np.abs(images.decode(path).astype(int) - expected).max() <= 3
    config = DatasetConfig("image_folder", area_min=0.3, flip=False, color=0.0)
    seed = tf.constant([1, 2], tf.int64)
    raw = PREPROCESSING["raw"]
    crop = preprocessing.training_pixels(tf.constant(jpeg(5)), config, raw, (16, 16), 3, seed)
    assert crop.shape == (16, 16, 3) and np.ptp(crop.numpy()) > 0


def test_damage_below_a_training_crop_is_found_where_it_is_looked_for() -> None:
    whole = encoded("jpeg", smooth_image(1, 200, 200))
    corner, extent = (tf.constant(values, tf.int64) for values in ([0, 10, 0], [20, 30, -1]))
    for content, sound in ((whole, True), (whole[: len(whole) * 3 // 4], False)):
        checked, shape = decoding.checked_jpeg(tf.constant(content), MOST)
        expected = tf.io.decode_jpeg(whole, 3, dct_method="INTEGER_ACCURATE")[0:20, 10:40]
        crop = decoding.crop_jpeg(checked, shape, corner, extent, 3, to_end=False)
        np.testing.assert_array_equal(crop, expected)
        if sound:
            crop = decoding.crop_jpeg(checked, shape, corner, extent, 3)
            np.testing.assert_array_equal(crop, expected)
        else:
            with pytest.raises(tf.errors.InvalidArgumentError):
                decoding.crop_jpeg(checked, shape, corner, extent, 3)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_crop_has_the_pixels_of_the_whole_image(subsampling: str) -> None:
    """Also at its sides, where libjpeg interpolates the colors between samples."""
    noise = np.random.default_rng(4)
    image = Image.fromarray(noise.integers(0, 256, (70, 90, 3), np.uint8))
    stream = io.BytesIO()
    image.save(stream, "jpeg", subsampling=subsampling)
    encoded, shape = decoding.checked_jpeg(tf.constant(stream.getvalue()), MOST)
    whole = tf.io.decode_jpeg(encoded, 3, dct_method="INTEGER_ACCURATE").numpy()
    for _ in range(20):
        (top, left), (height, width) = noise.integers(0, 35, 2), noise.integers(1, 35, 2)
        for to_end in (True, False):
            window = [top, left, 0], [height, width, -1]
            crop = decoding.crop_jpeg(encoded, shape, *window, 3, to_end)
            np.testing.assert_array_equal(crop, whole[top : top + height, left : left + width])


def test_only_the_start_of_a_foreign_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jpg"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="no image format"):
        images.decode(path)
    with open(path, "r+b") as file:
        file.write(b"\xff\xd8\xff\xe0")
    with pytest.raises(UsageError, match="bytes, more than"):
        images.decode(path)
    assert corrupt_images.corrupt_files([str(path)], MOST)
