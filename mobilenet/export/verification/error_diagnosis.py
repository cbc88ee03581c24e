"""Why a tensor of an int8 file is noisy, and what to do about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mobilenet.metrics import MAX_SIGNAL_TO_NOISE
from mobilenet.typing import FloatArray

PLACEHOLDER = 1e-3  # upper bound that calibration gives a tensor that was always zero
_MAIN_SHARE = 0.5  # a cause of at least this share of the noise is the cause
_UNEQUAL = 8.0  # times the median channel: the median then has 5 bits left of 8
_WIDE = 4.0  # times the range of the values: 2 bits lost
_OWN_SHARE = 0.2  # a layer that adds less of the noise than this passes on its input's


@dataclasses.dataclass(frozen=True)
class Signal:
    """A tensor of the float model, and its quantization in the file.

    Attributes:
        layer: whose output it is.
        real: `[images, ..., channels]` of the float model.
        scale, zero_point: of the file's tensor.
        ratio: its signal-to-noise ratio end to end, in dB; `None` where the signal is zero.
    """

    layer: str
    real: FloatArray
    scale: float
    zero_point: int
    ratio: float | None

    @property
    def low(self) -> float:
        """The smallest value that the file can represent."""
        return self.scale * (-128 - self.zero_point)

    @property
    def high(self) -> float:
        """The largest value that the file can represent."""
        return self.scale * (127 - self.zero_point)

    def largest_channel(self) -> tuple[int, float]:
        """The channel of the largest magnitude, and its ratio to the median channel's."""
        largest = np.abs(self.real).reshape(-1, self.real.shape[-1]).max(axis=0)
        nonzero = largest[largest > 0]
        ratio = float(largest.max() / np.median(nonzero)) if len(nonzero) else 1.0
        return int(largest.argmax()), ratio


def added_noise(own: Signal, inputs: Sequence[Signal]) -> float:
    """The noise that a layer adds to that of its worst input, as a share of its signal."""
    before = max((_noise(signal) for signal in inputs), default=0.0)
    return max(_noise(own) - before, 0.0)


def _noise(signal: Signal) -> float:
    return 0.0 if signal.ratio is None else float(10 ** (-signal.ratio / 10))


@dataclasses.dataclass(frozen=True)
class Cause:
    """Why a tensor is noisy, and the remedy; `remedy` is empty where nothing is wrong."""

    text: str
    remedy: str = ""


def diagnose(own: Signal, inputs: Sequence[Signal], kind: str) -> Cause:
    """The likeliest cause of a tensor's noise, and its remedy.

    Args:
        own: the tensor.
        inputs: the tensors that its operator reads.
        kind: `depthwise`, `kernel` for other layers that have one, or `other`.
    """
    if own.ratio is None:
        return Cause("always zero")
    if own.ratio == MAX_SIGNAL_TO_NOISE:
        return Cause("exact")
    if own.low == 0 and np.isclose(own.high, PLACEHOLDER, rtol=1e-3):
        text = "range never moved: calibration saw only zeros here"
        return Cause(text, "calibrate on more images, like those that it will see")
    signal, noise = float(np.sum(np.square(own.real, dtype=np.float64))), added_noise(own, inputs)
    if noise < _OWN_SHARE * _noise(own):
        worst = max(inputs, key=_noise)
        return Cause(f"noise of its input, {worst.layer}", f"improve {worst.layer} first")
    clipped = np.clip(own.real, own.low, own.high)
    if (
        float(np.sum(np.square(own.real - clipped, dtype=np.float64)))
        >= _MAIN_SHARE * noise * signal
    ):
        return Cause(_clipping(own), "a wider range: ptq_steps with maximum or mse")
    rounded = np.round(clipped / own.scale) * own.scale
    if (
        float(np.sum(np.square(own.real - rounded, dtype=np.float64)))
        >= _MAIN_SHARE * noise * signal
    ):
        return _rounding(own, kind)
    return _amplified(inputs, kind)


def _clipping(own: Signal) -> str:
    values = own.real
    clipped = float(np.mean((values > own.high) | (values < own.low)))
    if values.max() - own.high > own.low - values.min():
        bound, extreme = own.high, float(values.max())
    else:
        bound, extreme = own.low, float(values.min())
    return (
        f"{clipped:.2%} of the values are clipped: "
        f"the range ends at {bound:.3g}, they reach {extreme:.3g}"
    )


_EQUALIZE = "equalize its channels: ptq_steps with equalize,hard_swish"


def _rounding(own: Signal, kind: str) -> Cause:
    channel, times = own.largest_channel()
    if times >= _UNEQUAL and kind == "depthwise":
        text = f"depthwise range {times:.0f} times the median channel (channel {channel})"
        return Cause(text, _EQUALIZE)
    if times >= _UNEQUAL:
        text = f"one channel sets the range: channel {channel}, {times:.0f} times the median"
        return Cause(text, _EQUALIZE)
    value_range = max(float(own.real.max()), 0.0) - min(float(own.real.min()), 0.0)
    excess = (own.high - own.low) / value_range
    if excess >= _WIDE:
        text = f"range {excess:.0f} times that of the values"
        return Cause(text, "a narrower range: ptq_steps with percentile or mse")
    return Cause("its own rounding, evenly spread")


def _amplified(inputs: Sequence[Signal], kind: str) -> Cause:
    """Neither clipped nor rounded away: the layer amplifies what its input resolves poorly."""
    channel, times, layer = max(
        ((*signal.largest_channel(), signal.layer) for signal in inputs),
        key=lambda channel: channel[1],
        default=(0, 1.0, ""),
    )
    if times >= _UNEQUAL:
        detail = f"channel {channel}, {times:.0f} times the median"
        return Cause(f"one channel sets the range of its input {layer}: {detail}", _EQUALIZE)
    if kind == "other":
        return Cause("it amplifies the noise of its inputs")
    return Cause(
        "rounding of its kernel and of its inputs", "correct its offsets: ptq_steps with bias"
    )
