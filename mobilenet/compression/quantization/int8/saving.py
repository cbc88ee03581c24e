"""A quantized model on disk: a model folder of the float model, with `ranges.npz` in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet import files
from mobilenet.archives import load_npz
from mobilenet.compression.quantization.int8 import float_layers, scheme
from mobilenet.compression.quantization.int8.converter_workarounds import Repair, repair_layers
from mobilenet.compression.quantization.int8.quantizer_placement import hard_swish_inner_layers
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError
from mobilenet.models import saving as model_folder
from mobilenet.models.graph.roles import Graph, is_quantized

RANGES = "ranges.npz"


def has_ranges(folder: str | os.PathLike[str]) -> bool:
    """Whether a model folder holds ranges, so that its model is quantized."""
    return (Path(folder) / RANGES).is_file()


def ranges_of(model: Any) -> scheme.Ranges | None:
    """The activation ranges of a quantized model, `None` for a plain one."""
    return scheme.get_ranges(model) if is_quantized(model) else None


def float_layers_of(model: Any) -> tuple[str, ...]:
    """The layers with a kernel of a quantized model that compute in float; none of a plain one."""
    return float_layers.find_float_layers(model) if is_quantized(model) else ()


def save_ranges(folder: str | os.PathLike[str], ranges: scheme.Ranges) -> None:
    """Writes `ranges.npz`, an array `[low, high]` for each activation, named after its layer."""
    with files.replacing(Path(folder) / RANGES) as temporary:
        np.savez(temporary, allow_pickle=False, **ranges)


def read_ranges(folder: str | os.PathLike[str]) -> scheme.Ranges | None:
    """The ranges in a model folder, as they are stored; `None` where there are none.

    Raises:
        UsageError: they are damaged.
    """
    if not has_ranges(folder):
        return None
    return load_npz(Path(folder) / RANGES, "the ranges of a quantized model", "quantize it again")


def save_stage(
    model: Any, target: str | os.PathLike[str], card: Card, ranges: scheme.Ranges | None
) -> None:
    """Writes the folder of a stage, whole or not at all.

    Args:
        model: the plain model.
        target: the folder.
        card: of the model.
        ranges: of a quantized model; `None` for a float one.
    """
    with files.replacing(target) as temporary:
        model_folder.save(model, temporary, card)
        if ranges is not None:
            save_ranges(temporary, ranges)


def load(
    folder: str | os.PathLike[str],
    model: model_folder.LoadedModel | None = None,
    target: str = "xnnpack",
) -> Any:
    """Loads the wrapped model of a quantized model folder, as it was evaluated in training.

    Args:
        folder: the model folder, with `ranges.npz` in it.
        model: its float model and card, if they are loaded already.
        target: see `quantizer_placement.place_quantizers`; models are trained as for `xnnpack`.

    Raises:
        UsageError: no such folder, or ranges that are damaged or of another model.
    """
    model = model or model_folder.load(folder)
    path = Path(folder) / RANGES
    ranges = read_ranges(folder)
    if ranges is None:
        raise UsageError(str(path), None, "the ranges of a quantized model", "quantize it again")
    try:
        return assemble(model, ranges, target)
    except UsageError as error:
        raise error.within(str(path)) from None


def assemble(model: model_folder.LoadedModel, ranges: scheme.Ranges, target: str) -> Any:
    """Builds the wrapped model from a float model and its ranges.

    Args:
        model: float model and card.
        ranges: by layer name, of a model that was trained for `xnnpack`.
        target: see `quantizer_placement.place_quantizers`.

    Raises:
        UsageError: the ranges are of another model.
    """
    card = model.card
    wrapped = scheme.wrap(model.model, card.preprocessing, target, card.keep_float)
    inside = hard_swish_inner_layers(Graph(model.model)) if target == "generic" else ()
    # Some tensors are not quantized for this target.
    scheme.set_ranges(wrapped, {n: limits for n, limits in ranges.items() if n not in inside})
    return wrapped


def prepare_export(wrapped: Any, repair: bool = True) -> list[Repair]:
    """Prepares a wrapped model for the converter: repaired, with the file's input grid. In place.

    Args:
        wrapped: a model from `scheme.wrap` with its ranges set.
        repair: see `repair_layers`.
    """
    repairs = repair_layers(wrapped, repair)
    wrapped.phase.exporting = True
    return repairs
