"""Operators of Keras 3 on tensors (`keras.ops.relu(x)`, `x / 127.5`) as layers of Keras 2.

Nothing of Keras 3 is imported: an operator is its entry in a saved model. One without an equal
layer is refused by its name and settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mobilenet.errors import UsageError

Json = Any
Shape = Sequence[int | None]  # with the batch first

REMEDY = "replace it by a layer that Keras 2 has too, and save the model again"
_MODULE = "keras.src.ops."
_CONSTANTS = ("__tensor__", "__numpy__")
_OF_TENSORS = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")  # layers have these names too
_OF_MAPS = {1, 2}  # axes of height and width
_RANK = 4  # of maps `[batch, height, width, channels]`
_REVERSED = {"start": None, "stop": None, "step": -1}


class Layer(NamedTuple):
    """A layer of Keras 2.

    Attributes:
        kind: its class; `Activation` also stands for activations that Keras 2 lacks.
        settings: of its config, without the name.
        arguments: of its call, besides the inputs.
    """

    kind: str
    settings: Mapping[str, Any]
    arguments: Mapping[str, Any] = MappingProxyType({})


Conversion = Callable[[Mapping[str, Any], Shape], Layer | None]


def is_operator(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a saved model is an operator; some have the names of layers."""
    if "module" in entry:
        return str(entry["module"]).startswith(_MODULE)
    return bool(entry.get("inbound_nodes")) and "trainable" not in entry["config"]  # .h5 files


def as_layer(entry: Mapping[str, Any]) -> tuple[Layer, list[Json]]:
    """The layer that equals an operator.

    Args:
        entry: of a saved model.

    Returns:
        The layer, and the tensors that it takes, as they are in the file.

    Raises:
        UsageError: there is none.
    """
    kind, settings = entry["class_name"], entry["config"]
    (node,) = entry["inbound_nodes"]
    arguments = [*node["args"], *(v for v in node["kwargs"].values() if v is not None)]
    is_list = isinstance(arguments[0], list)
    tensors = [x for x in (arguments[0] if is_list else arguments) if _is_tensor(x)]
    others = [x for x in (arguments[1:] if is_list else arguments) if not _is_tensor(x)]
    layer = None
    ranks = {len(tensor["config"]["shape"]) for tensor in tensors}
    if len(tensors) == 2 and not others and kind in _OF_TENSORS and len(ranks) == 1:
        layer = Layer(kind, {})
    elif len(tensors) == len(others) == 1 and kind in (*_WITH_CONSTANT, "Maximum"):
        layer = _with_constant(kind, others[0], tensors[0], tensors[0] is arguments[0])
    elif len(tensors) == len(others) == 1 and kind == "GetItem":
        layer = _reversed_channels(others[0])
    elif tensors and not others and (is_list or len(tensors) == 1):
        convert = _CONVERSIONS.get(kind)
        layer = convert(settings, tensors[0]["config"]["shape"]) if convert else None
    if layer is None:
        raise _refusal(kind, settings)
    return layer, tensors


def _is_tensor(value: Json) -> bool:
    return isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"


def _refusal(kind: str, settings: Mapping[str, Any]) -> UsageError:
    shown = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "name")
    operator = f"keras.ops {kind}({shown})" if shown else f"keras.ops {kind}"
    return UsageError(f"layer {settings['name']!r}", operator, "a layer of Keras", REMEDY)


# Operators of a tensor and a constant


def _with_constant(kind: str, value: Json, tensor: Json, tensor_first: bool) -> Layer | None:
    array = _constant(value, tensor["config"]["shape"])
    if array is not None and kind == "Maximum":
        return None if array.any() else Layer("ReLU", {})
    pair = None if array is None else _WITH_CONSTANT[kind](array, tensor_first)
    if pair is None:
        return None
    scale, offset = (np.broadcast_to(x, array.shape).tolist() for x in pair)
    return Layer("Rescaling", {"scale": scale, "offset": offset})


def _constant(value: Json, shape: Shape) -> Any:
    """A number, or one for each channel of a tensor, as an array; `None` for another constant."""
    if isinstance(value, dict) and value.get("class_name") in _CONSTANTS:
        value = value["config"]["value"]
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    if array.ndim > len(shape) or array.size not in (1, shape[-1]):
        return None
    if array.size == 1:
        return array.reshape(())
    return array.ravel() if array.shape[-1] == array.size else None


_WITH_CONSTANT: Mapping[str, Callable[[Any, bool], Any]] = MappingProxyType(
    {
        "Add": lambda c, first: (1.0, c),
        "Multiply": lambda c, first: (c, 0.0),
        "Subtract": lambda c, first: (1.0, -c) if first else (-1.0, c),
        "Divide": lambda c, first: (1 / c, 0.0) if first and c.all() else None,
        "TrueDivide": lambda c, first: (1 / c, 0.0) if first and c.all() else None,
    }
)


# Operators with settings


def _activation(name: str) -> Conversion:
    return lambda settings, shape: Layer("Activation", {"activation": name})


def _gelu(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
    return None if settings["approximate"] else Layer("Activation", {"activation": "gelu"})


def _clip(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
    least, most = settings["x_min"], settings["x_max"]
    is_number = isinstance(most, (int, float)) and most > 0
    return Layer("ReLU", {"max_value": float(most)}) if least == 0 and is_number else None


def _over_maps(kind: str) -> Conversion:
    """A reduction over height and width."""

    def convert(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
        axes = settings["axis"]
        is_known = isinstance(axes, list) and len(axes) == 2 and settings.get("initial") is None
        if len(shape) != _RANK or not is_known or {axis % _RANK for axis in axes} != _OF_MAPS:
            return None
        return Layer(kind, {"keepdims": settings["keepdims"]})

    return convert


def _pooling(kind: str) -> Conversion:
    names = ("pool_size", "strides", "padding", "data_format")

    def convert(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
        if len(shape) != _RANK:
            return None
        return Layer(kind, {name: settings[name] for name in names})

    return convert


def _concatenate(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
    return (
        Layer("Concatenate", {"axis": settings["axis"]}) if settings["axis"] % len(shape) else None
    )


def _reshape(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
    first, *target = settings["newshape"]
    sizes, targets = (math.prod(side or -1 for side in sides) for sides in (shape[1:], target))
    if first not in (-1, None) or not 0 < sizes == targets:
        return None
    return Layer("Reshape", {"target_shape": target})


def _squeeze(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
    axes = settings["axis"] if isinstance(settings["axis"], list) else [settings["axis"]]
    if None in axes or None in shape[1:]:
        return None
    removed = {axis % len(shape) for axis in axes}
    left = [side for axis, side in enumerate(shape) if axis and axis not in removed]
    return None if 0 in removed else Layer("Reshape", {"target_shape": left})


def _expand_dims(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
    axis = settings["axis"]
    if not isinstance(axis, int) or None in shape[1:]:
        return None
    position = axis % (len(shape) + 1)
    target = [*shape[1:position], 1, *shape[position:]]
    return Layer("Reshape", {"target_shape": target}) if position else None


def _pad(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
    pads = settings["pad_width"]
    is_of_maps = len(shape) == _RANK == len(pads) and not any([*pads[0], *pads[3]])
    if not is_of_maps or settings["mode"] != "constant":
        return None
    return Layer("ZeroPadding2D", {"padding": pads[1:3]})


def _transpose(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
    axes = settings["axes"] or [0]
    return Layer("Permute", {"dims": axes[1:]}) if axes[0] == 0 and len(axes) > 1 else None


# Channels in the other order, as of models that take blue first


def with_reversed_channels(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The layers of a model with one operator instead of `stack([x[..., 2], x[..., 1], ...])`.

    Keras 3 writes so `preprocess_input` of models from Caffe.
    """
    items = {x["config"].get("name"): x for x in entries if x["class_name"] == "GetItem"}
    merged: list[Mapping[str, Any]] = []
    for entry in entries:
        parts = _stacked(entry, items)
        if parts:
            removed = [part["config"]["name"] for part in parts]
            merged = [x for x in merged if x["config"].get("name") not in removed]
            node = {"args": [parts[0]["inbound_nodes"][0]["args"][0]], "kwargs": {}}
            config = {"name": entry["config"]["name"], "axis": -1}
            entry = {**entry, "class_name": "Flip", "config": config, "inbound_nodes": [node]}
        merged.append(entry)
    return merged


def _stacked(entry: Mapping[str, Any], items: Mapping[Any, Any]) -> list[Mapping[str, Any]]:
    """The channels of one tensor, last to first, that an operator stacks; empty for any other."""
    if entry["class_name"] != "Stack" or entry["config"]["axis"] != -1:
        return []
    names = [x["config"]["keras_history"][0] for x in entry["inbound_nodes"][0]["args"][0]]
    parts = [items[name] for name in names if name in items]
    sources, keys = zip(*(part["inbound_nodes"][0]["args"] for part in parts), strict=True)
    channels = sources[0]["config"]["shape"][-1] or 0
    expected = [[{"class_name": "__ellipsis__", "config": {}}, n] for n in range(channels)]
    is_one = all(source == sources[0] for source in sources) and len(parts) == len(names)
    return parts if is_one and list(keys) == expected[::-1] else []


def _reversed_channels(key: Json) -> Layer | None:
    """`x[..., ::-1]`."""
    kinds = [part.get("class_name") for part in key if isinstance(part, dict)]
    if kinds != ["__ellipsis__", "__slice__"] or len(key) != len(kinds):
        return None
    return _flip({"axis": -1}, ()) if key[1]["config"] == _REVERSED else None


def _flip(settings: Mapping[str, Any], shape: Shape) -> Layer | None:
    if settings["axis"] not in (-1, [-1], len(shape) - 1):
        return None
    return Layer("TFOpLambda", {"function": "reverse"}, {"axis": [-1]})


_CONVERSIONS: Mapping[str, Conversion] = MappingProxyType(
    {
        "Relu": lambda settings, shape: Layer("ReLU", {}),
        "Relu6": lambda settings, shape: Layer("ReLU", {"max_value": 6.0}),
        "LeakyRelu": lambda settings, shape: Layer(
            "LeakyReLU", {"alpha": settings["negative_slope"]}
        ),
        "Elu": lambda settings, shape: Layer("ELU", {"alpha": settings["alpha"]}),
        "Softmax": lambda settings, shape: Layer("Softmax", {"axis": settings["axis"]}),
        "Negative": lambda settings, shape: Layer("Rescaling", {"scale": -1.0, "offset": 0.0}),
        "Gelu": _gelu,
        "Clip": _clip,
        "Mean": _over_maps("GlobalAveragePooling2D"),
        "Max": _over_maps("GlobalMaxPooling2D"),
        "Amax": _over_maps("GlobalMaxPooling2D"),
        "AveragePool": _pooling("AveragePooling2D"),
        "MaxPool": _pooling("MaxPooling2D"),
        "Concatenate": _concatenate,
        "Reshape": _reshape,
        "Squeeze": _squeeze,
        "ExpandDims": _expand_dims,
        "Pad": _pad,
        "Transpose": _transpose,
        "Flip": _flip,
        **{
            kind: _activation(name)
            for kind, name in {
                "Sigmoid": "sigmoid",
                "Tanh": "tanh",
                "Silu": "swish",
                "Selu": "selu",
                "Softplus": "softplus",
                "Softsign": "softsign",
                "HardSigmoid": "hard_sigmoid",
                "HardSilu": "hard_silu",
            }.items()
        },
    }
)
