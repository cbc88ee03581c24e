"""Whether the probabilities of a classifier are those of being right: the expected calibration
error and its bins (Guo et al., arXiv 1706.04599, section 2).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from mobilenet.typing import FloatArray

BINS = 15  # as in the paper


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
    """Predictions whose probability is above `low` and at most `high`.

    Attributes:
        low, high: bounds of the probability.
        count: predictions; images, or of several labels an image images times labels.
        probability: their mean; `None` without any.
        right: the share that is right; `None` without any.
    """

    low: float
    high: float
    count: int
    probability: float | None
    right: float | None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How far probabilities are from the share that is right; `str()` is one line.

    Attributes:
        error: the expected calibration error, 0 to 1: the difference of mean probability and
            share of right predictions in each bin, weighted by its predictions.
        probability: the mean over all predictions.
        right: the share of all that is right.
        bins: of equal width.
    """

    error: float
    probability: float
    right: float
    bins: tuple[CalibrationBin, ...]

    def __str__(self) -> str:
        points = f"{100 * self.error:.1f} points"
        return (
            f"calibration error {self.error:.4f}: a probability differs from the share that is "
            f"right by {points} on average ({100 * self.probability:.1f} % stated, "
            f"{100 * self.right:.1f} % right)"
        )


def calibration(
    probabilities: FloatArray, right: npt.NDArray[np.bool_], bins: int = BINS
) -> Calibration:
    """The expected calibration error of predictions.

    Args:
        probabilities: `[predictions]`, of the predicted class; of a label that it is there.
        right: `[predictions]`, whether the prediction is right; of a label whether it is there.
        bins: of equal width.
    """
    values = np.asarray(probabilities, np.float64).ravel()
    hits = np.asarray(right, np.float64).ravel()
    indices = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(indices, minlength=bins)
    stated, reached = (np.bincount(indices, part, bins) for part in (values, hits))
    rows = zip(counts.tolist(), stated.tolist(), reached.tolist(), strict=True)
    return Calibration(
        error=float(np.abs(stated - reached).sum() / len(values)),
        probability=float(values.mean()),
        right=float(hits.mean()),
        bins=tuple(
            CalibrationBin(
                number / bins,
                (number + 1) / bins,
                count,
                total / count if count else None,
                hit / count if count else None,
            )
            for number, (count, total, hit) in enumerate(rows)
        ),
    )
