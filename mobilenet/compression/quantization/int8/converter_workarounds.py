"""Workarounds for four faults of TFLite files.

1. A convolution's int32 bias has the scale of its input times that of its channel. A channel whose
   folded kernel is (nearly) zero and whose bias is not would need more than 32 bits: the converter
   saturates it, and the channel loses its bias.
2. A batch-norm multiplier of exactly zero leaves the whole operator in float.
3. A bias whose entries are all equal is stored once, with the scale of channel 0.
4. The same scale makes the bias of a channel coarse if its kernel is large for its output: a batch
   norm whose variance is nearly zero multiplies a kernel by up to 32 where pruning left its inputs
   constant. The bias would round by several steps of the output, and one step of the input cross
   the whole output range.

Models are rewritten so that they compute the same in float, except that kernels of the fourth kind
are clipped, and convert exactly.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.quantizer_placement import WEIGHTS, folded_shift
from mobilenet.compression.quantization.int8.quantizers import (
    ActivationQuantizer,
    InputQuantizer,
    WeightQuantizer,
)
from mobilenet.models.graph import variables
from mobilenet.models.graph.batch_norm_folding import Folded
from mobilenet.models.graph.roles import Graph, kind, unwrap
from mobilenet.typing import Array

# A quarter of the int32 range: the kernels' sums are added, and up to half of it was seen to work.
_MAX_BIAS = 2.0**29
_MIN_SHARE = 1e-6  # of the median range: below that a channel contributes nothing to its layer
_UNIFORM = 4e-7  # relative difference of entries that may round to one float32
BIAS_SHIFT = 1e-6  # relative and absolute: the smallest that survives folding in float32


@dataclasses.dataclass(frozen=True)
class Repair:
    """What was done to a layer: channels given another range, and whether a bias was split."""

    layer: str
    channels: int
    uniform_bias: bool


def split_uniform_bias(bias: Array, shift: float) -> Array:
    """A bias whose entries are not all equal, so that each is stored: the first is shifted."""
    split = np.array(bias)
    split[0] += shift
    return split


def repair_layers(wrapped: Any, repair: bool = True) -> list[Repair]:
    """Stores the ranges of all kernels and repairs what would not convert. In place.

    Args:
        wrapped: a model from `scheme.wrap` with its ranges set, to be exported.
        repair: whether to repair; ranges are stored in any case.

    Raises:
        UsageError: a range was never set.
    """
    scheme.check_ranges(scheme.get_ranges(wrapped))
    graph = Graph(wrapped)
    quantizers = scheme.quantizers(wrapped)
    repairs = []
    for layer in graph.layers:
        if kind(layer) not in WEIGHTS:
            continue
        quantizer = quantizers.get(f"{unwrap(layer).name}/kernel")
        if quantizer is None:  # stays float
            continue
        quantizer.variables["absmax"].assign(quantizer.abs_max(variables.kernel(layer)))
        # A dense kernel has one scale for all channels: none of the faults can occur.
        if repair and quantizer.kind != "dense":
            entry = _Convolution(graph, layer, quantizer).repair()
            if entry.channels or entry.uniform_bias:
                repairs.append(entry)
    return repairs


class _Convolution(Folded):
    """A convolution with everything that the converter folds into it."""

    def __init__(self, graph: Graph, layer: Any, quantizer: WeightQuantizer) -> None:
        super().__init__(graph, layer)
        self.absmax = quantizer.variables["absmax"]
        self.input_scale = _input_scale(graph, layer)
        self.output_scale = _output_scale(graph, self.output)
        self.folded_shift = folded_shift(graph, layer)

    def repair(self) -> Repair:
        abs_max = np.asarray(self.absmax, np.float64)
        multiplier, bias = self.affine()
        total = bias + self.folded_shift
        folded = abs_max * np.abs(multiplier)
        typical = np.median(folded[folded > 0]) if (folded > 0).any() else 1.0
        least = 127 * np.abs(total) / (self.input_scale * _MAX_BIAS)
        least = np.maximum(least, _MIN_SHARE * typical)
        dead = folded < least
        if dead.any():
            if self.norm is not None:
                self._fold_into_kernel(self.norm, multiplier, bias, dead)
            self.absmax.assign(np.where(dead, least, abs_max))
        coarse = ~dead & (total != 0) & (folded * self.input_scale > 127 * self.output_scale)
        if coarse.any():
            most = np.maximum(127 * self.output_scale / self.input_scale, least)
            self.absmax.assign(np.where(coarse, abs_max * most / folded, self.absmax))
        largest = np.abs(total).max()
        uniform = self.channels > 1 and largest > 0 and np.ptp(total) <= _UNIFORM * largest
        if uniform:
            self._split_bias(BIAS_SHIFT * max(1.0, largest))
        return Repair(self.name, int((dead | coarse).sum()), bool(uniform))

    def _fold_into_kernel(
        self, norm: dict[str, Any], multiplier: Array, bias: Array, dead: npt.NDArray[np.bool_]
    ) -> None:
        """Folds the batch norm of the `dead` channels into the kernel; it becomes an identity
        there.
        """
        raw = np.asarray(self.kernel, np.float64)
        shape = (1, 1, *raw.shape[2:]) if self.depthwise else (1, 1, 1, -1)
        self.kernel.assign(raw * np.where(dead, multiplier, 1.0).reshape(shape))
        plain = self.read(self.own, "bias", 0.0)
        mean = plain if "beta" in norm else plain - bias
        identity = {
            "moving_variance": np.full(self.channels, 1.0 - self.epsilon),
            "gamma": np.ones(self.channels),
            "moving_mean": mean,
            "beta": bias,
        }
        for name, variable in norm.items():
            if name in identity:
                variable.assign(np.where(dead, identity[name], np.asarray(variable, np.float64)))

    def _split_bias(self, shift: float) -> None:
        """Shifts the first entry of what is added to the output last."""
        named, name = self.own, "bias"
        if self.norm is not None:
            name = "beta" if "beta" in self.norm else "moving_mean"
            named = self.norm
        if name == "moving_mean":
            shift = -shift / self.affine()[0][0]
        value = self.read(named, name, 0.0).astype(np.float32)
        named[name].assign(split_uniform_bias(value, shift))


def _input_scale(graph: Graph, layer: Any) -> float:
    """The scale of a layer's input: that of the nearest quantizer before it."""
    name = unwrap(layer).name
    while producers := graph.producers(layer):
        layer = producers[0]
        scale = _scale(layer)
        if scale is not None:
            return scale
    raise ValueError(f"no quantizer is before {name}")


def _output_scale(graph: Graph, layer: Any) -> float:
    """The scale of the operator that ends with a layer or with the activation after it; infinite
    if its output is not quantized.
    """
    scale = _scale(layer)
    while scale is None and len(consumers := graph.consumers(layer)) == 1:
        layer = consumers[0]
        if kind(layer) in WEIGHTS:
            break
        scale = _scale(layer)
    return np.inf if scale is None else scale


def _scale(layer: Any) -> float | None:
    """The scale of a layer's output; `None` without a quantizer."""
    config = getattr(layer, "quantize_config", None)
    quantizer = getattr(layer, "quantizer", None) or (config and config.output_quantizer)
    if isinstance(quantizer, InputQuantizer):
        return 1.0 / quantizer.std
    if isinstance(quantizer, ActivationQuantizer):
        return float(quantizer.variables["high"] - quantizer.variables["low"]) / 255.0
    return None
