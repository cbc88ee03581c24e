"""Soft equalization through hard-swish, which lets no factor through exactly.

Over the short interval where a small channel lives hard-swish is nearly linear, and above 3 it is
the identity. For each channel a factor in front and one behind are chosen such that what comes out
of the int8 arithmetic is nearest to what the float model gives; with them goes the upper end of the
range. The float model changes a little, the file becomes much better, and nothing is added to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.compression.quantization.post_training.observer import Observation
from mobilenet.compression.quantization.post_training.scaling_groups import ScalingGroups
from mobilenet.models.graph.batch_norm_folding import Array
from mobilenet.models.graph.roles import unwrap

LOW, PRODUCT_LOW = -3.0, -0.375  # below -3 hard-swish is zero; its least value is that at -1.5
SAMPLES = 400  # values of a channel
_HIGHS = (3.2, 4.5, 6.0, 8.0, 11.0, 15.0, 20.0, 28.0, 40.0, 56.0)
_FACTORS = 2.0 ** np.arange(-4, 5.5, 0.5)  # 1/16 to 32 in half octaves
_CODES = 255
Span = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class HardSwishScaling:
    """What was chosen for one hard-swish.

    Attributes:
        high: upper end of the range in front; that behind is the same.
        before: factor of each channel in front, `[channels]`.
        behind: factor of the kernels that read each channel.
        error_before, error: squared error of the int8 arithmetic, weighted with what the kernels
            behind make of it, for the plain range and as chosen.
    """

    high: float
    before: Array
    behind: Array
    error_before: float
    error: float


def equalize_hard_swish(
    groups: ScalingGroups, observed: Mapping[str, Observation]
) -> tuple[dict[str, Array], dict[str, Span], dict[str, HardSwishScaling]]:
    """Equalizes every hard-swish between convolutions that nothing is added to. In place.

    What is added would be scaled with it, and its channels made unequal: the default chain of a
    V3-large, whose first hard-swish has a residual sum behind it, loses 2 dB so.

    Args:
        groups: of the plain model that is changed.
        observed: its tensors on images, by layer name; sources of hard-swishes with samples.

    Returns:
        The factor of each output channel by name of the convolution, the ranges in front of and
        behind each hard-swish by layer name, and what was chosen by name of the product.
    """
    factors: dict[str, Array] = {}
    spans: dict[str, Span] = {}
    chosen: dict[str, HardSwishScaling] = {}
    for found in groups.hard_swishes:
        source, product = (unwrap(x).name for x in (found.source, found.product))
        seen = observed.get(source)
        if seen is None or seen.samples is None or not groups.between_convolutions(found):
            continue
        before, behind = groups.of(found.source), groups.of(found.product)
        if behind.producers:
            continue
        weights = np.sum(
            [np.square(consumer.input_norms()) for consumer in behind.consumers], axis=0
        )
        choice = choose(seen.samples.astype(np.float64), weights, seen.span()[1])
        before.scale(choice.before)
        behind.scale(1.0 / choice.behind)
        factors.update({producer.name: choice.before for producer in before.producers})
        spans.update({source: (LOW, choice.high), product: (PRODUCT_LOW, choice.high)})
        chosen[product] = choice
    return factors, spans, chosen


def choose(samples: Array, weights: Array, reach: float) -> HardSwishScaling:
    """The range and the factors of the least weighted error.

    Args:
        samples: `[values, channels]` in front of the hard-swish.
        weights: `[channels]`, squared norm of what reads each channel.
        reach: the largest value seen.
    """
    wanted = hard_swish(samples)
    highs = [high for high in _HIGHS if high < reach] + [max(reach, _HIGHS[0])]
    best: HardSwishScaling | None = None
    plain = float(weights @ _errors(samples, wanted, 1.0, highs[-1])[0])
    for high in highs:
        errors, behind = zip(
            *(_errors(samples, wanted, factor, high) for factor in _FACTORS),
            strict=True,
        )
        table = np.stack(errors)  # [factors, channels]
        pick = table.argmin(axis=0)
        error = float(weights @ table.min(axis=0))
        if best is None or error < best.error:
            channel = np.arange(samples.shape[1])
            chosen = np.stack(behind)[pick, channel]
            best = HardSwishScaling(high, _FACTORS[pick], chosen, plain, error)
    assert best is not None
    return best


def _errors(samples: Array, wanted: Array, factor: float, high: float) -> tuple[Array, Array]:
    """Mean squared error of each channel, and the factor behind that makes it least."""
    codes = _codes(factor * samples, LOW, high)
    # What the arithmetic makes of each of its 256 codes.
    ends = _values(np.arange(_CODES + 1), LOW, high)
    made = _values(_codes(hard_swish(ends), PRODUCT_LOW, high), PRODUCT_LOW, high)
    given = made[codes]
    power, both = np.einsum("ij,ij->j", given, given), np.einsum("ij,ij->j", given, wanted)
    behind = np.where(power > 0, both / np.where(power > 0, power, 1), 1.0)
    behind = np.where(behind > 0, behind, 1.0)
    given *= behind
    given -= wanted
    return np.einsum("ij,ij->j", given, given) / len(samples), behind


def hard_swish(values: Array) -> Array:
    """`x relu6(x + 3) / 6`."""
    found: Array = values * np.clip(values + 3.0, 0.0, 6.0) / 6.0
    return found


def _codes(values: Array, low: float, high: float) -> npt.NDArray[np.uint8]:
    step = (high - low) / _CODES
    found = np.rint((values - np.rint(low / step) * step) / step)  # zero is a code
    return np.asarray(np.clip(found, 0, _CODES), np.uint8)


def _values(codes: npt.NDArray[Any], low: float, high: float) -> Array:
    step = (high - low) / _CODES
    found: Array = (codes + np.rint(low / step)) * step
    return found
