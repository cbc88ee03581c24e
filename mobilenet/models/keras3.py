"""Models that Keras 3 saved: their description in the form of Keras 2, and their weights.

Nothing of Keras 3 is imported. What is translated here is checked by `safe_loading` afterwards, as
every description is; a layer or call without an equal in tf_keras is refused by its name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mobilenet.errors import UsageError
from mobilenet.models import keras3_operators
from mobilenet.models.keras3_operators import REMEDY as _REMEDY
from mobilenet.models.safe_loading import allowed

Json = Any

_MODELS = ("Functional", "Sequential", "Model")
_LAYERS = "keras.layers"  # where Keras 3 says that its layers are
_FIELDS = frozenset({"name", "trainable", "dtype", "batch_input_shape"})  # of every layer
# Settings that Keras 2 lacks, with the value at which they change nothing.
_NEUTRAL = {
    "renorm_momentum": 0.99,
    "fill_mode": "constant",
    "fill_value": 0.0,
    "data_format": "channels_last",
}
_RENAMED = {
    ("InputLayer", "batch_shape"): "batch_input_shape",
    ("LeakyReLU", "negative_slope"): "alpha",
}
_HARD = ("hard_sigmoid", "hard_silu", "hard_swish")
_OTHER_MEANING = ("hard_sigmoid",)  # relu6(x + 3) / 6 in Keras 3, clip(0.2 x + 0.5) in Keras 2
_AXES = ("input_axes", "output_axes")  # of initializers


def is_version(version: object) -> bool:
    """Whether a file's `keras_version` is that of Keras 3."""
    return str(version).startswith("3")


def to_keras2(entry: Json) -> dict[str, Any]:
    """A model's description as Keras 2 writes it.

    Args:
        entry: parsed `config.json` of a `.keras` file, or the `model_config` of an `.h5` file.

    Raises:
        UsageError: names the layer that Keras 2 does not have.
    """
    config = entry["config"]
    layers = keras3_operators.with_reversed_channels(config["layers"])
    nested = {_name(layer) for layer in layers if layer["class_name"] in _MODELS}
    copied = {**config, "layers": [x for layer in layers for x in _layers(layer, nested)]}
    for key in ("input_layers", "output_layers"):
        if key in config:
            copied[key] = _of_nested(config[key], nested)
    return {"class_name": entry["class_name"], "config": copied}


def _name(layer: Mapping[str, Any]) -> str:
    return str(layer.get("name") or layer["config"]["name"])


def _of_nested(references: Json, nested: Iterable[str]) -> Json:
    """References to outputs; Keras 2 counts the building of a nested model as its first call."""
    if isinstance(references, list) and references and isinstance(references[0], str):
        name, call, output = references
        return [name, call + (name in nested), output]
    return [_of_nested(reference, nested) for reference in references]


def _layers(layer: Mapping[str, Any], nested: Iterable[str]) -> list[dict[str, Any]]:
    """A layer or an operator as Keras 2 has it; some activations need several layers."""
    name, activation = _name(layer), layer["config"].get("activation")
    if keras3_operators.is_operator(layer):
        return _operator(layer, nested)
    is_activation = layer["class_name"] == "Activation" and layer.get("inbound_nodes")
    if is_activation and activation in _HARD:
        (node,) = layer["inbound_nodes"]
        return _hard_activation(name, activation, _call(node, name, nested))
    return [_layer(layer, nested)]


def _operator(entry: Mapping[str, Any], nested: Iterable[str]) -> list[dict[str, Any]]:
    name, (layer, tensors) = _name(entry), keras3_operators.as_layer(entry)
    inputs = [[*_reference(tensor, nested), dict(layer.arguments)] for tensor in tensors]
    activation = layer.settings.get("activation")
    if activation in _HARD:
        return _hard_activation(name, activation, inputs)
    described = _described(layer.kind, name, layer.settings, inputs)
    if layer.kind in allowed.OPERATOR_LAYERS:
        described["inbound_nodes"] = inputs  # calls of one tensor, not of a list
    return [described]


def _hard_activation(name: str, activation: str, inputs: list[Json]) -> list[dict[str, Any]]:
    """`relu6(x + 3) / 6`, times x in a hard swish, in the form of this library's models."""
    is_swish = activation != "hard_sigmoid"
    gate = f"{name}_gate" if is_swish else name
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("Rescaling", f"{name}_shift", {"scale": 1.0, "offset": 3.0}),
        ("ReLU", f"{name}_relu6", {"max_value": 6.0}),
        ("Rescaling", gate, {"scale": 1 / 6}),
    ]
    layers, source = [], inputs
    for kind, step, settings in steps:
        layers.append(_described(kind, step, settings, source))
        source = [[step, 0, 0, {}]]
    if is_swish:
        layers.append(_described("Multiply", name, {}, [*inputs, *source]))
    return layers


def _described(
    kind: str, name: str, settings: Mapping[str, Any], inputs: list[Json]
) -> dict[str, Any]:
    config = {"name": name, **settings}
    return {"class_name": kind, "config": config, "name": name, "inbound_nodes": [inputs]}


def _layer(layer: Mapping[str, Any], nested: Iterable[str]) -> dict[str, Any]:
    kind, module = layer["class_name"], layer.get("module")  # none in .h5 files
    if kind in _MODELS:
        copied = to_keras2(layer)
    elif module in (_LAYERS, None):
        copied = {"class_name": kind, "config": _settings(kind, layer["config"])}
    else:
        raise UsageError(f"layer {_name(layer)!r}", f"{module}.{kind}", "a layer of Keras", _REMEDY)
    copied["name"] = _name(layer)
    if "inbound_nodes" in layer:
        copied["inbound_nodes"] = [
            _call(node, _name(layer), nested) for node in layer["inbound_nodes"]
        ]
    return copied


def _settings(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a layer without those that Keras 2 lacks."""
    import tf_keras

    if kind not in allowed.LAYERS:
        return dict(config)  # refused later, by its name
    known = _FIELDS | set(inspect.signature(getattr(tf_keras.layers, kind).__init__).parameters)
    settings = {}
    for key, value in config.items():
        key = _RENAMED.get((kind, key), key)
        if key.endswith("_initializer") and isinstance(value, dict):
            inner = {k: v for k, v in (value.get("config") or {}).items() if k not in _AXES}
            value = {**value, "config": inner}
        if value in _OTHER_MEANING and key == "activation":
            where = f"layer {config.get('name')!r}"
            raise UsageError(where, value, "an activation that Keras 2 computes alike", _REMEDY)
        if key in known:
            settings[key] = value
        elif not (value in (None, False) or value == _NEUTRAL.get(key) or _augments(kind)):
            where = f"layer {config.get('name')!r} {key}"
            raise UsageError(where, value, f"no {key}, as Keras 2 has none", _REMEDY)
    return settings


def _augments(kind: str) -> bool:
    return kind.startswith("Random")  # without effect in inference mode


def _call(node: Mapping[str, Any], layer: str, nested: Iterable[str]) -> list[Json]:
    """The inputs of one call."""
    (tensors, *others), kwargs = node["args"], node["kwargs"]
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    if others or set(kwargs) - {"training"}:
        given = ", ".join(kwargs) or "several arguments"
        raise UsageError(f"layer {layer!r}", given, "a call with inputs alone", _REMEDY)
    inputs = tensors if isinstance(tensors, list) else [tensors]
    return [[*_reference(tensor, nested), kwargs] for tensor in inputs]


def _reference(tensor: Mapping[str, Any], nested: Iterable[str]) -> list[Json]:
    reference: list[Json] = _of_nested(tensor["config"]["keras_history"], nested)
    return reference


def load_weights(model: Any, group: Any) -> None:
    """Fills a model from the weights of a `.keras` file.

    They are stored by the classes of the layers, which are numbered (`layers/conv2d_1/vars/0`).

    Args:
        model: as built from the description.
        group: `h5py.File` of `model.weights.h5`, whose headers are checked.

    Raises:
        UsageError: a layer has no weights in the file, or such of other shapes.
    """
    import tf_keras

    counts: dict[str, int] = {}
    for layer in model.layers:
        base = snake_case(type(layer).__name__)
        number = counts.get(base, 0)
        counts[base] = number + 1
        path = f"layers/{base}_{number}" if number else f"layers/{base}"
        if isinstance(layer, tf_keras.Model):
            load_weights(layer, group[path])
        elif layer.weights:
            _fill(layer, group.get(f"{path}/vars"), f"{path}/vars")


def _fill(layer: Any, stored: Any, path: str) -> None:
    weights = layer.weights
    shapes = [tuple(weight.shape) for weight in weights]
    found = [] if stored is None else [stored[key] for key in sorted(stored, key=int)]
    if [array.shape for array in found] != shapes:
        got = [list(array.shape) for array in found]
        expected = f"weights of the shapes {[list(shape) for shape in shapes]}"
        raise UsageError(f"layer {layer.name!r} ({path})", got, expected, "save the model again")
    for weight, array in zip(weights, found, strict=True):
        weight.assign(np.asarray(array))
    layer.finalize_state()  # what Normalization computes from its weights


def snake_case(name: str) -> str:
    """As Keras names classes in files: `DepthwiseConv2D` is `depthwise_conv2d`, `ReLU` `re_lu`."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
