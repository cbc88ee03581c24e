"""Any functional or Sequential model as a flat one of stock layers.

Compression, conversion and counting read a model's graph layer by layer. A model called as a layer
of another, an operator on tensors and an augmentation layer hide layers from them, or have no
counterpart in a file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import tf_keras

from mobilenet.errors import UsageError, shorten
from mobilenet.models.graph import convolution_forms, operators
from mobilenet.models.graph.calls import SLASH, CallList, Replacement, check_graph
from mobilenet.models.graph.roles import is_quantization_layer, is_wrapper

log = logging.getLogger("mobilenet")

# Layers whose outputs are their inputs in inference mode. Dropout stays, as it trains.
_AUGMENTATION = frozenset(
    {
        *("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast"),
        *("RandomBrightness", "RandomHeight", "RandomWidth", "GaussianNoise", "GaussianDropout"),
        *("AlphaDropout", "SpatialDropout2D", "ActivityRegularization"),
    }
)
_RESIZING = frozenset({"Resizing", "CenterCrop", "RandomCrop"})  # without effect at their own size


def flatten(model: Any) -> Any:
    """A flat functional model of stock layers that computes the same in inference mode.

    Nested models become layers of the model itself. Augmentation layers are left out, which one
    line of the log names. Operators on tensors (`x / 127.5 - 1`, `tf.nn.relu6(x)`, the hard-swish
    of keras.applications' MobileNetV3) become stock layers; a hard-swish or hard sigmoid, also as
    an activation function, has the form of this library's models. `Normalization` becomes
    `Rescaling`, `SeparableConv2D` its two convolutions, and `GlobalMaxPooling2D` a `MaxPooling2D`
    and a `Reshape`, which have an int8 form.

    A layer keeps its name where that is unique; of several layers with one name, those inside a
    nested model have the nested model's name before their own (`base_conv1`). A slash in a name
    becomes an underscore. Layers keep `trainable`, and batch norms of a model called with
    `training=False` are called so again.

    Args:
        model: functional or Sequential tf_keras model of any number of inputs and outputs; it is
            left as it is.

    Returns:
        A model with layers and variables of its own and the same weights, in the strategy scope of
        the original. A functional model that is flat and plain already is returned itself.

    Raises:
        UsageError: names `model`: it is of Keras 3, an unbuilt Sequential, a subclass with a
            `call` of its own, or wrapped for pruning or quantization; a layer with weights is
            called twice; an operator equals no stock layer.

    Examples:
        >>> flat = flatten(tf_keras.Sequential([augmentation, base_model, pooling, head]))
        >>> any(isinstance(layer, tf_keras.Model) for layer in flat.layers)
        False
    """
    calls = plain_calls(model)
    return model if _is_unchanged(model, calls) else calls.build()


def plain_calls(model: Any) -> CallList:
    """The calls that `flatten` builds; makes no variables.

    Raises:
        UsageError: see `flatten`.
    """
    check_functional(model)
    check_unwrapped(model)
    calls = CallList(model)
    if left_out := _leave_out_augmentation(calls):
        log.info("left out, as they do nothing in inference: %s", shorten(left_out))
    operators.rewrite(calls)
    convolution_forms.split_separable_convolutions(calls)
    return calls


def inline_calls(model: Any) -> CallList:
    """The calls of a model without nested ones; operators that equal no stock layer and shared
    layers stay.

    Raises:
        UsageError: see `flatten`.
    """
    check_functional(model)
    calls = CallList(model, allow_shared=True)
    _leave_out_augmentation(calls)
    operators.rewrite(calls, strict=False)
    convolution_forms.split_separable_convolutions(calls)
    return calls


def inline(model: Any) -> Any:
    """A model without nested ones; operators that equal no stock layer stay.

    What reads a model without changing it (counting, profiles) needs no more. A model without
    nested models, augmentation and separable convolutions is returned itself, whatever its other
    layers are.

    Raises:
        UsageError: see `flatten`.
    """
    if not isinstance(model, tf_keras.Model):  # of Keras 3, which the graph reads too
        return model
    check_graph(model)
    kinds = {type(layer).__name__ for layer in model.layers}
    is_plain = not has_nested(model) and kinds.isdisjoint({"SeparableConv2D", *_AUGMENTATION})
    return model if is_plain else inline_calls(model).build()


def has_nested(model: Any) -> bool:
    """Whether a layer of the model is a model."""
    return any(isinstance(layer, tf_keras.Model) for layer in model.layers)


def innermost_layers(model: Any) -> Iterator[Any]:
    """The layers of a model and of those that it calls as layers, in order."""
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model):
            yield from innermost_layers(layer)
        else:
            yield layer


def check_functional(model: Any) -> None:
    """Checks that a model has a graph of tf_keras layers.

    Raises:
        UsageError: names `model`: it is of Keras 3, no model at all, an unbuilt Sequential, or a
            subclass with a `call` of its own.
    """
    if isinstance(model, (str, os.PathLike)):
        remedy = "mobilenet.load_model(path).model is the model at a path"
        raise UsageError("model", os.fspath(model), "a model, not its path", remedy)
    if not isinstance(model, tf_keras.Model):
        module, name = type(model).__module__, type(model).__qualname__
        remedy = "mobilenet.build returns one, mobilenet.load_model(path) has one as `.model`"
        if isinstance(getattr(model, "model", None), tf_keras.Model):
            remedy = "take its `.model`"
        if module.split(".")[0] == "keras":
            remedy = "save it as .keras and load that: mobilenet.load_model(path).model"
        raise UsageError(
            "model", f"{module}.{name}", "a functional or Sequential model of tf_keras", remedy
        )
    check_graph(model)


def check_unwrapped(model: Any) -> None:
    """Checks that no layer is wrapped for pruning or quantization.

    Raises:
        UsageError: names `model`.
    """
    wrapped = [
        layer.name for layer in model.layers if is_wrapper(layer) or is_quantization_layer(layer)
    ]
    if wrapped:
        raise UsageError(
            "model",
            f"wrapped layers {shorten(wrapped)}",
            "plain layers",
            "finalize the pruning or quantization of the model first, or load the float model",
        )


def _leave_out_augmentation(calls: CallList) -> list[str]:
    """Removes the layers; returns their names."""
    left_out: list[str] = []

    def find(call: Any) -> Replacement | None:
        name = call.kind.__name__
        if name == "Identity" or (name in _RESIZING and _keeps_size(call)):
            return [], call.inputs[0]
        if name not in _AUGMENTATION or call.kwargs.get("training"):
            return None
        left_out.append(call.layer.name)
        return [], call.inputs[0]

    calls.substitute(find)
    return left_out


def _keeps_size(call: Any) -> bool:
    (source,) = call.inputs
    before = source.call.outputs[source.index]
    return None not in before.shape[1:] and before.shape == call.outputs[0].shape


def _is_unchanged(model: Any, calls: CallList) -> bool:
    if isinstance(model, tf_keras.Sequential) or has_nested(model):
        return False
    called = [call.layer for call in calls.calls]
    return (
        None not in called
        and not any(SLASH in layer.name for layer in called)
        and len({id(layer) for layer in called}) == len(called)
        and {id(layer) for layer in called} == {id(layer) for layer in model.layers}
    )
