"""What a teacher takes, from the images that the model trains on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mobilenet.configs.dataset import PREPROCESSING, Preprocessing

Size = tuple[int | None, int | None]
_RGB = 3


def converter(
    from_: Preprocessing,
    to: Preprocessing,
    size: Size = (None, None),
    channels: tuple[int, int] = (_RGB, _RGB),
) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from inputs by one preprocessing to inputs by another.

    What the first one cut off stays cut off; other sizes are resized bilinearly, without
    antialiasing as in the preprocessing of images.

    Args:
        from_, to: preprocessing of the model and of its teacher.
        size: height and width of the teacher's images; `None` takes them as they are.
        channels: of the images of both, 1 or 3.
    """
    rescale = _rescaling(from_, to)
    if channels == (_RGB, 1):  # pixels first: each channel may have a scale of its own
        to_pixels = _rescaling(from_, PREPROCESSING["raw"])
        from_pixels = _rescaling(PREPROCESSING["raw"], to)

    def convert(images: tf.Tensor) -> tf.Tensor:
        target = [own or given for own, given in zip(size, images.shape[1:3], strict=True)]
        if target != list(images.shape[1:3]):
            images = tf.image.resize(images, target, "bilinear")
        if channels == (_RGB, 1):
            return from_pixels(tf.image.rgb_to_grayscale(to_pixels(images)))
        if channels == (1, _RGB):
            images = tf.repeat(images, _RGB, axis=-1)
        return rescale(images)

    return convert


def _rescaling(from_: Preprocessing, to: Preprocessing) -> Callable[[tf.Tensor], tf.Tensor]:
    if (from_.mean, from_.std) == (to.mean, to.std):
        return lambda images: images
    mean, std, own_mean, own_std = (
        np.asarray(value, np.float32) for value in (from_.mean, from_.std, to.mean, to.std)
    )
    scale, shift = std / own_std, (mean - own_mean) / own_std
    return lambda images: images * scale + shift
