"""Separable convolutions and batch norms as the convolutions and dense layers that they equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras
from small_models import L, inputs, model_outputs, own_inputs, own_model, randomize_batch_norm

import mobilenet
from mobilenet.compression.quantization.int8.quantized_model import QuantizedModel
from mobilenet.models.graph.convolution_forms import fused
from mobilenet.models.graph.final_activation import split_final_activation
from mobilenet.models.graph.flatten import flatten
from mobilenet.tflite import model as tflite_model

SIZE, CLASSES = 8, 5
BATCH_NORM, DEPTHWISE = "BatchNormalization", "DepthwiseConv2D"


def sequential(*layers: Any) -> Any:
    tf_keras.utils.set_random_seed(1)
    return randomize_batch_norm(tf_keras.Sequential([L.Input((SIZE, SIZE, 3)), *layers]))


def kinds(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers[1:]]


UNFUSED = {
    "after an activation": [L.Conv2D(4, 3, activation="relu"), L.BatchNormalization()],
    "of the input": [L.BatchNormalization(), L.Conv2D(4, 3)],
    "after pooling": [L.MaxPooling2D(), L.BatchNormalization(scale=False)],
    "of vectors": [L.Flatten(), L.BatchNormalization(center=False)],
}


@pytest.mark.parametrize("case", UNFUSED)
def test_a_batch_norm_alone_becomes_a_depthwise_convolution(case: str) -> None:
    model = sequential(*[layer.from_config(layer.get_config()) for layer in UNFUSED[case]])
    images = inputs(8, SIZE)
    changed = fused(flatten(model))
    assert BATCH_NORM not in kinds(changed) and DEPTHWISE in kinds(changed)
    np.testing.assert_allclose(
        model_outputs(changed, images), model_outputs(model, images), rtol=0, atol=1e-5
    )
    norm = next(layer for layer in model.layers if type(layer).__name__ == BATCH_NORM)
    assert isinstance(changed.get_layer(norm.name), L.DepthwiseConv2D)


@pytest.mark.parametrize("use_bias", [True, False])
def test_a_batch_norm_after_a_dense_layer_is_multiplied_into_it(use_bias: bool) -> None:
    layers = [L.Flatten(), L.Dense(6, use_bias=use_bias), L.BatchNormalization(), L.ReLU()]
    model, images = sequential(*layers), inputs(8, SIZE)
    changed = fused(flatten(model))
    assert kinds(changed) == ["Flatten", "Dense", "ReLU"]
    np.testing.assert_allclose(
        model_outputs(changed, images), model_outputs(model, images), rtol=0, atol=1e-5
    )


def test_a_batch_norm_that_the_converter_fuses_stays() -> None:
    flat = flatten(sequential(L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU()))
    assert fused(flat) is flat


def test_a_convolution_that_is_read_twice_keeps_its_output() -> None:
    tf_keras.utils.set_random_seed(1)
    source = L.Input((SIZE, SIZE, 3))
    x = L.Conv2D(4, 3, padding="same")(source)
    x = L.Add()([x, L.ReLU()(L.BatchNormalization()(x))])
    model, images = randomize_batch_norm(tf_keras.Model(source, x)), inputs(4, SIZE)
    changed = fused(model)
    assert DEPTHWISE in kinds(changed)
    np.testing.assert_allclose(
        model_outputs(changed, images), model_outputs(model, images), rtol=0, atol=1e-5
    )


def test_a_relu_of_a_tensor_that_is_read_elsewhere_is_part_of_a_convolution() -> None:
    tf_keras.utils.set_random_seed(1)
    source = L.Input((SIZE, SIZE, 3))
    x = L.Conv2D(4, 3, padding="same")(source)
    x = L.Add()([x, L.Activation("relu")(x)])
    model, images = tf_keras.Model(source, L.ReLU(6.0)(L.MaxPooling2D()(x))), inputs(4, SIZE)
    changed = fused(model)
    assert kinds(changed).count(DEPTHWISE) == 2
    np.testing.assert_allclose(
        model_outputs(changed, images), model_outputs(model, images), rtol=0, atol=1e-6
    )


def test_a_relu_after_a_relu_is_left_out() -> None:
    layers = [L.Conv2D(4, 3, activation="relu"), L.Activation("relu"), L.ReLU(6.0), L.ReLU()]
    model, images = tf_keras.Sequential([L.Input((SIZE, SIZE, 3)), *layers]), inputs(4, SIZE)
    changed = fused(flatten(model))
    assert kinds(changed) == ["Conv2D", "ReLU"]
    np.testing.assert_array_equal(model_outputs(changed, images), model_outputs(model, images))


def test_the_new_layer_trains_if_the_batch_norm_did() -> None:
    for trainable in (True, False):
        model = sequential(L.ReLU(), L.BatchNormalization(trainable=trainable))
        layer = fused(flatten(model)).layers[-1]
        assert isinstance(layer, L.DepthwiseConv2D) and layer.trainable is trainable


@pytest.mark.parametrize("activation", ["linear", "relu", "relu6"])
def test_a_separable_convolution_is_two(activation: str) -> None:
    options = {"strides": 2, "padding": "same", "depth_multiplier": 2}
    model = sequential(L.SeparableConv2D(5, 3, activation=activation, **options))
    flat, images = flatten(model), inputs(4, SIZE)
    assert kinds(flat)[:2] == [DEPTHWISE, "Conv2D"]
    np.testing.assert_allclose(
        model_outputs(flat, images), model_outputs(model, images), rtol=0, atol=1e-5
    )
    # 4 x 4 outputs: 3 x 3 products of 3 x 2 channels, then 6 x 5 products
    assert mobilenet.count(model).macs == 16 * (9 * 6 + 6 * 5)
    assert mobilenet.count(model).params == 9 * 6 + 6 * 5 + 5


def test_separable_convolutions_are_pruned() -> None:
    model = sequential(L.SeparableConv2D(8, 3), L.GlobalAveragePooling2D(), L.Dense(CLASSES))
    pruning = mobilenet.prune(model, sparsity=0.5, steps=1)
    pruning.before_step(0)
    pruning.model.compile("sgd", "mse")
    pruning.model.fit(inputs(8, SIZE), np.zeros((8, CLASSES)), verbose=0)
    kernel = pruning.finish().get_layer(f"{model.layers[0].name}_pointwise").get_weights()[0]
    assert (kernel == 0).mean() == 0.5


@pytest.fixture(scope="module")
def model() -> Any:
    return own_model("batch_norms")


def check_int8(quantized: QuantizedModel, images: np.ndarray, reference: Any) -> None:
    """The file is int8 throughout and close to a model."""
    file = mobilenet.convert(quantized, images=images)
    assert tflite_model.read(file.content).float_tensors() == []
    assert file.verification.partitions == 1
    expected = model_outputs(reference, images)
    pixels = np.rint(images * 127.5 + 127.5)
    outputs = file.classifier(threads=1).logits(pixels)
    assert np.square(outputs - expected).sum() < 0.05 * np.square(expected).sum()


def test_batch_norms_everywhere_become_int8(model: Any) -> None:
    images = own_inputs("batch_norms", 32)
    quantized = mobilenet.quantize(model, images)
    check_int8(quantized, images, split_final_activation(model)[0])


def test_batch_norms_everywhere_train_quantized(model: Any) -> None:
    images = own_inputs("batch_norms", 32)
    training = mobilenet.quantize_aware(model, images, steps=2)
    training.model.compile("sgd", "sparse_categorical_crossentropy")
    training.model.fit(images, np.arange(32) % 10, 16, verbose=0, callbacks=training.callbacks)
    quantized = training.finish()
    check_int8(quantized, images, quantized.model)
