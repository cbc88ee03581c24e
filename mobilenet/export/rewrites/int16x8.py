"""A float model rewritten for the converter's 16-bit mode, without what that gets wrong.

It has no HARD_SWISH of 16 bits. Equal biases of several layers become one constant with the scales
of one of them. A tensor that is 0 on all calibration images has scale 0, and what reads it infinite
ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tf_keras

from mobilenet.models.graph.roles import Graph, kind

_SIXTH = 1 / 6 + 1e-6  # not what the converter looks for, and no step of 16 bits away
_NUDGE = 1e-6  # survives behind the 3 of a hard sigmoid, and is below a step of 16 bits
_ALIVE = 1.0  # what a channel says that nobody listens to
_BATCH = 32


def prepared(model: tf_keras.Model, images: npt.NDArray[np.float32]) -> tf_keras.Model:
    """The model, with layers of its own, ready for 16-bit activations.

    Args:
        model: a float model.
        images: `[n, height, width, channels]`, those of the calibration.
    """
    copy = tf_keras.models.clone_model(model, clone_function=_in_parts)
    copy.set_weights(model.get_weights())
    graph = Graph(copy)
    for number, layer in enumerate(graph.layers):
        bias = getattr(layer, "bias", None)
        if bias is not None and np.ptp(bias.numpy()) == 0:
            lifted = bias.numpy() + _NUDGE * number
            lifted[0] += _NUDGE
            bias.assign(lifted)
    _revive(copy, graph, images)
    return copy


def _in_parts(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
    """The same layer; the factor of a hard-swish is one that is not fused."""
    config = layer.get_config()
    if isinstance(layer, tf_keras.layers.Rescaling) and np.isclose(config["scale"], 1 / 6):
        config["scale"] = _SIXTH
    return type(layer).from_config(config)


def _revive(model: tf_keras.Model, graph: Graph, images: npt.NDArray[np.float32]) -> None:
    """Gives the output of a layer that is always 0 a range: one channel becomes constant, and no
    layer behind it listens to that channel."""
    relus = [layer for layer in graph.layers if kind(layer) == "ReLU" and _between(graph, layer)]
    if not relus:
        return
    watched = tf_keras.Model(model.inputs, [graph.output(layer) for layer in relus])
    most = np.zeros(len(relus))
    for start in range(0, len(images), _BATCH):
        found = watched(images[start : start + _BATCH], training=False)
        values = found if len(relus) > 1 else [found]
        most = np.maximum(most, [float(np.max(value)) for value in values])
    for layer in np.array(relus, object)[most == 0]:
        (source,) = graph.producers(layer)
        kernel, bias = source.kernel.numpy(), source.bias.numpy()
        kernel[..., 0], bias[0] = 0, _ALIVE
        source.kernel.assign(kernel)
        source.bias.assign(bias)
        for consumer in graph.consumers(layer):
            deaf = consumer.kernel.numpy()
            deaf[:, :, 0] = 0
            consumer.kernel.assign(deaf)


def _between(graph: Graph, layer: Any) -> bool:
    """Whether a convolution with a bias is in front of it, and nothing but convolutions behind."""
    producers, consumers = graph.producers(layer), graph.consumers(layer)
    return (
        len(producers) == 1
        and all(kind(other) == "Conv2D" and other.groups == 1 for other in producers + consumers)
        and getattr(producers[0], "bias", None) is not None
        and bool(consumers)
    )
