"""Small flatbuffers for the tests of the runtime, converted by TensorFlow's own converter."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

SIZE, CLASSES = 32, 10


@functools.cache
def keras_model(softmax: bool = False, channels: int = 3) -> Any:
    """A V1 in miniature, its random weights so wide that outputs differ between images."""
    import tf_keras as keras

    keras.utils.set_random_seed(3)
    layers = keras.layers

    def scaled() -> Any:
        return keras.initializers.VarianceScaling(3.0)

    source = layers.Input((SIZE, SIZE, channels), batch_size=1)
    x = layers.ReLU(6)(layers.Conv2D(8, 3, 2, "same", kernel_initializer=scaled())(source))
    for width in (16, 24):
        x = layers.ReLU(6)(layers.DepthwiseConv2D(3, 1, "same", depthwise_initializer=scaled())(x))
        x = layers.ReLU(6)(
            layers.Conv2D(width, 1, kernel_initializer=scaled(), bias_initializer="uniform")(x)
        )
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(CLASSES, kernel_initializer=keras.initializers.RandomNormal(stddev=2.0))(x)
    return keras.Model(source, layers.Softmax()(x) if softmax else x)


@functools.cache
def flatbuffer(kind: str, softmax: bool = False, channels: int = 3) -> bytes:
    """The model as float, float16, dynamic, sparse, int8 or uint8 (these two at both ends)."""
    import tensorflow as tf

    model = keras_model(softmax, channels)
    if kind == "sparse":
        import tf_keras as keras

        model = keras.models.clone_model(model)
        noise = np.random.default_rng(0)
        model.set_weights(
            [
                w * (noise.random(w.shape) > 0.8)
                for w in keras_model(softmax, channels).get_weights()
            ]
        )
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if kind == "sparse":
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    elif kind != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind in ("int8", "uint8"):
        noise = np.random.default_rng(1)
        converter.representative_dataset = lambda: (
            [noise.uniform(-1, 1, (1, SIZE, SIZE, channels)).astype(np.float32)] for _ in range(10)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = getattr(tf, kind)
    return bytes(converter.convert())
