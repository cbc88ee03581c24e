"""The graph of a model made once more, of new layers, with another here or there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tf_keras

from mobilenet.models.graph.roles import Graph


def rebuild(model: Any, called: Callable[[Any, Any, list[Any]], Any]) -> Any:
    """A functional model on the graph of another; its weights are new.

    Args:
        model: functional tf_keras model of one input and one output; it is left as it is.
        called: gives the symbolic output of a layer, from the layer, a new layer of the same
            config, and a list of symbolic inputs. For the input layer these are the new inputs.
    """
    graph = Graph(model)
    made: dict[int, Any] = {}
    sources = []
    for layer in graph.layers:
        copy = type(layer).from_config(layer.get_config())
        before = [made[id(tensor._keras_history.layer)] for tensor in graph.inputs(layer)]
        if not before:
            before = [copy.output]
            sources += before
        made[id(layer)] = called(layer, copy, before)
    last = model.outputs[0]._keras_history.layer
    return tf_keras.Model(sources[0], made[id(last)], name=model.name)


def as_one(values: list[Any]) -> Any:
    """What a layer is called with: its one input, or the list of them."""
    return values[0] if len(values) == 1 else values
