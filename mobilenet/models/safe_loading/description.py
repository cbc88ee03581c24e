"""Copies what is recognized of a saved model's description; the rest is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mobilenet.models.safe_loading import allowed
from mobilenet.models.safe_loading.connections import (
    CONSTANT,
    Connections,
    RefusedModel,
    is_reference,
    looks_like_reference,
    references_in,
)

Json = Any

_MAX_MODEL_DEPTH = 8  # models inside models
_MAX_CALLS = 4 * allowed.MAX_LAYERS
_MAX_ALL_CALLS = 8 * allowed.MAX_LAYERS  # a model that is called twice counts twice
_MAX_TEXT = 512
_KERAS = ("keras", "tf_keras", "tensorflow")  # where Keras, and what it takes, is defined
_OBJECT_FIELDS = {
    "initializer": allowed.INITIALIZERS,
    "regularizer": allowed.REGULARIZERS,
    "constraint": allowed.CONSTRAINTS,
}


def sanitize(config: Json) -> dict[str, Any]:
    """Copies what is recognized of a model's description.

    Args:
        config: parsed JSON, as `.keras`, `.h5`, a SavedModel's metadata and packed files hold it:
            `{"class_name": ..., "config": {...}}`, with or without modules.

    Returns:
        The description in Keras' short form, without module names, for `build`.

    Raises:
        RefusedModel: names the layer and what it holds.
    """
    model = _model(config, "model", depth=0)
    calls = _calls(model)
    if calls > _MAX_ALL_CALLS:
        raise RefusedModel("model", calls, f"at most {_MAX_ALL_CALLS} calls of layers in all")
    return model


def _calls(layer: Mapping[str, Any]) -> int:
    """How often layers are called as a model is built."""
    if layer["class_name"] not in allowed.MODELS:
        return 1
    total = 0
    for inner in layer["config"]["layers"]:
        as_built = inner["class_name"] in allowed.MODELS  # a model is called once by itself
        total += _calls(inner) * max(1, len(inner.get("inbound_nodes", ())) + as_built)
    return total


def _model(entry: Json, where: str, depth: int) -> dict[str, Any]:
    name, config = _class_and_config(entry, where)
    if name not in allowed.MODELS:
        raise RefusedModel(where, name, "a functional or sequential model")
    if depth > _MAX_MODEL_DEPTH:
        raise RefusedModel(where, None, f"models nested at most {_MAX_MODEL_DEPTH} deep")
    if isinstance(config, list) and name == "Sequential":  # as Keras before 2.3 wrote it
        config = {"layers": config}
    if not isinstance(config, dict) or not isinstance(config.get("layers"), list):
        raise RefusedModel(where, None, "a list of layers")
    if len(config["layers"]) > allowed.MAX_LAYERS:
        raise RefusedModel(where, len(config["layers"]), f"at most {allowed.MAX_LAYERS} layers")
    copied: dict[str, Any] = {"name": _text(config.get("name", name.lower()), where)}
    copied["layers"] = [_layer(layer, where, depth) for layer in config["layers"]]
    if name == "Sequential":
        copied |= _build_shape(config, where, depth)
        return {"class_name": name, "config": copied}
    copied |= _connections(config, copied["layers"], where)
    Connections(copied, where).check()
    return {"class_name": "Functional", "config": copied}


def _build_shape(config: Mapping[str, Any], where: str, depth: int) -> dict[str, Any]:
    """The shape that a sequential model without an input was built for."""
    shape, first = config.get("build_input_shape"), next(iter(config["layers"]), None)
    # Whether an inner model was called as it was built is unknown without its input.
    if depth and (shape is not None or _class_and_config(first, where)[0] != "InputLayer"):
        raise RefusedModel(where, None, "an Input layer in each model inside a model")
    return {} if shape is None else {"build_input_shape": _shape(shape, where)}


def _connections(
    config: Mapping[str, Any], layers: list[dict[str, Any]], where: str
) -> dict[str, Any]:
    """Inputs and outputs of a functional model; its layers get their calls."""
    for layer, entry in zip(layers, config["layers"], strict=True):
        _connect(layer, entry, where)
    copied = {
        key: _references(config.get(key), f"{where} {key}")
        for key in ("input_layers", "output_layers")
    }
    if isinstance(config.get("trainable"), bool):
        copied["trainable"] = config["trainable"]
    return copied


def _layer(entry: Json, model: str, depth: int) -> dict[str, Any]:
    name, config = _class_and_config(entry, model)
    if name in allowed.MODELS:
        return _model(entry, f"{model} layer {_shown_name(config)}", depth + 1)
    if not isinstance(config, dict):
        raise RefusedModel(f"{model} {name}", None, "a layer with its settings")
    where = f"layer {_shown_name(config)} ({name})"
    if name not in allowed.LAYERS | allowed.OPERATOR_LAYERS | set(allowed.APPLICATION_LAYERS):
        raise _unknown_class(entry, name)
    function = config.get("function", "")
    is_known = isinstance(function, str) and function in allowed.FUNCTIONS
    if name in allowed.OPERATOR_LAYERS and not is_known:
        raise RefusedModel(where, function, "one of the functions that are called")
    return {
        "class_name": name,
        "config": {_text(key, where): _field(key, value, where) for key, value in config.items()},
    }


def _unknown_class(entry: Mapping[str, Any], name: str) -> RefusedModel:
    if name in ("Lambda", "__lambda__"):
        expected = "stock Keras layers alone; a Lambda carries code that is not run"
        return RefusedModel(name, None, expected)
    if name in allowed.TFMOT:
        return RefusedModel(name, None, "a model that is not wrapped by tfmot", allowed.TFMOT[name])
    module = entry.get("module")
    full = f"{module}.{name}" if isinstance(module, str) else name
    return RefusedModel(full[:_MAX_TEXT], None, "a stock Keras layer of image models")


def _class_and_config(entry: Json, where: str) -> tuple[str, Json]:
    if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
        raise RefusedModel(where, None, "objects with a class name")
    name, registered, module = (entry.get(k) for k in ("class_name", "registered_name", "module"))
    assert isinstance(name, str)
    foreign = isinstance(module, str) and module.split(".")[0] not in _KERAS
    custom = f"Custom>{name}" if name in allowed.APPLICATION_LAYERS else name
    if foreign or registered not in (None, name, custom):
        raise _unknown_class(entry, name)
    return name, entry.get("config")


def _shown_name(config: Json) -> str:
    name = config.get("name") if isinstance(config, dict) else None
    return repr(name[:80]) if isinstance(name, str) else "without a name"


def _field(key: str, value: Json, where: str) -> Json:
    """One setting of a layer."""
    where = f"{where} {key}"
    known = _OBJECT_FIELDS.get(key.rpartition("_")[2])
    if known is not None:
        return _object(value, known, where)
    if key in ("activation", "dtype"):
        return _activation(value, where) if key == "activation" else _dtype(value, where)
    if key in ("batch_input_shape", "input_shape"):
        return _shape(value, where)
    if key in ("weights", "layer", "layers", "cell"):
        raise RefusedModel(where, None, "no layer or weights inside a layer's settings")
    return _plain(value, where)


def _object(value: Json, known: frozenset[str], where: str) -> Json:
    """An initializer, regularizer or constraint: its name, or class and settings."""
    if value is None:
        return None
    if isinstance(value, str):
        if value not in known:
            raise RefusedModel(where, value[:_MAX_TEXT], "one of Keras' own")
        return value
    name, config = _class_and_config(value, where)
    if name not in known:
        raise RefusedModel(where, name[:_MAX_TEXT], "one of Keras' own")
    if config is not None and not isinstance(config, dict):
        raise RefusedModel(where, None, "settings by name")
    settings = {_text(k, where): _plain(v, f"{where} {k}") for k, v in (config or {}).items()}
    return {"class_name": name, "config": settings}


def _activation(value: Json, where: str) -> Json:
    if isinstance(value, dict):
        name, config = value.get("class_name"), value.get("config")
        if isinstance(name, str) and name in allowed.ACTIVATION_LAYERS:
            return _object(value, allowed.ACTIVATION_LAYERS, where)
        value = config if name == "function" else name
    if value is not None and (not isinstance(value, str) or value not in allowed.ACTIVATIONS):
        raise RefusedModel(where, str(value)[:80], "one of Keras' own activations")
    return value


def _dtype(value: Json, where: str) -> Json:
    if isinstance(value, dict):  # a policy
        config = value.get("config")
        value = config.get("name") if isinstance(config, dict) else None
    if value is not None and (not isinstance(value, str) or value not in allowed.DTYPES):
        raise RefusedModel(where, str(value)[:80], "a data type or a mixed precision policy")
    return value


def _plain(value: Json, where: str) -> Json:
    """Numbers, truth values, short texts and lists of these."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if isinstance(value, dict):
        kind, config = value.get("class_name"), value.get("config")
        if kind in ("__tuple__", "TensorShape") and isinstance(value.get("items"), list):
            return _plain(value["items"], where)
        if kind in ("__numpy__", "__tensor__") and isinstance(config, dict):
            return _plain(config.get("value"), where)
    raise RefusedModel(where, None, "numbers, texts or lists of these")


def _shape(value: Json, where: str) -> Json:
    """The shape of an input, which layers may allocate as they are built."""
    shape = _plain(value, where)
    sides = shape if isinstance(shape, list) else [shape]
    if any(type(side) is not int and side is not None for side in sides):
        raise RefusedModel(where, None, "a shape of whole numbers")
    if math.prod(side for side in sides if side is not None) > allowed.MAX_ACTIVATION:
        raise RefusedModel(where, shape, f"at most {allowed.MAX_ACTIVATION} inputs")
    return shape


def _text(value: Json, where: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise RefusedModel(where, None, f"a text of at most {_MAX_TEXT} characters")
    return value


def _connect(copied: dict[str, Any], entry: Mapping[str, Any], model: str) -> None:
    """Copies a layer's name and calls in a functional model."""
    config = copied["config"]
    name = _text(entry.get("name", config.get("name")), model)
    if config.setdefault("name", name) != name:
        raise RefusedModel(f"{model} layer {name!r}", config["name"], "one name")
    nodes = entry.get("inbound_nodes")
    if not isinstance(nodes, list):
        raise RefusedModel(f"{model} layer {name!r}", None, "a list of calls")
    where = f"layer {name!r}"
    copied["name"] = name
    copied["inbound_nodes"] = [_call(node, where) for node in nodes]
    if len(nodes) > _MAX_CALLS:
        raise RefusedModel(where, len(nodes), f"at most {_MAX_CALLS} calls of a layer")
    for node in copied["inbound_nodes"]:
        if not any(True for _ in references_in(node)):
            raise RefusedModel(where, None, "calls of a layer's output, not of constants alone")


def _call(node: Json, where: str) -> Json:
    """The inputs of one call: `[layer, call, output, {arguments}]`, or lists of such."""
    if not isinstance(node, list):
        raise RefusedModel(where, None, "the inputs of each call as a list")
    if not (len(node) in (3, 4) and isinstance(node[0], str)):
        return [_call(item, where) for item in node]
    source, call, output, *rest = node
    arguments = rest[0] if rest else {}
    if not isinstance(arguments, dict) or type(call) is not int:
        raise RefusedModel(where, None, "inputs as [layer, call, output, {arguments}]")
    if source == CONSTANT:
        output = _numbers(output, where)
    elif type(output) is not int or call < 0 or output < 0:
        raise RefusedModel(where, None, "inputs as [layer, call, output, {arguments}]")
    copied = {_text(key, where): _argument(value, where) for key, value in arguments.items()}
    return [_text(source, where), call, output, copied]


def _numbers(value: Json, where: str) -> Json:
    if isinstance(value, list):
        return [_numbers(item, where) for item in value]
    if isinstance(value, (bool, int, float)):
        return value
    raise RefusedModel(where, None, "constants that are numbers")


def _argument(value: Json, where: str) -> Json:
    """An argument of a call: a layer's output, a plain value, or the parts of a slice."""
    if isinstance(value, dict):
        if value == {"class_name": "__ellipsis__"}:
            return value
        if not set(value) <= {"start", "stop", "step"}:
            raise RefusedModel(where, None, "arguments that are numbers, texts or slices")
        return {key: _argument(item, where) for key, item in value.items()}
    if looks_like_reference(value) and not is_reference(value):
        raise RefusedModel(where, None, "a layer's output as [layer, call, output]")
    if isinstance(value, list):
        return [_argument(item, where) for item in value]
    return _plain(value, where)


def _references(value: Json, where: str) -> Json:
    """The inputs or outputs of a model: `[layer, call, output]`, or a list of these."""
    if is_reference(value):
        return value[:3]
    if not isinstance(value, list) or not value or not all(map(is_reference, value)):
        raise RefusedModel(where, None, "[layer, call, output] of each")
    return [item[:3] for item in value]
