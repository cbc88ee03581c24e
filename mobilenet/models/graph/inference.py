"""A Keras model compiled for inference, and its outputs on more images than fit into memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from mobilenet.typing import Float32Array

Infer = Callable[[tf.Tensor], tf.Tensor]


def compile_model(model: Any) -> Infer:
    """`model` in inference mode, compiled: images to float32 outputs `[images, classes]`."""

    # One trace for every batch size: the last batch of a data set is smaller.
    @tf.function(input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)])
    def infer(images: tf.Tensor) -> tf.Tensor:
        outputs = tf.cast(model(images, training=False), tf.float32)
        return tf.reshape(outputs, (tf.shape(images)[0], -1))

    # TensorFlow warns of retracing when functions of one name are traced again and again; a
    # concrete function is traced once and does not count.
    concrete = functools.cache(infer.get_concrete_function)
    return lambda images: concrete()(images)


def run(infer: Infer, images: Float32Array, batch_size: int = 32) -> Float32Array:
    """Outputs of a compiled model, `[images, classes]`.

    Args:
        infer: from `compile_model`.
        images: `[images, height, width, channels]`, preprocessed.
        batch_size: images that are in memory together with all tensors of the model.
    """
    starts = range(0, len(images), batch_size)
    batches = [infer(tf.constant(images[start : start + batch_size])) for start in starts]
    return np.concatenate([batch.numpy() for batch in batches])
