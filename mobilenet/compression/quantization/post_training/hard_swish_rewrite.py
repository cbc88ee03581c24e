"""Hard-swish in a form that lets a factor per channel through exactly.

`x relu6(x + 3) / 6` bends at the same values in every channel. With a kernel in front of the ReLU6,
a 1x1 depthwise convolution of bias 3, `u relu6(u / t + 3)` is `6 t` times the hard-swish of `x`
where `u` is `t x`: the layer in front takes the factor `t`, the gate `1 / t`, and what reads the
product `1 / t` and `1 / 6`. The file computes a convolution and a product where it had a sum and
two products; it becomes a little slower, and all channels can be brought to one range.
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
from mobilenet.models.graph.batch_norm_folding import Array, Folded
from mobilenet.models.graph.rebuild import rebuild, single_or_list
from mobilenet.models.graph.roles import Graph, kind, unwrap


def rewrite_hard_swish(model: Any, floats: Collection[str] = ()) -> tuple[Any, int]:
    """The same function, each hard-swish between convolutions with a gate.

    Args:
        model: functional tf_keras model of stock layers; it is left as it is.
        floats: names of layers that are to stay in float, where no range is to be mended.

    Returns:
        A new model, and how many gates it has.
    """
    groups = ScalingGroups(Graph(model))
    chosen = [
        x
        for x in groups.hard_swishes
        if groups.between_convolutions(x) and x.inside[0].name not in floats
    ]
    if not chosen:
        return model, 0
    gated = rebuild(model, _Writer(chosen).called)
    for layer in model.layers:
        if layer.weights:
            gated.get_layer(layer.name).set_weights(layer.get_weights())
    graph = Graph(gated)
    for one in chosen:
        behind = groups.of(one.product)
        sixths = np.full(behind.channels, float(one.inside[2].scale))
        for consumer in behind.consumers:
            Folded(graph, gated.get_layer(consumer.name)).scale_inputs(sixths)
        for producer in behind.producers:  # what is added to the product
            Folded(graph, gated.get_layer(producer.name)).scale(1 / sixths)
    return gated, len(chosen)


class _Writer:
    """Puts a gate in place of a shift, and leaves the division out."""

    def __init__(self, chosen: list[HardSwish]) -> None:
        self.shifts = {id(x.inside[0]): x for x in chosen}
        self.scales = {id(x.inside[2]) for x in chosen}

    def called(self, layer: Any, copy: Any, inputs: list[Any]) -> Any:
        if id(layer) in self.scales:
            return inputs[0]
        found = self.shifts.get(id(layer))
        if found is not None:
            copy = tf_keras.layers.DepthwiseConv2D(
                1,
                depthwise_initializer="ones",
                bias_initializer=tf_keras.initializers.Constant(layer.offset),
                dtype=layer.get_config()["dtype"],
                name=found.product.name + "_gate",
            )
        elif kind(layer) == "InputLayer":
            return inputs[0]
        return copy(single_or_list(inputs))


def zero_thresholds(gate: DepthwiseHardSwish) -> Array:
    """What is below in front of each gate, `[channels]`, comes out as zero.

    The gates of a foreign model may hold weights of 0 or less, below which nothing does.
    """
    inner = unwrap(gate.convolution)
    kernel = np.ravel(inner.depthwise_kernel).astype(np.float64)
    rising = kernel > 0
    found = -np.asarray(inner.bias, np.float64) / np.where(rising, kernel, 1.0)
    return np.where(rising, found, -np.inf)


def active_abs_max(gate: DepthwiseHardSwish, seen: Observation) -> Array:
    """The largest magnitude in front of a gate that comes out as more than zero, `[channels]`."""
    found: Array = np.maximum(seen.high, np.minimum(-seen.low, -zero_thresholds(gate)))
    return found


def lower_bounds(
    gates: Iterable[DepthwiseHardSwish], observed: Mapping[str, Observation]
) -> dict[str, float]:
    """Where ranges in front of gates may begin, by layer name: what is below becomes zero."""
    found = {}
    for gate in gates:
        name = unwrap(gate.source).name
        if name in observed:
            found[name] = float(np.maximum(observed[name].low, zero_thresholds(gate)).min())
    return found
