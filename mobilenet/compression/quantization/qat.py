"""Quantization-aware training: the scheme, calibrated, trained through, unwrapped.

Zeros that are in the kernels stay zeros: a pruned net is trained under the masks of its own zeros.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from mobilenet.compression import variables
from mobilenet.compression.method import Method, Stage, register
from mobilenet.compression.pruning.masks import Masks
from mobilenet.compression.quantization import scheme
from mobilenet.compression.quantization.calibrate import calibrate
from mobilenet.compression.quantization.placement import WEIGHTS
from mobilenet.configs.compression import QuantizationAwareTraining
from mobilenet.models.roles import kind

_ALWAYS = 0.05  # share of zeros from which a kernel counts as pruned; a dense one has none


@register
class TrainQuantized(Method):
    """Trains with the file's arithmetic in the forward pass (arXiv 1712.05877)."""

    config_type = QuantizationAwareTraining
    config: QuantizationAwareTraining

    def __init__(self, config: QuantizationAwareTraining, stage: Stage) -> None:
        super().__init__(config, stage)
        self.masks: Masks | None = None
        self._plain: Any = None

    def apply(self, model: Any) -> Any:
        self._plain = model
        wrapped = scheme.wrap(model, self.stage.preprocessing)
        wrapped.phase.decay = self.config.range_decay
        calibrate(wrapped, self.stage.images(self.config.calibration_images))
        kernels = {
            variables.inner(layer).name: variables.kernel(layer)
            for layer in wrapped.layers
            if kind(layer) in WEIGHTS
        }
        self.masks = Masks({name: v for name, v in kernels.items() if _zeros(v) >= _ALWAYS})
        return wrapped

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model, step
        assert self.masks is not None
        self.masks.apply()

    def evaluate_as_inference(self, step: int) -> bool:
        return step >= self.config.freeze * self.stage.steps

    def finalize(self, model: Any) -> Any:
        return scheme.unwrap(model, self._plain)

    def notes(self, model: Any) -> list[str]:
        assert self.masks is not None
        held = [f"{name}: {share:.1%} zeros held" for name, share in self.masks.sparsity().items()]
        return [f"ranges of {len(scheme.get_ranges(model))} activations", *held]


def _zeros(kernel: tf.Variable) -> float:
    return float(tf.reduce_mean(tf.cast(tf.equal(kernel, 0), tf.float32)))
