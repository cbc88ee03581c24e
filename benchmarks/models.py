"""Models of random weights through which images still differ, as the benchmarks share them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

CLASSES = 1000


def images(count: int, size: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Colored blocks with noise, `[count, size, size, 3]` in -1..1 as a float model takes them."""
    noise = np.random.default_rng(seed)
    coarse = noise.uniform(0, 255, (count, 8, 8, 3)).repeat(-(-size // 8), 1)
    coarse = coarse.repeat(-(-size // 8), 2)[:, :size, :size]
    pixels = np.clip(coarse + noise.normal(0, 20, coarse.shape), 0, 255)
    inputs: npt.NDArray[np.float32] = np.rint(pixels).astype(np.float32) - 127.5
    inputs /= 127.5
    return inputs


def build(name: str, width: float, size: int) -> Any:
    """A float model with 1000 logits whose batch norms have the statistics of a batch."""
    import tf_keras

    from mobilenet.configs import archs
    from mobilenet.models import builder

    tf_keras.utils.set_random_seed(0)
    fields = {"num_classes": CLASSES, "classifier_activation": None}
    model = builder.build(archs.get(name, width_multiplier=width, **fields), (size, size, 3))
    norms = [x for x in model.layers if type(x).__name__ == "BatchNormalization"]
    momentum = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(images(4, size), training=True)
    for layer, value in zip(norms, momentum, strict=True):
        layer.momentum = value
    return model


def quantized(model: Any, size: int) -> Any:
    """The model wrapped in our scheme with ranges from a few images, as training leaves it."""
    from mobilenet.compression.quantization.int8 import scheme
    from mobilenet.compression.quantization.int8.calibration import calibrate
    from mobilenet.configs.dataset import PREPROCESSING

    wrapped = scheme.wrap(model, PREPROCESSING["inception"])
    calibrate(wrapped, images(4, size, seed=1))
    return wrapped


def dynamic(model: Any) -> bytes:
    """Dynamic range as TensorFlow's guide has it, from a frozen function."""
    import tensorflow as tf

    from mobilenet.export import freeze

    with freeze.quiet():
        frozen = freeze.freeze(freeze.float32_copy(model))
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return bytes(converter.convert())
