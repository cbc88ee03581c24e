"""The export folder: flatbuffer, card, labels, and a README that shows how to run it."""

from __future__ import annotations

import os
from pathlib import Path

from mobilenet import files
from mobilenet.configs.card import (
    CARD,
    SIGMOID,
    Card,
    TensorType,
    class_count,
    class_numbers,
    known_activation,
)
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.export import tflite_metadata
from mobilenet.export.verification.verify import Verification
from mobilenet.runtime.classifier import LABELS, MODEL

README = "README.md"
_INT8_MEAN = 128.0  # of an int8 file: quantized value = pixel - 128


def write_export(
    folder: str | os.PathLike[str], data: bytes, card: Card, verification: Verification
) -> Path:
    """Writes `model.tflite`, `card.json`, `labels.txt` and `README.md`, all or nothing.

    Args:
        folder: the export folder; an existing one is replaced.
        data: the flatbuffer.
        card: of the model that was converted; shape, input, output and preprocessing are updated.
        verification: the result of `verify` for `data`.

    Returns:
        The path of the flatbuffer.

    Raises:
        UsageError: the folder cannot be written, or labels and classes differ in number.
    """
    card = export_card(card, verification)
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / MODEL).write_bytes(data)
        files.write_json(temporary / CARD, card.to_json())
        files.write_text(temporary / LABELS, "".join(f"{label}\n" for label in card.labels))
        files.write_text(temporary / README, readme(card, verification))
    return Path(folder) / MODEL


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


def readme(card: Card, verification: Verification) -> str:
    """The README of the export folder; its Python block runs as printed, in this folder."""
    name = card.title
    height, width, channels = card.input_shape
    operators = ", ".join(f"{count} {op}" for op, count in sorted(verification.operators.items()))
    rows = [
        ("contents", verification.contents),
        ("input", f"{_describe_io(verification.input)}, {height} x {width} x {channels}"),
        (
            "output",
            f"{_describe_io(verification.output)}, {verification.output_shape[-1]} {card.outputs}"
            f"{' of a sigmoid' if card.activation == SIGMOID else ''}",
        ),
        ("bytes", f"{verification.bytes:,} ({verification.gzip_bytes:,} under gzip)"),
        ("delegate partitions", str(verification.partitions)),
        (f"same {card.decided} as the Keras model", verification.same_decision),
        *_operator_rows(verification),
        *((f"held-out {key}", f"{value:.2f}") for key, value in sorted(card.metrics.items())),
        ("operators", operators),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    trained = f", trained on {card.dataset}" if card.dataset else ""
    return f"""# {name}

TensorFlow Lite flatbuffer ({verification.contents}) of {name}{trained}.
`card.json` describes how an image becomes its input, `labels.txt` names its classes.

| what | value |
|---|---|
{table}

Run it with `pip install ai-edge-litert numpy pillow`:

```python
{snippet(card, verification.input_shape[0], verification.output_shape[-1])}
```
"""


def _operator_rows(verification: Verification) -> list[tuple[str, str]]:
    if not verification.layers:
        return []
    steps = max(layer.max_steps for layer in verification.layers)
    text = f"{len(verification.layers)}, at most {steps} steps from their simulated layers"
    return [("operators verified one by one", text)]


def snippet(card: Card, batch: int = 1, outputs: int | None = None) -> str:
    """Python that classifies `photo.jpg`: crop, bilinear resize (half-pixel), quantize, top-1.

    Args:
        card: of the file.
        batch: images a call.
        outputs: of the file, where they are those of a sigmoid: the program prints probabilities.
    """
    height, width, channels = card.input_shape
    assert card.input is not None
    assert card.output is not None
    name, source = card.outputs, tflite_metadata.IMAGES
    is_turned, opened = card.preprocessing.exif, 'Image.open("photo.jpg")'
    if is_turned:
        opened = f"ImageOps.exif_transpose({opened})"
    repeated = f".repeat({batch}, axis=0)" if batch > 1 else ""
    lines = [
        "import numpy as np",
        "from ai_edge_litert.interpreter import Interpreter",
        "from PIL import Image, ImageOps" if is_turned else "from PIL import Image",
        "",
        f'image = {opened}.convert("{"L" if channels == 1 else "RGB"}")',
        *_crop(card.preprocessing, min(height, width)),
        f"size, box = ({width}, {height}), (0, 0, *image.size)",
        "how = size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR",
        'bands = [band.convert("F").transform(*how) for band in image.split()]',
        f"batch = {_input_expression(card.preprocessing, card.input)}[None]{repeated}",
        f'model = Interpreter("{MODEL}")',
        f'{name} = model.get_signature_runner()({source}=batch)["{name}"][0]',
    ]
    if card.output.scale:
        zero, scale = card.output.zero_point, card.output.scale
        lines.append(f"{name} = ({name}.astype(np.float32) - {zero}) * {scale!r}")
    lines.append(f'labels = open("{LABELS}", encoding="utf-8").read().splitlines()')
    if card.activation != SIGMOID:
        return "\n".join([*lines, f"print(labels[{name}.argmax()])"])
    if card.outputs == "logits":
        lines.append(f"probabilities = 1 / (1 + np.exp(-{name}))")
    if outputs == 1:
        lines.append("probabilities = np.append(1 - probabilities, probabilities)")
    lines.append('rows = [f"{p:.2%} {label}" for p, label in zip(probabilities, labels)]')
    return "\n".join([*lines, 'print("\\n".join(rows))'])


def _input_expression(preprocessing: Preprocessing, source: TensorType) -> str:
    """The expression that turns `bands` into the file's input."""
    pixels = "np.stack(bands, axis=-1)"
    normal = f"({pixels} - {_literal(preprocessing.mean)}) / {_literal(preprocessing.std)}"
    if not source.scale:
        return f"({normal}).astype(np.float32)"
    if set(preprocessing.mean) == {_INT8_MEAN} and abs(source.scale * 127.5 - 1) < 1e-6:
        shift = f" - {128 - source.zero_point}" if source.zero_point != 128 else ""
        return f"(np.round({pixels}){shift}).astype(np.{source.dtype})"
    low, high = (0, 255) if source.dtype == "uint8" else (-128, 127)
    values = f"np.round({normal} / {source.scale!r}) + {source.zero_point}"
    return f"np.clip({values}, {low}, {high}).astype(np.{source.dtype})"


def _crop(preprocessing: Preprocessing, size: int) -> list[str]:
    if preprocessing.crop == "central":
        share = preprocessing.crop_fraction
        return [
            "w, h = image.size",
            f"x, y = int((w - w * {share}) / 2), int((h - h * {share}) / 2)  # {share:.1%}",
            "image = image.crop((x, y, w - x, h - y))",
        ]
    if preprocessing.crop == "square":
        return [
            "w, h = image.size",
            f"side = int({size} / {size + 32} * min(w, h))",
            "x, y = (w - side + 1) // 2, (h - side + 1) // 2",
            "image = image.crop((x, y, x + side, y + side))",
        ]
    return []


def _literal(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"np.array({list(values)})"


def _describe_io(tensor: TensorType) -> str:
    dtype, scale, zero = tensor.dtype, tensor.scale, tensor.zero_point
    return f"{dtype}, scale {scale:.6g}, zero point {zero}" if scale else dtype
