"""Quantization-aware training (QAT).

Pruned weights stay zero: masks of the kernels' own zeros are applied. A clustered kernel keeps its
clusters, whose values are trained.

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
from mobilenet.models.graph import batch_norm_statistics, convolution_forms, variables
from mobilenet.models.graph.roles import kind, unwrap

log = logging.getLogger("mobilenet")
_MIN_SPARSITY = 0.05  # from which a kernel counts as pruned; a dense one has no zeros


@register
class TrainQuantized(Method):
    """Trains with the file's arithmetic in the forward pass (arXiv 1712.05877)."""

    config_type = QuantizationAwareTraining
    needs_images = True
    # bfloat16 has 8 significant bits: high int8 values of an activation would coincide.
    needs_float32 = True
    config: QuantizationAwareTraining

    def __init__(self, config: QuantizationAwareTraining, context: StageContext) -> None:
        super().__init__(config, context)
        self._check_delay()
        self.masks: Masks | None = None
        self.clusters: Clusters | None = None
        self._plain: Any = None
        self._phase: Any = None
        self._fill_empty_ranges: Callable[[], None] = lambda: None
        self._range_notes: list[str] = []

    def _check_delay(self) -> None:
        """Checks that quantization starts before ranges are frozen; else nothing trains with it."""
        delay, steps = self.config.quant_delay, self.context.steps
        frozen_from = self.config.freeze * steps
        if not delay or delay < frozen_from:
            return
        expected = f"less than the {round(frozen_from):,} steps before ranges are frozen"
        remedy = "a smaller delay or a larger `quantize.epochs`"
        if delay >= steps:
            expected = f"less than the {steps:,} steps of the quantize stage"
        else:
            remedy += " or `quantization.freeze`"
        raise UsageError("quant_delay", delay, expected, remedy)

    def apply(self, model: Any) -> Any:
        self._plain = model = convolution_forms.fused(model)
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
        self.masks = Masks(
            {name: v for name, v in kernels.items() if _sparsity(v) >= _MIN_SPARSITY}
        )
        return wrapped

    def _start_ranges(self, wrapped: Any) -> None:
        """Sets ranges from a checkpoint or from images; with a delay, training does it."""
        if wrapped.phase.delayed and not self.context.initial_ranges:
            return
        images = self.context.training_images(self.config.calibration_images)
        if warning := batch_norm_statistics.statistics_warning(self._plain, images):
            log.warning("%s", warning)
            self._range_notes.append(warning)
        if self.context.initial_ranges:
            self._range_notes += set_ranges_from_checkpoint(
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
        sparsity, clusters = self.masks.sparsity(), self.clusters.counts
        return [
            f"ranges of {len(scheme.get_ranges(model))} activations",
            *self._range_notes,
            *(f"{name}: {share:.1%} zeros preserved" for name, share in sparsity.items()),
            *(f"{name}: {count} distinct weights preserved" for name, count in clusters.items()),
        ]


def _sparsity(kernel: tf.Variable) -> float:
    return float(tf.reduce_mean(tf.cast(tf.equal(kernel, 0), tf.float32)))
