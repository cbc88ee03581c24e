"""What the converter gets wrong about nearly dead channels and uniform biases, mended before it sees them.

A convolution's int32 bias has the scale of its input times that of its channel. A channel whose folded kernel is
(nearly) zero under a bias that is not would need more than 32 bits: the converter saturates it and the channel
forgets its bias. A batch-norm multiplier of exactly zero leaves the whole operator in float. And a bias whose
entries are all equal is stored once, with the scale of channel 0. All three are rewritten here into nets that
compute the same in float and convert exactly.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.compression import variables
from mobilenet.compression.quantization import scheme
from mobilenet.compression.quantization.placement import WEIGHTS
from mobilenet.compression.quantization.quantizers import (
    ActivationQuantizer,
    InputQuantizer,
    WeightQuantizer,
)
from mobilenet.models.roles import Graph, kind

# Half of the int32 range is what the kernels use safely; a second half is kept for the accumulator.
_BIAS_CODES = 2.0**29
_LEAST_SHARE = 1e-6  # of the median range: below that a channel contributes nothing to its layer
_UNKNOWN_SCALE = 1.0 / 255.0
Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Repair:
    """What was done to a layer: channels given a wider range, and whether a uniform bias was split."""

    layer: str
    channels: int
    uniform_bias: bool


def repair(wrapped: Any) -> list[Repair]:
    """Stores the weight ranges of every kernel and mends the channels that would not convert. In place.

    Args:
        wrapped: a net from `scheme.wrap` with its ranges set, meant for export.
    """
    graph = Graph(wrapped)
    quantizers = scheme.quantizers(wrapped)
    done = []
    for layer in graph.layers:
        if kind(layer) not in WEIGHTS:
            continue
        quantizer = quantizers[f"{variables.inner(layer).name}/kernel"]
        kernel = variables.kernel(layer)
        quantizer.variables["absmax"].assign(quantizer.reach(kernel))
        if quantizer.kind != "dense":
            entry = _repair_layer(graph, layer, quantizer, _input_scale(graph, layer))
            if entry.channels or entry.uniform_bias:
                done.append(entry)
    return done


def _repair_layer(graph: Graph, layer: Any, quantizer: WeightQuantizer, input_scale: float) -> Repair:
    own = variables.named(layer)
    norm = next((c for c in graph.consumers(layer) if kind(c) == "BatchNormalization"), None)
    kernel, absmax = variables.kernel(layer), quantizer.variables["absmax"]
    reach = np.asarray(absmax, np.float64)
    multiplier, bias = _folded(own, norm, len(reach))
    folded = reach * np.abs(multiplier)
    healthy = np.median(folded[folded > 0]) if (folded > 0).any() else 1.0
    least = np.maximum(127 * np.abs(bias + _shift(graph, layer)) / (input_scale * _BIAS_CODES), _LEAST_SHARE * healthy)
    bad = folded < least
    if bad.any():
        _fold_channels(kernel, own, norm, multiplier, bias, bad)
        absmax.assign(np.where(bad, least, reach))
    uniform = len(bias) > 1 and np.ptp(bias.astype(np.float32)) == 0 and bias[0] + _shift(graph, layer) != 0
    if uniform:
        _split_bias(own if norm is None else variables.named(norm), "bias" if norm is None else "beta")
    return Repair(variables.inner(layer).name, int(bad.sum()), bool(uniform))


def _folded(own: dict[str, Any], norm: Any, channels: int) -> tuple[Array, Array]:
    """Multiplier and bias of each channel once the batch norm is folded into the convolution."""
    plain = np.asarray(own["bias"], np.float64) if "bias" in own else np.zeros(channels)
    if norm is None:
        return np.ones(channels), plain
    values = {name: np.asarray(v, np.float64) for name, v in variables.named(norm).items()}
    sigma = np.sqrt(values["moving_variance"] + variables.inner(norm).epsilon)
    multiplier = values.get("gamma", np.ones(channels)) / sigma
    return multiplier, values.get("beta", np.zeros(channels)) + (plain - values["moving_mean"]) * multiplier


def _shift(graph: Graph, layer: Any) -> float:
    """The constant that the converter folds into the bias: the 3 of a hard sigmoid."""
    consumers = graph.consumers(layer)
    if len(consumers) == 1 and kind(consumers[0]) == "Rescaling":
        return float(variables.inner(consumers[0]).offset)
    return 0.0


def _fold_channels(kernel: Any, own: dict[str, Any], norm: Any, multiplier: Array, bias: Array, bad: Any) -> None:
    """Moves the batch norm of the `bad` channels into kernel and beta, and leaves an identity behind."""
    if norm is None:
        return
    values = variables.named(norm)
    factor = np.where(bad, multiplier, 1.0)
    raw = np.asarray(kernel, np.float64)
    shape = (1, 1, *raw.shape[2:]) if kernel.name.split("/")[-1].startswith("depthwise") else (1, 1, 1, -1)
    kernel.assign(raw * factor.reshape(shape))
    sigma = np.sqrt(np.asarray(values["moving_variance"], np.float64) + variables.inner(norm).epsilon)
    plain = np.asarray(own["bias"], np.float64) if "bias" in own else np.zeros(len(bias))
    for name, neutral in (("gamma", sigma), ("beta", bias), ("moving_mean", plain)):
        if name in values:
            values[name].assign(np.where(bad, neutral, np.asarray(values[name], np.float64)))


def _split_bias(named: dict[str, Any], name: str) -> None:
    """Moves one entry by as little as survives folding, so that the constant is stored entry by entry."""
    value = np.array(named[name], np.float32)
    value[0] += max(1e-6, 1e-6 * abs(float(value[0])))
    named[name].assign(value)


def _input_scale(graph: Graph, layer: Any) -> float:
    """The scale of the codes that a layer reads: that of the nearest quantizer in front of it."""
    while producers := graph.producers(layer):
        layer = producers[0]
        config = getattr(layer, "quantize_config", None)
        quantizer = getattr(layer, "quantizer", None) or (config and config.output_quantizer)
        if isinstance(quantizer, InputQuantizer):
            return 1.0 / quantizer.std
        if isinstance(quantizer, ActivationQuantizer):
            return float(quantizer.variables["high"] - quantizer.variables["low"]) / 255.0
    return _UNKNOWN_SCALE
