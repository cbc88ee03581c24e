"""Activation ranges from data; a model whose ranges are unset answers nonsense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.quantizers import ActivationQuantizer
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError, shorten

_BATCH = 32
_DECAY = 0.9
MIN_IMAGES = 8  # four to fit, four to judge; a hundred are better
_WHAT = "calibration images"
MIN_WIDTH = 1e-6  # width of a range: below that its scale has no use
EMPTY_HIGH = 1e-3  # upper end of a range that images left empty


def calibrate(wrapped: Any, images: npt.NDArray[np.float32]) -> None:
    """Sets the activation ranges of `wrapped` from a pass over `images` in inference mode.

    Args:
        wrapped: a model from `scheme.wrap`.
        images: `[n, height, width, channels]`, preprocessed as the model takes them.

    Raises:
        UsageError: no images, or images that are not finite.
    """
    if not len(images):
        raise UsageError("calibration images", 0, "at least 1", "raise --calibration_images")
    if not np.isfinite(images).all():
        raise UsageError("calibration images", None, "finite values")
    phase = wrapped.phase
    decay, phase.decay, phase.observing = phase.decay, _DECAY, True

    try:
        for start in range(0, len(images), _BATCH):
            # Eager: tracing costs more than the few batches that a calibration takes.
            wrapped(tf.constant(images[start : start + _BATCH]), training=False)
    finally:
        phase.decay, phase.observing = decay, False
    fill_empty_ranges(wrapped)


def set_ranges_from_checkpoint(
    wrapped: Any, given: Mapping[str, tuple[float, float]], images: npt.NDArray[np.float32]
) -> list[str]:
    """Sets the activation ranges of `wrapped` from ranges that were learnt elsewhere.

    What has no range there, or one that does not fit, is calibrated. Ranges of kernels are not
    needed: they follow the kernels.

    Args:
        wrapped: a model from `scheme.wrap`.
        given: low and high by layer name, as `Report.ranges` of `mobilenet.tf1_loader`.
        images: as in `calibrate`.

    Returns:
        Lines for a person: how many were taken, and why others were not.

    Raises:
        UsageError: as `calibrate`.
    """
    own = {
        name: quantizer
        for name, quantizer in scheme.quantizers(wrapped).items()
        if isinstance(quantizer, ActivationQuantizer)
    }
    calibrate(wrapped, images)
    skipped: dict[str, list[str]] = {}
    taken = 0
    for name, span in given.items():
        if name.endswith("/kernel"):
            continue
        low, high = (float(value) for value in span)
        reason = _invalid_range_reason(own.get(name), low, high)
        if reason:
            skipped.setdefault(reason, []).append(name)
            continue
        own[name].variables["low"].assign(0.0 if own[name].rectified else low)
        own[name].variables["high"].assign(high)
        taken += 1
    lines = [f"{taken} of {len(own)} activation ranges taken over, the others calibrated"]
    return lines + [f"not taken, {reason}: {shorten(names)}" for reason, names in skipped.items()]


def _invalid_range_reason(quantizer: ActivationQuantizer | None, low: float, high: float) -> str:
    """Why a range cannot be a quantizer's; empty where it can."""
    if quantizer is None:
        return "the file does not round there"
    if quantizer.fixed is not None:
        return "the arithmetic decides the range"
    if not (np.isfinite([low, high]).all() and low <= 0 <= high and high - low >= MIN_WIDTH):
        return "no range around zero"
    if quantizer.rectified and high < MIN_WIDTH:
        return "no range above zero"
    return ""


def fill_empty_ranges(wrapped: Any) -> None:
    """Gives a tensor that was zero for every image a range that is not empty.

    Raises:
        UsageError: a range is not finite.
    """
    for name, span in scheme.get_ranges(wrapped).items():
        if not np.isfinite(span).all():
            raise UsageError(
                f"range of {name}",
                span.tolist(),
                "finite values",
                "the model's weights are not finite",
            )
        if span[1] - span[0] < MIN_WIDTH:
            scheme.quantizers(wrapped)[name].variables["high"].assign(EMPTY_HIGH)


def check_images(images: npt.NDArray[np.float32], preprocessing: Preprocessing) -> None:
    """Refuses images that no range can be taken from.

    Args:
        images: `[n, height, width, channels]`, preprocessed.
        preprocessing: how pixels 0..255 became them.

    Raises:
        UsageError: too few, not finite, all alike, or in another range than the model's inputs.
    """
    if len(images) < MIN_IMAGES:
        raise UsageError(
            _WHAT, len(images), f"at least {MIN_IMAGES}", "100 or more make a good file"
        )
    if not np.isfinite(images).all():
        raise UsageError(_WHAT, "NaN or infinity", "finite values", "look at how they are read")
    if not np.ptp(images, axis=(1, 2)).any():
        raise UsageError(
            _WHAT, "one color in each image", "photos", "give photos as the model will see them"
        )
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    low, high = float(((0 - mean) / std).min()), float(((255 - mean) / std).max())
    tolerance = 0.02 * (high - low)
    least, most = float(images.min()), float(images.max())
    if least < low - tolerance or most > high + tolerance:
        raise UsageError(
            _WHAT,
            f"values from {least:.3g} to {most:.3g}",
            f"values from {low:.3g} to {high:.3g}, as this model takes pixels 0 to 255",
            f"preprocess them as its card says ({preprocessing.name})",
        )
    if most - least < 0.05 * (high - low):
        raise UsageError(
            _WHAT,
            f"values from {least:.3g} to {most:.3g}",
            f"photos that use the range from {low:.3g} to {high:.3g}",
            "they may have been scaled twice",
        )
