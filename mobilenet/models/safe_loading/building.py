"""Builds the model of a sanitized description within what its file holds."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mobilenet.models.safe_loading import allowed
from mobilenet.models.safe_loading.connections import RefusedModel

Json = Any


def build(config: Mapping[str, Any], values: int) -> Any:
    """Builds the model of a sanitized description, its weights zero.

    Args:
        config: from `sanitize`.
        values: how many numbers the file holds for the weights. No variable is made beyond these,
            so that a short file cannot claim gigabytes.

    Returns:
        A functional or sequential tf_keras model, not compiled.

    Raises:
        RefusedModel: Keras cannot build it, its weights are more than `values`, or a layer's
            output is too large.
    """
    import tf_keras

    custom = {
        name: getattr(importlib.import_module(module), name)
        for name, module in allowed.APPLICATION_LAYERS.items()
        if name in _class_names(config)
    }
    try:
        with _limited_variables(values):
            model = tf_keras.models.model_from_config(_copied(config), custom)
    except RefusedModel:
        raise
    except Exception as error:  # whatever Keras makes of fields that do not fit each other
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise RefusedModel("model", None, f"one that Keras can build ({reason})") from None
    if not model.built or not getattr(model, "inputs", None):
        raise RefusedModel("model", model.name, "a model with a fixed input", "add an Input layer")
    for layer in model._flatten_layers(include_self=False):  # of nested models too
        for shape in _output_shapes(layer):
            sides = [side for side in shape[1:] if side is not None]
            if len(sides) == len(shape) - 1 and math.prod(sides) > allowed.MAX_ACTIVATION:
                raise RefusedModel(
                    f"layer {layer.name!r}",
                    list(shape),
                    f"at most {allowed.MAX_ACTIVATION} outputs",
                )
    return model


@contextlib.contextmanager
def _limited_variables(values: int) -> Iterator[None]:
    """Refuses variables of more numbers than `values` in all; kernels and the like start at zero.

    Every weight is overwritten by that of the file, so no random numbers are drawn for it.
    """
    import tensorflow as tf

    left = values

    def create(next_creator: Any, **kwargs: Any) -> Any:
        nonlocal left
        shape, initial = kwargs.get("shape"), kwargs.get("initial_value")
        if shape is None or not callable(initial):
            return next_creator(**kwargs)  # the state of a random generator: a few integers
        shape = tf.TensorShape(shape)
        left -= shape.num_elements()
        if left < 0:
            raise RefusedModel(
                "model", None, f"weights of {values} numbers, as many as its file holds"
            )
        kwargs["initial_value"] = lambda: tf.zeros(shape, kwargs.get("dtype") or tf.float32)
        return next_creator(**kwargs)

    with tf.variable_creator_scope(create):
        yield


def _output_shapes(layer: Any) -> list[tuple[int | None, ...]]:
    shapes = []
    for node in layer._inbound_nodes:
        outputs = node.outputs
        for tensor in outputs if isinstance(outputs, (list, tuple)) else [outputs]:
            shapes.append(tuple(tensor.shape))
    return shapes


def _class_names(config: Json) -> set[str]:
    if isinstance(config, dict):
        own = {config["class_name"]} if isinstance(config.get("class_name"), str) else set()
        return own.union(*map(_class_names, config.values()))
    return set().union(*map(_class_names, config)) if isinstance(config, list) else set()


def _copied(value: Json) -> Json:
    """Keras writes into what it is given."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
