"""When how many weights go: tfmot's schedules, at steps that are whole and inside the stage."""

from __future__ import annotations

from typing import Any

from mobilenet.configs.pruning import Pruning
from mobilenet.errors import UsageError


class Timing:
    """The steps of a config's shares of a stage.

    Attributes:
        begin: step in front of the first update.
        end: step at which the target stands.

    Raises:
        UsageError: the stage has no room for an update.
    """

    def __init__(self, config: Pruning, steps: int) -> None:
        self.config = config
        self.begin = round(config.begin * steps)
        self.end = max(round(config.end * steps), self.begin + 1)
        if self.end > steps:
            raise UsageError(
                "--prune_epochs",
                None,
                f"a stage longer than {steps} steps",
                "train for at least two steps",
            )

    def aligned(self) -> tuple[int, int]:
        """(end, frequency) such that an update falls on the end.

        tfmot updates at `begin + k * frequency` alone, so it misses any other end: with an end
        before the first update nothing is ever pruned.
        """
        span = self.end - self.begin
        frequency = min(self.config.frequency, span)
        return self.begin + span // frequency * frequency, frequency

    def schedule(self, start: float, final: float, end: int, frequency: int) -> Any:
        """tfmot's schedule object; a start that is sparser than the target stays where it is."""
        from tensorflow_model_optimization.sparsity import keras as sparsity

        final = max(start, final)
        if self.config.schedule == "constant":
            return sparsity.ConstantSparsity(final, self.begin + 1, end, frequency)
        return sparsity.PolynomialDecay(start, final, self.begin, end, self.config.power, frequency)
