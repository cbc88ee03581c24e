"""Approximate equalization through hard-swish, which no factor passes exactly.

Over the short interval of a channel of small values hard-swish is nearly linear, and above 3 it is
the identity. For each channel a factor before and one after the hard-swish are chosen that minimize
the error of the int8 arithmetic, together with the upper end of the range. The float model changes
a little, the file becomes much better, and nothing is added to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mobilenet.compression.quantization.post_training.observer import Observation, Range
from mobilenet.compression.quantization.post_training.scaling_groups import ScalingGroups
from mobilenet.models.graph.roles import unwrap
from mobilenet.runtime import quantized_io
from mobilenet.typing import Float64Array

LOW, PRODUCT_LOW = -3.0, -0.375  # below -3 hard-swish is zero; its minimum is that at -1.5
SAMPLES = 400  # values of a channel
_HIGHS = (3.2, 4.5, 6.0, 8.0, 11.0, 15.0, 20.0, 28.0, 40.0, 56.0)
_FACTORS = 2.0 ** np.arange(-4, 5.5, 0.5)  # 1/16 to 32 in half octaves
_STEPS = 255  # of a range of 8 bits


@dataclasses.dataclass(frozen=True)
class HardSwishScaling:
    """What was chosen for one hard-swish.

    Attributes:
        high: upper end of the range before it; that after it is the same.
        input_factors: factor of each channel before it, `[channels]`.
        output_factors: factor of the kernels that read each channel, `[channels]`.
        original_error, error: squared error of the int8 arithmetic, weighted by the kernels that
            read the output, for the original range and as chosen.
    """

    high: float
    input_factors: Float64Array
    output_factors: Float64Array
    original_error: float
    error: float


def equalize_hard_swish(
    groups: ScalingGroups, observations: Mapping[str, Observation]
) -> tuple[dict[str, Float64Array], dict[str, Range], dict[str, HardSwishScaling]]:
    """Equalizes every hard-swish between convolutions that nothing is added to. In place.

    An addend would have to be scaled too, which makes its channels unequal: the default steps on a
    V3-large, whose first hard-swish is followed by a residual sum, lose 2 dB by that.

    Args:
        groups: of the plain model that is changed.
        observations: of its tensors on images, by layer name; sources of hard-swishes with samples.

    Returns:
        The factor of each output channel by name of the convolution, the ranges before and after
        each hard-swish by layer name, and what was chosen by name of the product.
    """
    factors: dict[str, Float64Array] = {}
    ranges: dict[str, Range] = {}
    scalings: dict[str, HardSwishScaling] = {}
    for one in groups.hard_swishes:
        source, product = (unwrap(layer).name for layer in (one.source, one.product))
        seen = observations.get(source)
        if seen is None or seen.samples is None or not groups.is_between_convolutions(one):
            continue
        before, after = groups.of(one.source), groups.of(one.product)
        if after.producers:
            continue
        weights = np.sum([np.square(other.input_norms()) for other in after.consumers], axis=0)
        scaling = choose_scaling(seen.samples.astype(np.float64), weights, seen.range()[1])
        before.scale(scaling.input_factors)
        after.scale(1.0 / scaling.output_factors)
        factors.update({producer.name: scaling.input_factors for producer in before.producers})
        ranges.update({source: (LOW, scaling.high), product: (PRODUCT_LOW, scaling.high)})
        scalings[product] = scaling
    return factors, ranges, scalings


def choose_scaling(
    samples: Float64Array, weights: Float64Array, largest: float
) -> HardSwishScaling:
    """The range and the factors of the least weighted error.

    Args:
        samples: `[values, channels]`, inputs of the hard-swish.
        weights: `[channels]`, squared norm of the kernels that read each channel.
        largest: the largest input seen.
    """
    reference = hard_swish(samples)
    highs = [high for high in _HIGHS if high < largest] + [max(largest, _HIGHS[0])]
    best: HardSwishScaling | None = None
    original = float(weights @ _errors(samples, reference, 1.0, highs[-1])[0])
    for high in highs:
        errors, outputs = zip(
            *(_errors(samples, reference, factor, high) for factor in _FACTORS),
            strict=True,
        )
        table = np.stack(errors)  # [factors, channels]
        index = table.argmin(axis=0)
        error = float(weights @ table.min(axis=0))
        if best is None or error < best.error:
            output_factors = np.stack(outputs)[index, np.arange(samples.shape[1])]
            best = HardSwishScaling(high, _FACTORS[index], output_factors, original, error)
    assert best is not None
    return best


def _errors(
    samples: Float64Array, reference: Float64Array, factor: float, high: float
) -> tuple[Float64Array, Float64Array]:
    """Mean squared error of each channel, and the output factor that minimizes it."""
    source, product = _scale_and_zero_point(LOW, high), _scale_and_zero_point(PRODUCT_LOW, high)
    quantized = quantized_io.quantize(factor * samples, np.uint8, *source)
    # The arithmetic's output for each of its 256 inputs.
    inputs = quantized_io.dequantize(np.arange(_STEPS + 1), *source)
    table = quantized_io.dequantize(
        quantized_io.quantize(hard_swish(inputs), np.uint8, *product), *product
    )
    outputs = table[quantized]
    power = np.einsum("ij,ij->j", outputs, outputs)
    correlation = np.einsum("ij,ij->j", outputs, reference)
    factors = np.where(power > 0, correlation / np.where(power > 0, power, 1), 1.0)
    factors = np.where(factors > 0, factors, 1.0)
    outputs *= factors
    outputs -= reference
    return np.einsum("ij,ij->j", outputs, outputs) / len(samples), factors


def hard_swish(values: Float64Array) -> Float64Array:
    """`x relu6(x + 3) / 6`."""
    result: Float64Array = values * np.clip(values + 3.0, 0.0, 6.0) / 6.0
    return result


def _scale_and_zero_point(low: float, high: float) -> tuple[float, int]:
    """Of 8-bit values from 0 whose range is `low` to `high`; zero is exact."""
    scale = (high - low) / _STEPS
    return scale, -round(low / scale)
