"""Copies of a functional model: the same graph of new layers, some of them replaced if wished."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tf_keras

from mobilenet.models.graph.calls import CallList
from mobilenet.models.graph.roles import Graph

_CONFIG = "mobilenet_config"  # attribute of a model, see `builder.config_of`


def copy(model: Any) -> Any:
    """A model of new layers with the same graph and the same weights."""
    clone = tf_keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def with_precision(model: Any, policy: str) -> Any:
    """A copy whose layers have a dtype policy, such as `mixed_bfloat16`."""
    copied = CallList(model).build(policy)
    if hasattr(model, _CONFIG):
        setattr(copied, _CONFIG, getattr(model, _CONFIG))
    return copied


def rebuild(model: Any, call_layer: Callable[[Any, Any, list[Any]], Any]) -> Any:
    """A functional model on the graph of another; its weights are new.

    Args:
        model: functional tf_keras model of one input and one output; it is left as it is.
        call_layer: returns the symbolic output of a layer, from the layer, a new layer of the same
            config, and a list of symbolic inputs. For the input layer these are the new inputs.
    """
    graph = Graph(model)
    outputs: dict[int, Any] = {}
    sources = []
    for layer in graph.layers:
        new_layer = type(layer).from_config(layer.get_config())
        inputs = [outputs[id(tensor._keras_history.layer)] for tensor in graph.inputs(layer)]
        if not inputs:
            inputs = [new_layer.output]
            sources += inputs
        outputs[id(layer)] = call_layer(layer, new_layer, inputs)
    last = model.outputs[0]._keras_history.layer
    return tf_keras.Model(sources[0], outputs[id(last)], name=model.name)


@contextlib.contextmanager
def precision_of(model: Any) -> Iterator[None]:
    """Sets the global precision policy to that of a model's layers; float32 for `None`."""
    before = tf_keras.mixed_precision.global_policy()
    policies = () if model is None else (x.dtype_policy.name for x in model.layers if x.weights)
    name = next((policy for policy in policies if policy != "float32"), "float32")
    tf_keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)


def single_or_list(values: list[Any]) -> Any:
    """The argument of a layer's call: its one input, or the list of several."""
    return values[0] if len(values) == 1 else values
