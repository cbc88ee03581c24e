"""A float model prepared for the converter's 16-bit mode, to avoid three faults of that mode.

It has no HARD_SWISH of 16 bits. Equal biases of several layers become one constant with the scales
of one of them. A tensor that is 0 on all calibration images has scale 0, and its readers get
infinite ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from mobilenet.compression.quantization.int8.converter_workarounds import (
    BIAS_SHIFT,
    split_uniform_bias,
)
from mobilenet.models.graph.roles import Graph, kind
from mobilenet.typing import Float32Array, Float64Array

_SIXTH = 1 / 6 + 1e-6  # not what the converter fuses, and no 16-bit step away
_DUMMY_VALUE = 1.0  # output of a channel that no layer reads
_BATCH = 32


def prepare_model(model: tf_keras.Model, images: Float32Array) -> tf_keras.Model:
    """Copies the model and makes the copy safe for 16-bit activations.

    Args:
        model: a float model.
        images: `[n, height, width, channels]`, those of the calibration.
    """
    copy = tf_keras.models.clone_model(model, clone_function=_clone_unfused)
    copy.set_weights(model.get_weights())
    graph = Graph(copy)
    for number, layer in enumerate(graph.layers):
        bias = getattr(layer, "bias", None)
        if bias is not None and np.ptp(bias.numpy()) == 0:
            # Apart from those of other layers too; the shift is below a 16-bit step.
            distinct = bias.numpy() + BIAS_SHIFT * number
            bias.assign(split_uniform_bias(distinct, BIAS_SHIFT))
    _give_zero_outputs_a_range(copy, graph, images)
    return copy


def _clone_unfused(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
    """Clones a layer; the factor of a hard-swish becomes one that is not fused."""
    config = layer.get_config()
    if isinstance(layer, tf_keras.layers.Rescaling) and np.isclose(config["scale"], 1 / 6):
        config["scale"] = _SIXTH
    return type(layer).from_config(config)


def _give_zero_outputs_a_range(model: tf_keras.Model, graph: Graph, images: Float32Array) -> None:
    """Gives the output of a layer that is always 0 a range: one channel becomes constant, and its
    consumers ignore that channel."""
    relus = [
        layer
        for layer in graph.layers
        if kind(layer) == "ReLU" and _is_between_convolutions(graph, layer)
    ]
    if not relus:
        return
    observed = tf_keras.Model(model.inputs, [graph.output(layer) for layer in relus])
    largest: Float64Array = np.zeros(len(relus))
    for start in range(0, len(images), _BATCH):
        outputs = observed(images[start : start + _BATCH], training=False)
        values = outputs if len(relus) > 1 else [outputs]
        largest = np.maximum(largest, [float(np.max(value)) for value in values])
    for layer in np.array(relus, object)[largest == 0]:
        (source,) = graph.producers(layer)
        kernel, bias = source.kernel.numpy(), source.bias.numpy()
        kernel[..., 0], bias[0] = 0, _DUMMY_VALUE
        source.kernel.assign(kernel)
        source.bias.assign(bias)
        for consumer in graph.consumers(layer):
            kernel = consumer.kernel.numpy()
            kernel[:, :, 0] = 0
            consumer.kernel.assign(kernel)


def _is_between_convolutions(graph: Graph, layer: Any) -> bool:
    """Whether the layer follows a convolution with a bias, and only convolutions follow it."""
    producers, consumers = graph.producers(layer), graph.consumers(layer)
    return (
        len(producers) == 1
        and all(kind(other) == "Conv2D" and other.groups == 1 for other in producers + consumers)
        and getattr(producers[0], "bias", None) is not None
        and bool(consumers)
    )
