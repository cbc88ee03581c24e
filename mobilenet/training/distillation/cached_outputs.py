"""The outputs of a teacher for all training images, computed once where images are not varied."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from mobilenet.training.run_data import RunData
from mobilenet.typing import Float32Array

log = logging.getLogger("mobilenet")
_BATCH = 64  # the same for every run, so that a continued one computes the same values
_MAX_BYTES = 1 << 28  # of the outputs, which stay in memory
_EXACT = 1 << 24  # numbers below it are exact in float32


def compute(
    predict: Callable[[tf.Tensor], tf.Tensor], data: RunData, images: int, classes: int
) -> Float32Array | None:
    """The logits of each training image, by its number.

    Args:
        predict: from images to logits, as `Teacher.predict`.
        data: of the run.
        images: number of training images.
        classes: of the run.

    Returns:
        float32 `[images, classes]`; `None` where images are varied, cannot be numbered, or are so
        many that their outputs would take more than 256 MiB.
    """
    if images >= _EXACT or images * classes * 4 > _MAX_BYTES:
        return None
    batches = data.numbered_images(_BATCH)
    if batches is None:
        return None
    log.info("the teacher's outputs of %s images are computed once", f"{images:,}")
    table: Any = np.zeros((images, classes), np.float32)
    compiled = tf.function(predict, reduce_retracing=True)
    for batch, numbers in batches:
        table[numbers.numpy().astype(np.int64)] = compiled(batch).numpy()
    values: Float32Array = table
    return values
