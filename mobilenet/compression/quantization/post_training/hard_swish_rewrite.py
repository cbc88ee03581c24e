"""Hard-swish rewritten so that each channel can be scaled exactly.

`x relu6(x + 3) / 6` has its corners at the same values in every channel. With a kernel before the
ReLU6, a 1x1 depthwise convolution of bias 3, `u relu6(u / t + 3)` is `6 t` times the hard-swish of
`x` where `u` is `t x`: the layer before takes the factor `t`, the depthwise kernel `1 / t`, and the
layers that read the product `1 / t` and `1 / 6`. The file computes a convolution and a product
instead of a sum and two products; it becomes a little slower, and all channels can be scaled to one
range.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import tf_keras

from mobilenet.compression.quantization.int8.quantizer_placement import (
    DepthwiseHardSwish,
    HardSwish,
)
from mobilenet.compression.quantization.post_training.observer import Observation
from mobilenet.compression.quantization.post_training.scaling_groups import ScalingGroups
from mobilenet.models.graph.batch_norm_folding import Folded
from mobilenet.models.graph.rebuild import rebuild, single_or_list
from mobilenet.models.graph.roles import Graph, kind, unwrap
from mobilenet.typing import Float64Array


def rewrite_hard_swish(model: Any, float_layers: Collection[str] = ()) -> tuple[Any, int]:
    """The same function, with each hard-swish between convolutions rewritten.

    Args:
        model: functional tf_keras model of stock layers; it is left as it is.
        float_layers: names of layers that compute in float, whose hard-swishes have no range.

    Returns:
        A new model, and the number of hard-swishes that were rewritten; `model` itself and 0 where
        there are none.
    """
    groups = ScalingGroups(Graph(model))
    chosen = [
        one
        for one in groups.hard_swishes
        if groups.is_between_convolutions(one) and one.inside[0].name not in float_layers
    ]
    if not chosen:
        return model, 0
    rewritten = rebuild(model, _Rewriter(chosen).call_layer)
    for layer in model.layers:
        if layer.weights:
            rewritten.get_layer(layer.name).set_weights(layer.get_weights())
    graph = Graph(rewritten)
    for one in chosen:
        group = groups.of(one.product)
        factors = np.full(group.channels, float(one.inside[2].scale))
        for consumer in group.consumers:
            Folded(graph, rewritten.get_layer(consumer.name)).scale_inputs(factors)
        for producer in group.producers:  # what is added to the product
            Folded(graph, rewritten.get_layer(producer.name)).scale(1 / factors)
    return rewritten, len(chosen)


class _Rewriter:
    """Replaces the shift by a depthwise convolution, and leaves the division by 6 out."""

    def __init__(self, chosen: list[HardSwish]) -> None:
        self.shifts = {id(one.inside[0]): one for one in chosen}
        self.scales = {id(one.inside[2]) for one in chosen}

    def call_layer(self, layer: Any, copy: Any, inputs: list[Any]) -> Any:
        if id(layer) in self.scales:
            return inputs[0]
        hard_swish = self.shifts.get(id(layer))
        if hard_swish is not None:
            copy = tf_keras.layers.DepthwiseConv2D(
                1,
                depthwise_initializer="ones",
                bias_initializer=tf_keras.initializers.Constant(layer.offset),
                dtype=layer.get_config()["dtype"],
                name=hard_swish.product.name + "_gate",
            )
        elif kind(layer) == "InputLayer":
            return inputs[0]
        return copy(single_or_list(inputs))


def zero_thresholds(hard_swish: DepthwiseHardSwish) -> Float64Array:
    """The inputs below which each channel's output is zero, `[channels]`.

    The depthwise kernels of a foreign model may be 0 or negative, for which there is no such input.
    """
    inner = unwrap(hard_swish.convolution)
    kernel = np.ravel(inner.depthwise_kernel).astype(np.float64)
    positive = kernel > 0
    thresholds = -np.asarray(inner.bias, np.float64) / np.where(positive, kernel, 1.0)
    return np.where(positive, thresholds, -np.inf)


def active_abs_max(hard_swish: DepthwiseHardSwish, observation: Observation) -> Float64Array:
    """The largest magnitude of the inputs whose output is not zero, `[channels]`."""
    thresholds = zero_thresholds(hard_swish)
    abs_max: Float64Array = np.maximum(observation.high, np.minimum(-observation.low, -thresholds))
    return abs_max


def lower_bounds(
    hard_swishes: Iterable[DepthwiseHardSwish], observations: Mapping[str, Observation]
) -> dict[str, float]:
    """The value below which all channels are zero, by name of the layer before each hard-swish."""
    bounds = {}
    for one in hard_swishes:
        name = unwrap(one.source).name
        if name in observations:
            bounds[name] = float(np.maximum(observations[name].low, zero_thresholds(one)).min())
    return bounds
