"""Calibration images are looked at before anything is concluded from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError

LEAST = 8  # four to fit, four to judge; a hundred are better
_FEW = "calibration images"


def check(images: npt.NDArray[np.float32], preprocessing: Preprocessing) -> None:
    """Refuses images that no range can be taken from.

    Args:
        images: `[n, height, width, channels]`, preprocessed.
        preprocessing: how pixels 0..255 became them.

    Raises:
        UsageError: too few, not finite, all alike, or in another range than the model's inputs.
    """
    if len(images) < LEAST:
        raise UsageError(_FEW, len(images), f"at least {LEAST}", "100 or more make a good file")
    if not np.isfinite(images).all():
        raise UsageError(_FEW, "NaN or infinity", "finite values", "look at how they are read")
    if not np.ptp(images, axis=(1, 2)).any():
        raise UsageError(
            _FEW, "one color in each image", "photos", "give photos as the model will see them"
        )
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    low, high = float(((0 - mean) / std).min()), float(((255 - mean) / std).max())
    tolerance = 0.02 * (high - low)
    least, most = float(images.min()), float(images.max())
    if least < low - tolerance or most > high + tolerance:
        raise UsageError(
            _FEW,
            f"values from {least:.3g} to {most:.3g}",
            f"values from {low:.3g} to {high:.3g}, as this model takes pixels 0 to 255",
            f"preprocess them as its card says ({preprocessing.name})",
        )
    if most - least < 0.05 * (high - low):
        raise UsageError(
            _FEW,
            f"values from {least:.3g} to {most:.3g}",
            f"photos that use the range from {low:.3g} to {high:.3g}",
            "they may have been scaled twice",
        )
