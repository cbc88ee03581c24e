"""From the bytes of an image file to its pixels, in the graph.

What `mobilenet.image_files.check_content` refuses by the header is refused here before anything is
decoded, so that an image that was not checked at the start takes no more memory than `max_pixels`
allows. What that function cuts off before it decodes is cut off here as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mobilenet import image_files, image_orientation
from mobilenet.configs.dataset import MAX_PIXELS
from mobilenet.data import orientation

_HEADER = 72  # bytes in which PNG, BMP, GIF and WebP state size and kind
_BEYOND = 2048  # zeros after a GIF, so that a damaged length leads to no index outside
_EXACT = "INTEGER_ACCURATE"
_MARGIN = (0, 4, 0)  # rows, and columns: as many as a JPEG has, at most, for a sample of color


@tf.autograph.experimental.do_not_convert  # no Python control flow on tensors: traces sooner
def decode(
    encoded: tf.Tensor, channels: int = 3, max_pixels: int = MAX_PIXELS, exif: bool = True
) -> tf.Tensor:
    """Decodes JPEG, PNG, BMP, WebP or GIF (its first frame) to uint8 `[height, width, channels]`.

    JPEG takes the exact integer transform; one channel is the JPEG's luma, or the gray of the
    colors. A JPEG of at least `image_files.JPEG_SAMPLES` samples is decoded at half its height and
    width.

    Args:
        encoded: the file's bytes.
        channels: 3 or 1.
        max_pixels: an image of more, as its header states, is an error.
        exif: turn the image upright, by the orientation in its EXIF data.
    """

    def jpeg() -> tf.Tensor:
        checked, shape = checked_jpeg(encoded, max_pixels)

        def stored() -> tf.Tensor:
            return _decode_jpeg(checked, shape, channels)

        if not exif:
            return stored()
        turned = _turned_jpeg_decoder(channels)
        return tf.cond(orientation.is_bare_jpeg(checked), stored, lambda: turned(checked, shape))

    image = tf.cond(
        tf.io.is_jpeg(encoded), jpeg, lambda: decode_other(encoded, channels, max_pixels, exif)
    )
    return tf.ensure_shape(image, [None, None, channels])


@functools.cache
def _turned_jpeg_decoder(channels: int) -> Callable[..., tf.Tensor]:
    def decoded(encoded: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        image = tf.ensure_shape(_decode_jpeg(encoded, shape, channels), [None, None, channels])
        return orientation.turn(image, orientation.of_jpeg(encoded))

    signature = [tf.TensorSpec([], tf.string), tf.TensorSpec([3], tf.int64)]
    return orientation.called_function(decoded, signature)


def checked_jpeg(encoded: tf.Tensor, max_pixels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """A JPEG of at most `max_pixels`, and its height, width and stored channels, int64 `[3]`."""
    shape = jpeg_shape(encoded)
    return _require(encoded, shape[0] * shape[1] <= max_pixels), shape


def jpeg_shape(encoded: tf.Tensor) -> tf.Tensor:
    """Height, width and stored channels of a JPEG, int64 `[3]`."""
    return tf.ensure_shape(tf.io.extract_jpeg_shape(encoded, tf.int64), [3])


@tf.autograph.experimental.do_not_convert
def crop_jpeg(
    encoded: tf.Tensor,
    shape: tf.Tensor,
    corner: tf.Tensor,
    extent: tf.Tensor,
    channels: int,
    to_end: tf.Tensor | bool = True,
) -> tf.Tensor:
    """Decodes a window of a JPEG to uint8 `[height, width, channels]`.

    Args:
        encoded, shape: what `checked_jpeg` gives.
        corner: top, left and 0, of integers.
        extent: height, width and -1, of integers.
        channels: 3 or 1.
        to_end: decode the rows below the window too. Without it damage there goes unnoticed, and
            the same file may be readable in one epoch and not in the next.
    """
    corner, extent = tf.cast(corner, tf.int64), tf.cast(extent, tf.int64)

    def slice_of_all() -> tf.Tensor:
        image = _decode_jpeg(encoded, shape, channels)
        scale = tf.cast(tf.shape(image)[0], tf.float32) / tf.cast(shape[0], tf.float32)
        top, left, _ = tf.unstack(tf.cast(scale * tf.cast(corner, tf.float32), tf.int32))
        height, width, _ = tf.unstack(tf.cast(scale * tf.cast(extent, tf.float32), tf.int32))
        return image[top : top + tf.maximum(height, 1), left : left + tf.maximum(width, 1)]

    return tf.cond(
        is_usual_jpeg(shape, channels, MAX_PIXELS),
        lambda: decode_window(encoded, shape, corner, extent, channels, to_end),
        slice_of_all,
    )


@tf.autograph.experimental.do_not_convert
def decode_window(
    encoded: tf.Tensor,
    shape: tf.Tensor,
    corner: tf.Tensor,
    extent: tf.Tensor,
    channels: int,
    to_end: tf.Tensor | bool = False,
) -> tf.Tensor:
    """`crop_jpeg` of a JPEG that `is_usual_jpeg`.

    Some columns around the window are decoded too: libjpeg interpolates between the samples of
    color that it decodes, and would repeat those at the sides of the window.
    """
    first = tf.maximum(corner - _MARGIN, 0)
    last = tf.minimum(corner + extent + _MARGIN, shape)
    if to_end is not False:
        last = tf.where([to_end, False, False], shape, last)
    box = tf.gather(tf.concat([first, last - first], 0), [0, 1, 3, 4])
    box = tf.cast(box, tf.int32)
    image = tf.io.decode_and_crop_jpeg(encoded, box, channels, dct_method=_EXACT)
    return tf.slice(image, corner - first, extent)


def is_usual_jpeg(shape: tf.Tensor, channels: int, max_pixels: int) -> tf.Tensor:
    """Whether TensorFlow decodes windows of a JPEG, which has at most `max_pixels`."""
    usual = tf.reduce_prod(shape) < min(image_files.JPEG_SAMPLES, max_pixels + 1)
    # libjpeg does not convert the four colors of print to gray.
    return tf.logical_and(usual, shape[2] != 4) if channels == 1 else usual


def _is_huge(shape: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(shape) >= image_files.JPEG_SAMPLES


def _decode_jpeg(encoded: tf.Tensor, shape: tf.Tensor, channels: int) -> tf.Tensor:
    def scaled(stored: int, ratio: int) -> tf.Tensor:
        return tf.io.decode_jpeg(encoded, stored, ratio=ratio, dct_method=_EXACT)

    def stored(count: int) -> tf.Tensor:
        return tf.cond(_is_huge(shape), lambda: scaled(count, 2), lambda: scaled(count, 1))

    if channels == 3:
        return stored(3)
    # libjpeg does not convert the four colors of print to gray.
    return tf.cond(shape[2] == 4, lambda: tf.image.rgb_to_grayscale(stored(3)), lambda: stored(1))


def decode_other(
    encoded: tf.Tensor, channels: int, max_pixels: int, exif: bool = True
) -> tf.Tensor:
    """Decodes an image that is not a JPEG to uint8 `[height, width, channels]`."""
    return _other_decoder(channels, max_pixels, exif)(encoded)


@functools.cache
def _other_decoder(channels: int, max_pixels: int, exif: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    """The decoder of all formats but JPEG, traced once in a process."""

    def decoded(encoded: tf.Tensor) -> tf.Tensor:
        image = _decode_kinds(encoded, max_pixels, exif)
        return tf.image.rgb_to_grayscale(image) if channels == 1 else image

    return orientation.called_function(decoded, [tf.TensorSpec([], tf.string)])


def _decode_kinds(encoded: tf.Tensor, max_pixels: int, exif: bool) -> tf.Tensor:
    head = tf.strings.substr(encoded, 0, 12)
    kinds = [
        tf.strings.substr(head, 0, 8) == b"\x89PNG\r\n\x1a\n",
        tf.strings.substr(head, 0, 2) == b"BM",
        tf.strings.regex_full_match(tf.strings.substr(head, 0, 6), "GIF8[79]a"),
        tf.strings.regex_full_match(head, r"RIFF\C{4}WEBP"),
    ]
    encoded = _require(encoded, tf.reduce_any(kinds))
    branches = [
        lambda: _decode_png(encoded, max_pixels, exif),
        lambda: _decode_bmp(encoded, max_pixels),
        lambda: _decode_gif(encoded, max_pixels),
        lambda: _decode_webp(encoded, max_pixels, exif),
    ]
    image = tf.switch_case(tf.argmax(tf.cast(kinds, tf.int32), output_type=tf.int32), branches)
    return tf.ensure_shape(image, [None, None, 3])


def _require(encoded: tf.Tensor, *conditions: tf.Tensor) -> tf.Tensor:
    """The bytes, once all conditions hold; nothing that uses them runs before."""
    met = tf.reduce_all(tf.stack(conditions))
    with tf.control_dependencies([tf.debugging.Assert(met, ["an image that is refused"])]):
        return tf.identity(encoded)


def _bytes(encoded: tf.Tensor, start: int, count: int) -> tf.Tensor:
    """Some bytes of the header as int64 `[count]`; zeros beyond the end."""
    header = tf.strings.join([tf.strings.substr(encoded, 0, _HEADER), b"\0" * _HEADER])
    return tf.cast(tf.io.decode_raw(tf.strings.substr(header, start, count), tf.uint8), tf.int64)


def _number(encoded: tf.Tensor, start: int, count: int, big: bool = False) -> tf.Tensor:
    """An unsigned number of the header."""
    powers = [256**n for n in range(count)]
    return tf.reduce_sum(_bytes(encoded, start, count) * (powers[::-1] if big else powers))


def _length(encoded: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.strings.length(encoded), tf.int64)


def _bounded(encoded: tf.Tensor, width: tf.Tensor, height: tf.Tensor, most: int) -> tf.Tensor:
    return _require(encoded, width >= 1, height >= 1, width * height <= most)


def _decode_png(encoded: tf.Tensor, max_pixels: int, exif: bool) -> tf.Tensor:
    width, height = _number(encoded, 16, 4, big=True), _number(encoded, 20, 4, big=True)
    image = tf.io.decode_png(_bounded(encoded, width, height, max_pixels), 3)
    return orientation.turn(image, orientation.of_png(encoded)) if exif else image


def _decode_bmp(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    start, header = _number(encoded, 10, 4), _number(encoded, 14, 4)
    width, height = _number(encoded, 18, 4), _number(encoded, 22, 4)
    height = tf.where(height < 2**31, height, 2**32 - height)  # negative where the top comes first
    bits, compression = _number(encoded, 28, 2), _number(encoded, 30, 4)
    masks = tf.reduce_all(_bytes(encoded, 54, 12) == list(image_files.BMP_MASKS))
    usual = tf.logical_and(compression == 3, tf.logical_and(bits == 32, masks))
    row = (bits // 8 * width + 3) // 4 * 4
    encoded = _require(
        _bounded(encoded, width, height, max_pixels),
        tf.reduce_any(header == image_files.BMP_HEADERS),
        tf.logical_or(compression == 0, usual),
        tf.reduce_any(bits == (8, 24, 32)),
        start >= 14 + header,
        _length(encoded) == start + row * height,
    )
    gray = tf.cond(bits == 8, lambda: _bmp_is_gray(encoded, header, start), lambda: True)
    return tf.io.decode_bmp(_require(encoded, gray), 3)


def _bmp_is_gray(encoded: tf.Tensor, header: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Whether the table of 256 colors before the pixels is that of the grays."""
    table = tf.io.decode_raw(tf.strings.substr(encoded, 14 + header, start - 14 - header), tf.uint8)
    expected = np.repeat(np.arange(256, dtype=np.uint8), 4)
    compared = tf.constant(np.tile([True, True, True, False], 256))
    full = tf.logical_and(start == 14 + header + 1024, tf.size(table) == 1024)
    count = _number(encoded, 46, 4)
    return tf.cond(
        tf.logical_and(full, tf.reduce_any(count == (0, 256))),
        lambda: tf.reduce_all(tf.boolean_mask(table == expected, compared)),
        lambda: False,
    )


def _decode_gif(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """The first image, without what comes before and after it: comments and other images."""
    width, height = _number(encoded, 6, 2), _number(encoded, 8, 2)
    encoded = _bounded(encoded, width, height, max_pixels)
    size = tf.strings.length(encoded)
    content = tf.cast(tf.io.decode_raw(encoded, tf.uint8), tf.int32)
    content = tf.concat([content, tf.zeros([_BEYOND], tf.int32)], 0)
    start = 13 + _gif_table(content[10])

    def is_extension(position: tf.Tensor) -> tf.Tensor:
        is_one = content[position] == image_files.GIF_EXTENSION
        return tf.logical_and(position < size, is_one)

    def after_extension(position: tf.Tensor) -> tuple[tf.Tensor]:
        return (_gif_end(content, size, position + 2),)

    (frame,) = tf.while_loop(is_extension, after_extension, [start])
    frame = tf.minimum(frame, size)
    screen = tf.concat([[0, 0, 0, 0], content[6:10]], 0)
    table = _gif_table(content[frame + 9])
    end = _gif_end(content, size, frame + 11 + table)
    encoded = _require(
        encoded,
        content[frame] == image_files.GIF_IMAGE,
        tf.reduce_all(content[frame + 1 : frame + 9] == screen),
        tf.logical_or(table > 0, start > 13),
        end <= size,
    )
    parts = [
        tf.strings.substr(encoded, 0, start),
        tf.strings.substr(encoded, frame, end - frame),
        bytes([image_files.GIF_TRAILER]),
    ]
    return tf.io.decode_gif(tf.strings.join(parts))[0]


def _gif_table(flags: tf.Tensor) -> tf.Tensor:
    """Bytes of the table of colors that flags announce."""
    bytes_of_it = 3 * tf.bitwise.left_shift(2, tf.bitwise.bitwise_and(flags, 7))
    return tf.where(flags >= 0x80, bytes_of_it, 0)


def _gif_end(content: tf.Tensor, size: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Where the blocks that start at a position end; beyond `size` where they are cut off."""

    def goes_on(position: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(position < size, content[tf.minimum(position, size)] > 0)

    def after_block(position: tf.Tensor) -> tuple[tf.Tensor]:
        return (position + 1 + content[position],)

    (position,) = tf.while_loop(goes_on, after_block, [position])
    return position + 1


def _decode_webp(encoded: tf.Tensor, max_pixels: int, exif: bool) -> tf.Tensor:
    """A WebP of one image, up to the end that its header states, without its transparency."""
    end = _number(encoded, 4, 4) + 8
    encoded = _require(encoded, end <= _length(encoded))
    encoded = tf.strings.substr(encoded, tf.zeros_like(end), end)
    kind = tf.strings.substr(tf.strings.join([encoded, b"\0" * 16]), 12, 4)
    extended, lossless = kind == b"VP8X", kind == b"VP8L"
    flags, packed = _number(encoded, 20, 1), _number(encoded, 21, 4)
    width = tf.where(extended, 1 + _number(encoded, 24, 3), _number(encoded, 26, 2) % 2**14)
    height = tf.where(extended, 1 + _number(encoded, 27, 3), _number(encoded, 28, 2) % 2**14)
    width = tf.where(lossless, 1 + packed % 2**14, width)
    height = tf.where(lossless, 1 + packed // 2**14 % 2**14, height)
    encoded = _bounded(encoded, width, height, max_pixels)
    # TensorFlow 2.21 writes beyond its memory when it is asked for the channels of an animation.
    encoded = _require(
        encoded,
        tf.logical_not(tf.logical_and(extended, flags // 2 % 2 == 1)),
        tf.logical_or(extended, (end - 20 - _number(encoded, 16, 4)) // 2 == 0),
    )
    alpha = tf.logical_or(
        tf.logical_and(extended, flags // 16 % 2 == 1),
        tf.logical_and(lossless, packed // 2**28 % 2 == 1),
    )
    image = tf.cond(
        alpha, lambda: tf.io.decode_webp(encoded, 4), lambda: tf.io.decode_webp(encoded, 3)
    )
    image = tf.ensure_shape(image[0, ..., :3], [None, None, 3])
    if not exif:
        return image
    has_exif = tf.logical_and(extended, flags // image_orientation.WEBP_HAS_EXIF % 2 == 1)
    return orientation.turn(image, orientation.of_webp(encoded, has_exif))
