"""From an encoded image to the pixels of a model: augmentation, evaluation crop, normalization.

Evaluation follows tensorflow/models research/slim/preprocessing/inception_preprocessing.py
(`central`) and official/vision/image_classification/preprocessing.py (`square`), with TF2's
half-pixel bilinear resize, or timm's transform (`center`, Pillow's antialiased filters). Pixels
stay on 0..255 until `normalize`. Every random operation is
stateless: its seed is an argument.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mobilenet.configs.dataset import (
    ANTIALIASED_BICUBIC,
    ANTIALIASED_BILINEAR,
    BILINEAR,
    RANDOM,
    DatasetConfig,
    Preprocessing,
)
from mobilenet.data import orientation, rand_augment
from mobilenet.data.decoding import (
    checked_jpeg,
    crop_jpeg,
    decode,
    decode_other,
    decode_window,
    is_usual_jpeg,
    jpeg_shape,
)

_BRIGHTNESS = 32.0  # of 255, slim's strength at color 1
_SATURATION = 0.5
_LUMA = (0.299, 0.587, 0.114)  # of JPEG and of Pillow
_PIXELS = 4  # a matrix of 12x12 is the fastest of 3, 6, 12, 24 and 48
_OTHER_STREAM = (0x4E554D42, 0)  # separates the seeds of these numbers from those of the crop
_PADDING = 32  # official: a crop of size / (size + 32), 0.875 at 224

Size = tuple[int, int]
Part = tuple[tf.Tensor, int]  # number of its first image in a larger batch, and images of that


def evaluation_pixels(image: tf.Tensor, preprocessing: Preprocessing, size: Size) -> tf.Tensor:
    """Crops and resizes for evaluation: float32 `[height, width, channels]`.

    Unrounded with TensorFlow's bilinear filter; with one of Pillow's filters whole numbers, which
    differ from Pillow's own by 1 at most (2 with the bilinear one), where a half was rounded.
    """
    resized, corner = tf.constant(size), tf.constant([0, 0])
    if preprocessing.crop == "central":
        image = tf.image.central_crop(image, preprocessing.crop_fraction)
    elif preprocessing.crop == "square":
        image = _square(image, min(size))
    elif preprocessing.crop == "center":
        resized, corner = _center(image, preprocessing.crop_fraction, size)
    if preprocessing.crop != "center" and preprocessing.interpolation == BILINEAR:
        return _resize(image, size)
    return _resample(image, preprocessing.interpolation, size, resized, corner)


def _center(image: tf.Tensor, share: float, size: Size) -> tuple[tf.Tensor, tf.Tensor]:
    """Sides of the image after its resize, and the corner of its centered part of `size`.

    As timm and torchvision round them: see `mobilenet.runtime.images.center_window`.
    """
    sides = tf.shape(image, tf.int64)[:2]  # products of sides exceed 32 bits
    least = tf.constant([int(side / share) for side in size], tf.int64)
    is_high = sides[0] * least[1] >= sides[1] * least[0]
    scaled = least[::-1] * sides // tf.maximum(sides[::-1], 1)
    resized = tf.where(tf.stack([is_high, tf.logical_not(is_high)]), scaled, least)
    rest = tf.maximum(resized - size, 0)
    half = rest // 2
    return resized, half + rest % 2 * (half % 2)


def _resample(
    image: tf.Tensor, interpolation: str, size: Size, resized: tf.Tensor, corner: tf.Tensor
) -> tf.Tensor:
    """Resizes an image to `resized` and cuts `size` out of that, from `corner` on.

    As Pillow does it: across, then down, rounded each time.
    """
    pixels = tf.cast(image, tf.float32)
    scale = tf.cast(resized, tf.float32) / tf.cast(tf.shape(image)[:2], tf.float32)
    shift = -tf.cast(corner, tf.float32)
    if interpolation == BILINEAR:
        return _scale(pixels, tf.constant(size), scale, shift, interpolation)
    for axis in (1, 0):
        other = tf.constant([float(axis == 1), float(axis == 0)])
        sides = tf.where(other > 0, tf.shape(pixels)[:2], tf.constant(size))
        pixels = _scale(
            pixels,
            sides,
            tf.where(other > 0, 1.0, scale),
            tf.where(other > 0, 0.0, shift),
            interpolation,
        )
        pixels = tf.clip_by_value(tf.floor(pixels + 0.5), 0, 255)
    return tf.ensure_shape(pixels, [*size, image.shape[-1]])


def _scale(
    pixels: tf.Tensor, size: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor, interpolation: str
) -> tf.Tensor:
    return tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=size,
        scale=scale,
        translation=shift,
        kernel_type="keyscubic" if interpolation == ANTIALIASED_BICUBIC else "triangle",
        antialias=interpolation != BILINEAR,
    )[0]


def _square(image: tf.Tensor, size: int) -> tf.Tensor:
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    share = size / (size + _PADDING)
    side = tf.cast(share * tf.cast(tf.minimum(height, width), tf.float32), tf.int32)
    side = tf.maximum(side, 1)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return tf.image.crop_to_bounding_box(image, top, left, side, side)


@tf.autograph.experimental.do_not_convert  # no Python control flow on tensors: traces sooner
def training_pixels(
    encoded: tf.Tensor,
    config: DatasetConfig,
    preprocessing: Preprocessing,
    size: Size,
    channels: int,
    seed: tf.Tensor,
    to_end: tf.Tensor | bool = True,
) -> tf.Tensor:
    """Decodes, augments and normalizes one training image: random crop, resize, flip, color.

    Of a JPEG only the columns of the crop are decoded.

    Args:
        encoded: the file's bytes.
        config: the strength of each augmentation, and whether the image is first turned upright
            (`exif`; `None` does).
        preprocessing: scales the pixels.
        size: `(height, width)` of the result.
        channels: 3 or 1.
        seed: int64 `[2]`; the result is a function of it.
        to_end: decode a JPEG's rows below the crop too, so that damage there is an error.

    Returns:
        float32 `[height, width, channels]`.
    """
    if config.area_min < 1:
        image = _random_crop(encoded, config, channels, seed, tf.convert_to_tensor(to_end))
    else:
        image = decode(encoded, channels, config.max_pixels, _exif(config))
    image = tf.ensure_shape(image, [None, None, channels])
    # One scale for all channels costs nothing: it is that of the conversion to float32.
    has_one = len({*preprocessing.mean}) == len({*preprocessing.std}) == 1
    has_one = has_one and not config.rand_augment  # which takes pixels
    limits = preprocessing.input_range if has_one else (0.0, 255.0)
    interpolation = config.train_interpolation or preprocessing.interpolation
    pixels = _augment(image, config, size, limits, interpolation, seed + _OTHER_STREAM)
    if config.rand_augment:
        pixels = rand_augment.vary(pixels, config.rand_augment, config.rand_augment_magnitude, seed)
    return pixels if has_one else normalize(pixels, preprocessing)


def _augment(
    image: tf.Tensor,
    config: DatasetConfig,
    size: Size,
    limits: tuple[float, float],
    interpolation: str,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Scales pixels of 0..255 to `limits`, resizes, and mirrors and varies the colors at random."""
    shift = config.color * _BRIGHTNESS * (limits[1] - limits[0]) / 255
    reach = np.array([0.5, config.color * _SATURATION, shift, shift], np.float32)
    middle = np.array([0.5, 1.0, *limits], np.float32)
    # One operator for all, where `tf.random.stateless_uniform` takes seven for a number.
    drawn = tf.raw_ops.StatelessRandomUniform(shape=[3], seed=seed)
    drawn = tf.gather(drawn, [0, 1, 2, 2]) * (2 * reach) + (middle - reach)
    mirrored, saturation, low, high = tf.unstack(drawn)
    pixels = tf.quantization.dequantize(tf.bitcast(image, tf.quint8), low, high, "MIN_COMBINED")
    if interpolation == RANDOM:
        pixels = _resize_at_random(pixels, size, seed)
    else:
        pixels = _resize(pixels, size, interpolation)
    if config.flip:
        pixels = tf.cond(mirrored < 0.5, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    if config.color:
        pixels = saturate(pixels, saturation)
    if config.color or interpolation in (ANTIALIASED_BICUBIC, RANDOM):  # these overshoot at edges
        pixels = tf.raw_ops.ClipByValue(
            t=pixels, clip_value_min=limits[0], clip_value_max=limits[1]
        )
    return pixels


def _exif(config: DatasetConfig) -> bool:
    return config.exif is not False


def _resize_at_random(image: tf.Tensor, size: Size, seed: tf.Tensor) -> tf.Tensor:
    """With one of Pillow's filters, as timm draws it."""
    drawn = tf.random.stateless_uniform([], seed + _OTHER_STREAM)
    return tf.cond(
        drawn < 0.5,
        lambda: _resize(image, size, ANTIALIASED_BILINEAR),
        lambda: _resize(image, size, ANTIALIASED_BICUBIC),
    )


def _resize(image: tf.Tensor, size: Size, interpolation: str = BILINEAR) -> tf.Tensor:
    """With half-pixel centers; TensorFlow's kernel is twice as fast on float32."""
    method = "bicubic" if interpolation == ANTIALIASED_BICUBIC else "bilinear"
    antialias = interpolation != BILINEAR
    return tf.image.resize(tf.cast(image, tf.float32), size, method, antialias=antialias)


def _window(
    shape: tf.Tensor, config: DatasetConfig, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Corner and size of a random crop, `[top, left, 0]` and `[height, width, -1]`."""
    ratio = max(config.aspect_max, 1 + 1e-6)
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=(1 / ratio, ratio),
        area_range=(config.area_min, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return begin, extent


def _random_crop(
    encoded: tf.Tensor, config: DatasetConfig, channels: int, seed: tf.Tensor, to_end: tf.Tensor
) -> tf.Tensor:
    """A random window of an image, decoded by as few operators as its kind allows.

    Each operator takes time for each image, also those of a branch that is not taken: so what most
    JPEGs of data sets do not require is in a function that they do not call.
    """
    values = [encoded, seed, to_end]
    crop_any = _any_cropper(config, channels)

    def as_stored() -> tf.Tensor:
        shape = jpeg_shape(encoded)
        return tf.cond(
            is_usual_jpeg(shape, channels, config.max_pixels),
            lambda: decode_window(encoded, shape, *_window(shape, config, seed), channels),
            lambda: crop_any(*values),
        )

    is_simple = tf.logical_and(_is_as_stored(encoded, config), tf.logical_not(to_end))
    return tf.cond(is_simple, as_stored, lambda: crop_any(*values))


@functools.cache
def _any_cropper(config: DatasetConfig, channels: int) -> Callable[..., tf.Tensor]:
    """A random window of an image of any kind: a function of its bytes, seed and `to_end`."""

    def crop(encoded: tf.Tensor, seed: tf.Tensor, to_end: tf.Tensor) -> tf.Tensor:
        return tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: _crop_jpeg(encoded, config, channels, seed, to_end),
            lambda: _crop_other(encoded, config, channels, seed),
        )

    signature = [tf.TensorSpec(*x) for x in (([], tf.string), ([2], tf.int64), ([], tf.bool))]
    return orientation.called_function(crop, signature)


def _is_as_stored(encoded: tf.Tensor, config: DatasetConfig) -> tf.Tensor:
    """Whether an image is a JPEG that surely is not to be turned."""
    return orientation.is_bare_jpeg(encoded) if _exif(config) else tf.io.is_jpeg(encoded)


def _crop_jpeg(
    encoded: tf.Tensor, config: DatasetConfig, channels: int, seed: tf.Tensor, to_end: tf.Tensor
) -> tf.Tensor:
    encoded, shape = checked_jpeg(encoded, config.max_pixels)

    def as_stored() -> tf.Tensor:
        corner, extent = _window(shape, config, seed)
        return crop_jpeg(encoded, shape, corner, extent, channels, to_end)

    def turned() -> tf.Tensor:
        turn = orientation.of_jpeg(encoded)
        sides = orientation.upright_size(shape[:2], turn)
        corner, extent = _window(tf.concat([sides, [channels]], 0), config, seed)
        corner, extent = orientation.stored_window(sides, corner[:2], extent[:2], turn)
        corner, extent = tf.concat([corner, [0]], 0), tf.concat([extent, [-1]], 0)
        image = crop_jpeg(encoded, shape, corner, extent, channels, to_end)
        return orientation.turn(tf.ensure_shape(image, [None, None, channels]), turn)

    if not _exif(config):
        return as_stored()
    return tf.cond(_is_as_stored(encoded, config), as_stored, turned)


def _crop_other(
    encoded: tf.Tensor, config: DatasetConfig, channels: int, seed: tf.Tensor
) -> tf.Tensor:
    image = decode_other(encoded, channels, config.max_pixels, _exif(config))
    corner, extent = _window(tf.shape(image, tf.int64), config, seed)
    return tf.slice(image, corner, extent)


def saturate(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends each pixel with its luma, as Pillow, torchvision and timm do.

    slim's saturation is that of HSV, which blends with the largest channel: it changes the
    differences between the channels by the same factor, and the luma as well, and takes ten times
    as long.

    Args:
        pixels: float32 `[height, width, channels]` with known sides.
        factor: scalar; 0 is gray, 1 changes nothing. One channel has no saturation.
    """
    if pixels.shape[-1] != 3:
        return pixels
    # A product by a matrix of 3x3 spends most of its time on the ends of its rows.
    count = math.gcd(pixels.shape[0] * pixels.shape[1], _PIXELS)
    luma = np.kron(np.eye(count), np.outer(_LUMA, np.ones(3))).astype(np.float32)
    blend = factor * (np.eye(3 * count, dtype=np.float32) - luma) + luma
    return tf.reshape(tf.matmul(tf.reshape(pixels, [-1, 3 * count]), blend), pixels.shape)


def adjust_brightness(
    pixels: tf.Tensor, strength: float, seed: tf.Tensor, part: Part | None = None
) -> tf.Tensor:
    """Adds a random number of up to 32 times `strength` to each image of a batch (4 axes)."""
    reach = _BRIGHTNESS * strength
    first, total = part or (0, tf.shape(pixels)[0])
    delta = tf.random.stateless_uniform([total, 1, 1, 1], seed, -reach, reach)
    delta = delta[first : first + tf.shape(pixels)[0]]
    return tf.clip_by_value(pixels + delta, 0, 255)


def rand_augmented(
    batch: tf.Tensor, config: DatasetConfig, key: int, positions: tf.Tensor
) -> tf.Tensor:
    """RandAugment of each image of a batch.

    Args:
        batch: float32 `[batch, height, width, channels]` on 0..255, with known sides.
        config: operations and magnitude.
        key: the first number of their seeds.
        positions: of the images in the run, int64 `[batch]`; each image is a function of its own.
    """

    def vary(image: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        seed = tf.stack([tf.constant(key, tf.int64), position])
        return rand_augment.vary(image, config.rand_augment, config.rand_augment_magnitude, seed)

    shape = tf.TensorSpec(batch.shape[1:], tf.float32)
    return tf.map_fn(lambda x: vary(*x), (batch, positions), fn_output_signature=shape)


def has_geometric_augmentation(config: DatasetConfig) -> bool:
    """Whether training images are rotated, shifted, zoomed or sheared."""
    return any((config.rotation, config.shift, config.zoom, config.shear))


def is_varied(config: DatasetConfig) -> bool:
    """Whether a training image may differ from one epoch to the next."""
    of_photos = config.flip or config.color or config.area_min < 1
    of_photos = of_photos or config.rand_augment or config.train_interpolation == RANDOM
    return bool(of_photos) or has_geometric_augmentation(config)


def random_affine(
    batch: tf.Tensor,
    config: DatasetConfig,
    seed: tf.Tensor,
    *,
    crop: bool = False,
    fill: str = "REFLECT",
    part: Part | None = None,
) -> tf.Tensor:
    """Rotates, shears, zooms and shifts each image at random, in one bilinear resampling.

    Args:
        batch: `[batch, height, width, channels]` with known sides.
        config: `rotation`, `shear`, `zoom`, `shift`; with `crop` also `area_min` and `aspect_max`.
        seed: int64 `[2]`; the result is a function of it.
        crop: take a random crop as well (for images that were not cropped on decoding).
        fill: pixels outside the image: `REFLECT`, or `CONSTANT` for black.
        part: of a larger batch that these images are; they are varied as in the whole one.
    """
    count, height, width = tf.shape(batch)[0], int(batch.shape[1]), int(batch.shape[2])
    first, total = part or (0, count)
    draw = tf.random.stateless_uniform([9, total], seed, -1.0, 1.0)[:, first : first + count]
    angle = draw[0] * (config.rotation * math.pi / 180)
    slant = draw[1] * config.shear
    across = down = 1 + draw[2] * config.zoom
    right, below = draw[3] * config.shift * width, draw[4] * config.shift * height
    if crop and config.area_min < 1:
        area = config.area_min + (1 - config.area_min) * (draw[5] + 1) / 2
        aspect = tf.exp(draw[6] * math.log(config.aspect_max))
        share_x = tf.minimum(tf.sqrt(area * aspect), 1.0)
        share_y = tf.minimum(tf.sqrt(area / aspect), 1.0)
        right += draw[7] * (1 - share_x) * width / 2
        below += draw[8] * (1 - share_y) * height / 2
        across, down = across * share_x, down * share_y
    cosine, sine = tf.cos(angle), tf.sin(angle)
    xx, xy = cosine * across, (cosine * slant - sine) * down
    yx, yy = sine * across, (sine * slant + cosine) * down
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    x0 = middle_x - xx * middle_x - xy * middle_y + right
    y0 = middle_y - yx * middle_x - yy * middle_y + below
    zeros = tf.zeros_like(xx)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=batch,
        transforms=tf.stack([xx, xy, x0, yx, yy, y0, zeros, zeros], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode=fill,
    )


def normalize(pixels: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """`(pixel - mean) / std` as float32, for pixels 0..255 of any type."""
    pixels = tf.cast(pixels, tf.float32)
    mean, std = (np.array(x, np.float32) for x in (preprocessing.mean, preprocessing.std))
    if len(mean) == len(std) == 1 or pixels.shape[-2] is None:
        return (pixels - mean) / std
    # TensorFlow repeats three numbers ten times as slowly as those of a whole row.
    width, channels = pixels.shape[-2:]
    mean, std = (np.tile(np.broadcast_to(x, [channels]), width) for x in (mean, std))
    rows = tf.reshape(pixels, [-1, width * channels])
    return tf.ensure_shape(tf.reshape((rows - mean) / std, tf.shape(pixels)), pixels.shape)
