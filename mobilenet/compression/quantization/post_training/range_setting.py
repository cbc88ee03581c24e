"""The range of an activation: its extremes, a percentile of its values, or the least error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mobilenet.compression.quantization.post_training.observer import Observation, Range
from mobilenet.runtime import quantized_io
from mobilenet.typing import Float64Array

PERCENT = 99.99
_SHARES = np.geomspace(0.02, 1.0, 80)  # of the extremes, tried for the least error
_STEPS = 255  # of a range of 8 bits
Counts = npt.NDArray[np.int64]


def find_range(observation: Observation, rule: str) -> Range:
    """Low and high of one tensor by one of `RANGE_RULES`; zero is between."""
    if rule == "maximum":
        return observation.range()
    values, counts = observation.values()
    if rule == "percentile":
        return percentile_range(values, counts, PERCENT)
    return least_error_range(values, counts)


def percentile_range(values: Float64Array, counts: Counts, percent: float) -> Range:
    """The range that clips `100 - percent` percent of the values.

    Where values have both signs, each end clips half of them.
    """
    cumulative = np.cumsum(counts) / counts.sum()
    clipped = 1.0 - percent / 100.0
    sides = 2.0 if values[0] < 0 < values[-1] else 1.0
    low = 0.0
    if values[0] < 0:
        low = float(values[np.searchsorted(cumulative, clipped / sides, side="right")])
    last = min(int(np.searchsorted(cumulative, 1.0 - clipped / sides)), len(values) - 1)
    return min(low, 0.0), max(float(values[last]), 0.0)


def least_error_range(values: Float64Array, counts: Counts) -> Range:
    """The range of the least mean squared error of int8; both ends shrink by the same factor."""
    low, high = min(float(values[0]), 0.0), max(float(values[-1]), 0.0)
    if high == low:
        return low, high
    errors = []
    for share in _SHARES:
        step = share * (high - low) / _STEPS
        zero_point = int(np.round(-low * share / step))
        quantized = quantized_io.quantize(values, np.uint8, step, zero_point)
        rounded = quantized_io.dequantize(quantized, step, zero_point)
        errors.append(float(counts @ np.square(rounded - values)))
    share = float(_SHARES[int(np.argmin(errors))])
    return share * low, share * high


def raise_lower_bounds(
    ranges: Mapping[str, Range], bounds: Mapping[str, float]
) -> dict[str, Range]:
    """Ranges that start no lower than `bounds`, by layer name."""
    return {
        name: (max(low, bounds[name]), max(high, 1e-6)) if name in bounds else (low, high)
        for name, (low, high) in ranges.items()
    }


def clipped_share(observation: Observation, limits: Range) -> float:
    """Share of the counted values that are outside a range."""
    values, counts = observation.values()
    tolerance = 2.0**-7  # the resolution of the counts
    low, high = limits[0] * (1 + tolerance), limits[1] * (1 + tolerance)
    return float(counts[(values < low) | (values > high)].sum() / counts.sum())
