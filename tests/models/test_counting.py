"""Parameters, MACs and feature maps of models that hold other models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras
from small_models import own_inputs, own_model

import mobilenet
from mobilenet.models import counting
from mobilenet.models.counting import layer_macs

L = tf_keras.layers


@pytest.fixture(scope="module")
def nested() -> Any:
    return own_model("nested_v2")


def test_layers_of_a_nested_model_count(nested: Any) -> None:
    """MACs by the shapes of the base model, and 1280 features to 10 classes."""
    base = next(layer for layer in nested.layers if layer.name.startswith("mobilenetv2"))
    expected = 1280 * 10
    for layer in base.layers:
        if isinstance(layer, (L.Conv2D, L.DepthwiseConv2D)):
            kernel = layer.get_weights()[0].shape
            expected += int(np.prod(kernel)) * int(np.prod(layer.output_shape[1:3]))
    counted = mobilenet.count(nested)
    assert counted.macs == expected
    assert counted.params == nested.count_params()
    assert counted.trainable_params == 1280 * 10 + 10
    assert sum(layer_macs(nested).values()) == expected


def test_zeros_of_a_nested_model_count() -> None:
    inner = tf_keras.Sequential([L.Input((8, 8, 3)), L.Conv2D(4, 3), L.BatchNormalization()])
    model = tf_keras.Sequential([L.Input((8, 8, 3)), L.GaussianNoise(0.1), inner])
    kernel = np.ones((3, 3, 3, 4))
    kernel[0] = 0
    inner.layers[0].set_weights([kernel, np.zeros(4)])
    # two thirds of the kernel, gamma; neither beta, which is zero, nor the moving statistics
    assert counting.nonzero_weights(model) == 72 + 4


def test_end_points_of_a_nested_model_are_reached_from_its_input(nested: Any) -> None:
    points = mobilenet.end_points(nested)
    assert list(points) == [2, 4, 8, 16, 32]
    assert [tensor.shape[1] for tensor in points.values()] == [16, 8, 4, 2, 1]
    maps = tf_keras.Model(nested.input, list(points.values()))
    images = own_inputs("nested_v2", 2)
    base = next(layer for layer in nested.layers if layer.name.startswith("mobilenetv2"))
    expected = base(images / np.float32(127.5) - 1, training=False)
    np.testing.assert_allclose(maps(images, training=False)[-1], expected, atol=1e-4)
    assert maps.weights[0] is base.weights[0]


def test_a_model_without_a_graph_is_one_line() -> None:
    for function in (mobilenet.count, counting.nonzero_weights, mobilenet.end_points):
        with pytest.raises(mobilenet.UsageError, match=r"model\.build\(\(None"):
            function(tf_keras.Sequential([L.Dense(2)]))
