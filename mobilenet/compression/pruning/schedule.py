"""Pruning schedules: tfmot's, at whole steps inside the stage."""

from __future__ import annotations

from typing import Any

from mobilenet.configs.pruning import Pruning
from mobilenet.errors import UsageError


class Timing:
    """The steps of a pruning config's begin and end, which are shares of the stage.

    Attributes:
        begin: step before the first update of masks.
        end: step at which the target sparsity is reached.

    Raises:
        UsageError: the stage is too short for an update.
    """

    def __init__(self, config: Pruning, steps: int) -> None:
        self.config = config
        self.begin = round(config.begin * steps)
        self.end = max(round(config.end * steps), self.begin + 1)
        if self.end > steps:
            raise UsageError(
                "prune_epochs",
                None,
                f"a stage longer than {steps} steps",
                "train for at least two steps",
            )

    def aligned(self) -> tuple[int, int]:
        """(end, frequency) such that an update falls on the end.

        tfmot updates only at `begin + k * frequency`, so it misses any other end; with an end
        before the first update it never prunes.
        """
        length = self.end - self.begin
        frequency = min(self.config.frequency, length)
        return self.begin + length // frequency * frequency, frequency

    def schedule(self, start: float, final: float, end: int, frequency: int) -> Any:
        """tfmot's schedule object; a start that is sparser than the target stays so."""
        from tensorflow_model_optimization.sparsity import keras as sparsity

        final = max(start, final)
        if self.config.schedule == "constant":
            return sparsity.ConstantSparsity(final, self.begin + 1, end, frequency)
        return sparsity.PolynomialDecay(start, final, self.begin, end, self.config.power, frequency)
