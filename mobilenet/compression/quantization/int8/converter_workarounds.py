"""Dead channels and uniform biases, mended before a converter that gets them wrong sees them.

A convolution's int32 bias has the scale of its input times that of its channel. A channel whose
folded kernel is (nearly) zero under a bias that is not would need more than 32 bits: the converter
saturates it and the channel forgets its bias. A batch-norm multiplier of exactly zero leaves the
whole operator in float. And a bias whose entries are all equal is stored once, with the scale of
channel 0. All three are rewritten here into models that compute the same in float and convert
exactly.
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
from mobilenet.typing import Float64Array

# A quarter of the int32 range: the kernels add to it, and half is what they were seen to stand.
_BIAS_CODES = 2.0**29
_LEAST_SHARE = 1e-6  # of the median range: below that a channel contributes nothing to its layer
_SAME = 4e-7  # relative: entries that are this close may round to one float32
_NUDGE = 1e-6  # relative and absolute: the least that survives folding in float32


@dataclasses.dataclass(frozen=True)
class Repair:
    """What was done to a layer: channels given a wider range, and whether a bias was split."""

    layer: str
    channels: int
    uniform_bias: bool


def repair(wrapped: Any, mend: bool = True) -> list[Repair]:
    """Stores the weight ranges of all kernels and mends what would not convert. In place.

    Args:
        wrapped: a model from `scheme.wrap` with its ranges set, meant for export.
        mend: without it nothing is mended.

    Raises:
        UsageError: a range was never set.
    """
    scheme.check_ranges(scheme.get_ranges(wrapped))
    graph = Graph(wrapped)
    quantizers = scheme.quantizers(wrapped)
    done = []
    for layer in graph.layers:
        if kind(layer) not in WEIGHTS:
            continue
        quantizer = quantizers.get(f"{unwrap(layer).name}/kernel")
        if quantizer is None:  # stays float
            continue
        quantizer.variables["absmax"].assign(quantizer.abs_max(variables.kernel(layer)))
        # A dense kernel has one scale for all channels: neither fault can occur.
        if mend and quantizer.kind != "dense":
            entry = _Convolution(graph, layer, quantizer).repair()
            if entry.channels or entry.uniform_bias:
                done.append(entry)
    return done


class _Convolution(Folded):
    """A convolution, depthwise or not, with what the converter folds into it."""

    def __init__(self, graph: Graph, layer: Any, quantizer: WeightQuantizer) -> None:
        super().__init__(graph, layer)
        self.absmax = quantizer.variables["absmax"]
        self.input_scale = _input_scale(graph, layer)
        self.shift_behind = folded_shift(graph, layer)

    def repair(self) -> Repair:
        reach = np.asarray(self.absmax, np.float64)
        multiplier, bias = self.affine()
        total = bias + self.shift_behind
        folded = reach * np.abs(multiplier)
        healthy = np.median(folded[folded > 0]) if (folded > 0).any() else 1.0
        least = 127 * np.abs(total) / (self.input_scale * _BIAS_CODES)
        least = np.maximum(least, _LEAST_SHARE * healthy)
        bad = folded < least
        if bad.any():
            if self.norm is not None:
                self._fold_into_kernel(self.norm, multiplier, bias, bad)
            self.absmax.assign(np.where(bad, least, reach))
        largest = np.abs(total).max()
        uniform = self.channels > 1 and largest > 0 and np.ptp(total) <= _SAME * largest
        if uniform:
            self._split_bias(_NUDGE * max(1.0, largest))
        return Repair(self.name, int(bad.sum()), bool(uniform))

    def _fold_into_kernel(
        self,
        norm: dict[str, Any],
        multiplier: Float64Array,
        bias: Float64Array,
        bad: npt.NDArray[np.bool_],
    ) -> None:
        """Moves the batch norm of the `bad` channels into the kernel; an identity stays behind."""
        raw = np.asarray(self.kernel, np.float64)
        shape = (1, 1, *raw.shape[2:]) if self.depthwise else (1, 1, 1, -1)
        self.kernel.assign(raw * np.where(bad, multiplier, 1.0).reshape(shape))
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
                variable.assign(np.where(bad, identity[name], np.asarray(variable, np.float64)))

    def _split_bias(self, nudge: float) -> None:
        """Moves the first entry by `nudge`, so that the constant is stored entry by entry."""
        named, name = self.own, "bias"
        if self.norm is not None:
            name = "beta" if "beta" in self.norm else "moving_mean"
            named = self.norm
        if name == "moving_mean":
            nudge = -nudge / self.affine()[0][0]
        value = self.read(named, name, 0.0).astype(np.float32)
        value[0] += nudge
        named[name].assign(value)


def _input_scale(graph: Graph, layer: Any) -> float:
    """The scale of the codes that a layer reads: that of the nearest quantizer in front of it."""
    name = unwrap(layer).name
    while producers := graph.producers(layer):
        layer = producers[0]
        config = getattr(layer, "quantize_config", None)
        quantizer = getattr(layer, "quantizer", None) or (config and config.output_quantizer)
        if isinstance(quantizer, InputQuantizer):
            return 1.0 / quantizer.std
        if isinstance(quantizer, ActivationQuantizer):
            return float(quantizer.variables["high"] - quantizer.variables["low"]) / 255.0
    raise ValueError(f"no quantizer stands in front of {name}")
