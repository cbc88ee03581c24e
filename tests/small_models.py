"""Small models, their images, and the model names as test parameters, for all tests."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mobilenet.configs import archs
from mobilenet.configs.block_tables import BlockConfig
from mobilenet.configs.dataset import PREPROCESSING
from mobilenet.models.builder import build

L = tf_keras.layers
INCEPTION = PREPROCESSING["inception"]
SIZE = 16
CLASSES = 4
TINY_V1_SIZE, TINY_V1_CLASSES = 32, 10
FAKE_QUANT = tf.quantization.fake_quant_with_min_max_vars
FAKE_QUANT_PER_CHANNEL = tf.quantization.fake_quant_with_min_max_vars_per_channel


QUICK = ("mobilenet_v1", "mobilenet_v3_small")  # they have every kind of layer


def families(quick: Iterable[str] = QUICK, names: Iterable[str] = tuple(archs.ALL)) -> list[Any]:
    """Names of our models as test parameters; those that are not in `quick` are slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def short_blocks(name: str) -> tuple[BlockConfig, ...]:
    """The first row of each kind of a model: every kind of layer, with and without a sum.

    The model has a quarter to two thirds of the layers.
    """
    kinds: set[tuple[BlockConfig, int]] = set()
    rows: list[BlockConfig] = []
    for row in archs.get(name).blocks:
        shape = row.replace(filters=1, stride=1, expansion_size=min(row.expansion_size, 2))
        inverted = row.block_type not in ("Conv", "DepSepConv", "GlobalPooling")
        added = inverted and row.residual and row.stride == 1 and row.filters == rows[-1].filters
        kind = (shape, added if inverted else row.stride)
        if kind not in kinds:
            kinds.add(kind)
            rows.append(row)
    return tuple(rows)


def toy(channels: int = 8, bias: bool = False) -> tf_keras.Model:
    """Stem, depthwise, pointwise, residual, squeeze without batch norm, pool, logits; 16 px.

    The names do not contain the roles.
    """
    tf_keras.utils.set_random_seed(3)

    def step(x: Any, layer: Any, relu: bool = True) -> Any:
        x = L.BatchNormalization(momentum=0.8, name=f"{layer.name}_norm")(layer(x))
        return L.ReLU(6.0, name=f"{layer.name}_act")(x) if relu else x

    source = L.Input((SIZE, SIZE, 3), name="input")
    x = step(source, L.Conv2D(channels, 3, 2, padding="same", use_bias=bias, name="a"))
    y = step(x, L.DepthwiseConv2D(3, padding="same", use_bias=bias, name="b"))
    y = step(y, L.Conv2D(channels, 1, use_bias=bias, name="c"), relu=False)
    x = L.Add(name="sum")([x, y])
    x = L.ReLU(name="d_act")(L.Conv2D(2 * channels, 1, name="d")(x))
    x = L.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = L.Conv2D(CLASSES, 1, name="e")(x)
    return tf_keras.Model(source, L.Flatten(name="flat", dtype="float32")(x), name="toy")


def hard_swish_model(softmax: bool = False) -> Any:
    """Convolutions with a hard-swish between, a residual sum and a dense layer at the end."""
    tf_keras.utils.set_random_seed(6)
    source = L.Input((SIZE, SIZE, 3))
    x = L.BatchNormalization(name="norm")(L.Conv2D(8, 3, 2, use_bias=False, name="first")(source))
    y = L.Rescaling(1.0, 3.0, name="shift")(x)
    y = L.Rescaling(1 / 6, name="scale")(L.ReLU(6.0, name="six")(y))
    x = L.Multiply(name="swish")([x, y])
    y = L.DepthwiseConv2D(3, padding="same", name="middle")(x)
    x = L.Add(name="sum")([x, L.ReLU(name="relu")(y)])
    x = L.Conv2D(6, 1, name="last")(x)
    x = L.Dense(CLASSES, name="dense")(L.GlobalAveragePooling2D(name="pool")(x))
    if softmax:
        x = L.Activation("softmax", dtype="float32", name="probabilities")(x)
    return randomize_batch_norm(tf_keras.Model(source, x))


def relu_model() -> Any:
    """Two convolutions with a depthwise one and an unbounded ReLU between."""
    tf_keras.utils.set_random_seed(5)
    source = L.Input((SIZE, SIZE, 3))
    x = L.Conv2D(6, 3, padding="same", name="first")(source)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU(name="relu")(x)
    x = L.DepthwiseConv2D(3, padding="same", name="middle")(x)
    x = L.ReLU(name="again")(x)
    x = L.Conv2D(4, 1, name="last")(x)
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return randomize_batch_norm(tf_keras.Model(source, x))


def narrow_v3(size: int) -> Any:
    """V3-small of a quarter of its width with the first row of each kind, ten logits."""
    tf_keras.utils.set_random_seed(1)
    fields = {"width_multiplier": 0.25, "num_classes": 10, "classifier_activation": None}
    config = archs.get("mobilenet_v3_small", blocks=short_blocks("mobilenet_v3_small"), **fields)
    return randomize_batch_norm(build(config, (size, size, 3)))


class FakeQuant(tf_keras.layers.Layer):
    """A fake-quant operator with a fixed range."""

    def __init__(self, low: float, high: float, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return FAKE_QUANT(inputs, self.low, self.high)


class QuantConv(tf_keras.layers.Layer):
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
            kernel = FAKE_QUANT(
                self.kernel, -tf.reduce_max(largest), tf.reduce_max(largest), narrow_range=True
            )
        else:
            kernel = FAKE_QUANT_PER_CHANNEL(self.kernel, -largest, largest, narrow_range=True)
        if self.depthwise:
            kernel = tf.transpose(kernel, (0, 1, 3, 2))
            return tf.nn.depthwise_conv2d(inputs, kernel, (1, 1, 1, 1), "SAME") + self.bias
        return tf.nn.conv2d(inputs, kernel, 1, "SAME") + self.bias


def fake_quant_model(
    island: bool = False, per_tensor: bool = False, low: float = -128 / 127.5
) -> tf_keras.Model:
    """Stem, depthwise, pointwise, pool, classifier; an `island` lacks one range."""
    rng = np.random.default_rng(5)
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


@functools.cache
def tiny_v1(softmax: bool = False, channels: int = 3) -> Any:
    """A V1 in miniature, batch 1; its random weights are so wide that outputs differ by image."""
    tf_keras.utils.set_random_seed(3)

    def scaled() -> Any:
        return tf_keras.initializers.VarianceScaling(3.0)

    source = L.Input((TINY_V1_SIZE, TINY_V1_SIZE, channels), batch_size=1)
    x = L.ReLU(6)(L.Conv2D(8, 3, 2, "same", kernel_initializer=scaled())(source))
    for width in (16, 24):
        x = L.ReLU(6)(L.DepthwiseConv2D(3, 1, "same", depthwise_initializer=scaled())(x))
        point = L.Conv2D(width, 1, kernel_initializer=scaled(), bias_initializer="uniform")
        x = L.ReLU(6)(point(x))
    wide = tf_keras.initializers.RandomNormal(stddev=2.0)
    x = L.Dense(TINY_V1_CLASSES, kernel_initializer=wide)(L.GlobalAveragePooling2D()(x))
    return tf_keras.Model(source, L.Softmax()(x) if softmax else x)


def two_layer_model() -> Any:
    """A convolution with batch norm and a dense layer, for `[batch, 6, 6, 2]`."""
    tf_keras.utils.set_random_seed(1)
    source = L.Input((6, 6, 2))
    x = L.Conv2D(4, 3, strides=2, use_bias=False, name="Conv")(source)
    x = L.ReLU()(L.BatchNormalization(momentum=0.8)(x))
    return tf_keras.Model(source, L.Dense(CLASSES)(L.Flatten()(x)))


def dropout_model() -> Any:
    """The same with dropout of channels and of the inputs of the dense layer."""
    tf_keras.utils.set_random_seed(1)
    source = L.Input((6, 6, 2))
    x = L.Conv2D(4, 3, strides=2, use_bias=False, name="Conv")(source)
    x = L.SpatialDropout2D(0.2)(L.ReLU()(L.BatchNormalization(momentum=0.8)(x)))
    return tf_keras.Model(source, L.Dense(CLASSES)(L.Dropout(0.5)(L.Flatten()(x))))


def rename_layers(model: Any) -> Any:
    """A model of the same layers under misleading names; its weights are new."""
    numbers = iter(range(1000))
    return tf_keras.models.clone_model(
        model,
        clone_function=lambda layer: type(layer).from_config(
            layer.get_config() | {"name": f"depthwise_{next(numbers)}"}
        ),
    )


OWN_MODELS = (
    *("v2_with_head", "nested_v2", "nested_v2_rescaling", "v3", "v3_of_pixels", "cnn"),
    "batch_norms",
)
OWN_SIZE = 32


def own_model(name: str) -> Any:
    """A model as users build it with tf_keras alone, of ten classes, for images of 32 px.

    Args:
        name: one of `OWN_MODELS`: V2 of keras.applications with a head; V2 called as a layer
            after augmentation and `preprocess_input` or `Rescaling`, as the transfer-learning
            tutorial of tensorflow.org does; V3-small without and with its `Rescaling`; a
            Sequential model of convolution, batch norm, ReLU, pooling and a dense layer; batch
            norms after activations, sums, pooling and dense layers, a ReLU of a sum that is read
            elsewhere too, and separable convolutions.
    """
    tf_keras.utils.set_random_seed(2)
    shape = (OWN_SIZE, OWN_SIZE, 3)
    if name == "cnn":
        layers = [L.Conv2D(8, 3), L.BatchNormalization(), L.ReLU(), L.MaxPooling2D(), L.Flatten()]
        return randomize_batch_norm(tf_keras.Sequential([L.Input(shape), *layers, L.Dense(10)]))
    if name == "batch_norms":
        return _batch_norms_everywhere(shape)
    if name.startswith("v3"):
        model = tf_keras.applications.MobileNetV3Small(
            shape, 0.35, weights=None, classes=10, include_preprocessing=name == "v3_of_pixels"
        )
        return randomize_batch_norm(model, pixel_inputs=name == "v3_of_pixels")
    base = tf_keras.applications.MobileNetV2(shape, 0.35, weights=None, include_top=False)
    randomize_batch_norm(base)
    if name == "v2_with_head":
        return tf_keras.Model(base.input, _own_head(base.output))
    base.trainable = False
    source = L.Input(shape)
    x = tf_keras.Sequential([L.RandomFlip("horizontal"), L.RandomRotation(0.2)])(source)
    if name == "nested_v2":
        x = tf_keras.applications.mobilenet_v2.preprocess_input(x)
    else:
        x = L.Rescaling(1 / 127.5, offset=-1)(x)
    return tf_keras.Model(source, _own_head(base(x, training=False)))


def tutorial_model(classes: int = 3, activation: str | None = "softmax", channels: int = 3) -> Any:
    """A small CNN as tutorials write it: it scales pixels itself; 16 px."""
    tf_keras.utils.set_random_seed(0)
    layers = [
        *(L.Input((SIZE, SIZE, channels)), L.Rescaling(1 / 255)),
        *(L.Conv2D(8, 3, padding="same", use_bias=False), L.BatchNormalization(), L.ReLU()),
        *(L.MaxPooling2D(), L.Conv2D(16, 3, padding="same", activation="relu")),
        *(L.MaxPooling2D(), L.Conv2D(16, 1, activation="relu"), L.GlobalAveragePooling2D()),
        *(L.Dropout(0.2), L.Dense(classes, activation=activation)),
    ]
    return tf_keras.Sequential(layers, name="tutorial")


def _batch_norms_everywhere(shape: tuple[int, int, int]) -> Any:
    source = L.Input(shape)
    x = L.Conv2D(8, 3, 2, padding="same", activation="relu")(L.BatchNormalization()(source))
    x = L.MaxPooling2D()(L.BatchNormalization()(x))
    y = L.SeparableConv2D(8, 3, padding="same", use_bias=False)(x)
    x = L.Add()([x, L.ReLU()(L.BatchNormalization()(y))])
    x = L.Add()([x, L.SeparableConv2D(8, 3, padding="same")(L.Activation("relu")(x))])
    x = L.Conv2D(16, 3)(L.ReLU()(L.BatchNormalization()(x)))
    x = L.BatchNormalization()(L.GlobalMaxPooling2D()(x))
    x = L.ReLU()(L.BatchNormalization()(L.Dense(16)(x)))
    return randomize_batch_norm(tf_keras.Model(source, L.Dense(10, activation="softmax")(x)))


def _own_head(x: Any) -> Any:
    x = L.Dropout(0.2)(L.GlobalAveragePooling2D()(x))
    return L.Dense(10, activation="softmax")(x)


def own_inputs(name: str, count: int, seed: int = 0) -> np.ndarray:
    """Inputs of an own model: pixels where it scales them itself, else in [-1, 1]."""
    if name in ("nested_v2", "nested_v2_rescaling", "v3_of_pixels"):
        return pixels(count, OWN_SIZE, seed).astype(np.float32)
    return inputs(count, OWN_SIZE, seed)


def randomize_batch_norm(model: Any, seed: int = 0, pixel_inputs: bool = False) -> Any:
    """Gives batch norms random scales and offsets and fitting statistics. In place.

    Mean and variance are those of a batch, so that images still differ at the end of a deep model.
    """
    rng = np.random.default_rng(seed)
    norms = [x for x in model.layers if type(x).__name__ == "BatchNormalization"]
    momentum = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
        n = layer.moving_mean.shape[0]
        scale, shift = rng.uniform(0.5, 1.5, n), rng.normal(0, 0.3, n)
        if layer.scale:
            layer.gamma.assign(scale)
        if layer.center:
            layer.beta.assign(shift)
    images = inputs(32, model.input_shape[1], seed)
    model(images * 127.5 + 127.5 if pixel_inputs else images, training=True)
    for layer, value in zip(norms, momentum, strict=True):
        layer.momentum = value
    return model


def pixels(count: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Blocks of color with noise on them, uint8 `[count, size, size, 3]`."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def inputs(count: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """The same, as a float model takes them: `pixel / 127.5 - 1`."""
    return (pixels(count, size, seed).astype(np.float32) - 127.5) / 127.5


def file_inputs(images: np.ndarray) -> np.ndarray:
    """uint8 pixels on the input grid of an int8 file: `(pixel - 128) / 127.5`."""
    return (images.astype(np.float32) - 128) / np.float32(127.5)


def model_outputs(model: Any, images: np.ndarray) -> np.ndarray:
    """Outputs of a model in inference, `[images, classes]`."""
    return model(images, training=False).numpy().reshape(len(images), -1)


def relative_error(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Sum of squared errors over the sum of squares of what is expected."""
    return float(np.square(outputs - expected).sum() / np.square(expected).sum())


def zero_fraction(array: Any) -> float:
    """The share of entries that are exactly zero."""
    return float(np.mean(np.asarray(array) == 0))
