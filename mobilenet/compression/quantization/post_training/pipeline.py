"""The chain of post-training int8: each step is tried, judged on images it has not seen, kept or
left out.

Half of the calibration images fit, the other half judges: a step that only fits the images that it
saw is found out. What is kept is then fitted again on all of them. No label is read: a step helps
where the rounded model answers more like the float model.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import EMPTY_HIGH, MIN_WIDTH, check_images
from mobilenet.compression.quantization.int8.float_layers import names as float_names
from mobilenet.compression.quantization.int8.quantizer_placement import (
    QuantizerSpec,
    expand_float_layers,
    match_float_layers,
    place_quantizers,
)
from mobilenet.compression.quantization.post_training import (
    bias_correction,
    cross_layer_equalization,
    hard_swish_equalization,
    hard_swish_rewrite,
    output_tuning,
    range_setting,
)
from mobilenet.compression.quantization.post_training.acceptance import (
    Step,
    compare_outputs,
    is_improvement,
)
from mobilenet.compression.quantization.post_training.hard_swish_equalization import Span
from mobilenet.compression.quantization.post_training.observer import Observation, Observer
from mobilenet.compression.quantization.post_training.scaling_groups import ScalingGroups
from mobilenet.configs.dataset import Preprocessing
from mobilenet.configs.quantization import RANGE_RULES, PostTraining
from mobilenet.models.graph import batch_norm_statistics
from mobilenet.models.graph.batch_norm_folding import Array
from mobilenet.models.graph.roles import Graph, kind, unwrap

log = logging.getLogger("mobilenet")
Floats = npt.NDArray[np.float32]
# Of the notes: how that of calibration begins, and those of steps that scale channels.
FITTED, SCALING = "steps were fitted on", ("equalize:", "hard_swish:")
_BATCH = 10
_BOUNDED = ("maximum", "bias", "repair")
_UNBOUNDED = ("equalize", "hard_swish", "percentile", "clip", "bias", "tune", "repair")


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A float model fitted to the scheme.

    Attributes:
        wrapped: the model with quantizers, its ranges set.
        plain: the float model with the same weights, for `scheme.unwrap` and verification.
        steps: in order.
        repair: whether its export is to be repaired.
        notes: lines for a person: what calibration saw, and every step.
    """

    wrapped: Any
    plain: Any
    steps: tuple[Step, ...]
    repair: bool
    notes: tuple[str, ...]


def quantize(
    model: Any,
    preprocessing: Preprocessing,
    images: Floats,
    config: PostTraining,
    seed: int = 0,
) -> Quantized:
    """Fits a float model to int8 without training.

    Args:
        model: functional tf_keras model of stock layers that gives logits; it is left as it is.
        preprocessing: how pixels became `images`.
        images: `[n, height, width, channels]`, as the model takes them; no labels.
        config: which steps, and how long the tuning takes.
        seed: of sampling and of the order of tuning.

    Raises:
        UsageError: too few images, images that are constant, not finite or in another range than
            the model's, or a model whose int8 form is not known.
    """
    check_images(images, preprocessing)
    misfit = batch_norm_statistics.statistics_warning(model, images)
    if misfit:
        log.warning("%s", misfit)
    names = chosen_steps(model, config)
    rule = next(name for name in names if name in RANGE_RULES)
    order = [
        name for name in ("equalize", "hard_swish", rule, "clip", "bias", "tune") if name in names
    ]
    told = [misfit] if misfit else []
    if "gates" in names:
        model, note = _with_gates(model, config)
        told.append(note)
        log.info("ptq %s", note)
    chain = _Chain(model, preprocessing, images, config, seed)
    chain.begin()
    for name in order:
        if name != "maximum":
            chain.attempt(name)
    chain.fit_all(model, images)
    return Quantized(
        chain.wrapped,
        chain.net,
        tuple(chain.steps),
        "repair" in names,
        (*told, *chain.notes()),
    )


def _with_gates(model: Any, config: PostTraining) -> tuple[Any, str]:
    """The same function with gates where it is not float, and a line for a person."""
    graph = Graph(model)
    gated, count = hard_swish_rewrite.rewrite_hard_swish(
        model, expand_float_layers(graph, match_float_layers(graph, config.keep_float))
    )
    many = "hard-swish" if count == 1 else "hard-swishes"
    return gated, f"gates: {count} {many} written with a kernel, outputs unchanged"


def chosen_steps(model: Any, config: PostTraining) -> tuple[str, ...]:
    """The steps of a model: those that were named, and in place of `auto` those that its
    activations want."""
    if "auto" not in config.steps:
        return config.steps
    graph = Graph(model)
    bounded = all(layer.max_value is not None for layer in graph.layers if kind(layer) == "ReLU")
    chosen = _BOUNDED if bounded and not ScalingGroups(graph).hard_swishes else _UNBOUNDED
    return (*config.steps[:-1], *chosen)


@dataclasses.dataclass
class _State:
    """What a step may change of how ranges are found; weights are in the model."""

    rule: str = "maximum"
    clip: bool = False
    chosen: dict[str, Span] = dataclasses.field(default_factory=dict)
    factors: dict[str, Array] = dataclasses.field(default_factory=dict)


class _Chain:
    """The model as far as it has come."""

    def __init__(
        self,
        model: Any,
        preprocessing: Preprocessing,
        images: Floats,
        config: PostTraining,
        seed: int,
    ) -> None:
        self.config, self.seed = config, seed
        self.fitting, self.judging = images[::2], images[1::2]
        self.specs: dict[str, QuantizerSpec] = place_quantizers(model, keep_float=config.keep_float)
        self.original = _compiled(model)
        self.wanted = self.answers(self.judging)
        self.net = tf_keras.models.clone_model(model)
        self.net.set_weights(model.get_weights())
        self.groups = ScalingGroups(Graph(self.net))
        self.hard_swishes = [  # those of int8
            x for x in self.groups.hard_swishes if unwrap(x.source).name in self._ranged()
        ]
        self.wrapped = scheme.wrap(model, preprocessing, keep_float=config.keep_float)
        self.simulated = _compiled(self.wrapped)
        self.observe, self.tuner = Observer(self.net), output_tuning.Tuner(self.wrapped)
        self.state = _State()
        self.steps: list[Step] = []
        self.observed: dict[str, Observation] = {}
        self.unchanged: dict[str, Observation] = {}  # of the fitting half, before any step
        self.means: dict[str, Array] = {}

    def answers(self, images: Floats) -> Floats:
        """What the float model says, `[n, classes]`."""
        return _outputs(self.original, images)

    def begin(self) -> None:
        """Ranges from the extremes: what every step is compared with."""
        started = time.monotonic()
        self.unchanged = self._seen(self.fitting)
        self._begin(self.unchanged)
        first = Step("maximum", True, *self._judged(), time.monotonic() - started, "ranges")
        self.steps.append(first)
        log.info("ptq %s", first)

    def _begin(self, observed: dict[str, Observation]) -> None:
        """Starts from what the unchanged model does to images."""
        self.observed = observed
        self.means = bias_correction.original_means(observed, self.groups.graph)
        self._set_ranges()

    def _seen(self, images: Floats) -> dict[str, Observation]:
        """Extremes and means of every tensor that a step may ask for."""
        pairs = [pair.output.name for pair in self.groups.folded.values()]
        return self.observe(list(dict.fromkeys([*self._ranged(), *pairs])), images)

    def attempt(self, name: str) -> None:
        """Takes a step, and back again where it does not help."""
        started = time.monotonic()
        before = dataclasses.replace(
            self.state, chosen=dict(self.state.chosen), factors=dict(self.state.factors)
        )
        weights, wrapped, seen = self.net.get_weights(), self.wrapped.get_weights(), self.observed
        detail = getattr(self, f"_{name}")()
        if not detail:
            return
        agreement, ratio = self._judged()
        last = next(step for step in reversed(self.steps) if step.kept)
        kept = is_improvement(agreement, ratio, last, len(self.judging))
        self.steps.append(Step(name, kept, agreement, ratio, time.monotonic() - started, detail))
        log.info("ptq %s", self.steps[-1])
        if not kept:
            self.state, self.observed = before, seen
            self.net.set_weights(weights)
            self.wrapped.set_weights(wrapped)

    def fit_all(self, model: Any, images: Floats) -> None:
        """Takes the steps that were kept once more, on all images, from the original model."""
        log.info("ptq: the steps that help, fitted again on all %d images", len(images))
        self.net.set_weights(model.get_weights())
        self.state = _State()
        share, others = len(self.fitting) / len(images), self._seen(self.judging)
        both = {name: seen.joined(others[name], share) for name, seen in self.unchanged.items()}
        self._begin(both)
        half, self.fitting = self.fitting, images
        for step in self.steps:
            if step.kept and step.name != "maximum":
                getattr(self, f"_{step.name}")()
        self.fitting = half

    def _judged(self) -> tuple[float, float]:
        return compare_outputs(_outputs(self.simulated, self.judging), self.wanted)

    def _ranged(self) -> list[str]:
        """Layers whose output's range comes from data."""
        return [name for name, p in self.specs.items() if p.output and p.fixed is None]

    def _observe(self) -> None:
        """The model as it is now, on the fitting half; values are counted where a rule needs
        them.
        """
        names = self._ranged()
        counted = names if self.state.rule != "maximum" else ()
        self.observed = self.observe(names, self.fitting, counted)

    def _set_ranges(self) -> dict[str, Span]:
        """Ranges by the rule in force, into the wrapped model with the weights of the plain one.

        Returns:
            What the rule alone says.
        """
        ruled = range_setting.spans_of(
            {n: self.observed[n] for n in self._ranged()}, self.state.rule
        )
        spans = range_setting.clip(ruled, self._lows() if self.state.clip else {})
        spans.update(self.state.chosen)
        scheme.copy_weights(self.net, self.wrapped)
        held = scheme.get_ranges(self.wrapped)
        for name, (low, high) in spans.items():
            held[name] = np.asarray(
                (low, high if high - low > MIN_WIDTH else EMPTY_HIGH), np.float32
            )
        scheme.set_ranges(self.wrapped, held)
        return ruled

    def _scaled(self, factors: dict[str, Array]) -> None:
        for name, values in factors.items():
            self.state.factors[name] = self.state.factors.get(name, 1.0) * values
        self._observe()
        self._set_ranges()

    def _equalize(self) -> str:
        factors = cross_layer_equalization.equalize(self.groups, self.observed)
        if factors:
            self._scaled(factors)
        return f"{len(factors)} convolutions scaled, outputs unchanged" if factors else ""

    def _hard_swish(self) -> str:
        sources = [unwrap(found.source).name for found in self.hard_swishes]
        if not sources:
            return ""
        wanted = dict.fromkeys(sources, hard_swish_equalization.SAMPLES)
        seen = self.observe(sources, self.fitting, sampled=wanted, seed=self.seed)
        factors, spans, chosen = hard_swish_equalization.equalize_hard_swish(self.groups, seen)
        self.state.chosen.update(spans)
        self._scaled(factors)
        return f"{len(chosen)} of {len(sources)} hard-swishes equalized" if chosen else ""

    def _ruled(self, rule: str) -> str:
        self.state.rule = rule
        self._observe()
        shares = {
            name: range_setting.clipped_share(self.observed[name], span)
            for name, span in self._set_ranges().items()
            if name not in self.state.chosen
        }
        most = max(shares, key=lambda name: shares[name], default=None)
        if most is None:
            return "no range is left to choose"
        return f"ranges cut off {shares[most]:.2%} of the values at most ({most})"

    def _percentile(self) -> str:
        return self._ruled("percentile")

    def _mse(self) -> str:
        return self._ruled("mse")

    def _clip(self) -> str:
        left = self._lows().keys() - self.state.chosen.keys()
        if not left:
            return ""
        self.state.clip = True
        self._set_ranges()
        return f"ranges in front of {len(left)} hard-swishes begin where those become zero"

    def _lows(self) -> dict[str, float]:
        """Below these, what is in front of a hard-swish comes out as zero."""
        plain = {unwrap(x.source).name: hard_swish_equalization.LOW for x in self.hard_swishes}
        return plain | hard_swish_rewrite.lower_bounds(
            self.groups.depthwise_hard_swishes.values(), self.observed
        )

    def _bias(self) -> str:
        targets = {
            name: mean * self.state.factors.get(name, 1.0) for name, mean in self.means.items()
        }
        _, done = bias_correction.correct(self.wrapped, self.fitting, targets)
        scheme.copy_weights(self.wrapped, self.net)
        return f"offsets of {len(done)} convolutions corrected"

    def _tune(self) -> str:
        epochs = self.config.tuning_epochs

        def told(epoch: int, loss: float) -> None:
            log.info("ptq tune: %d of %d, loss %0.4f", epoch, epochs, loss)

        losses = self.tuner.tune(
            self.fitting, self.answers, epochs, self.config.tuning_rate, self.seed, told
        )
        scheme.copy_weights(self.wrapped, self.net)
        return f"offsets, gains and ranges trained, loss {losses[0]:.4f} to {losses[-1]:.4f}"

    def notes(self) -> tuple[str, ...]:
        """What a person should know."""
        saw = (
            f"{FITTED} {len(self.fitting)} images and judged on {len(self.judging)} "
            "others, those that help fitted again on all; "
            f"inputs from {self.fitting.min():.3g} to {self.fitting.max():.3g}"
        )
        kept = float_names(self.wrapped)
        floats = [f"in float, with what is between them alone: {', '.join(kept)}"] if kept else []
        return (saw, *(str(step) for step in self.steps), *floats)


def _compiled(model: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
    infer: Callable[[tf.Tensor], tf.Tensor] = tf.function(
        lambda batch: model(batch, training=False), input_signature=[spec]
    )
    return infer


def _outputs(infer: Callable[[tf.Tensor], tf.Tensor], images: Floats) -> Floats:
    starts = range(0, len(images), _BATCH)
    found = [infer(tf.constant(images[start : start + _BATCH])).numpy() for start in starts]
    return np.concatenate(found).reshape(len(images), -1)
