"""Models that users build with tf_keras, as flat models of stock layers with the same outputs."""

from __future__ import annotations

import logging
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from small_models import OWN_MODELS, OWN_SIZE, inputs, model_outputs, own_inputs, own_model, toy

import mobilenet
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError
from mobilenet.models.graph.final_activation import split_final_activation
from mobilenet.models.graph.flatten import flatten
from mobilenet.models.graph.rebuild import copy

L = tf_keras.layers
SHAPE = (OWN_SIZE, OWN_SIZE, 3)
KNOWN = frozenset(
    {
        *("InputLayer", "Conv2D", "DepthwiseConv2D", "Dense", "BatchNormalization", "ReLU"),
        *("Rescaling", "Add", "Multiply", "GlobalAveragePooling2D", "MaxPooling2D", "Flatten"),
        *("Dropout", "ZeroPadding2D", "Activation", "Reshape"),
    }
)


@pytest.fixture(scope="module")
def own() -> Callable[[str], Any]:
    made: dict[str, Any] = {}
    return lambda name: made.setdefault(name, own_model(name))


def kinds(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def all_weights(model: Any) -> list[np.ndarray]:
    return sorted(model.get_weights(), key=lambda value: (value.shape, value.ravel()[0]))


QUICK = ("nested_v2", "cnn")
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in OWN_MODELS]
# A product with 1 / 127.5 rounds otherwise than the division of `preprocess_input`.
TOLERANCE = {"nested_v2": 2e-5}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_weights_are_the_same(
    name: str, own: Callable[[str], Any], tmp_path: Path
) -> None:
    model, images, most = own(name), own_inputs(name, 8), TOLERANCE.get(name, 1e-6)
    outputs = model_outputs(model, images)
    assert np.ptp(outputs, axis=0).max() > 1e-2  # the images differ in them
    flat = flatten(model)
    assert set(kinds(flat)) <= KNOWN
    assert flat._is_graph_network
    assert not isinstance(flat, tf_keras.Sequential)
    np.testing.assert_allclose(model_outputs(flat, images), outputs, rtol=0, atol=most)
    for value, expected in zip(all_weights(flat), all_weights(model), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert flatten(flat) is flat
    mobilenet.save_model(flat, tmp_path / "model", Card(input_shape=SHAPE))
    loaded = mobilenet.load_model(tmp_path / "model").model
    np.testing.assert_allclose(model_outputs(loaded, images), outputs, rtol=0, atol=most)


@pytest.mark.parametrize("name", NAMES)
def test_the_final_activation_is_split_off(name: str, own: Callable[[str], Any]) -> None:
    model, images = own(name), own_inputs(name, 8)
    before = [np.copy(value) for value in model.get_weights()]
    logits, activation = split_final_activation(model)
    assert activation == ("linear" if name == "cnn" else "softmax")
    outputs = model_outputs(logits, images).astype(np.float64)
    if activation == "softmax":
        exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        outputs = exponentials / exponentials.sum(axis=1, keepdims=True)
    most = TOLERANCE.get(name, 1e-6)
    np.testing.assert_allclose(outputs, model_outputs(model, images), rtol=0, atol=most)
    for variable in logits.weights:
        variable.assign(tf.zeros_like(variable))
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda x: L.Dense(3, activation="sigmoid")(x), "sigmoid"),
        (lambda x: L.Activation("sigmoid")(L.Dense(3)(x)), "sigmoid"),
        (lambda x: L.Softmax()(L.Dense(3)(x)), "softmax"),
        (lambda x: tf.nn.softmax(L.Dense(3)(x)), "softmax"),
        (lambda x: L.Flatten()(L.Reshape((1, 3))(L.Dense(3, activation="softmax")(x))), "softmax"),
        (lambda x: L.Activation("linear")(L.Dense(3, activation="softmax")(x)), "softmax"),
        (lambda x: L.Dense(3, activation="relu")(x), "linear"),
        (lambda x: L.Dense(3)(L.Dense(3, activation="softmax")(x)), "linear"),
    ],
)  # fmt: skip
def test_forms_of_the_final_activation(end: Callable[[Any], Any], expected: str) -> None:
    source = L.Input((4,))
    model = tf_keras.Model(source, end(source))
    logits, activation = split_final_activation(model)
    assert activation == expected
    values = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    outputs = logits(values).numpy().astype(np.float64)
    if expected == "sigmoid":
        outputs = 1 / (1 + np.exp(-outputs))
    if expected == "softmax":
        outputs = np.exp(outputs) / np.exp(outputs).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(outputs, model(values).numpy(), atol=1e-6)


def hard_swish_chains(model: Any) -> int:
    """How many products are `x * (relu6(x + 3) / 6)` in the layers of this library's models."""
    chains = 0
    for layer in model.layers:
        if not isinstance(layer, L.Multiply):
            continue
        x, gate = (tensor._keras_history.layer for tensor in layer.input)
        if isinstance(gate, L.Rescaling):
            assert gate.scale == pytest.approx(1 / 6)
            assert gate.offset == 0
            relu = gate.input._keras_history.layer
            assert relu.max_value == 6
            shift = relu.input._keras_history.layer
            assert (shift.scale, shift.offset) == (1, 3)
            chains += shift.input._keras_history.layer is x
    return chains


def test_v3_has_the_hard_swishes_of_this_library(own: Callable[[str], Any]) -> None:
    """19 in V3-small: 8 blocks with two each, and three around them (arXiv 1905.02244, table 2)."""
    flat = flatten(own("v3"))
    assert hard_swish_chains(flat) == 19
    assert "Conv_BatchNorm_shift" in [layer.name for layer in flat.layers]


ONE_LAYER: list[tuple[Callable[[Any], Any], list[str]]] = [
    (lambda x: x + 3, ["Rescaling"]),
    (lambda x: 3 - x, ["Rescaling"]),
    (lambda x: -x / 2.0, ["Rescaling"]),
    (lambda x: x / 127.5 - 1.0, ["Rescaling"]),
    (lambda x: (x - [1.0, 2.0, 3.0]) * tf.constant([0.5, 0.25, 2.0]), ["Rescaling"]),
    (tf_keras.applications.mobilenet_v2.preprocess_input, ["Rescaling"]),
    (tf_keras.applications.densenet.preprocess_input, ["Rescaling"]),
    (lambda x: L.Normalization(mean=[1.0, 2, 3], variance=[4.0, 5, 6])(x), ["Rescaling"]),
    (lambda x: tf.nn.bias_add(x, [1.0, 2.0, 3.0]), ["Rescaling"]),
    (tf.nn.relu6, ["ReLU"]),
    (lambda x: tf.maximum(x, 0.0), ["ReLU"]),
    (lambda x: tf.clip_by_value(x, 0.0, 2.0), ["ReLU"]),
    (lambda x: tf.reduce_mean(x, [1, 2]), ["GlobalAveragePooling2D"]),
    (lambda x: tf.reduce_mean(x, [-2, -3], keepdims=True), ["GlobalAveragePooling2D"]),
    (lambda x: tf.cast(tf.identity(x), tf.float32) * 2, ["Rescaling"]),
    (lambda x: x * L.ReLU()(x), ["ReLU", "Multiply"]),
    (lambda x: tf.math.add(x, L.ReLU()(x)), ["ReLU", "Add"]),
    (lambda x: x - L.ReLU()(x), ["ReLU", "Subtract"]),
    (lambda x: tf.concat([x, L.ReLU()(x)], -1), ["ReLU", "Concatenate"]),
    (lambda x: tf.reshape(x, (-1, 48)), ["Reshape"]),
    (L.GlobalMaxPooling2D(), ["MaxPooling2D", "Reshape"]),
    (lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]]), ["ZeroPadding2D"]),
    (tf_keras.activations.hard_sigmoid, ["Rescaling", "ReLU", "Rescaling"]),
    (L.Activation("hard_sigmoid"), ["Rescaling", "ReLU", "Rescaling"]),
    (L.Activation(tf.nn.relu6), ["ReLU"]),
    (lambda x: tf.nn.relu6(x + 3) / 6, ["Rescaling", "ReLU", "Rescaling"]),
    (L.Dense(3, activation=tf.nn.relu6), ["Dense", "ReLU"]),
]  # fmt: skip
HARD_SWISHES: list[Callable[[Any], Any]] = [
    lambda x: x * tf.nn.relu6(x + 3) / 6,
    lambda x: x * (tf.nn.relu6(x + 3.0) * (1 / 6)),
    lambda x: L.Multiply()([x, L.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)]),
    L.Activation(lambda x: x * tf.nn.relu6(x + 3) / 6),
]


def small(function: Callable[[Any], Any]) -> Any:
    source = L.Input((4, 4, 3))
    return tf_keras.Model(source, function(source))


@pytest.mark.parametrize(("function", "expected"), ONE_LAYER)
def test_an_operator_becomes_stock_layers(
    function: Callable[[Any], Any], expected: list[str]
) -> None:
    model = small(function)
    flat = flatten(model)
    assert kinds(flat)[1:] == expected
    images = np.random.default_rng(1).normal(0, 4, (3, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(flat(images), model(images), atol=2e-6)


@pytest.mark.parametrize("function", HARD_SWISHES)
def test_a_hard_swish_has_one_form(function: Callable[[Any], Any]) -> None:
    model = small(function)
    flat = flatten(model)
    assert kinds(flat)[1:] == ["Rescaling", "ReLU", "Rescaling", "Multiply"]
    assert hard_swish_chains(flat) == 1
    images = np.random.default_rng(1).normal(0, 4, (3, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(flat(images), model(images), atol=2e-6)


def test_a_scaled_tensor_that_is_read_twice_stays() -> None:
    def function(x: Any) -> Any:
        y = x * 0.5
        return y * tf.nn.relu6(y + 3) / 6

    flat = flatten(small(function))
    assert kinds(flat)[1:] == ["Rescaling", "Rescaling", "ReLU", "Rescaling", "Multiply"]


def test_slashes_become_underscores() -> None:
    """A TFLite file joins the names of layers by slashes."""
    source = L.Input((4, 4, 3))
    x = L.Conv2D(3, 1, name="block/conv")(L.Conv2D(3, 1, name="block_conv")(source))
    model = tf_keras.Model(source, L.ReLU(name="block/relu")(x))
    names = [layer.name for layer in flatten(model).layers[1:]]
    assert names == ["block_conv", "block_conv_1", "block_relu"]


def test_names_are_prefixed_only_where_two_layers_share_them() -> None:
    def inner(name: str) -> Any:
        return tf_keras.Sequential(
            [L.Input((4, 4, 3)), L.Conv2D(3, 1, name="conv"), L.ReLU(name=f"{name}_relu")],
            name=name,
        )

    source = L.Input((4, 4, 3), name="image")
    x = L.Conv2D(3, 1, name="conv")(source)
    model = tf_keras.Model(source, inner("second")(inner("first")(x)))
    names = ["image", "conv", "first_conv", "first_relu", "second_conv", "second_relu"]
    assert [layer.name for layer in flatten(model).layers] == names
    assert [layer.name for layer in flatten(copy(model)).layers] == names


def test_several_inputs_and_outputs_in_a_model_within_a_model() -> None:
    a, b = L.Input((3,), name="a"), L.Input((3,), name="b")
    inner = tf_keras.Model([a, b], [L.Dense(2)(L.Subtract()([a, b])), L.Dense(4)(b)])
    x, y = L.Input((3,)), L.Input((3,))
    first, second = inner([y, x])
    model = tf_keras.Model([x, y], [L.Dense(1)(second), first])
    flat = flatten(model)
    assert not any(isinstance(layer, tf_keras.Model) for layer in flat.layers)
    values = list(np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32))
    for value, expected in zip(flat(values), model(values), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_layers_keep_what_training_depends_on(own: Callable[[str], Any]) -> None:
    """A frozen base stays frozen, and its batch norms use their moving statistics in training."""
    model = own("nested_v2")
    flat = flatten(model)
    assert len(flat.trainable_weights) == len(model.trainable_weights) == 2
    source = L.Input((4, 4, 3))
    base = tf_keras.Sequential([L.Input((4, 4, 3)), L.BatchNormalization()])
    called_in_inference = flatten(tf_keras.Model(source, base(source, training=False)))
    images = np.random.default_rng(1).normal(5, 4, (3, 4, 4, 3)).astype(np.float32)
    outputs = called_in_inference(images, training=True)
    np.testing.assert_allclose(outputs, images / np.sqrt(1.001), rtol=1e-5)


def test_augmentation_is_left_out_and_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mobilenet"), "propagate", True)
    augmentation = [
        *(L.RandomFlip(name="flip"), L.RandomZoom(0.1), L.RandomTranslation(0.1, 0.1)),
        *(L.RandomContrast(0.1), L.RandomBrightness(0.1), L.GaussianNoise(0.1)),
        *(L.GaussianDropout(0.1), L.SpatialDropout2D(0.1), L.Resizing(4, 4)),
    ]
    model = tf_keras.Sequential([L.Input((4, 4, 3)), *augmentation, L.Dropout(0.5), L.Dense(2)])
    with caplog.at_level(logging.INFO, "mobilenet"):
        flat = flatten(model)
    assert kinds(flat) == ["InputLayer", "Dropout", "Dense"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.match(r"left out, as they do nothing in inference: flip, random_zoom.* \(8\)$", line)


def test_a_shared_layer_without_weights_is_copied() -> None:
    relu = L.ReLU(name="relu")
    model = small(lambda x: relu(L.Conv2D(2, 1)(relu(L.Conv2D(2, 1)(x)))))
    flat = flatten(model)
    assert [layer.name for layer in flat.layers if isinstance(layer, L.ReLU)] == ["relu", "relu_1"]
    images = np.random.default_rng(1).normal(size=(3, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(flat(images), model(images), atol=1e-6)


def test_a_flat_functional_model_is_returned_itself() -> None:
    model = toy()
    assert flatten(model) is model
    built = mobilenet.build(
        mobilenet.configs.archs.get("mobilenet_v3_small", width_multiplier=0.25), (32, 32, 3)
    )
    assert flatten(built) is built


class Subclass(tf_keras.Model):
    """Computes in a `call` of its own."""

    def call(self, x: Any) -> Any:
        return x * 2


def twice() -> Any:
    dense = L.Dense(3, name="shared")
    return small(lambda x: dense(dense(x)))


def wrapped() -> Any:
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    return tfmot.sparsity.keras.prune_low_magnitude(copy(toy()))


def of_keras_3() -> Any:
    keras = pytest.importorskip("keras")
    return keras.Sequential([keras.layers.Input((4, 4, 3)), keras.layers.Dense(2)])


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (of_keras_3, r"keras\..*save it as \.keras and load that"),
    (lambda: tf_keras.Sequential([L.Dense(2)]), r"model\.build\(\(None, height, width, channels"),
    (Subclass, r"Subclass.*functional form"),
    (lambda: small(Subclass()), r"Subclass.*functional form"),
    (
        lambda: small(lambda x: tf.exp(tf.nn.gelu(L.ReLU()(tf.nn.gelu(x, name="first"))))),
        r"got 'the operator tf.nn.gelu in 2 layers, first tf.nn.gelu\w*, layer tf.math.exp\w*, the",
    ),
    (lambda: small(tf.sin), r"got 'layer tf.math.sin\w*, the operator tf.math.sin', expected"),
    (lambda: types.SimpleNamespace(model=toy()), "take its `.model`"),
    (wrapped, r"wrapped layers prune_low_magnitude_a.*finalize"),
    (twice, r"layer shared, which is called more than once"),
    (lambda: small(lambda x: x**2), r"layer tf\.math\.pow.*operator tf\.math\.pow.*stock layer"),
    (lambda: small(lambda x: x[:, ::2]), r"operator tf\.__operators__\.getitem"),
    (lambda: small(L.Lambda(lambda x: x * 2, name="mine")), r"layer mine, a Lambda"),
    (lambda: small(lambda x: tf.image.resize(x, (8, 8))), r"operator tf\.image\.resize"),
    (lambda: small(lambda x: x * tf.Variable(2.0)), r"operator tf\.math\.multiply"),
    (lambda: types.SimpleNamespace(layers=[]), r"mobilenet\.load_model"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_other_models_are_refused_with_the_remedy(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        flatten(make())
    assert error.value.what == "model"


def test_a_copy_lives_in_the_strategy_scope_of_its_model() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = tf_keras.Sequential([L.Input((4, 4, 3)), L.Dense(2)])
    flat = flatten(model)
    assert flat.distribute_strategy is strategy
    values = inputs(2, 4)
    np.testing.assert_allclose(flat(values), model(values), atol=1e-6)
