"""The softmax or sigmoid at the end of a model, and the model up to its logits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tf_keras

from mobilenet.configs.card import ACTIVATIONS
from mobilenet.models.graph import flatten
from mobilenet.models.graph.calls import Call, CallList, Tensor

LINEAR = "linear"
_RESHAPES = ("Flatten", "Reshape")


def split_final_activation(model: Any) -> tuple[Any, str]:
    """The model up to its logits, and what turns these into its outputs.

    Args:
        model: functional or Sequential tf_keras model; it is left as it is.

    Returns:
        A flat model (see `flatten`) with layers and variables of its own and the same weights; and
        `softmax`, `sigmoid`, or `linear` for a model that ends in neither or has several outputs.

    Raises:
        UsageError: see `flatten`.
    """
    calls = flatten.plain_calls(model)
    activation = cut_final_activation(calls)
    return calls.build(), activation


def cut_final_activation(calls: CallList, names: Collection[str] = ACTIVATIONS) -> str:
    """Removes the activation at the end, if it is one of `names`. In place.

    Returns:
        Its name, or `linear`.
    """
    last = _last_activated(calls)
    activation = LINEAR if last is None else _activation_of(last)
    if last is None or activation not in names:
        return LINEAR
    if last.kind in (tf_keras.layers.Softmax, tf_keras.layers.Activation):
        calls.substitute(lambda call: ([], call.inputs[0]) if call is last else None)
    else:
        last.config = {**last.config, "activation": LINEAR}
    return activation


def final_activation(model: Any) -> str:
    """`softmax`, `sigmoid` or `linear`: how a model ends.

    Raises:
        UsageError: see `flatten`.
    """
    last = _last_activated(flatten.inline_calls(model))
    activation = LINEAR if last is None else _activation_of(last)
    return activation if activation in ACTIVATIONS else LINEAR


def _last_activated(calls: CallList) -> Call | None:
    """The call that computes the output, apart from reshapes and linear activations after it."""
    uses = calls.use_counts()
    if len(calls.outputs) != 1:
        return None
    tensor: Tensor = calls.outputs[0]
    while tensor.call.inputs and uses[tensor.call] == 1:
        call = tensor.call
        is_linear = call.kind is tf_keras.layers.Activation and _activation_of(call) == LINEAR
        if call.kind.__name__ not in _RESHAPES and not is_linear:
            return call
        tensor = call.inputs[0]
    return None


def _activation_of(call: Call) -> str:
    """Name of what a layer applies to each vector of its outputs."""
    if call.kind is tf_keras.layers.Softmax:
        axis, rank = call.config["axis"], len(call.outputs[0].shape)
        return "softmax" if axis in (-1, rank - 1) else "softmax of another axis"
    activation = call.config.get("activation", LINEAR)
    return activation if isinstance(activation, str) else "unknown"
