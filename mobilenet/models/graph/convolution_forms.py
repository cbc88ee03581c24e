"""Layers written as the convolutions that they equal.

Quantizers, pruning and the int8 operators of a file know convolutions and dense layers. A separable
convolution is two of them. A batch norm is part of the convolution directly before it, which the
converter sees; directly after a dense layer it is multiplied into the kernel here. Any other batch
norm is a depthwise 1x1 convolution of its own. So is a ReLU that no layer before it takes in, as
XNNPACK has no operator for it in int8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from mobilenet.models.graph import variables
from mobilenet.models.graph.calls import Call, CallList, Replacement, Tensor, new_call
from mobilenet.typing import Array, Float64Array

layers = tf_keras.layers
_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)
_WITH_RELU = (  # layers whose operator computes a ReLU after them
    *(*_CONVOLUTIONS, layers.Dense, layers.BatchNormalization, layers.Add, layers.Rescaling),
)
_DEPTHWISE = ("depthwise_initializer", "depthwise_regularizer", "depthwise_constraint")
_POINTWISE = ("pointwise_initializer", "pointwise_regularizer", "pointwise_constraint")


def split_separable_convolutions(calls: CallList) -> None:
    """Makes a depthwise and a 1x1 convolution of every `SeparableConv2D`. In place."""

    def find(call: Call) -> Replacement | None:
        return _separated(call) if call.kind is layers.SeparableConv2D else None

    calls.substitute(find)


def replace_unfused_batch_norms(calls: CallList) -> list[str]:
    """Replaces every batch norm that the converter fuses with no convolution. In place.

    One directly after a dense layer is multiplied into its kernel and bias. One after an
    activation, a pooling, a sum or the input, or after a convolution whose output is read elsewhere
    too, becomes a depthwise 1x1 convolution. Statistics do not change any more; scale and shift
    train as the weights of these layers.

    Returns:
        The names of the replaced layers.
    """
    uses = calls.use_counts()
    replaced: list[str] = []

    def find(call: Call) -> Replacement | None:
        if not _is_inference_norm(call) or _is_directly_after(call, _CONVOLUTIONS, uses):
            return None
        replaced.append(call.layer.name)
        if _is_directly_after(call, (layers.Dense,), uses):
            return _multiplied_into_dense(call)
        return _depthwise(call)

    calls.substitute(find)
    return replaced


def replace_unfused_relus(calls: CallList) -> list[str]:
    """Puts a depthwise 1x1 convolution of ones before every ReLU that no layer takes in. In place.

    That is one after a layer that is read elsewhere too, or after a pooling or the input. A ReLU
    after a ReLU is left out.

    Returns:
        The names of these ReLUs.
    """
    uses = calls.use_counts()
    replaced: list[str] = []

    def find(call: Call) -> Replacement | None:
        most = _largest(call) if call.kind in (layers.Activation, layers.ReLU) else None
        if most is None:
            return None
        before = call.inputs[0].call
        bound = _largest(before)
        if bound is not None and bound <= most:
            replaced.append(call.layer.name)
            return [], call.inputs[0]
        if issubclass(before.kind, _WITH_RELU) and uses[before] == 1:
            return None
        channels = call.outputs[0].shape[-1]
        if len(call.outputs[0].shape) != 4 or channels is None:
            return None
        replaced.append(call.layer.name)
        config = {"kernel_size": 1, "use_bias": False, "trainable": False}
        ones = [np.ones((1, 1, channels, 1))]
        name = f"{call.layer.name}_input"
        copied = _layer(layers.DepthwiseConv2D, config, call.inputs[0], call, name, ones)
        call.replace_inputs(lambda tensor: Tensor(copied))
        return [copied, call], Tensor(call)

    calls.substitute(find)
    return replaced


def _largest(call: Call) -> float | None:
    """The upper bound of a layer that ends with a ReLU; `None` for another layer."""
    if call.kind is not layers.ReLU:
        return np.inf if call.config.get("activation") == "relu" else None
    if call.config.get("negative_slope") or call.config.get("threshold"):
        return None
    most = call.config["max_value"]
    return np.inf if most is None else float(most)


def fused(model: Any) -> Any:
    """A model whose batch norms and ReLUs are each part of an int8 operator.

    Args:
        model: flat functional tf_keras model; it is left as it is.

    Returns:
        A model with layers and variables of its own and the same outputs in inference mode; the
        model itself if there is nothing to replace.
    """
    calls = CallList(model)
    replaced = [*replace_unfused_batch_norms(calls), *replace_unfused_relus(calls)]
    return calls.build() if replaced else model


def _is_inference_norm(call: Call) -> bool:
    """Whether a call is a batch norm of the last axis of maps or vectors, not of a batch."""
    if not isinstance(call.layer, layers.BatchNormalization) or call.kwargs.get("training"):
        return False
    rank = len(call.outputs[0].shape)
    return rank in (2, 4) and list(call.layer.axis) == [rank - 1]


def _is_directly_after(call: Call, kinds: tuple[type, ...], uses: dict[Call, int]) -> bool:
    """Whether a batch norm alone reads the output of a layer of `kinds` without activation."""
    before = call.inputs[0].call
    if not issubclass(before.kind, kinds) or uses.get(before) != 1:
        return False
    return bool(before.config["activation"] == "linear")


def _scale_and_shift(layer: Any) -> tuple[Float64Array, Float64Array]:
    """What a batch norm multiplies by and then adds in inference mode, `[channels]` each."""
    own = {name: np.asarray(v, np.float64) for name, v in variables.named(layer).items()}
    scale = own.get("gamma", 1.0) / np.sqrt(own["moving_variance"] + layer.epsilon)
    return scale, own.get("beta", 0.0) - own["moving_mean"] * scale


def _multiplied_into_dense(call: Call) -> Replacement:
    dense = call.inputs[0].call
    scale, shift = _scale_and_shift(call.layer)
    kernel, *bias = [np.asarray(weight, np.float64) for weight in dense.layer.get_weights()]
    dense.own_name, dense.layer = dense.layer.name, None
    dense.config = {**dense.config, "use_bias": True}
    dense.weights = (kernel * scale, (bias[0] if bias else 0.0) * scale + shift)
    return [], Tensor(dense)


def _depthwise(call: Call) -> Replacement:
    """A batch norm's scale and shift as a convolution; vectors are 1x1 maps on the way."""
    scale, shift = _scale_and_shift(call.layer)
    channels = len(scale)
    config = {"kernel_size": 1, "trainable": call.layer.trainable}
    weights = [scale.reshape(1, 1, channels, 1), shift]
    name = call.layer.name
    if len(call.outputs[0].shape) == 4:
        norm = _layer(layers.DepthwiseConv2D, config, call.inputs[0], call, name, weights)
        return [norm], Tensor(norm)
    shape = {"target_shape": (1, 1, channels)}
    as_map = _layer(layers.Reshape, shape, call.inputs[0], call, f"{name}_map")
    norm = _layer(layers.DepthwiseConv2D, config, Tensor(as_map), call, name, weights)
    back = {"target_shape": (channels,)}
    vector = _layer(layers.Reshape, back, Tensor(norm), call, f"{name}_vector")
    return [as_map, norm, vector], Tensor(vector)


def _separated(call: Call) -> Replacement:
    config, weights = call.config, call.layer.get_weights()
    shared = {key: config[key] for key in ("data_format", "trainable")}
    depthwise = {
        **shared,
        **{key: config[key] for key in ("kernel_size", "strides", "padding", "dilation_rate")},
        **{key: config[key] for key in ("depth_multiplier", *_DEPTHWISE)},
        "use_bias": False,
    }
    pointwise = {
        **shared,
        **{key.replace("pointwise", "kernel"): config[key] for key in _POINTWISE},
        **{key: config[key] for key in ("filters", "activation", "use_bias")},
        **{key: config[key] for key in config if key.startswith("bias_")},
        "kernel_size": 1,
    }
    name = call.layer.name
    first = _layer(
        layers.DepthwiseConv2D, depthwise, call.inputs[0], call, f"{name}_depthwise", weights[:1]
    )
    second = _layer(layers.Conv2D, pointwise, Tensor(first), call, f"{name}_pointwise", weights[1:])
    return [first, second], Tensor(second)


def _layer(
    kind: type,
    config: dict[str, Any],
    source: Tensor,
    like: Call,
    name: str,
    weights: list[Array] | None = None,
) -> Call:
    """The call of a new layer of the same precision as the one that it replaces."""
    call = new_call(kind, config, [source], like, "")
    call.config["dtype"] = like.config["dtype"]
    call.own_name, call.weights = name, weights or ()
    return call
