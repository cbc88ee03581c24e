"""The orientation of a photo in the graph, by the rules of `mobilenet.image_orientation`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from mobilenet import image_orientation as rules

_HEADER = 12  # bytes in which a segment of any format states what it is

# Whether a segment is the EXIF data, whether another one may follow, the bytes before its payload,
# and all its bytes; int64.
Segment = tuple[tf.Tensor, tf.Tensor, int, tf.Tensor]


def of_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """The orientation of a JPEG, an int32 from 1 to 8."""
    return _reader("JPEG")(encoded)


def is_bare_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the first bytes of a JPEG show that it has no metadata, and so no orientation.

    Most JPEGs of data sets are so. These few operators cost them next to nothing; `of_jpeg` would
    take as long as decoding a small image.
    """
    is_jfif = tf.strings.substr(encoded, 0, 6) == rules.JFIF
    return tf.logical_and(is_jfif, tf.strings.substr(encoded, 20, 2) == rules.TABLES)


def of_png(encoded: tf.Tensor) -> tf.Tensor:
    """The orientation of a PNG, an int32 from 1 to 8."""
    return _reader("PNG")(encoded)


def of_webp(encoded: tf.Tensor, has_exif: tf.Tensor) -> tf.Tensor:
    """The orientation of a WebP, an int32 from 1 to 8; `has_exif` is what its header says."""
    return tf.cond(has_exif, lambda: _reader("WebP")(encoded), lambda: tf.constant(rules.UPRIGHT))


def turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns pixels `[height, width, channels]`, as they are stored, upright."""
    return tf.cond(
        orientation == rules.UPRIGHT,
        lambda: image,
        lambda: _turner(image.shape[-1])(image, orientation),
    )


def upright_size(size: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Height and width `[2]` of the upright image, and the reverse."""
    return tf.where(orientation >= rules.TRANSPOSED, tf.reverse(size, [0]), size)


def stored_window(
    size: tf.Tensor, corner: tf.Tensor, extent: tf.Tensor, orientation: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The window of the stored pixels that `turn` makes a window of the upright image.

    Args:
        size: height and width of the upright image; all are int32 `[2]`.
        corner, extent: top and left, height and width of its window.
        orientation: int32.

    Returns:
        Corner and extent.
    """
    corner = tf.where(_swapped(orientation), size - corner - extent, corner)
    return upright_size(corner, orientation), upright_size(extent, orientation)


def _swapped(orientation: tf.Tensor) -> tf.Tensor:
    """Whether top and bottom, and left and right, change places, `[2]`."""
    both = rules.UPSIDE_DOWN, rules.MIRRORED
    return tf.reduce_any(orientation == tf.constant(both), axis=1)


@functools.cache
def _turner(channels: int) -> Callable[..., tf.Tensor]:
    """`turn` of an image that is not upright: a function, see `decoding`."""

    def turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
        image = tf.cond(
            orientation >= rules.TRANSPOSED,
            lambda: tf.transpose(image, [1, 0, 2]),
            lambda: image,
        )
        return tf.reverse(image, tf.boolean_mask([0, 1], _swapped(orientation)))

    image = tf.TensorSpec([None, None, channels], tf.uint8)
    return called_function(turned, [image, tf.TensorSpec([], tf.int32)])


def called_function(
    function: Callable[..., tf.Tensor], signature: list[tf.TensorSpec]
) -> Callable[..., tf.Tensor]:
    """A function of the graph that is traced once, and called.

    Copied into the caller's graph, a branch that is not taken would cost time: the executor passes
    through each of its operators.
    """
    called: Callable[..., tf.Tensor] = tf.function(
        function, signature, autograph=False, experimental_attributes={"_noinline": True}
    )
    return called


@functools.cache
def _reader(kind: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Reads the orientation of a JPEG, PNG or WebP."""
    start, segment = {"JPEG": (2, _jpeg), "PNG": (8, _png), "WebP": (12, _webp)}[kind]

    def orientation(encoded: tf.Tensor) -> tf.Tensor:
        return _from_tiff(_find_exif(encoded, start, segment))

    return called_function(orientation, [tf.TensorSpec([], tf.string)])


def _find_exif(
    encoded: tf.Tensor, start: int, segment: Callable[[tf.Tensor], Segment]
) -> tf.Tensor:
    """The TIFF data in the first EXIF segment; empty where there is none."""
    size = tf.cast(tf.strings.length(encoded), tf.int64)

    def goes_on(position: tf.Tensor, first: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
        return (first < 0) & (position <= size - _HEADER)

    def look(position: tf.Tensor, first: tf.Tensor, end: tf.Tensor) -> tuple[tf.Tensor, ...]:
        is_exif, has_next, before, length = segment(_bytes(encoded, position, _HEADER))
        end = tf.minimum(position + length, size)
        return tf.where(has_next, end, size), tf.where(is_exif, position + before, -1), end

    none = tf.constant(-1, tf.int64)
    _, first, end = tf.while_loop(
        goes_on,
        look,
        [tf.constant(start, tf.int64), none, none],
        maximum_iterations=rules.MAX_SEGMENTS,
        parallel_iterations=1,
    )
    length = tf.where(first < 0, tf.zeros_like(first), tf.maximum(end - first, 0))
    exif = tf.strings.substr(encoded, tf.maximum(first, 0), length)
    prefix = len(rules.EXIF)
    skipped = tf.where(tf.strings.substr(exif, 0, prefix) == rules.EXIF, prefix, 0)
    return tf.strings.substr(exif, skipped, rules.MAX_EXIF)


def _bytes(content: tf.Tensor, start: tf.Tensor | int, count: int) -> tf.Tensor:
    """Some bytes, which must be there, as int64 `[count]`."""
    start = tf.cast(start, tf.int64)
    text = tf.strings.substr(content, start, tf.constant(count, tf.int64))
    return tf.cast(tf.ensure_shape(tf.io.decode_raw(text, tf.uint8), [count]), tf.int64)


def _number(digits: tf.Tensor, big: tf.Tensor | bool) -> tf.Tensor:
    """Unsigned numbers `[...]` of int64 bytes `[..., n]`."""
    powers = [256**n for n in range(digits.shape[-1])]
    little_endian, big_endian = (tf.constant(p, tf.int64) for p in (powers, powers[::-1]))
    return tf.reduce_sum(digits * tf.where(big, big_endian, little_endian), -1)


def _is(digits: tf.Tensor, text: bytes) -> tf.Tensor:
    return tf.reduce_all(digits == list(text))


def _jpeg(header: tf.Tensor) -> Segment:
    marker = header[1]
    application = (marker >= 0xE0) & (marker <= 0xEF)
    has_next = (header[0] == 0xFF) & (application | (marker == 0xFE))
    is_exif = (header[0] == 0xFF) & (marker == 0xE1) & _is(header[4:10], rules.EXIF)
    return is_exif, has_next, 4, 2 + _number(header[2:4], True)


def _png(header: tf.Tensor) -> Segment:
    is_last = _is(header[4:8], b"IDAT") | _is(header[4:8], b"IEND")
    length = _number(header[:4], True)
    # The checksum after the payload is read with it, and does not matter.
    return _is(header[4:8], b"eXIf"), tf.logical_not(is_last), 8, 12 + length


def _webp(header: tf.Tensor) -> Segment:
    length = _number(header[4:8], False)
    return _is(header[:4], b"EXIF"), tf.constant(True), 8, 8 + length + length % 2


def _from_tiff(content: tf.Tensor) -> tf.Tensor:
    """The orientation in the first directory of TIFF data."""
    size = tf.strings.length(content)
    content = tf.strings.join([content, bytes(rules.ENTRY)])
    start = _bytes(content, 0, 8)
    big = _is(start[:4], rules.BIG)
    directory = _number(start[4:], big)
    legal = (big | _is(start[:4], rules.LITTLE)) & (directory + 2 <= tf.cast(size, tf.int64))
    directory = tf.cast(tf.where(legal, directory, tf.zeros_like(directory)), tf.int32)
    count = tf.cast(_number(_bytes(content, directory, 2), big), tf.int32)
    count = tf.where(legal, tf.minimum(count, (size - directory - 2) // rules.ENTRY), 0)
    entries = tf.strings.substr(content, directory + 2, rules.ENTRY * count)
    fields = tf.reshape(tf.io.decode_raw(entries, tf.uint8), [-1, rules.ENTRY])
    fields = tf.cast(fields, tf.int64)
    values = _number(fields[:, 8:10], big)
    stated = (
        (_number(fields[:, 0:2], big) == rules.TAG)
        & (_number(fields[:, 2:4], big) == rules.SHORT)
        & (_number(fields[:, 4:8], big) == 1)
        & (values >= rules.UPRIGHT)
        & (values <= rules.LAST)
    )
    upright = tf.constant([rules.UPRIGHT], tf.int64)
    first = tf.concat([tf.boolean_mask(values, stated), upright], 0)[0]
    return tf.cast(first, tf.int32)
