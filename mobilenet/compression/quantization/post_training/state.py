"""A float model and its int8 simulation, which the post-training steps change."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import EMPTY_HIGH, MIN_WIDTH
from mobilenet.compression.quantization.int8.quantizer_placement import place_quantizers
from mobilenet.compression.quantization.post_training import (
    bias_correction,
    hard_swish_equalization,
    hard_swish_rewrite,
    output_tuning,
    range_setting,
)
from mobilenet.compression.quantization.post_training.observer import (
    Observation,
    Observer,
    Range,
)
from mobilenet.compression.quantization.post_training.scaling_groups import ScalingGroups
from mobilenet.configs.dataset import Preprocessing
from mobilenet.configs.quantization import PostTraining
from mobilenet.models.graph import inference, rebuild
from mobilenet.models.graph.roles import Graph, unwrap
from mobilenet.typing import Float32Array, Float64Array

COUNTS, SAMPLES = "counts", "samples"  # observations that a step may need
_BATCH = 10

Weights = tuple[list[Any], list[Any]]


class Simulation:
    """The models that all states of one quantization share; steps change their weights in place.

    Args:
        original: the float model; it is left as it is.
        preprocessing: how pixels become its inputs.
        config: of the steps.
        seed: of sampling and of the order of tuning.
        activation: `softmax`, or `sigmoid` of each output.

    Attributes:
        model: a copy of the float model.
        wrapped: the same with quantizers.
        groups: the scaling groups of `model`.
        hard_swishes: those that are quantized.
        tuner: trains `wrapped`.
    """

    def __init__(
        self,
        original: Any,
        preprocessing: Preprocessing,
        config: PostTraining,
        seed: int,
        activation: str,
    ) -> None:
        self.config, self.seed, self.activation = config, seed, activation
        self.wrapped = scheme.wrap(original, preprocessing, keep_float=config.keep_float)
        own = scheme.quantizers(self.wrapped)  # that of the input may compute the first layer
        specs = place_quantizers(original, keep_float=config.keep_float)
        self.calibrated = [n for n, s in specs.items() if s.output and s.fixed is None and n in own]
        self._original = inference.compile_model(original)
        self._initial_weights = original.get_weights()
        self.model = rebuild.copy(original)
        self.groups = ScalingGroups(Graph(self.model))
        self.hard_swishes = [
            x for x in self.groups.hard_swishes if unwrap(x.source).name in self.calibrated
        ]
        self._quantized = inference.compile_model(self.wrapped)
        self._observer = Observer(self.model)
        self.tuner = output_tuning.Tuner(self.wrapped)

    def original_outputs(self, images: Float32Array) -> Float32Array:
        """Outputs of the float model before any step, `[images, classes]`."""
        return inference.run(self._original, images, _BATCH)

    def quantized_outputs(self, images: Float32Array) -> Float32Array:
        """Outputs of the quantized model as it is now, `[images, classes]`."""
        return inference.run(self._quantized, images, _BATCH)

    def weights(self) -> Weights:
        """The weights of both models, for `restore`."""
        return self.model.get_weights(), self.wrapped.get_weights()

    def restore(self, weights: Weights) -> None:
        """Gives both models earlier weights."""
        self.model.set_weights(weights[0])
        self.wrapped.set_weights(weights[1])

    def reset(self) -> None:
        """Gives `model` the weights of the original; `State.set_ranges` passes them on."""
        self.model.set_weights(self._initial_weights)

    def observe(
        self, images: Float32Array, counted: Collection[str] = ()
    ) -> dict[str, Observation]:
        """The calibrated tensors of `model` as it is now.

        Args:
            images: `[n, height, width, channels]`, preprocessed.
            counted: layers whose values are counted.
        """
        return self._observer(self.calibrated, images, counted)

    def observe_original(self, images: Float32Array) -> dict[str, Observation]:
        """As `observe`, with the outputs of all convolutions."""
        outputs = [pair.output.name for pair in self.groups.folded.values()]
        return self._observer(list(dict.fromkeys([*self.calibrated, *outputs])), images)

    def sample_hard_swishes(self, images: Float32Array) -> dict[str, Observation]:
        """Samples of the inputs of all hard-swishes, by layer name."""
        sources = [unwrap(x.source).name for x in self.hard_swishes]
        if not sources:
            return {}
        count = dict.fromkeys(sources, hard_swish_equalization.SAMPLES)
        return self._observer(sources, images, sampled=count, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class State:
    """A quantization after some steps.

    Attributes:
        simulation: the models, whose weights are those of this state.
        images: calibration images that steps are fitted on, `[n, height, width, channels]`.
        observations: of the float model's tensors on them, by layer name.
        original_means: mean of each output channel of the original model, by name of the
            convolution.
        range_rule: one of `RANGE_RULES`.
        clips_zeros: ranges before hard-swishes start where the hard-swish becomes zero.
        chosen_ranges: ranges that a step chose instead of the rule, by layer name.
        factors: what each output channel was scaled by, by name of the convolution.
        samples: observations with samples of the inputs of hard-swishes, for a step that needs
            them.
        detail: what the last step changed, human-readable.
    """

    simulation: Simulation
    images: Float32Array
    observations: Mapping[str, Observation]
    original_means: Mapping[str, Float64Array]
    range_rule: str = "maximum"
    clips_zeros: bool = False
    chosen_ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    factors: Mapping[str, Float64Array] = dataclasses.field(default_factory=dict)
    samples: Mapping[str, Observation] = dataclasses.field(default_factory=dict)
    detail: str = ""

    @classmethod
    def initial(
        cls, simulation: Simulation, images: Float32Array, observations: Mapping[str, Observation]
    ) -> State:
        """The original model with ranges from the extremes of its tensors.

        Args:
            simulation: it is reset.
            images: to fit steps on.
            observations: of the original model on these images, from `observe_original`.
        """
        simulation.reset()
        means = bias_correction.original_means(observations, simulation.groups.graph)
        state = cls(simulation, images, observations, means)
        state.set_ranges()
        return state

    def observed(self, needs: Collection[str]) -> State:
        """This state with the observations that a step needs."""
        simulation = self.simulation
        changes: dict[str, Any] = {}
        if COUNTS in needs:
            changes["observations"] = simulation.observe(self.images, simulation.calibrated)
        if SAMPLES in needs:
            changes["samples"] = simulation.sample_hard_swishes(self.images)
        return dataclasses.replace(self, **changes)

    def scaled(
        self,
        factors: Mapping[str, Float64Array],
        detail: str,
        chosen_ranges: Mapping[str, Range] | None = None,
    ) -> State:
        """The state after channels of the float model were scaled.

        Args:
            factors: of each output channel, by name of the convolution.
            detail: see `State`.
            chosen_ranges: ranges chosen with the factors, by layer name.
        """
        products = {name: self.factors.get(name, 1.0) * f for name, f in factors.items()}
        state = dataclasses.replace(
            self,
            observations=self.simulation.observe(self.images),
            factors={**self.factors, **products},
            chosen_ranges={**self.chosen_ranges, **(chosen_ranges or {})},
            detail=detail,
        )
        state.set_ranges()
        return state

    def lower_bounds(self) -> dict[str, float]:
        """The values below which each quantized hard-swish becomes zero, by name of its source."""
        simulation = self.simulation
        bounds = {
            unwrap(x.source).name: hard_swish_equalization.LOW for x in simulation.hard_swishes
        }
        rewritten = simulation.groups.depthwise_hard_swishes.values()
        return bounds | hard_swish_rewrite.lower_bounds(rewritten, self.observations)

    def set_ranges(self) -> dict[str, Range]:
        """Gives the quantized model the float model's weights and the ranges of this state.

        Returns:
            The ranges by the rule alone, by layer name.
        """
        simulation = self.simulation
        by_rule = {
            name: range_setting.find_range(self.observations[name], self.range_rule)
            for name in simulation.calibrated
        }
        bounds = self.lower_bounds() if self.clips_zeros else {}
        chosen = {**range_setting.raise_lower_bounds(by_rule, bounds), **self.chosen_ranges}
        scheme.copy_weights(simulation.model, simulation.wrapped)
        ranges = scheme.get_ranges(simulation.wrapped)
        if scheme.INPUT in ranges:
            low, high = float(self.images.min()), float(self.images.max())
            chosen[scheme.INPUT] = min(low, 0.0), max(high, 0.0)
        for name, (low, high) in chosen.items():
            high = high if high - low > MIN_WIDTH else EMPTY_HIGH
            ranges[name] = np.asarray((low, high), np.float32)
        scheme.set_ranges(simulation.wrapped, ranges)
        return by_rule
