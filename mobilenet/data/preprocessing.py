"""From an encoded image to the pixels of a model: augmentation, evaluation crop, normalization.

Evaluation follows tensorflow/models research/slim/preprocessing/inception_preprocessing.py
(`central`) and official/vision/image_classification/preprocessing.py (`square`), with TF2's
half-pixel bilinear resize. Pixels stay on 0..255 until `normalize`. Every random operation is
stateless: its seed is an argument.
"""

from __future__ import annotations

import math

import tensorflow as tf

from mobilenet.configs.dataset import DatasetConfig, Preprocessing
from mobilenet.data import orientation
from mobilenet.data.decoding import checked_jpeg, crop_jpeg, decode, decode_other

_BRIGHTNESS = 32.0  # of 255, slim's strength at color 1
_SATURATION = 0.5
_PADDING = 32  # official: a crop of size / (size + 32), 0.875 at 224

Size = tuple[int, int]
Part = tuple[tf.Tensor, int]  # number of its first image in a larger batch, and images of that


def evaluation_pixels(image: tf.Tensor, preprocessing: Preprocessing, size: Size) -> tf.Tensor:
    """Crops and resizes for evaluation: float32 `[height, width, channels]`, unrounded."""
    if preprocessing.crop == "central":
        image = tf.image.central_crop(image, preprocessing.crop_fraction)
    elif preprocessing.crop == "square":
        image = _square(image, min(size))
    return tf.image.resize(image, size, "bilinear", antialias=False)


def _square(image: tf.Tensor, size: int) -> tf.Tensor:
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    share = size / (size + _PADDING)
    side = tf.cast(share * tf.cast(tf.minimum(height, width), tf.float32), tf.int32)
    side = tf.maximum(side, 1)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return tf.image.crop_to_bounding_box(image, top, left, side, side)


def training_pixels(
    encoded: tf.Tensor, config: DatasetConfig, size: Size, channels: int, seed: tf.Tensor
) -> tf.Tensor:
    """Decodes and augments one training image: random crop, resize, flip, color.

    Of a JPEG only the columns of the crop are decoded.

    Args:
        encoded: the file's bytes.
        config: the strength of each augmentation, and whether the image is first turned upright
            (`exif`; `None` does).
        size: `(height, width)` of the result.
        channels: 3 or 1.
        seed: int64 `[2]`; the result is a function of it.

    Returns:
        uint8 `[height, width, channels]`: a quarter of the bytes to batch and to send.
    """
    seeds = tf.random.split(seed, 4)
    if config.area_min < 1:
        image = tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: _crop_jpeg(encoded, config, channels, seeds[0]),
            lambda: _crop_other(encoded, config, channels, seeds[0]),
        )
    else:
        image = decode(encoded, channels, config.max_pixels, _exif(config))
    image = tf.ensure_shape(image, [None, None, channels])
    pixels = tf.image.resize(image, size, "bilinear", antialias=False)
    if config.flip:
        pixels = tf.image.stateless_random_flip_left_right(pixels, seeds[1])
    if config.color:
        pixels = adjust_brightness(pixels[None], config.color, seeds[2])[0]
        if channels == 3:
            reach = _SATURATION * config.color
            pixels = tf.image.stateless_random_saturation(pixels, 1 - reach, 1 + reach, seeds[3])
    return tf.cast(tf.round(tf.clip_by_value(pixels, 0, 255)), tf.uint8)


def _exif(config: DatasetConfig) -> bool:
    return config.exif is not False


def _window(
    shape: tf.Tensor, config: DatasetConfig, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Corner and size of a random crop, `[top, left]` and `[height, width]`."""
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
    return begin[:2], extent[:2]


def _crop_jpeg(
    encoded: tf.Tensor, config: DatasetConfig, channels: int, seed: tf.Tensor
) -> tf.Tensor:
    encoded, shape = checked_jpeg(encoded, config.max_pixels)

    def stored() -> tf.Tensor:
        corner, extent = _window(tf.cast(shape, tf.int32), config, seed)
        return crop_jpeg(encoded, shape, corner, extent, channels)

    def turned(encoded: tf.Tensor, shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        turn = orientation.of_jpeg(encoded)
        sides = orientation.upright_size(tf.cast(shape[:2], tf.int32), turn)
        corner, extent = _window(tf.concat([sides, [channels]], 0), config, seed)
        corner, extent = orientation.stored_window(sides, corner, extent, turn)
        image = crop_jpeg(encoded, shape, corner, extent, channels)
        return orientation.turn(tf.ensure_shape(image, [None, None, channels]), turn)

    if not _exif(config):
        return stored()
    values = [encoded, shape, seed]
    called = orientation.called_function(turned, [tf.TensorSpec.from_tensor(v) for v in values])
    return tf.cond(orientation.is_bare_jpeg(encoded), stored, lambda: called(*values))


def _crop_other(
    encoded: tf.Tensor, config: DatasetConfig, channels: int, seed: tf.Tensor
) -> tf.Tensor:
    image = decode_other(encoded, channels, config.max_pixels, _exif(config))
    corner, extent = _window(tf.shape(image), config, seed)
    return tf.slice(image, tf.concat([corner, [0]], 0), tf.concat([extent, [channels]], 0))


def adjust_brightness(
    pixels: tf.Tensor, strength: float, seed: tf.Tensor, part: Part | None = None
) -> tf.Tensor:
    """Adds a random number of up to 32 times `strength` to each image of a batch (4 axes)."""
    reach = _BRIGHTNESS * strength
    first, total = part or (0, tf.shape(pixels)[0])
    delta = tf.random.stateless_uniform([total, 1, 1, 1], seed, -reach, reach)
    delta = delta[first : first + tf.shape(pixels)[0]]
    return tf.clip_by_value(pixels + delta, 0, 255)


def has_geometric_augmentation(config: DatasetConfig) -> bool:
    """Whether training images are rotated, shifted, zoomed or sheared."""
    return any((config.rotation, config.shift, config.zoom, config.shear))


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
    mean = tf.constant(preprocessing.mean, tf.float32)
    std = tf.constant(preprocessing.std, tf.float32)
    return (tf.cast(pixels, tf.float32) - mean) / std
