"""Figures of the operators of a file as overlays for Model Explorer, which colors its graph by
them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet import files
from mobilenet.reporting import tflite_profile
from mobilenet.tflite import kernels
from mobilenet.tflite import model as tflite_model

if TYPE_CHECKING:
    from mobilenet.reporting.int8_comparison import TensorComparison

# Up to this value a node has this color; the same limits in every file, so that files compare.
_NOISE_COLORS = (
    *((10, "#b44a00"), (20, "#e58a3c"), (30, "#f7c98f"), (40, "#d3e5f2")),
    (200, "#8fc1e3"),
)
_SPARSITY_COLORS = (
    *((1, "#ffffff"), (25, "#dceaf5"), (50, "#a9d0ea"), (75, "#56b4e9"), (90, "#0072b2")),
    (100, "#003f63"),
)


@dataclasses.dataclass(frozen=True)
class Overlay:
    """A figure of some nodes of a graph.

    Attributes:
        file: name of the JSON file.
        name: as Model Explorer shows it, with the unit.
        values: by the name of an operator's output tensor.
        colors: upper bounds in ascending order, and the color of the nodes up to each.
    """

    file: str
    name: str
    values: Mapping[str, float]
    colors: Sequence[tuple[float, str]]

    def to_json(self) -> dict[str, Any]:
        """Node data of one graph, as ai-edge-model-explorer's `node_data_builder.py` has it."""
        return {
            "name": self.name,
            "results": {tensor: {"value": value} for tensor, value in self.values.items()},
            "thresholds": [{"value": most, "bgColor": color} for most, color in self.colors],
        }


def noise(lines: Sequence[TensorComparison]) -> Overlay:
    """The signal-to-noise ratio of each quantized tensor against the float model, in dB.

    A tensor that is always zero has none.
    """
    ratios = {x.tensor: round(x.accumulated, 2) for x in lines if x.accumulated is not None}
    return Overlay("quantization_noise.json", "signal to noise (dB)", ratios, _NOISE_COLORS)


def sparsity(content: tflite_model.Flatbuffer) -> Overlay:
    """The share of zeros in the kernel of each convolution and dense layer of a file, in %.

    They are those of the kernel as it is stored: one for pairs of pixels has some more.
    """
    shares = {}
    for operator in content.operators:
        kernel = kernels.stored_kernel(operator, content)
        zeros = None if kernel is None else tflite_profile.count_values(kernel)[0]
        if kernel is not None and zeros is not None:
            share = 100 * zeros / max(kernel.elements, 1)
            shares[content.tensors[operator.outputs[0]].name] = round(share, 2)
    return Overlay("sparsity.json", "sparsity (%)", shares, _SPARSITY_COLORS)


def write(overlays: Sequence[Overlay], folder: str | os.PathLike[str]) -> list[Path]:
    """Writes a JSON file for each overlay; an earlier one of the same name is replaced.

    Raises:
        UsageError: names `overlay`: the folder cannot be written.
    """
    files.check_target(folder, "overlay")
    paths = [Path(folder) / overlay.file for overlay in overlays]
    for path, overlay in zip(paths, overlays, strict=True):
        files.write_json(path, overlay.to_json())
    return paths
