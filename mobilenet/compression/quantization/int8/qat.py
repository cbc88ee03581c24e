"""Quantization-aware training: the scheme, calibrated, trained through, unwrapped.

Zeros that are in the kernels stay zeros: a pruned model is trained under the masks of its own
zeros. A kernel of few distinct values keeps their number, and the values train.

The two recipes are those of tensorflow/models research/slim/models/mobilenet_v1_train.py: a trained
model is fine-tuned from calibrated ranges; from scratch, fake quantization starts after a delay in
which the model trains in float and its ranges are observed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mobilenet.compression.method import Method, StageContext, register
from mobilenet.compression.pruning.unstructured.masks import Masks
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import (
    calibrate,
    fill_empty_ranges,
    set_ranges_from_checkpoint,
)
from mobilenet.compression.quantization.int8.cluster_preserving import Clusters
from mobilenet.compression.quantization.int8.quantizer_placement import WEIGHTS
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.errors import UsageError
from mobilenet.models.graph import batch_norm_statistics, variables
from mobilenet.models.graph.roles import kind, unwrap

log = logging.getLogger("mobilenet")
_ALWAYS = 0.05  # share of zeros from which a kernel counts as pruned; a dense one has none


@register
class TrainQuantized(Method):
    """Trains with the file's arithmetic in the forward pass (arXiv 1712.05877)."""

    config_type = QuantizationAwareTraining
    config: QuantizationAwareTraining

    def __init__(self, config: QuantizationAwareTraining, context: StageContext) -> None:
        super().__init__(config, context)
        self._check_delay()
        self.masks: Masks | None = None
        self.clusters: Clusters | None = None
        self._plain: Any = None
        self._phase: Any = None
        self._fill_empty_ranges: Callable[[], None] = lambda: None
        self._started: list[str] = []

    def _check_delay(self) -> None:
        """Quantization has to start before ranges stand still, or nothing trains with it."""
        delay, still = self.config.quant_delay, self.config.freeze * self.context.steps
        if not delay or delay < still:
            return
        whole = delay >= self.context.steps
        what = "steps of the quantize stage" if whole else "steps before ranges stand still"
        remedy = "a smaller delay or a larger --quantize_epochs"
        raise UsageError(
            "--quant_delay",
            delay,
            f"less than the {self.context.steps if whole else round(still):,} {what}",
            remedy if whole else f"{remedy} or --quantize_freeze",
        )

    def apply(self, model: Any) -> Any:
        self._plain = model
        wrapped = scheme.wrap(model, self.context.preprocessing)
        wrapped.phase.decay = self.config.range_decay
        wrapped.phase.delayed = self.config.quant_delay > 0
        self._phase = wrapped.phase
        self._fill_empty_ranges = functools.partial(fill_empty_ranges, wrapped)
        self._start_ranges(wrapped)
        kernels = {
            unwrap(layer).name: variables.kernel(layer)
            for layer in wrapped.layers
            if kind(layer) in WEIGHTS
        }
        self.clusters = Clusters(kernels)
        self.masks = Masks({name: v for name, v in kernels.items() if _zeros(v) >= _ALWAYS})
        return wrapped

    def _start_ranges(self, wrapped: Any) -> None:
        """From elsewhere, from images, or, before a delay, from the first training step."""
        if wrapped.phase.delayed and not self.context.initial_ranges:
            return
        images = self.context.training_images(self.config.calibration_images)
        if line := batch_norm_statistics.statistics_warning(self._plain, images):
            log.warning("%s", line)
            self._started.append(line)
        if self.context.initial_ranges:
            self._started += set_ranges_from_checkpoint(
                wrapped, self.context.initial_ranges, images
            )
        else:
            calibrate(wrapped, images)

    def before_step(self, step: int) -> bool:
        delayed = step < self.config.quant_delay
        if delayed == self._phase.delayed:
            return False
        self._phase.delayed = delayed
        if not delayed:
            self._fill_empty_ranges()
        return True

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model, step
        assert self.masks is not None and self.clusters is not None
        self.clusters.apply()
        self.masks.apply()

    def statistics_frozen(self, step: int) -> bool:
        return step >= self.config.freeze * self.context.steps

    def target_reached(self, step: int) -> bool:
        return step > self.config.quant_delay

    def finalize(self, model: Any) -> Any:
        return scheme.unwrap(model, self._plain)

    def notes(self, model: Any) -> list[str]:
        assert self.masks is not None and self.clusters is not None
        held = [f"{name}: {share:.1%} zeros held" for name, share in self.masks.sparsity().items()]
        held += [f"{name}: {n} distinct weights held" for name, n in self.clusters.counts.items()]
        return [f"ranges of {len(scheme.get_ranges(model))} activations", *self._started, *held]


def _zeros(kernel: tf.Variable) -> float:
    return float(tf.reduce_mean(tf.cast(tf.equal(kernel, 0), tf.float32)))
