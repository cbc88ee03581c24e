"""Where the codes of an activation begin and end: extremes, a percentile, or the least error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mobilenet.compression.quantization.post_training.hard_swish_equalization import Span
from mobilenet.compression.quantization.post_training.observer import Observation
from mobilenet.models.graph.batch_norm_folding import Array

PERCENT = 99.99
_SHARES = np.geomspace(0.02, 1.0, 80)  # of the extremes, tried for the least error
_CODES = 255
Counts = npt.NDArray[np.int64]


def span_of(seen: Observation, rule: str) -> Span:
    """Low and high of one tensor by one of `RANGE_RULES`; zero is between."""
    if rule == "maximum":
        return seen.span()
    values, counts = seen.values()
    if rule == "percentile":
        return percentile(values, counts, PERCENT)
    return least_error(values, counts)


def percentile(values: Array, counts: Counts, percent: float) -> Span:
    """The ends that cut off `100 - percent` percent of the values, half of them at either side
    where both sides are used."""
    reached = np.cumsum(counts) / counts.sum()
    beyond = 1.0 - percent / 100.0
    sides = 2.0 if values[0] < 0 < values[-1] else 1.0
    low = values[np.searchsorted(reached, beyond / sides, side="right")] if values[0] < 0 else 0.0
    last = min(int(np.searchsorted(reached, 1.0 - beyond / sides)), len(values) - 1)
    high = values[last]
    return min(float(low), 0.0), max(float(high), 0.0)


def least_error(values: Array, counts: Counts) -> Span:
    """The ends of the least mean squared error of 256 codes, both shrunk by the same share."""
    low, high = min(float(values[0]), 0.0), max(float(values[-1]), 0.0)
    if high == low:
        return low, high
    errors = []
    for share in _SHARES:
        step = share * (high - low) / _CODES
        zero = np.round(-low * share / step)
        codes = np.clip(np.round(values / step) + zero, 0, _CODES)
        errors.append(float(counts @ np.square((codes - zero) * step - values)))
    share = float(_SHARES[int(np.argmin(errors))])
    return share * low, share * high


def clip(spans: dict[str, Span], lows: Mapping[str, float]) -> dict[str, Span]:
    """Ranges in front of hard-swishes begin at `lows`, by layer name, at the lowest."""
    return {
        name: (max(low, lows[name]), max(high, 1e-6)) if name in lows else (low, high)
        for name, (low, high) in spans.items()
    }


def clipped_share(seen: Observation, span: Span) -> float:
    """Share of the counted values that a range cuts off."""
    values, counts = seen.values()
    tolerance = 2.0**-7  # of the counting
    low, high = span[0] * (1 + tolerance), span[1] * (1 + tolerance)
    return float(counts[(values < low) | (values > high)].sum() / counts.sum())


def spans_of(observed: Mapping[str, Observation], rule: str) -> dict[str, Span]:
    """A range for every observed tensor."""
    return {name: span_of(seen, rule) for name, seen in observed.items()}
