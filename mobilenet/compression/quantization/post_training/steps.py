"""The steps of post-training int8, and the registry that finds one by its name."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from typing import ClassVar, TypeVar

from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.post_training import (
    bias_correction,
    cross_layer_equalization,
    hard_swish_equalization,
    range_setting,
)
from mobilenet.compression.quantization.post_training.state import COUNTS, SAMPLES, State
from mobilenet.configs.quantization import PTQ_STEPS

log = logging.getLogger("mobilenet")
# Names of `PTQ_STEPS` that are no `Step`: the pipeline rewrites hard-swishes before all steps,
# compares every step with ranges from the extremes, and has the export repaired.
PIPELINE_STEPS = ("gates", "maximum", "repair")


class Step:
    """A step, which may be applied to more than one state.

    Attributes:
        name: as in `PTQ_STEPS`.
        needs: observations that the state must hold: `COUNTS`, `SAMPLES`.
        scales_channels: the step scales channels of the float model, so that inner tensors of the
            original no longer compare with those of the file.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    scales_channels: ClassVar[bool] = False

    def apply(self, state: State) -> State | None:
        """The next state, or `None` where the model has nothing for the step to change.

        Weights of `state.simulation` are changed in place.
        """
        raise NotImplementedError


S = TypeVar("S", bound=type[Step])
STEPS: dict[str, Step] = {}


def register(step: S) -> S:
    """Class decorator: registers a step by its name."""
    STEPS[step.name] = step()
    return step


def registered_steps(names: Collection[str]) -> list[Step]:
    """The registered steps among `names`, in the order of `PTQ_STEPS`.

    Raises:
        ValueError: a name has no registered step and the pipeline does not handle it either.
    """
    chosen = [name for name in PTQ_STEPS if name in names and name not in PIPELINE_STEPS]
    missing = [name for name in chosen if name not in STEPS]
    if missing:
        raise ValueError(f"no step of post-training int8 is registered as {', '.join(missing)}")
    return [STEPS[name] for name in chosen]


def scales_channels(name: str) -> bool:
    """Whether the step of a name scales channels of the float model."""
    return name in STEPS and STEPS[name].scales_channels


@register
class CrossLayerEqualization(Step):
    """Scales channels between convolutions; the float model computes the same."""

    name = "equalize"
    scales_channels = True

    def apply(self, state: State) -> State | None:
        factors = cross_layer_equalization.equalize_groups(
            state.simulation.groups, state.observations
        )
        if not factors:
            return None
        return state.scaled(factors, f"{len(factors)} convolutions scaled, outputs unchanged")


@register
class HardSwishEqualization(Step):
    """Scales channels before and after hard-swishes; the float model changes a little."""

    name = "hard_swish"
    needs = (SAMPLES,)
    scales_channels = True

    def apply(self, state: State) -> State | None:
        factors, ranges, scalings = hard_swish_equalization.equalize_hard_swish(
            state.simulation.groups, state.samples
        )
        if not scalings:
            return None
        detail = f"{len(scalings)} of {len(state.samples)} hard-swishes equalized"
        return state.scaled(factors, detail, ranges)


class _RangeRule(Step):
    """Sets ranges by a rule that clips some values."""

    needs = (COUNTS,)

    def apply(self, state: State) -> State | None:
        state = dataclasses.replace(state, range_rule=self.name)
        shares = {
            name: range_setting.clipped_share(state.observations[name], chosen)
            for name, chosen in state.set_ranges().items()
            if name not in state.chosen_ranges
        }
        detail = "no range is left to choose"
        if shares:
            worst = max(shares, key=lambda name: shares[name])
            detail = f"ranges clip at most {shares[worst]:.2%} of the values ({worst})"
        return dataclasses.replace(state, detail=detail)


@register
class Percentile(_RangeRule):
    """Sets ranges by a percentile of the values."""

    name = "percentile"


@register
class LeastError(_RangeRule):
    """Sets ranges by the least squared error."""

    name = "mse"


@register
class ZeroClipping(Step):
    """Starts the ranges before hard-swishes where the hard-swish becomes zero."""

    name = "clip"

    def apply(self, state: State) -> State | None:
        clipped = state.lower_bounds().keys() - state.chosen_ranges.keys()
        if not clipped:
            return None
        detail = f"ranges before {len(clipped)} hard-swishes start where those become zero"
        state = dataclasses.replace(state, clips_zeros=True, detail=detail)
        state.set_ranges()
        return state


@register
class BiasCorrection(Step):
    """Restores the mean of each output channel."""

    name = "bias"

    def apply(self, state: State) -> State | None:
        simulation = state.simulation
        targets = {n: m * state.factors.get(n, 1.0) for n, m in state.original_means.items()}
        _, corrections = bias_correction.correct_biases(simulation.wrapped, state.images, targets)
        scheme.copy_weights(simulation.wrapped, simulation.model)
        detail = f"offsets of {len(corrections)} convolutions corrected"
        return dataclasses.replace(state, detail=detail)


@register
class OutputTuning(Step):
    """Trains offsets, gains and ranges on the float model's outputs."""

    name = "tune"

    def apply(self, state: State) -> State | None:
        simulation, config = state.simulation, state.simulation.config
        epochs = config.tuning_epochs

        def after_epoch(epoch: int, loss: float) -> None:
            log.info("ptq tune: %d of %d, loss %0.4f", epoch, epochs, loss)

        losses = simulation.tuner.tune(
            state.images,
            simulation.original_outputs,
            epochs,
            config.tuning_rate,
            simulation.seed,
            after_epoch,
        )
        scheme.copy_weights(simulation.wrapped, simulation.model)
        detail = f"offsets, gains and ranges trained, loss {losses[0]:.4f} to {losses[-1]:.4f}"
        return dataclasses.replace(state, detail=detail)
