"""Post-training int8 as a compression method; nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobilenet.compression.method import Method, StageContext, register
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import CALIBRATION, check_images
from mobilenet.compression.quantization.int8.quantizer_placement import place_quantizers
from mobilenet.compression.quantization.post_training import pipeline as post_training_pipeline
from mobilenet.configs.quantization import PostTraining


@register
class QuantizePostTraining(Method):
    """Quantizes a float model with calibration images; see `post_training.pipeline`."""

    config_type = PostTraining
    needs_images = True
    config: PostTraining
    trains = False

    def __init__(self, config: PostTraining, context: StageContext) -> None:
        super().__init__(config, context)
        self.result: post_training_pipeline.Quantized | None = None

    def check(self, model: Any) -> None:
        place_quantizers(model, keep_float=self.config.keep_float)

    def apply(self, model: Any) -> Any:
        load_images = self.context.calibration_images or self.context.training_images
        images = load_images(self.config.calibration_images)
        check_images(images, self.context.preprocessing, CALIBRATION)
        self.result = post_training_pipeline.quantize(
            model,
            self.context.preprocessing,
            images,
            self.config,
            activation=self.context.activation,
        )
        return self.result.wrapped

    def finalize(self, model: Any) -> Any:
        assert self.result is not None
        return scheme.unwrap(model, self.result.plain)

    def notes(self, model: Any) -> list[str]:
        del model
        assert self.result is not None
        return list(self.result.notes)

    def card_fields(self) -> Mapping[str, Any]:
        assert self.result is not None
        return {
            "quantization_steps": self.result.steps,
            "calibration": self.result.calibration,
        }
