"""RandAugment (Cubuk et al., arXiv 1909.13719): random operations of one strength on an image.

The fourteen operations and their greatest strengths are those of the paper and of torchvision's
`RandAugment`; each is Pillow's operation to within 1 of 255, so that recipes of other libraries
carry over. Keras 3's layer of this name draws for a batch and has a state, which a run that
continues would have lost: here every draw is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from mobilenet.data.orientation import called_function

STRONGEST = 10.0  # of the magnitude, as timm counts it
_FILL = 128.0  # of what lies outside of a turned image: gray, as in the paper
_LUMA = (0.299, 0.587, 0.114)  # of Pillow's mode L
_SMOOTH = ((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (1.0, 1.0, 1.0))  # of Pillow's ImageFilter.SMOOTH
_STREAM = (0x52414E44, 0)  # separates these seeds from those of the crop and of colors

Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def vary(pixels: tf.Tensor, operations: int, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
    """Applies operations that are drawn for this image, one after the other.

    Args:
        pixels: float32 `[height, width, channels]` on 0..255, with known sides; they are rounded.
        operations: how many; the same one may be drawn again.
        magnitude: of all, 0 to `STRONGEST`; the sign is drawn where an operation has one.
        seed: int64 `[2]`; the result is a function of it.

    Returns:
        Whole numbers on 0..255 as float32.
    """
    signature = [tf.TensorSpec(pixels.shape, tf.float32), tf.TensorSpec([], tf.float32)]
    branches = [called_function(operation, signature) for operation in OPERATIONS.values()]
    drawn = tf.random.stateless_uniform([operations, 2], seed + _STREAM)
    pixels = _rounded(pixels)
    for chosen, sign in map(tf.unstack, tf.unstack(drawn)):
        index = tf.cast(chosen * len(branches), tf.int32)
        level = tf.where(sign < 0.5, -1.0, 1.0) * (magnitude / STRONGEST)
        calls = [lambda b=branch, p=pixels, x=level: b(p, x) for branch in branches]
        pixels = tf.switch_case(tf.minimum(index, len(branches) - 1), calls)
    return pixels


def _rounded(pixels: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(tf.floor(pixels + 0.5), 0.0, 255.0)


def identity(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    return pixels


def _affine(pixels: tf.Tensor, *rows: tf.Tensor | float) -> tf.Tensor:
    """The image whose pixel (x, y) is that of (a x + b y + c, d x + e y + f), from its center."""
    height, width = pixels.shape[:2]
    x, y = (width - 1) / 2, (height - 1) / 2
    a, b, c, d, e, f = (tf.cast(value, tf.float32) for value in rows)
    transform = [a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y, 0.0, 0.0]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels[None],
        transforms=tf.stack(transform)[None],
        output_shape=[height, width],
        fill_value=_FILL,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return _rounded(moved[0])


def shear_x(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """By up to 0.3 pixels a pixel."""
    return _affine(pixels, 1.0, 0.3 * level, 0.0, 0.0, 1.0, 0.0)


def shear_y(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    return _affine(pixels, 1.0, 0.0, 0.0, 0.3 * level, 1.0, 0.0)


def translate_x(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """By up to 150 of 331 of the side, as in the paper."""
    shift = level * (150 / 331 * pixels.shape[1])
    return _affine(pixels, 1.0, 0.0, shift, 0.0, 1.0, 0.0)


def translate_y(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    shift = level * (150 / 331 * pixels.shape[0])
    return _affine(pixels, 1.0, 0.0, 0.0, 0.0, 1.0, shift)


def rotate(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """By up to 30 degrees."""
    angle = level * (30 * 3.141592653589793 / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    return _affine(pixels, cosine, -sine, 0.0, sine, cosine, 0.0)


def _blend(other: tf.Tensor, pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Away from `other` by up to 0.9 of the difference, or towards it."""
    return _rounded(other + (1.0 + 0.9 * level) * (pixels - other))


def brightness(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    return _blend(tf.zeros_like(pixels), pixels, level)


def color(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Saturation: differences from the luma. Gray images stay."""
    return _blend(_luma(pixels), pixels, level)


def contrast(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Differences from the mean luma of the image."""
    return _blend(tf.floor(tf.reduce_mean(_luma(pixels)) + 0.5), pixels, level)


def sharpness(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Differences from the image smoothed by 3x3 pixels; its border stays."""
    channels = pixels.shape[-1]
    kernel = tf.tile(tf.constant(_SMOOTH)[:, :, None, None] / 13.0, [1, 1, channels, 1])
    inner = tf.nn.depthwise_conv2d(pixels[None], kernel, [1, 1, 1, 1], "VALID")[0]
    border = [[1, 1], [1, 1], [0, 0]]
    is_inner = tf.pad(tf.ones_like(inner), border) > 0
    smooth = tf.where(is_inner, tf.pad(_rounded(inner), border), pixels)
    return _blend(smooth, pixels, level)


def posterize(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Leaves the upper 8 bits of a value, or down to 4."""
    step = tf.pow(2.0, tf.round(4.0 * tf.abs(level)))
    return tf.floor(pixels / step) * step


def solarize(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Inverts values from a threshold on, which falls from 255 to 0."""
    return tf.where(pixels < 255.0 * (1.0 - tf.abs(level)), pixels, 255.0 - pixels)


def autocontrast(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Spreads the values of each channel over 0..255."""
    low = tf.reduce_min(pixels, [0, 1], keepdims=True)
    spread = tf.reduce_max(pixels, [0, 1], keepdims=True) - low
    scaled = tf.floor((pixels - low) * (255.0 / tf.maximum(spread, 1.0)))
    return tf.where(spread > 0, scaled, pixels)


def equalize(pixels: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Gives the values of each channel as even a distribution as a table of values can."""
    values = tf.cast(pixels, tf.int32)
    channels = [_equalized(channel) for channel in tf.unstack(values, axis=-1)]
    return tf.cast(tf.stack(channels, axis=-1), tf.float32)


def _equalized(values: tf.Tensor) -> tf.Tensor:
    counts = tf.math.bincount(tf.reshape(values, [-1]), minlength=256, maxlength=256)
    step = (tf.size(values) - tf.gather(counts, tf.reduce_max(values))) // 255
    table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
    return tf.where(step > 0, tf.gather(tf.minimum(table, 255), values), values)


def _luma(pixels: tf.Tensor) -> tf.Tensor:
    if pixels.shape[-1] != 3:
        return pixels
    return _rounded(tf.tensordot(pixels, tf.constant(_LUMA), 1))[..., None]


OPERATIONS: dict[str, Operation] = {
    "identity": identity,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
}
