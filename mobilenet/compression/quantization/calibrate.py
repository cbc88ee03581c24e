"""Activation ranges from data; a net whose ranges are unset answers nonsense."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.compression.quantization import scheme
from mobilenet.errors import UsageError

_BATCH = 32
_DECAY = 0.9


def calibrate(wrapped: Any, images: npt.NDArray[np.float32]) -> None:
    """Sets the activation ranges of `wrapped` from a pass over `images` in inference mode.

    Args:
        wrapped: a net from `scheme.wrap`.
        images: `[n, height, width, channels]`, preprocessed as the net takes them.

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
    _check(wrapped)


def _check(wrapped: Any) -> None:
    """A tensor that is zero for every image still needs a range that is not empty."""
    for name, span in scheme.get_ranges(wrapped).items():
        if not np.isfinite(span).all():
            raise UsageError(
                f"range of {name}",
                span.tolist(),
                "finite values",
                "the net's weights are not finite",
            )
        if span[1] - span[0] < 1e-6:
            scheme.quantizers(wrapped)[name].variables["high"].assign(1e-3)
