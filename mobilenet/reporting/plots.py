"""Plots of a model's weights, one file a layer."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet import files
from mobilenet.errors import UsageError

_BINS = 80
_INCHES, _DOTS = (6.4, 3.6), 100
_BARS, _ZEROS = "tab:blue", "tab:red"


def check_folder(what: str, folder: str | os.PathLike[str]) -> None:
    """Refuses a path at which there is a file.

    Raises:
        UsageError: names `what`.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        expected = "a folder; a file has that name"
        raise UsageError(what, str(folder), expected, "choose another folder")


def histograms(model: Any, folder: str | os.PathLike[str]) -> list[Path]:
    """Draws how the values of each kernel are spread: `01_Conv2d_0.png` and so on.

    Exact zeros are a bar of their own, as masks leave them; counts are on a logarithmic scale.

    Args:
        model: a functional model.
        folder: where the files go; those of the same names are replaced.

    Returns:
        The files, in the order of execution.

    Raises:
        UsageError: a weight is not finite, or the folder cannot be written.
    """
    from mobilenet.models.graph.roles import Graph
    from mobilenet.models.graph.variables import check_finite

    check_folder("folder", folder)
    check_finite(model)
    paths = []
    for number, (layer, role, kernel) in enumerate(Graph(model).kernels(), start=1):
        path = Path(folder) / f"{number:02d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', layer.name)}.png"
        with files.replacing(path) as temporary:
            _draw(temporary, f"{layer.name} ({role})", kernel)
        paths.append(path)
    return paths


def counted(
    kernel: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], int]:
    """Counts of nonzero values, the bounds of their bins, and how many are zero."""
    filled = kernel[kernel != 0].astype(np.float64)
    counts, edges = np.histogram(filled, _BINS)
    return counts, edges, kernel.size - filled.size


def _draw(path: Path, title: str, kernel: npt.NDArray[np.float32]) -> None:
    from matplotlib.figure import Figure

    counts, edges, empty = counted(kernel)
    figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained")
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True, color=_BARS, label=f"{kernel.size - empty:,} others")
    if empty:
        label = f"{empty:,} zeros, {100 * empty / kernel.size:.1f} %"
        axes.bar(0, empty, width=edges[1] - edges[0], color=_ZEROS, label=label)
    axes.set(title=title, xlabel="weight", ylabel="weights", yscale="log")
    axes.legend(loc="upper right")
    figure.savefig(path)
