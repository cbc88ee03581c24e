"""Post-training int8: steps are tried one after the other, and accepted or reverted.

Half of the calibration images fit a step, the other half decides on it, so that a step that only
suits the images that it was fitted on is reverted. The accepted steps are then fitted again on all
images. Labels are not needed: a step helps if the outputs of the quantized model come closer to
those of the float model.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

from mobilenet.compression.quantization.int8 import quantized_model
from mobilenet.compression.quantization.int8.calibration import check_images
from mobilenet.compression.quantization.int8.float_layers import find_float_layers
from mobilenet.compression.quantization.int8.quantized_model import QuantizedModel
from mobilenet.compression.quantization.int8.quantizer_placement import (
    expand_float_layers,
    match_float_layers,
)
from mobilenet.compression.quantization.post_training import hard_swish_rewrite
from mobilenet.compression.quantization.post_training.acceptance import (
    compare_outputs,
    is_improvement,
)
from mobilenet.compression.quantization.post_training.scaling_groups import ScalingGroups
from mobilenet.compression.quantization.post_training.state import Simulation, State
from mobilenet.compression.quantization.post_training.steps import Step, registered_steps
from mobilenet.configs.card import CalibrationSummary, QuantizationStep, activation_of
from mobilenet.configs.dataset import Preprocessing
from mobilenet.configs.quantization import PostTraining
from mobilenet.models.graph import batch_norm_statistics, convolution_forms
from mobilenet.models.graph.roles import Graph, kind
from mobilenet.models.saving import LoadedModel
from mobilenet.typing import Float32Array

log = logging.getLogger("mobilenet")
BASELINE = "maximum"  # ranges from the extremes, which every step is compared with
_BOUNDED = ("maximum", "bias", "repair")
_UNBOUNDED = ("equalize", "hard_swish", "percentile", "clip", "bias", "tune", "repair")


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A float model after post-training int8.

    Attributes:
        wrapped: the model with quantizers, its ranges set.
        plain: the float model with the same weights, for `scheme.unwrap` and verification.
        steps: in order, rejected ones too.
        calibration: the images.
        repair: whether its export is to be repaired.
        warnings: what may be wrong with the float model.
    """

    wrapped: Any
    plain: Any
    steps: tuple[QuantizationStep, ...]
    calibration: CalibrationSummary
    repair: bool
    warnings: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Human-readable notes: warnings, calibration, steps, layers in float."""
        images = self.calibration.images
        held_out = images // 2
        calibration = (
            f"steps fitted on {images - held_out} images, accepted on {held_out} others, "
            f"refitted on all; inputs from {self.calibration.input_low:.3g} "
            f"to {self.calibration.input_high:.3g}"
        )
        floats = find_float_layers(self.wrapped)
        return (
            *self.warnings,
            calibration,
            *map(str, self.steps),
            *([f"in float, with the layers between them: {', '.join(floats)}"] if floats else []),
        )


def quantize(
    model: Any,
    preprocessing: Preprocessing,
    images: Float32Array,
    config: PostTraining,
    seed: int = 0,
    activation: str | None = None,
) -> Quantized:
    """Quantizes a float model to int8 without training.

    Args:
        model: functional tf_keras model of stock layers that returns logits; it is left as it is.
        preprocessing: how pixels became `images`.
        images: `[n, height, width, channels]`, preprocessed; no labels.
        config: the steps, and how long the tuning takes.
        seed: of sampling and of the order of tuning.
        activation: of the card: which decisions of the outputs must stay.

    Raises:
        UsageError: too few images, images that are constant, not finite or in another range than
            the model's, or a model whose int8 form is not known.
    """
    check_images(images, preprocessing)
    warning = batch_norm_statistics.statistics_warning(model, images)
    if warning:
        log.warning("%s", warning)
    model = convolution_forms.fused(model)
    names = chosen_steps(model, config)
    steps = registered_steps(names)
    records = []
    if "gates" in names:
        model, record = _rewrite_hard_swish(model, config)
        records.append(record)
    activation = activation_of(activation, model.output_shape[-1])
    simulation = Simulation(model, preprocessing, config, seed, activation)
    records += _fit(simulation, images, steps)
    return Quantized(
        simulation.wrapped,
        simulation.model,
        tuple(records),
        CalibrationSummary(len(images), float(images.min()), float(images.max())),
        "repair" in names,
        (warning,) if warning else (),
    )


def quantize_model(
    loaded: LoadedModel,
    images: Float32Array,
    config: PostTraining,
    source: str = "",
    seed: int = 0,
) -> QuantizedModel:
    """Quantizes a float model to int8 without training; its card tells how.

    Args:
        loaded: the model, as `quantize` takes it, and its card.
        images: `[n, height, width, channels]`, preprocessed as the card says; no labels.
        config: the steps, and how long the tuning takes.
        source: where the images are from.
        seed: of sampling and of the order of tuning.

    Raises:
        UsageError: see `quantize`.
    """
    card = loaded.card
    result = quantize(
        loaded.model, card.preprocessing, images, config, seed, activation=card.activation
    )
    card = card.replace(
        notes=(*card.notes, *result.notes), calibration=result.calibration.replace(source=source)
    )
    return quantized_model.quantized_model(
        result.wrapped, result.plain, card, result.steps, result.repair
    )


def chosen_steps(model: Any, config: PostTraining) -> tuple[str, ...]:
    """The names of the steps for a model; `auto` is replaced by what its activations need."""
    if "auto" not in config.steps:
        return config.steps
    graph = Graph(model)
    bounded = all(layer.max_value is not None for layer in graph.layers if kind(layer) == "ReLU")
    chosen = _BOUNDED if bounded and not ScalingGroups(graph).hard_swishes else _UNBOUNDED
    return (*config.steps[:-1], *chosen)


def _rewrite_hard_swish(model: Any, config: PostTraining) -> tuple[Any, QuantizationStep]:
    """Rewrites the hard-swishes that are not in float; nothing is compared, as it is exact."""
    started = time.monotonic()
    graph = Graph(model)
    floats = expand_float_layers(graph, match_float_layers(graph, config.keep_float))
    rewritten, count = hard_swish_rewrite.rewrite_hard_swish(model, floats)
    plural = "hard-swish" if count == 1 else "hard-swishes"
    detail = f"{count} {plural} written with a kernel, outputs unchanged"
    return rewritten, _record("gates", True, None, None, started, detail)


def _fit(simulation: Simulation, images: Float32Array, steps: list[Step]) -> list[QuantizationStep]:
    """Tries each step, then applies the accepted ones again with all images."""
    fitting, held_out = images[::2], images[1::2]
    reference = simulation.original_outputs(held_out)
    started = time.monotonic()
    observations = simulation.observe_original(fitting)
    state = State.initial(simulation, fitting, observations)
    outputs = simulation.quantized_outputs(held_out)
    compared = compare_outputs(outputs, reference, simulation.activation)
    records = [_record(BASELINE, True, *compared, started, "ranges from the extremes")]
    accepted, previous = [], records[0]
    for step in steps:
        state, record = try_step(step, state, previous, held_out, reference)
        if record is not None:
            records.append(record)
            if record.accepted:
                accepted.append(step)
                previous = record

    log.info("ptq: refitting the accepted steps on all %d images", len(images))
    simulation.reset()
    others = simulation.observe_original(held_out)
    share = len(fitting) / len(images)
    joined = {n: seen.joined(others[n], share) for n, seen in observations.items()}
    state = State.initial(simulation, images, joined)
    for step in accepted:
        state = step.apply(state.observed(step.needs)) or state
    return records


def try_step(
    step: Step,
    state: State,
    previous: QuantizationStep,
    images: Float32Array,
    reference: Float32Array,
) -> tuple[State, QuantizationStep | None]:
    """Applies a step and reverts it if it does not help.

    Args:
        step: the step.
        state: before it.
        previous: the last accepted step.
        images: held-out images, `[n, height, width, channels]`.
        reference: the float model's outputs on them, `[n, classes]`.

    Returns:
        The state after the step, or `state` where it was reverted; and the step's record, `None`
        where the model has nothing for it to change.
    """
    started = time.monotonic()
    simulation = state.simulation
    weights = simulation.weights()
    changed = step.apply(state.observed(step.needs))
    if changed is None:
        return state, None
    outputs = simulation.quantized_outputs(images)
    agreement, ratio = compare_outputs(outputs, reference, simulation.activation)
    accepted = is_improvement(agreement, ratio, previous, len(images))
    record = _record(step.name, accepted, agreement, ratio, started, changed.detail)
    if not accepted:
        simulation.restore(weights)
    return changed if accepted else state, record


def _record(
    name: str,
    accepted: bool,
    agreement: float | None,
    ratio: float | None,
    started: float,
    detail: str,
) -> QuantizationStep:
    seconds = round(time.monotonic() - started, 2)
    record = QuantizationStep(name, accepted, agreement, ratio, seconds, detail)
    log.info("ptq %s", record)
    return record
