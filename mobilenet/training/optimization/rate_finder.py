"""A learning rate for a stage, from the losses of some steps at rising rates (Smith, arXiv
1506.01186).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet import files
from mobilenet.configs.base import check_number
from mobilenet.errors import UsageError

_SMOOTHING = 0.9  # share of the smoothed loss that stays at each step
_DIVERGED = 4.0  # times the lowest smoothed loss, at which the search ends
_FALLEN = 0.1  # share of the fall of the loss after which it counts as falling
_INCHES, _DOTS = (6.4, 3.6), 100


@dataclasses.dataclass(frozen=True)
class RateSearch:
    """Which rates are tried.

    Attributes:
        steps: updates, one a rate.
        lowest, highest: rates, between which they rise by a constant factor.
    """

    steps: int = 100
    lowest: float = 1e-6
    highest: float = 1.0

    def __post_init__(self) -> None:
        check_number("steps", self.steps, least=10, most=100_000, integer=True)
        check_number("lowest", self.lowest, above=0)
        check_number("highest", self.highest, above=self.lowest)

    @property
    def rates(self) -> tuple[float, ...]:
        """One a step."""
        values = np.geomspace(self.lowest, self.highest, self.steps)
        return tuple(float(value) for value in values)


@dataclasses.dataclass(frozen=True)
class RateCurve:
    """The losses of rising rates; `str()` shows them.

    Attributes:
        stage: that was trained.
        rates: of the steps; fewer than were planned where the loss has diverged.
        losses: of the batch of each step, before its update.
    """

    stage: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @functools.cached_property
    def smoothed(self) -> tuple[float, ...]:
        """The exponential moving average of the losses, without its bias towards zero."""
        return tuple(_smoothed(self.losses))

    @property
    def suggestion(self) -> float:
        """A peak rate: half of the factor from where the smoothed loss begins to fall to where it
        is lowest, on a logarithmic scale.

        Raises:
            UsageError: the loss does not fall at any of the rates.
        """
        smoothed = self.smoothed
        lowest = int(np.argmin(smoothed))
        before = smoothed[: lowest + 1]
        limit = max(before) - _FALLEN * (max(before) - smoothed[lowest])
        begin = max(index for index, value in enumerate(before) if value >= limit)
        if begin == lowest:
            expected = "rates at which the loss falls"
            remedy = "try lower ones, or more steps"
            raise UsageError("lowest", self.rates[0], expected, remedy)
        return float(f"{math.sqrt(self.rates[begin] * self.rates[lowest]):.2g}")

    def save_plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the losses over the rates, with the suggestion, as a PNG file.

        Raises:
            UsageError: it cannot be written.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="tab:gray", alpha=0.4, label="loss of a batch")
        axes.plot(self.rates, self.smoothed, color="tab:blue", label="smoothed")
        axes.axvline(self.suggestion, color="tab:red", label=f"suggestion: {self.suggestion:g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"loss ({self.stage})")
        axes.legend(loc="upper left")
        with files.replacing(Path(path)) as temporary:
            figure.savefig(temporary, format="png")

    def __str__(self) -> str:
        lines = [f"{'learning rate':>13}{'loss':>10}{'smoothed':>10}"]
        chosen = np.unique(np.linspace(0, len(self.rates) - 1, 12).round().astype(int))
        for i in chosen:
            lines.append(f"{self.rates[i]:>13.2g}{self.losses[i]:>10.4f}{self.smoothed[i]:>10.4f}")
        return "\n".join([*lines, f"suggested peak learning rate: {self.suggestion:g}"])


def measure(train_step: Any, stage: str, search: RateSearch) -> RateCurve:
    """Tries rates until the loss has diverged.

    Args:
        train_step: trains one step at a rate, and returns the loss of its batch.
        stage: name of what is trained.
        search: which rates.
    """
    losses: list[float] = []

    def measured() -> Iterator[float]:
        for rate in search.rates:
            loss = float(train_step(rate))
            if not math.isfinite(loss):
                return
            losses.append(loss)
            yield loss

    lowest = math.inf
    for smoothed in _smoothed(measured()):
        lowest = min(lowest, smoothed)
        if smoothed > _DIVERGED * lowest:
            break
    if len(losses) < 2:
        raise UsageError("lowest", search.lowest, "a rate at which the loss is a finite number")
    return RateCurve(stage, search.rates[: len(losses)], tuple(losses))


def _smoothed(losses: Iterable[float]) -> Iterator[float]:
    """The moving average after each loss."""
    mean = 0.0
    for step, loss in enumerate(losses, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        yield mean / (1 - _SMOOTHING**step)
