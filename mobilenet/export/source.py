"""A saved model that is to be converted: read once, described, and quantized where asked for."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from mobilenet.compression.quantization.int8 import float_layers
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.post_training import pipeline as post_training_pipeline
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import PREPROCESSING, DatasetConfig, Preprocessing
from mobilenet.configs.number_formats import INT8
from mobilenet.configs.quantization import PostTraining
from mobilenet.errors import UsageError
from mobilenet.export import freeze
from mobilenet.export.calibration_data import Calibration
from mobilenet.models import counting, saving


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A float model after post-training int8 quantization.

    Attributes:
        result: the model with its quantizers, and the steps that were taken.
        original: the float model before, in float32 and without softmax.
        calibration_note: what it was calibrated on.
    """

    result: post_training_pipeline.Quantized
    original: Any
    calibration_note: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A saved model that is to be converted.

    Attributes:
        path: where it was read.
        loaded: the float model and its card.
        quantized: it has activation ranges, from training or from post-training quantization.
        fitted: the result of post-training quantization.
    """

    path: Path
    loaded: saving.LoadedModel
    quantized: bool
    fitted: Fitted | None = None

    @property
    def model(self) -> Any:
        """The float model."""
        return self.loaded.model

    @property
    def card(self) -> Card:
        """The model's card."""
        return self.loaded.card


def open_source(path: str | os.PathLike[str]) -> Source:
    """Reads a model once, for what is asked about it and for its conversion.

    Raises:
        UsageError: see `saving.load`.
    """
    return Source(Path(path), saving.load(path), int8_saving.has_ranges(path))


def quantize_source(source: Source, calibration: Calibration, config: PostTraining) -> Source:
    """Quantizes a float model after training.

    Returns:
        A source that is converted like a model that was trained for int8.

    Raises:
        UsageError: see `post_training.pipeline.quantize`; or the model has ranges already.
    """
    if source.quantized:
        raise UsageError(
            "number_format",
            INT8,
            "a float model; this one has ranges and becomes int8 as it was trained",
            "leave it out, or give the folder of an earlier stage",
        )
    original = freeze.float32_copy(source.model)
    result = post_training_pipeline.quantize(
        original, source.card.preprocessing, calibration.images, config
    )
    card = source.card.replace(
        notes=(*source.card.notes, *result.notes),
        keep_float=float_layers.find_float_layers(result.wrapped),
        calibration=result.calibration.replace(source=calibration.source),
        quantization_steps=result.steps,
    )
    fitted = Fitted(result, original, f"calibrated on {calibration.summary}")
    return Source(source.path, saving.LoadedModel(result.plain, card), True, fitted)


def preprocessing_of(card: Card, data: DatasetConfig) -> Preprocessing:
    """The preprocessing on a model's card, or that of the data set if the model has no card."""
    has_card = card.architecture or card.labels or card.dataset
    return card.preprocessing if has_card else PREPROCESSING[data.preprocessing]


def model_figures(model: Any, input_shape: tuple[int, int, int] | None = None) -> dict[str, int]:
    """Parameters, multiply-accumulates of one image and non-zero weights.

    Args:
        model: the model.
        input_shape: `[height, width, channels]` where the model leaves its size open.
    """
    count = counting.count(model, input_shape)
    return {
        "params": count.params,
        "macs": count.macs,
        "nonzero_weights": counting.nonzero_weights(model),
    }
