"""The export folder: flatbuffer, card, labels, and a README that is its model card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from mobilenet import files
from mobilenet.configs.card import (
    CARD,
    README,
    Card,
    TensorType,
    class_count,
    class_numbers,
    known_activation,
)
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.export import model_card
from mobilenet.export.verification.verify import Verification
from mobilenet.runtime.classifier import LABELS, MODEL


def write_export(
    folder: str | os.PathLike[str],
    data: bytes,
    card: Card,
    verification: Verification,
    sources: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Writes `model.tflite`, `card.json`, `labels.txt` and `README.md`, all or nothing.

    Args:
        folder: the export folder; an existing one is replaced.
        data: the flatbuffer.
        card: of the model that was converted; shape, input, output and preprocessing are updated.
        verification: the result of `verify` for `data`.
        sources: text of further files by name.

    Returns:
        The path of the flatbuffer.

    Raises:
        UsageError: the folder cannot be written, or labels and classes differ in number.
    """
    card = export_card(card, verification)
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / MODEL).write_bytes(data)
        _write_card(temporary, card)
        files.write_text(temporary / README, model_card.render(card, verification))
        for name, text in sources.items():
            files.write_text(temporary / name, text)
    return Path(folder) / MODEL


def write_float_card(
    folder: Path, card: Card, input_shape: tuple[int, ...], classes: int, note: str
) -> None:
    """Writes `card.json` and `labels.txt` of a float file that is no flatbuffer.

    Args:
        folder: of the file.
        card: of the model.
        input_shape: `[height, width, channels]` of the file.
        classes: outputs of the file.
        note: about the file.

    Raises:
        UsageError: labels and classes differ in number.
    """
    card = file_card(card, classes, quantized=False).replace(
        input_shape=input_shape,
        stage="convert",
        input=TensorType(),
        output=TensorType(),
        notes=(*card.notes, note),
    )
    _write_card(folder, card)


def _write_card(folder: Path, card: Card) -> None:
    files.write_json(folder / CARD, card.to_json())
    files.write_text(folder / LABELS, "".join(f"{label}\n" for label in card.labels))


def export_card(card: Card, verification: Verification) -> Card:
    """The card of the flatbuffer, with its input, output, shape, labels and preprocessing.

    Args:
        card: of the model, with the `outputs` of the file.
        verification: of the file.
    """
    updated = file_card(card, verification.output_shape[-1], verification.quantized)
    return updated.replace(
        input_shape=verification.input_shape[1:],
        stage="convert",
        input=verification.input,
        output=verification.output,
    )


def file_card(card: Card, classes: int, quantized: bool) -> Card:
    """The card with a label per class, the activation, and the preprocessing of the file.

    Args:
        card: of the model.
        classes: outputs of the file.
        quantized: it is int8 inside.

    Raises:
        UsageError: labels and classes differ in number.
    """
    labels = tuple(" ".join(label.split()) for label in card.labels)
    if labels and len(labels) != class_count(classes):
        expected = f"{class_count(classes)}, as many as the file has classes"
        raise UsageError("labels", len(labels), expected)
    return card.replace(
        preprocessing=_int8_preprocessing(card.preprocessing) if quantized else card.preprocessing,
        assumed=card.assumed,
        labels=labels or class_numbers(classes),
        activation=known_activation(card.activation, classes),
    )


def _int8_preprocessing(preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing with a whole number as mean of all channels: pixels become integers."""
    if len(set(preprocessing.mean)) == 1 and len(set(preprocessing.std)) == 1:
        return preprocessing.replace(mean=tuple(float(round(x)) for x in preprocessing.mean))
    return preprocessing
