"""Writes a model as `frozen_graph.pb`, once the file as written has been compared with the model.

`mobilenet.models.frozen_graph` reads and runs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet import files
from mobilenet.configs.card import Card
from mobilenet.errors import VerificationError
from mobilenet.export import bundle, freeze
from mobilenet.models.frozen_graph import GRAPH, INPUT, OUTPUT, FrozenGraph

TOLERANCE = 1e-5  # of the largest output
_BATCH = 32


def serialize_graph(
    model: Any,
    batch: int | None = 1,
    input_shape: tuple[int, ...] | None = None,
    activation: str | None = None,
) -> bytes:
    """Serializes a model as a frozen graph.

    Args:
        model: a functional model of plain layers; mixed precision and strategies are undone.
        batch: images per call; `None` leaves it open.
        input_shape: `[height, width, channels]` where the model leaves its size open.
        activation: `softmax` or `sigmoid`: probabilities as outputs instead of logits.

    Raises:
        UsageError: see `freeze.float32_copy` and `freeze.freeze`.
    """
    frozen = freeze.freeze(reference_model(model, activation), batch, input_shape)
    graph = frozen.graph.as_graph_def()
    last = frozen.outputs[0].op.name
    for node in graph.node:
        if node.name == last:  # nothing reads it
            node.name = OUTPUT
    return bytes(graph.SerializeToString(deterministic=True))


def reference_model(model: Any, activation: str | None = None) -> Any:
    """The model that a frozen graph is compared with: float32, with logits or an activation."""
    plain = freeze.float32_copy(model)
    return freeze.with_activation(plain, activation)


def check_target(target: str | os.PathLike[str]) -> None:
    """Refuses a folder that cannot be written, or holds other files; see `files.check_target`."""
    files.check_target(target, "target", replaces=(GRAPH, "a frozen graph"))


def write_frozen_graph(
    target: str | os.PathLike[str],
    data: bytes,
    card: Card,
    model: Any,
    images: npt.NDArray[np.float32],
) -> tuple[Path, float]:
    """Writes `frozen_graph.pb`, `card.json` and `labels.txt`, once the written file is verified.

    Args:
        target: the folder; an older export of this kind is replaced.
        data: from `serialize_graph`.
        card: of the model, `outputs` as the file has them.
        model: from `reference_model`.
        images: `[n, height, width, channels]`, preprocessed.

    Returns:
        The path of the file, and the largest difference of an output over the largest output.

    Raises:
        VerificationError: the outputs of the written file differ; nothing is left.
        UsageError: the folder cannot be written or holds other things, or labels and classes
            differ in number.
    """
    check_target(target)
    with files.replacing(target) as temporary:
        temporary.mkdir()
        (temporary / GRAPH).write_bytes(data)
        graph = FrozenGraph(temporary / GRAPH)
        path = Path(target) / GRAPH
        difference = verify(path, lambda batch: graph(batch).numpy(), model, images, TOLERANCE)
        note = f"frozen graph: input {INPUT}:0, output {OUTPUT}:0"
        classes = graph.output_shape[-1]
        bundle.write_float_card(temporary, card, graph.input_shape[1:], classes, note)
    return path, difference


def verify(
    path: Path,
    run: Callable[[Any], Any],
    model: Any,
    images: npt.NDArray[np.float32],
    tolerance: float,
) -> float:
    """Compares the outputs of a float file with those of its model.

    Args:
        path: of the file, in errors.
        run: computes the outputs of the file for images.
        model: that it was written of.
        images: `[n, height, width, channels]`, preprocessed.
        tolerance: of the largest output.

    Returns:
        The largest difference of an output from the model's, over the model's largest output.

    Raises:
        VerificationError: it is above the tolerance, or no number.
    """
    difference, largest = np.float64(0.0), np.float64(0.0)
    for start in range(0, len(images), _BATCH):
        batch = tf.constant(images[start : start + _BATCH])
        expected, outputs = model(batch, training=False).numpy(), run(batch)
        difference = np.maximum(difference, np.abs(outputs - expected).max())  # a NaN stays one
        largest = np.maximum(largest, np.abs(expected).max())
    relative = float(difference / (largest or 1.0))
    if not relative <= tolerance:
        expected = f"outputs within {tolerance:g} of the model's"
        raise VerificationError(str(path), relative, expected, "it was not written")
    return relative
