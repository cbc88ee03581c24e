"""A quantized net on disk: the float net in a model folder, and `ranges.npz` beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet import files
from mobilenet.archives import load_npz
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.converter_workarounds import Repair, repair
from mobilenet.compression.quantization.int8.quantizer_placement import hard_swish_inside
from mobilenet.errors import UsageError
from mobilenet.models import saving as model_folder
from mobilenet.models.graph.roles import Graph

RANGES = "ranges.npz"


def is_quantized(folder: str | os.PathLike[str]) -> bool:
    """Whether ranges lie beside the model."""
    return (Path(folder) / RANGES).is_file()


def save_ranges(folder: str | os.PathLike[str], ranges: scheme.Ranges) -> None:
    """Writes `ranges.npz`; `/` in a name would become a folder inside it and does not occur."""
    with files.replacing(Path(folder) / RANGES) as temporary:
        np.savez(temporary, allow_pickle=False, **ranges)


def load(
    folder: str | os.PathLike[str],
    net: model_folder.Net | None = None,
    target: str = "xnnpack",
) -> Any:
    """The wrapped net of a quantized model folder, as it was evaluated in training.

    Args:
        folder: the model folder, with `ranges.npz` in it.
        net: what is in it, where it was read before.
        target: see `placement.place`; nets are trained as for `xnnpack`.

    Raises:
        UsageError: no such folder, or ranges that are damaged or of another net.
    """
    net = net or model_folder.load(folder)
    path = Path(folder) / RANGES
    ranges = load_npz(path, "the ranges of a quantized net", "quantize it again")
    try:
        return assembled(net, ranges, target)
    except UsageError as error:
        raise error.within(str(path)) from None


def assembled(net: model_folder.Net, ranges: scheme.Ranges, target: str) -> Any:
    """The wrapped net of a float net and its ranges.

    Args:
        net: float net and card.
        ranges: by layer name, of a net that was made for `xnnpack`.
        target: see `placement.place`.

    Raises:
        UsageError: the ranges are of another net.
    """
    card = net.card
    wrapped = scheme.wrap(net.model, card.preprocessing, target, card.keep_float)
    inside = hard_swish_inside(Graph(net.model)) if target == "generic" else ()
    # Some tensors are not rounded for this target.
    scheme.set_ranges(wrapped, {n: span for n, span in ranges.items() if n not in inside})
    return wrapped


def for_export(wrapped: Any, mend: bool = True) -> list[Repair]:
    """Makes a wrapped net what the converter is given: repaired, on the file's grid. In place.

    Args:
        wrapped: a net from `scheme.wrap` with its ranges set.
        mend: the remedies of `repair`; without them only the ranges of the kernels are stored.
    """
    repaired = repair(wrapped, mend)
    wrapped.phase.exporting = True
    return repaired
