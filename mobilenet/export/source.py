"""A model that is to be converted: read once, described, and quantized where asked for."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.quantized_model import QuantizedModel
from mobilenet.compression.quantization.post_training import pipeline as post_training_pipeline
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.configs.number_formats import INT8
from mobilenet.configs.quantization import PostTraining
from mobilenet.errors import UsageError
from mobilenet.export import freeze
from mobilenet.export.calibration_data import Calibration
from mobilenet.models import counting, input_preprocessing, saving


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A float model after post-training int8 quantization.

    Attributes:
        quantized: the model with its quantizers, and the steps that were taken.
        original: the float model before, in float32 and without softmax.
        calibration_note: what it was calibrated on.
    """

    quantized: QuantizedModel
    original: Any
    calibration_note: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that is to be converted.

    Attributes:
        loaded: the float model and its card.
        quantized: it has activation ranges, from training or from post-training quantization.
        path: the folder that it was read from; `None` for a model in memory.
        ranges: of a quantized model in memory; of another one they are in its folder.
        repair: whether layers may be changed to avoid faults of the converter.
        fitted: the result of post-training quantization, where that is part of the conversion.
    """

    loaded: saving.LoadedModel
    quantized: bool = False
    path: Path | None = None
    ranges: scheme.Ranges | None = None
    repair: bool = True
    fitted: Fitted | None = None

    @property
    def model(self) -> Any:
        """The float model."""
        return self.loaded.model

    @property
    def card(self) -> Card:
        """The model's card."""
        return self.loaded.card

    def with_quantizers(self, target: str) -> Any:
        """A new model with quantizers, which a conversion may change.

        Args:
            target: see `quantizer_placement.place_quantizers`.

        Raises:
            UsageError: the ranges are damaged, or of another model.
        """
        if self.ranges is not None:
            return int8_saving.assemble(self.loaded, self.ranges, target)
        assert self.path is not None
        return int8_saving.load(self.path, self.loaded, target)

    def with_preprocessing(
        self,
        preprocessing: input_preprocessing.Choice,
        crop: input_preprocessing.Crop,
        data: DatasetConfig,
    ) -> Source:
        """The model with a preprocessing for the images of a data set.

        Args:
            preprocessing, crop: what was given, see `input_preprocessing.complete_card`.
            data: its own preprocessing is assumed where nothing is known.

        Raises:
            UsageError: there is none like it, or the model was quantized for another one.
        """
        name, usual = str(self.path or self.model.name), data.model_preprocessing
        card = input_preprocessing.complete_card(self.card, name, preprocessing, crop, usual)
        own, other = self.card.preprocessing, card.preprocessing
        if self.quantized and (own.mean, own.std) != (other.mean, other.std):
            expected = f"{own.name}, which the model was quantized for"
            raise UsageError("preprocessing", other.name, expected, "leave it out")
        return dataclasses.replace(self, loaded=dataclasses.replace(self.loaded, card=card))

    def without_quantizers(self) -> Source:
        """The float model of a quantized one."""
        card = self.card.replace(keep_float=())
        return Source(dataclasses.replace(self.loaded, card=card), path=self.path)


def open_source(path: str | os.PathLike[str]) -> Source:
    """Reads a model once, for what is asked about it and for its conversion.

    Raises:
        UsageError: see `saving.load`.
    """
    return Source(saving.load(path), int8_saving.has_ranges(path), Path(path))


def source_of(model: saving.LoadedModel) -> Source:
    """A model in memory and its card, as a source; int8 if it is a `QuantizedModel`."""
    if not isinstance(model, QuantizedModel):
        return Source(model)
    loaded = saving.LoadedModel(model.float_model, model.card)
    return Source(loaded, True, ranges=model.ranges, repair=model.repair)


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
    quantized = post_training_pipeline.quantize_model(
        saving.LoadedModel(original, source.card), calibration.images, config, calibration.source
    )
    fitted = Fitted(quantized, original, f"calibrated on {calibration.summary}")
    # The card of the file has the figures of the model that was converted.
    card = quantized.card.replace(metrics=source.card.metrics)
    loaded = saving.LoadedModel(quantized.float_model, card)
    return dataclasses.replace(source_of(quantized), loaded=loaded, fitted=fitted)


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
