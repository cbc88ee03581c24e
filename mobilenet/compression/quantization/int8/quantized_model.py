"""A quantized model in memory: the model with quantizers, its float model and its card."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet import files
from mobilenet.compression.quantization.int8 import float_layers, saving, scheme
from mobilenet.configs.card import Card, QuantizationStep
from mobilenet.models import saving as model_folder


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedModel(model_folder.LoadedModel):
    """A model with quantizers, from post-training quantization or from training (QAT).

    Attributes:
        model: with quantizers; computes as the int8 file will, from the inputs of the float model.
            Outputs are logits.
        card: preprocessing, labels, and how the model was quantized.
        float_model: the same weights without quantizers.
        steps: of post-training quantization, in order, rejected ones too; empty after QAT.
        repair: whether a conversion may change layers to avoid faults of the converter.
    """

    float_model: Any
    steps: tuple[QuantizationStep, ...] = ()
    repair: bool = True

    def __str__(self) -> str:
        count = len(self.ranges)
        first = f"{self.float_model.name}, quantized: int8 weights, ranges of {count} activations"
        return "\n".join([first, *map(str, self.steps)])

    @property
    def ranges(self) -> scheme.Ranges:
        """The range `[low, high]` of each quantized activation, by layer name."""
        return scheme.get_ranges(self.model)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Writes `model.keras`, `card.json` and `ranges.npz` as one folder, whole or not at all.

        `mobilenet.load_model` reads it, with its quantizers.

        Args:
            path: the folder.
            overwrite: replace a model that is there.

        Returns:
            The folder.

        Raises:
            UsageError: there is a model and `overwrite` is false, the folder holds other files, or
                it cannot be written.
        """
        marker = (model_folder.MODEL, "a model")
        files.check_target(path, "path", replaces=marker, overwrite=overwrite)
        saving.save_stage(self.float_model, path, self.card, self.ranges)
        return Path(path)


def quantized_model(
    wrapped: Any,
    float_model: Any,
    card: Card,
    steps: Sequence[QuantizationStep] = (),
    repair: bool = True,
) -> QuantizedModel:
    """A quantized model whose card describes its quantization.

    Args:
        wrapped: the model with quantizers from `scheme.wrap`, its ranges set.
        float_model: the model without quantizers, with the same weights, in float32 and outside any
            distribution strategy.
        card: of the model that was quantized; its metrics, which are not those of the quantized
            model, are left out.
        steps: of post-training quantization.
        repair: see `QuantizedModel`.

    Raises:
        UsageError: a range was never set.
    """
    scheme.check_ranges(scheme.get_ranges(wrapped))
    card = card.replace(
        stage="quantize",
        outputs="features" if card.outputs == "features" else "logits",
        metrics={},
        keep_float=float_layers.find_float_layers(wrapped),
        quantization_steps=tuple(steps),
    )
    return QuantizedModel(wrapped, card, float_model, tuple(steps), repair)


def assemble(
    float_model: Any, ranges: scheme.Ranges, card: Card, steps: Sequence[QuantizationStep] = ()
) -> QuantizedModel:
    """A quantized model from a float model and ranges, as they are stored.

    Its model with quantizers is a new one in float32, so it does not depend on the one that was
    trained, nor on a distribution strategy.

    Args:
        float_model: with the weights as trained, in float32 and outside any strategy.
        ranges: by layer name, from `scheme.get_ranges`.
        card: of the model; its `keep_float` names the layers that compute in float.
        steps: of post-training quantization.

    Raises:
        UsageError: the ranges are of another model, or one was never set.
    """
    loaded = model_folder.LoadedModel(float_model, card)
    return quantized_model(saving.assemble(loaded, ranges, "xnnpack"), float_model, card, steps)


def load(
    path: str | os.PathLike[str], loaded: model_folder.LoadedModel | None = None
) -> QuantizedModel:
    """Reads a folder that `QuantizedModel.save` or a stage wrote.

    Args:
        path: the folder.
        loaded: its float model and card, if they are loaded already.

    Raises:
        UsageError: there is no quantized model, or it is damaged.
    """
    loaded = loaded or model_folder.load(path)
    wrapped = saving.load(path, loaded)
    return QuantizedModel(wrapped, loaded.card, loaded.model, loaded.card.quantization_steps)
