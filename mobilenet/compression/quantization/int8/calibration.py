"""Calibration: activation ranges from images, and checks of the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.quantizers import ActivationQuantizer
from mobilenet.configs.dataset import Preprocessing
from mobilenet.data import in_memory
from mobilenet.errors import UsageError, shorten
from mobilenet.typing import Float32Array

_BATCH = 32
_DECAY = 0.9  # of the moving ranges, per batch
MIN_IMAGES = 8  # half of them fit post-training steps, half decide on them; 100 are better
CALIBRATION = "calibration images"  # what errors of a command call them
MIN_WIDTH = 1e-6  # of a range; a scale below that is of no use
EMPTY_HIGH = 1e-3  # upper end of the range of a tensor that is always zero


def calibrate(wrapped: Any, images: Float32Array) -> None:
    """Sets the activation ranges of `wrapped` from a pass over `images` in inference mode.

    Args:
        wrapped: a model from `scheme.wrap`.
        images: `[n, height, width, channels]`, preprocessed as the model takes them.

    Raises:
        UsageError: no images, or images that are not finite.
    """
    if not len(images):
        raise UsageError("calibration images", 0, "at least 1", "raise `calibration_images`")
    if not np.isfinite(images).all():
        raise UsageError("calibration images", None, "finite values")
    phase = wrapped.phase
    decay, phase.decay, phase.observing = phase.decay, _DECAY, True

    try:
        for start in range(0, len(images), _BATCH):
            # Eagerly: tracing costs more than the few batches of a calibration.
            wrapped(tf.constant(images[start : start + _BATCH]), training=False)
    finally:
        phase.decay, phase.observing = decay, False
    fill_empty_ranges(wrapped)


def set_ranges_from_checkpoint(
    wrapped: Any, ranges: Mapping[str, tuple[float, float]], images: Float32Array
) -> list[str]:
    """Sets the activation ranges of `wrapped` from those of a quantized checkpoint.

    Activations without a range there, or with an invalid one, are calibrated. Ranges of kernels are
    not needed: they are computed from the kernels.

    Args:
        wrapped: a model from `scheme.wrap`.
        ranges: low and high by layer name, as `Report.ranges` of `mobilenet.tf1_loader`.
        images: as in `calibrate`.

    Returns:
        Human-readable notes: how many ranges were used, and why others were not.

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
    used = 0
    for name, limits in ranges.items():
        if name.endswith("/kernel"):
            continue
        low, high = (float(value) for value in limits)
        reason = _invalid_range_reason(own.get(name), low, high)
        if reason:
            skipped.setdefault(reason, []).append(name)
            continue
        own[name].variables["low"].assign(0.0 if own[name].rectified else low)
        own[name].variables["high"].assign(high)
        used += 1
    notes = [f"{used} of {len(own)} activation ranges from the checkpoint, the others calibrated"]
    return notes + [f"not used, {reason}: {shorten(names)}" for reason, names in skipped.items()]


def _invalid_range_reason(quantizer: ActivationQuantizer | None, low: float, high: float) -> str:
    """Why a quantizer cannot have this range; empty if it can."""
    if quantizer is None:
        return "not quantized in the file"
    if quantizer.fixed is not None:
        return "fixed by the arithmetic"
    if not (np.isfinite([low, high]).all() and low <= 0 <= high and high - low >= MIN_WIDTH):
        return "zero is outside"
    if quantizer.rectified and high < MIN_WIDTH:
        return "nothing above zero"
    return ""


def fill_empty_ranges(wrapped: Any) -> None:
    """Sets the range of tensors that were zero on every image, `EMPTY_HIGH` at the upper end.

    Raises:
        UsageError: a range is not finite.
    """
    for name, limits in scheme.get_ranges(wrapped).items():
        if not np.isfinite(limits).all():
            raise UsageError(
                f"range of {name}",
                limits.tolist(),
                "finite values",
                "the model's weights are not finite",
            )
        if limits[1] - limits[0] < MIN_WIDTH:
            scheme.quantizers(wrapped)[name].variables["high"].assign(EMPTY_HIGH)


def check_images(
    images: Float32Array, preprocessing: Preprocessing, parameter: str = "images"
) -> None:
    """Refuses images that give no useful range.

    Args:
        images: `[n, height, width, channels]`, preprocessed.
        preprocessing: how pixels 0..255 became them.
        parameter: their name in errors.

    Raises:
        UsageError: they are too few, not finite, of one color, or in another range than the
            model's inputs.
    """
    if len(images) < MIN_IMAGES:
        raise UsageError(
            parameter, len(images), f"at least {MIN_IMAGES}", "100 or more are recommended"
        )
    in_memory.check_finite(images, parameter)
    if not np.ptp(images, axis=(1, 2)).any():
        raise UsageError(
            parameter,
            "one color in each image",
            "photos",
            "give photos as the model will see them",
        )
    in_memory.check_range(images, preprocessing, parameter)
    low, high = preprocessing.input_range
    least, most = float(images.min()), float(images.max())
    if most - least < 0.05 * (high - low):
        raise UsageError(
            parameter,
            f"values from {least:.3g} to {most:.3g}",
            f"photos that use the range from {low:.3g} to {high:.3g}",
            "they may have been scaled twice",
        )
