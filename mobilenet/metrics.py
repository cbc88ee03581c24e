"""Top-1, top-5 and loss of logits, in numpy: one definition for Keras models and flatbuffers
alike.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Figures of a classifier on a set of images; `top1` and `top5` in percent, `loss` in nats an
    image.
    """

    top1: float
    top5: float
    loss: float
    images: int

    def to_json(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def classification(
    outputs: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], probabilities: bool = False
) -> Metrics:
    """Scores `[images, classes]` outputs against `[images]` class indices.

    A label counts for top-k when fewer than k classes score higher; of equal scores the lower
    index comes first, as in `argmax`. The loss is the mean cross entropy (of logits, or of
    probabilities when so told).
    """
    scores = np.asarray(outputs, np.float64)
    labels = np.asarray(labels)
    rows = np.arange(len(labels))
    own = scores[rows, labels][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    rank = np.sum((scores > own) | ((scores == own) & earlier), axis=1)
    if probabilities:
        losses = -np.log(np.maximum(own[:, 0], 1e-12))
    else:
        peak = scores.max(axis=1, keepdims=True)
        losses = np.log(np.exp(scores - peak).sum(axis=1)) + peak[:, 0] - own[:, 0]
    return Metrics(
        top1=100.0 * float(np.mean(rank < 1)),
        top5=100.0 * float(np.mean(rank < 5)),
        loss=float(np.mean(losses)),
        images=len(labels),
    )
