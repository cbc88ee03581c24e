"""Whether a step of post-training int8 helps: the rounded model's answers beside the float model's.

No label is read, and no image that a step was fitted on.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
LEFT_OUT = "left out: it does not help"
_NOISE = 0.1  # dB; a step that costs less than this is not noticed


@dataclasses.dataclass(frozen=True)
class Step:
    """One step and what it did.

    Attributes:
        name: as in `--ptq_steps`.
        kept: it helped on the judging half.
        agreement: share of the judging half with the float model's top-1, with the step.
        signal_to_noise: of the outputs of the median image there, in dB.
        seconds: it took.
        detail: what was changed, in words.
    """

    name: str
    kept: bool
    agreement: float
    signal_to_noise: float
    seconds: float
    detail: str

    def __str__(self) -> str:
        verdict = "" if self.kept else f", {LEFT_OUT}"
        return (
            f"{self.name}: {self.detail}; agreement {self.agreement:.1%}, "
            f"{self.signal_to_noise:.1f} dB{verdict}"
        )


def compare_outputs(found: Floats, wanted: Floats) -> tuple[float, float]:
    """How near the answers of a rounded model, `[n, classes]`, are to those of the float model.

    The noise is that of the median image: summed over images, it would be that of the few that
    leave the ranges furthest, and a step that spoils all others would pass.

    Returns:
        The share of images with the same top-1, and their median signal to noise in dB.
    """
    same = found.argmax(axis=1) == wanted.argmax(axis=1)
    power = np.square(wanted).sum(axis=1, dtype=np.float64)
    noise = np.square(found - wanted).sum(axis=1, dtype=np.float64)
    ratio = 10 * np.log10(power / np.maximum(noise, 1e-12 * power))
    return float(same.mean()), float(np.median(ratio))


def is_improvement(agreement: float, ratio: float, last: Step, images: int) -> bool:
    """Against the step before: more of the `images` agree, by more than one of them, or as many
    with no more noise."""
    won = round((agreement - last.agreement) * images)
    if abs(won) > 1:
        return won > 0
    return ratio > last.signal_to_noise - _NOISE
