"""Operators on tensors (`x + 3`, `tf.nn.relu6(x)`) and functions as stock layers.

In a functional model Keras keeps each of them as a `TFOpLambda`, which has neither a quantizer nor
a place in a file that is read without running code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mobilenet.errors import UsageError, shorten
from mobilenet.models.graph.calls import Call, CallList, Replacement, Tensor, new_call
from mobilenet.typing import Float64Array

layers = tf_keras.layers
ON_TENSORS = ("TFOpLambda", "SlicingOpLambda", "Lambda", "ClassMethod", "InstanceMethod")
REORDERED = "channels"  # suffix of the layer that gives channels another order
_WITH_ACTIVATION = ("Activation", "Conv2D", "Dense", "DepthwiseConv2D", "SeparableConv2D")
_STOCK_ACTIVATIONS = frozenset({"linear", "relu", "softmax", "sigmoid", "tanh"})
_SAMPLES = np.linspace(-8, 8, 129, dtype=np.float32)

Constant = float | list[float]  # for the whole map, or for each channel
Values = Mapping[str, Any]  # arguments of an operator by name


def rewrite(calls: CallList, strict: bool = True) -> None:
    """Replaces operators on tensors, and functions as activations, by stock layers. In place.

    Args:
        calls: of a model.
        strict: raise for an operator without a stock layer; otherwise it stays.

    Raises:
        UsageError: names the layers, their operators and the remedy.
    """

    refused: list[Call] = []

    def find(call: Call) -> Replacement | None:
        if call.kind.__name__ in ON_TENSORS:
            replacement = _stock_layers(call)
            if replacement is None:
                refused.append(call)
            return replacement
        known = _without_function(call) or _normalization(call)
        return known or _global_max(call) or _with_constant(call)

    calls.substitute(find)
    if strict and refused:
        raise _refusal(refused)
    _merge_rescalings(calls)
    _scale_bounded_sums(calls)
    _scale_gates(calls)
    _merge_rescalings(calls)


def rescaling(call: Call) -> tuple[Constant, Constant] | None:
    """Scale and offset of a `Rescaling` layer; `None` for any other."""
    if call.kind is not layers.Rescaling:
        return None
    return _constant(call.config["scale"]), _constant(call.config["offset"])


def _refusal(calls: Sequence[Call]) -> UsageError:
    """The error for operators without a stock layer."""
    layers_of: dict[str, list[str]] = {}
    for call in calls:
        symbol = getattr(call.layer, "symbol", None)
        what = f"the operator tf.{symbol}" if symbol else f"a {call.kind.__name__}"
        layers_of.setdefault(what, []).append(call.layer.name)
    named = [
        f"layer {names[0]}, {what}"
        if len(names) == 1
        else f"{what} in {len(names)} layers, first {names[0]}"
        for what, names in layers_of.items()
    ]
    return UsageError(
        "model",
        shorten(named),
        "stock layers, or operators that equal one",
        "replace it by a stock layer, or compute it outside of the model",
    )


def _stock_layers(call: Call) -> Replacement | None:
    """What computes the same as an operator; `None` if no stock layer does."""
    convert = _CONVERSIONS.get(getattr(call.layer, "symbol", ""))
    if convert is None or not call.outputs[0].dtype.is_floating:
        return None
    try:
        bound = inspect.signature(call.layer.function).bind(*call.args, **call.kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    values = {k: v for k, v in bound.arguments.items() if k != "name"}
    if not call.inputs or any(isinstance(v, tf.Variable) for v in tf.nest.flatten(values)):
        return None
    return convert(call, values)


def _single(
    call: Call, kind: type, inputs: list[Tensor], suffix: str, **config: Any
) -> Replacement:
    new = new_call(kind, config, inputs, call, suffix)
    return [new], Tensor(new)


def _rescale(call: Call, source: Tensor, scale: Constant, offset: Constant) -> Replacement:
    suffix = "shift" if scale == 1.0 else "scale" if offset == 0.0 else "rescaling"
    config = {"scale": scale, "offset": offset}
    return _single(call, layers.Rescaling, [source], suffix, **config)


def _relu(call: Call, source: Tensor, max_value: float | None = None) -> Replacement:
    suffix = "relu6" if max_value == 6.0 else "relu"
    return _single(call, layers.ReLU, [source], suffix, max_value=max_value)


# Operators of two arguments: a layer for two tensors; scale and offset for a constant


def _binary(
    kind: type | None, constant_last: Callable[[Any], Any], constant_first: Callable[[Any], Any]
) -> Callable[[Call, Values], Replacement | None]:
    def convert(call: Call, values: Values) -> Replacement | None:
        x, y = list(values.values())[:2]
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return None if kind is None else _single(call, kind, [x, y], kind.__name__.lower())
        tensor, other = (x, y) if isinstance(x, Tensor) else (y, x)
        constant = _constant(other, _channels(call))
        if constant is None:
            return None
        pair = (constant_last if tensor is x else constant_first)(np.asarray(constant))
        if pair is None:
            return None
        scale, offset = (_as_constant(value) for value in pair)
        return _rescale(call, tensor, scale, offset)

    return convert


def _channels(call: Call) -> int | None:
    channels: int | None = call.outputs[0].shape[-1]
    return channels


def _constant(value: Any, channels: int | None = None) -> Any:
    """A constant as a number, or as a list with a value for each channel; `None` for others."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    if array.size == 1 or (array.ndim == 1 and channels is None):
        return _as_constant(array)
    if array.shape[-1:] != (channels,) or array.size != channels:
        return None
    return _as_constant(array.ravel())


def _as_constant(array: Any) -> Constant:
    values = np.asarray(array, np.float64)
    if values.size and (values == values.flat[0]).all():
        return float(values.flat[0])
    return [float(value) for value in values.ravel()]


# Other operators


def _relu_operator(max_value: float | None) -> Callable[[Call, Values], Replacement | None]:
    return lambda call, values: _relu(call, call.inputs[0], max_value)


def _clip(call: Call, values: Values) -> Replacement | None:
    least, most = values["clip_value_min"], values["clip_value_max"]
    if isinstance(most, Tensor) or _constant(least) != 0.0 or np.size(most) != 1:
        return None
    return _relu(call, call.inputs[0], float(_constant(most)))


def _maximum(call: Call, values: Values) -> Replacement | None:
    constants = [v for v in list(values.values())[:2] if not isinstance(v, Tensor)]
    is_relu = len(constants) == 1 and _constant(constants[0], _channels(call)) == 0.0
    return _relu(call, call.inputs[0]) if is_relu else None


def _mean(kind: type, suffix: str) -> Callable[[Call, Values], Replacement | None]:
    def convert(call: Call, values: Values) -> Replacement | None:
        source = call.inputs[0]
        rank = len(source.call.outputs[source.index].shape)
        axes = np.atleast_1d(np.asarray(values["axis"], object))
        if rank != 4 or None in axes or sorted(int(axis) % rank for axis in axes) != [1, 2]:
            return None
        keepdims = bool(values["keepdims"])
        return _single(call, kind, [source], suffix, keepdims=keepdims)

    return convert


def _function(name: str) -> Callable[[Call, Values], Replacement | None]:
    return lambda call, values: _single(
        call, layers.Activation, [call.inputs[0]], name, activation=name
    )


def _softmax(call: Call, values: Values) -> Replacement | None:
    axis = -1 if values.get("axis") is None else int(values["axis"])
    return _single(call, layers.Softmax, [call.inputs[0]], "softmax", axis=axis)


def _cast(call: Call, values: Values) -> Replacement | None:
    """A cast to the same type is nothing; another one is a `Rescaling` by 1."""
    source = call.inputs[0]
    if source.call.outputs[source.index].dtype == call.outputs[0].dtype:
        return [], source
    return _rescale(call, source, 1.0, 0.0)


def _add_n(call: Call, values: Values) -> Replacement | None:
    return _single(call, layers.Add, call.inputs, "add")


def _concat(call: Call, values: Values) -> Replacement | None:
    return _single(call, layers.Concatenate, call.inputs, "concat", axis=int(values["axis"]))


def _reshape(call: Call, values: Values) -> Replacement | None:
    shape = tuple(call.outputs[0].shape)
    if None in shape[1:] or shape[0] is not None or len(call.inputs) > 1:
        return None
    return _single(call, layers.Reshape, [call.inputs[0]], "reshape", target_shape=shape[1:])


def _pad(call: Call, values: Values) -> Replacement | None:
    pads = np.asarray(values["paddings"])
    if pads.shape != (4, 2) or pads[[0, 3]].any() or values["mode"].upper() != "CONSTANT":
        return None
    if _constant(values["constant_values"]) != 0.0:
        return None
    padding = tuple((int(low), int(high)) for low, high in pads[1:3])
    return _single(call, layers.ZeroPadding2D, [call.inputs[0]], "pad", padding=padding)


# Channels in another order, as of models that take blue first: a 1x1 convolution of ones and zeros


def _getitem(call: Call, values: Values) -> Replacement | None:
    spec = values["slice_spec"]
    *others, last = spec if isinstance(spec, (list, tuple)) else (spec,)
    is_whole = others == [Ellipsis] or [_slice(item) for item in others] == [slice(None)] * 3
    chosen = _slice(last)
    channels = _channels_before(call)
    return _reordered(call, channels[chosen]) if is_whole and chosen is not None else None


def _slice(item: Any) -> slice | None:
    """A slice, which a saved model has as a dictionary; `None` for another index."""
    if isinstance(item, slice):
        return item
    return slice(item["start"], item["stop"], item["step"]) if isinstance(item, dict) else None


def _reverse(call: Call, values: Values) -> Replacement | None:
    axes = [int(axis) % 4 for axis in np.atleast_1d(np.asarray(values["axis"]))]
    return _reordered(call, _channels_before(call)[::-1]) if axes == [3] else None


def _gather(call: Call, values: Values) -> Replacement | None:
    axis, indices = values.get("axis"), values["indices"]
    if axis is None or int(axis) % 4 != 3 or values.get("batch_dims") or np.ndim(indices) != 1:
        return None
    return _reordered(call, [int(index) for index in indices])


def _channels_before(call: Call) -> list[int]:
    source = call.inputs[0]
    return list(range(source.call.outputs[source.index].shape[-1] or 0))


def _reordered(call: Call, order: list[int]) -> Replacement | None:
    """Channels `order` of maps `[batch, height, width, channels]`."""
    channels = len(_channels_before(call))
    if len(call.outputs[0].shape) != 4 or not order or not 0 <= min(order) <= max(order) < channels:
        return None
    kernel = np.eye(channels, dtype=np.float32)[None, None][..., order]
    config = {"filters": len(order), "kernel_size": 1, "use_bias": False, "trainable": False}
    replacement = _single(call, layers.Conv2D, [call.inputs[0]], REORDERED, **config)
    replacement[0][0].weights = [kernel]
    return replacement


_add = _binary(layers.Add, lambda c: (1.0, c), lambda c: (1.0, c))
_subtract = _binary(layers.Subtract, lambda c: (1.0, -c), lambda c: (-1.0, c))
_multiply = _binary(layers.Multiply, lambda c: (c, 0.0), lambda c: (c, 0.0))
_divide = _binary(None, lambda c: (1 / c, 0.0) if np.all(c) else None, lambda c: None)

_CONVERSIONS: Mapping[str, Callable[[Call, Values], Replacement | None]] = MappingProxyType(
    {
        "__operators__.add": _add,
        "__operators__.getitem": _getitem,
        "reverse": _reverse,
        "gather": _gather,
        "compat.v1.gather": _gather,
        "math.add": _add,
        "math.add_n": _add_n,
        "math.subtract": _subtract,
        "math.multiply": _multiply,
        "math.truediv": _divide,
        "math.divide": _divide,
        "math.divide_no_nan": _divide,
        "math.negative": lambda call, values: _rescale(call, call.inputs[0], -1.0, 0.0),
        "nn.bias_add": _add,
        "nn.relu": _relu_operator(None),
        "nn.relu6": _relu_operator(6.0),
        "clip_by_value": _clip,
        "math.maximum": _maximum,
        "math.reduce_mean": _mean(layers.GlobalAveragePooling2D, "mean"),
        "math.reduce_max": _mean(layers.GlobalMaxPooling2D, "max"),
        "math.sigmoid": _function("sigmoid"),
        "math.tanh": _function("tanh"),
        "nn.silu": _function("swish"),
        "nn.softmax": _softmax,
        "identity": lambda call, values: ([], call.inputs[0]),
        "cast": _cast,
        "concat": _concat,
        "reshape": _reshape,
        "squeeze": _reshape,
        "compat.v1.squeeze": _reshape,
        "pad": _pad,
        "compat.v1.pad": _pad,
    }
)


def _with_constant(call: Call) -> Replacement | None:
    """A layer of two tensors one of which is a constant, as a `Rescaling`."""
    convert = {layers.Add: _add, layers.Subtract: _subtract, layers.Multiply: _multiply}
    operands = call.args[0] if call.args else None
    if call.kind not in convert or not isinstance(operands, (list, tuple)):
        return None
    if len(operands) != 2 or len(call.inputs) != 1:
        return None
    return convert[call.kind](call, dict(zip("xy", operands, strict=True)))


# Functions as activations, and normalization of inputs


def _without_function(call: Call) -> Replacement | None:
    """A layer whose activation equals stock layers, without it, and these layers."""
    if call.kind.__name__ not in _WITH_ACTIVATION:
        return None
    activation = call.layer.activation
    name = getattr(activation, "__name__", "")
    if name in _STOCK_ACTIVATIONS and activation is tf_keras.activations.get(name):
        return None
    form = _form_of(activation)
    if form is None:
        return None
    before: list[Call] = []
    source = call.inputs[0]
    if call.kind is not layers.Activation:
        call.config = {**call.config, "activation": "relu" if form == "relu" else "linear"}
        if form == "relu":
            return None
        before, source = [call], Tensor(call)
    after, output = _activation_layers(call, source, form)
    return [*before, *after], output


def _form_of(activation: Callable[[Any], Any]) -> str | None:
    """Which of `_FORMS` a function computes, by its values at samples."""
    try:
        values = np.asarray(activation(tf.constant(_SAMPLES)))
    except Exception:  # whatever a function of the user's raises
        return None
    for name, function in _FORMS.items():
        expected = function(_SAMPLES)
        if values.shape == expected.shape and np.allclose(values, expected, rtol=0, atol=1e-5):
            return name
    return None


def _bounded(x: Any, most: float) -> Float64Array:
    return np.clip(np.asarray(x, np.float64), 0, most)


_FORMS: Mapping[str, Callable[[Any], Float64Array]] = MappingProxyType(
    {
        "relu": lambda x: _bounded(x, np.inf),
        "relu6": lambda x: _bounded(x, 6),
        "hard_sigmoid": lambda x: _bounded(x + 3, 6) / 6,
        "hard_sigmoid_of_keras_2": lambda x: _bounded(x + 2.5, 5) / 5,
        "hard_swish": lambda x: x * _bounded(x + 3, 6) / 6,
    }
)


def _activation_layers(call: Call, source: Tensor, form: str) -> Replacement:
    if form in ("relu", "relu6"):
        return _relu(call, source, 6.0 if form == "relu6" else None)
    most = 5.0 if form == "hard_sigmoid_of_keras_2" else 6.0
    (shift,), shifted = _rescale(call, source, 1.0, most / 2)
    (relu,), bounded = _relu(call, shifted, most)
    (scale,), output = _rescale(call, bounded, 1 / most, 0.0)
    if form != "hard_swish":
        return [shift, relu, scale], output
    (product,), output = _single(call, layers.Multiply, [source, output], "hard_swish")
    return [shift, relu, scale, product], output


def _normalization(call: Call) -> Replacement | None:
    """Keras' `Normalization` of channels as a `Rescaling`."""
    if call.kind is not layers.Normalization:
        return None
    mean = np.asarray(call.layer.mean, np.float64)
    deviation = np.sqrt(np.asarray(call.layer.variance, np.float64))
    deviation = np.maximum(deviation, tf_keras.backend.epsilon())
    scale, offset = 1 / deviation, -mean / deviation
    if call.layer.invert:
        scale, offset = deviation, mean
    pair = [_constant(value, _channels(call)) for value in (scale, offset)]
    return None if None in pair else _rescale(call, call.inputs[0], pair[0], pair[1])


# Forms that quantizers know


def _global_max(call: Call) -> Replacement | None:
    """A `GlobalMaxPooling2D` of maps of a known size as `MaxPooling2D`, which has an int8 form."""
    source = call.inputs[0] if call.inputs else None
    if call.kind is not layers.GlobalMaxPooling2D or source is None:
        return None
    _, height, width, channels = source.call.outputs[source.index].shape
    if None in (height, width) or call.config["data_format"] == "channels_first":
        return None
    (pool,), pooled = _single(
        call, layers.MaxPooling2D, [source], "pool", pool_size=(height, width)
    )
    if call.config["keepdims"]:
        return [pool], pooled
    (vector,), output = _single(call, layers.Reshape, [pooled], "vector", target_shape=(channels,))
    return [pool, vector], output


def _merge_rescalings(calls: CallList) -> None:
    """Makes one layer of a `Rescaling` after another."""
    uses = calls.use_counts()

    def find(call: Call) -> Replacement | None:
        pair = rescaling(call)
        if pair is None:
            return None
        before = call.inputs[0].call
        first = rescaling(before)
        if first is None or uses[before] != 1 or (call.layer and before.layer):
            return None
        scale, offset = np.asarray(pair[0]), np.asarray(pair[1])
        merged = _rescale(
            call,
            before.inputs[0],
            _as_constant(scale * first[0]),
            _as_constant(scale * first[1] + offset),
        )
        uses[merged[0][0]] = uses[call]
        return merged

    calls.substitute(find)
    calls.prune()


def _scale_bounded_sums(calls: CallList) -> None:
    """Writes `clip(x * s + o, 0, m)` as `clip(x + o / s, 0, m / s) * s`: a hard sigmoid."""
    uses = calls.use_counts()

    def find(call: Call) -> Replacement | None:
        if call.kind is not layers.ReLU or call.layer is not None:
            return None
        before, most = call.inputs[0].call, call.config["max_value"]
        scale, offset = rescaling(before) or (1.0, 0.0)
        if not (most and isinstance(scale, float) and isinstance(offset, float)):
            return None
        if before.layer is not None or scale in (1.0, 0.0) or scale < 0 or uses[before] != 1:
            return None
        (shift,), shifted = _rescale(call, before.inputs[0], 1.0, offset / scale)
        (relu,), bounded = _relu(call, shifted, most / scale)
        (back,), output = _rescale(call, bounded, scale, 0.0)
        return [shift, relu, back], output

    calls.substitute(find)
    calls.prune()


def _scale_gates(calls: CallList) -> None:
    """Writes `x * relu6(x + 3) / 6` as `x * (relu6(x + 3) / 6)`."""
    uses = calls.use_counts()
    consumer = {tensor.call: call for call in calls.calls for tensor in call.inputs}
    scaled: set[Call] = set()

    def find(call: Call) -> Replacement | None:
        if rescaling(call) is not None and call.inputs[0].call in scaled:
            return [], call.inputs[0]
        after = consumer.get(call)
        scale, offset = (after and rescaling(after)) or (1.0, 0.0)
        if uses[call] != 1 or offset != 0.0 or scale == 1.0:
            return None
        gate = _gate(call)
        if gate is None:
            return None
        (back,), output = _rescale(gate.call, gate, scale, 0.0)
        call.replace_inputs(lambda tensor: output if tensor is gate else tensor)
        scaled.add(call)
        return [back, call], Tensor(call)

    calls.substitute(find)


def _gate(product: Call) -> Tensor | None:
    """The factor of a product that is a bounded ReLU of the other one with a constant added."""
    factors = product.inputs if product.kind is layers.Multiply else []
    for gate, other in (factors, factors[::-1]) if len(factors) == 2 else ():
        relu = gate.call
        if relu.kind is layers.ReLU and relu.config.get("max_value"):
            shift = relu.inputs[0].call
            if rescaling(shift) is not None and shift.inputs[0].call is other.call:
                return gate
    return None
