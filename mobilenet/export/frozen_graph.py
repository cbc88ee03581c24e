"""Writes a model as `frozen_graph.pb`, once the file as written has been compared with the model.

`mobilenet.models.frozen_graph` reads and runs it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet import files
from mobilenet.configs.card import CARD, Card, TensorType
from mobilenet.errors import VerificationError
from mobilenet.export import bundle, freeze
from mobilenet.models.frozen_graph import GRAPH, INPUT, OUTPUT, FrozenGraph
from mobilenet.runtime.classifier import LABELS

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
        difference = _relative_difference(graph, model, images)
        if not difference <= TOLERANCE:
            expected = f"outputs within {TOLERANCE:g} of the model's"
            raise VerificationError(
                str(Path(target) / GRAPH), difference, expected, "it was not written"
            )
        card = bundle.file_card(card, graph.output_shape[-1], quantized=False)
        note = f"frozen graph: input {INPUT}:0, output {OUTPUT}:0"
        card = card.replace(
            input_shape=graph.input_shape[1:],
            stage="convert",
            input=TensorType(),
            output=TensorType(),
            notes=(*card.notes, note),
        )
        files.write_json(temporary / CARD, card.to_json())
        labels = "".join(f"{label}\n" for label in card.labels)
        files.write_text(temporary / LABELS, labels)
    return Path(target) / GRAPH, difference


def _relative_difference(graph: FrozenGraph, model: Any, images: npt.NDArray[np.float32]) -> float:
    difference, largest = np.float64(0.0), np.float64(0.0)
    for start in range(0, len(images), _BATCH):
        batch = tf.constant(images[start : start + _BATCH])
        expected, outputs = model(batch, training=False).numpy(), graph(batch).numpy()
        difference = np.maximum(difference, np.abs(outputs - expected).max())  # a NaN stays one
        largest = np.maximum(largest, np.abs(expected).max())
    return float(difference / (largest or 1.0))
