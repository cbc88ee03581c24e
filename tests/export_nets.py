"""Small models for the export tests: float ones, and quantized ones with fake quants."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter

L = tf_keras.layers
SIZE = 16
CLASSES = 5
FQ = tf.quantization.fake_quant_with_min_max_vars
FQ_CHANNEL = tf.quantization.fake_quant_with_min_max_vars_per_channel


class FakeQuant(L.Layer):
    """A fake-quant operator with a fixed range."""

    def __init__(self, low: float, high: float, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return FQ(inputs, self.low, self.high)


class QuantConv(L.Layer):
    """A convolution with bias; its kernel is quantized per channel, or (a fault) per tensor."""

    def __init__(
        self, filters: int, size: int, depthwise: bool = False, per_tensor: bool = False
    ) -> None:
        super().__init__()
        self.filters, self.size, self.depthwise, self.per_tensor = (
            filters,
            size,
            depthwise,
            per_tensor,
        )

    def build(self, shape: tuple[int, ...]) -> None:
        inner = 1 if self.depthwise else shape[-1]
        self.kernel = self.add_weight("kernel", (self.size, self.size, inner, self.filters))
        self.bias = self.add_weight("bias", (self.filters,))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        largest = tf.reduce_max(tf.abs(self.kernel), axis=(0, 1, 2))
        if self.per_tensor:
            kernel = FQ(
                self.kernel, -tf.reduce_max(largest), tf.reduce_max(largest), narrow_range=True
            )
        else:
            kernel = FQ_CHANNEL(self.kernel, -largest, largest, narrow_range=True)
        if self.depthwise:
            kernel = tf.transpose(kernel, (0, 1, 3, 2))
            return tf.nn.depthwise_conv2d(inputs, kernel, (1, 1, 1, 1), "SAME") + self.bias
        return tf.nn.conv2d(inputs, kernel, 1, "SAME") + self.bias


def quantized_model(
    island: bool = False, per_tensor: bool = False, low: float = -128 / 127.5
) -> tf_keras.Model:
    """Stem, depthwise, pointwise, pool, classifier; an `island` lacks one range."""
    rng = np.random.default_rng(0)
    source = L.Input((SIZE, SIZE, 3))
    x = FakeQuant(low, low + 2.0)(source)
    layers = [
        QuantConv(8, 3),
        QuantConv(8, 3, depthwise=True),
        QuantConv(16, 1, per_tensor=per_tensor),
    ]
    for i, layer in enumerate(layers):
        x = L.ReLU(6.0)(layer(x))
        x = x if island and i == 1 else FakeQuant(0.0, 6.0)(x)
    x = FakeQuant(0.0, 6.0)(L.GlobalAveragePooling2D(keepdims=True)(x))
    layers.append(QuantConv(CLASSES, 1))
    x = FakeQuant(-12.0, 12.0)(layers[-1](x))
    model = tf_keras.Model(source, L.Flatten()(x))
    for layer in layers:
        fan_in = np.prod(layer.kernel.shape[:3])
        channel = np.linspace(0.5, 2.0, layer.filters)
        layer.set_weights(
            [
                rng.normal(size=layer.kernel.shape) * channel * 1.6 / np.sqrt(fan_in),
                rng.normal(size=layer.filters) + 0.3,
            ]
        )
    return model


def float_model(softmax: bool = True) -> tf_keras.Model:
    """A small model of stock layers with batch norm, hard-swish in pieces and a residual."""
    tf_keras.utils.set_random_seed(1)
    source = L.Input((SIZE, SIZE, 3))
    x = L.BatchNormalization()(L.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(source))
    gate = L.Rescaling(1 / 6)(L.ReLU(6.0)(L.Rescaling(1.0, 3.0)(x)))
    x = L.Multiply()([x, gate])
    y = L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    x = L.Add()([x, y])
    x = L.Conv2D(CLASSES, 1, name="Logits")(L.GlobalAveragePooling2D(keepdims=True)(x))
    x = L.Flatten()(x)
    model = tf_keras.Model(source, L.Activation("softmax", dtype="float32")(x) if softmax else x)
    model.set_weights(
        [w + 0.1 * np.abs(np.sin(np.arange(w.size))).reshape(w.shape) for w in model.get_weights()]
    )
    return model


def pixels(images: int = 40) -> np.ndarray:
    """Smooth-ish random pictures as uint8: noise of several scales."""
    rng = np.random.default_rng(2)
    coarse = rng.uniform(0, 255, (images, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def inputs(images: int = 40) -> np.ndarray:
    return (pixels(images).astype(np.float32) - 128) / 127.5


def invoke(data: bytes, batch: np.ndarray) -> np.ndarray:
    """Runs a file image by image, by the runtime alone; codes in, codes out."""
    runner = Interpreter(model_content=data, num_threads=1)
    runner.allocate_tensors()
    rows = []
    for image in batch:
        runner.set_tensor(runner.get_input_details()[0]["index"], image[None])
        runner.invoke()
        rows.append(runner.get_tensor(runner.get_output_details()[0]["index"])[0])
    return np.stack(rows)


def ends(data: bytes) -> tuple[dict, dict]:
    runner = Interpreter(model_content=data, num_threads=1)
    return runner.get_input_details()[0], runner.get_output_details()[0]
