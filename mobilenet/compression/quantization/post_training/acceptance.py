"""Whether a post-training step helps: outputs of the quantized model against the float model's.

Labels are not needed, and the images compared are none of those that the step was fitted on.
"""

from __future__ import annotations

import numpy as np

from mobilenet import metrics
from mobilenet.configs.card import QuantizationStep
from mobilenet.typing import Float32Array

_TOLERANCE_DB = 0.1  # a step that costs less than this is not noticed


def compare_outputs(
    quantized: Float32Array, reference: Float32Array, activation: str
) -> tuple[float, float | None]:
    """How close the outputs of a quantized model are to those of the float model.

    The signal-to-noise ratio is that of the median image. Summed over all images, the noise would
    be that of the few that exceed the ranges furthest, and a step that harms all others would pass.

    Args:
        quantized: `[images, classes]`.
        reference: the float model's, of the same shape.
        activation: `softmax`, or `sigmoid` of each output.

    Returns:
        The share of images with the same top-1, or with all labels the same; and the median ratio
        in dB, `None` where the reference is zero on all images.
    """
    decided, expected = (metrics.decisions(x, activation) for x in (quantized, reference))
    agreement = float((decided == expected).all(axis=1).mean())
    ratios = [metrics.signal_to_noise(*pair) for pair in zip(reference, quantized, strict=True)]
    known = [ratio for ratio in ratios if ratio is not None]
    return agreement, float(np.median(known)) if known else None


def is_improvement(
    agreement: float, signal_to_noise_db: float | None, previous: QuantizationStep, images: int
) -> bool:
    """Whether a step is better than the last accepted one.

    It is where it agrees with the float model on more images, by more than one of them, or on about
    as many with no more noise.

    Args:
        agreement, signal_to_noise_db: of the step, as `compare_outputs` returns them.
        previous: the last accepted step.
        images: that were compared.
    """
    assert previous.agreement is not None
    gained = round((agreement - previous.agreement) * images)
    if abs(gained) > 1:
        return gained > 0
    if signal_to_noise_db is None or previous.signal_to_noise_db is None:
        return True
    return signal_to_noise_db > previous.signal_to_noise_db - _TOLERANCE_DB
