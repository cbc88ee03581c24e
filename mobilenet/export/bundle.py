"""The folder that travels: flatbuffer, card, labels, and a README that shows how to run it."""

from __future__ import annotations

import os
from pathlib import Path

from mobilenet import files
from mobilenet.configs.card import Card, Edge
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.export.verification.verify import Verification

MODEL, CARD, LABELS, README = "model.tflite", "card.json", "labels.txt", "README.md"
_PIXEL_CODES = 128.0  # mean of an int8 file: code = pixel - 128


def write_export(
    folder: str | os.PathLike[str], data: bytes, card: Card, verification: Verification
) -> Path:
    """Writes `model.tflite`, `card.json`, `labels.txt` and `README.md`, all or nothing.

    Args:
        folder: the export folder; one that is there is replaced.
        data: the flatbuffer.
        card: of the model that was converted; shape, ends and preprocessing are brought up to date.
        verification: what `verify` found in `data`.

    Returns:
        The path of the flatbuffer.

    Raises:
        UsageError: the folder cannot be written, or the labels are not as many as the classes.
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
    """The card of the flatbuffer: its ends, shape, a label a class, the mean of its codes.

    Args:
        card: of the model; `outputs` says already what the file gives.
        verification: what was found in the file.
    """
    content_card = file_card(card, verification.output_shape[-1], verification.quantized)
    return content_card.replace(
        input_shape=verification.input_shape[1:],
        stage="convert",
        input=verification.input,
        output=verification.output,
    )


def file_card(card: Card, classes: int, quantized: bool) -> Card:
    """What `attach` and `export_card` share: a label a class, the preprocessing of the codes.

    Raises:
        UsageError: the labels are not as many as the classes.
    """
    labels = tuple(" ".join(label.split()) for label in card.labels)
    if labels and len(labels) != classes:
        raise UsageError("labels", len(labels), f"{classes}, as many as the file has classes")
    return card.replace(
        preprocessing=_coded(card.preprocessing) if quantized else card.preprocessing,
        labels=labels or tuple(str(i) for i in range(classes)),
    )


def _coded(preprocessing: Preprocessing) -> Preprocessing:
    """A mean for all channels becomes 128: a pixel falls on a code, not between two."""
    if len(set(preprocessing.mean)) == 1 and len(set(preprocessing.std)) == 1:
        return preprocessing.replace(mean=tuple(_PIXEL_CODES for _ in preprocessing.mean))
    return preprocessing


def readme(card: Card, verification: Verification) -> str:
    """The text that goes with the file; its Python block runs as it stands, in this folder."""
    name = str(card.architecture.get("type", "net")).removesuffix("Config")
    height, width, channels = card.input_shape
    operators = ", ".join(f"{count} {op}" for op, count in sorted(verification.operators.items()))
    rows = [
        ("contents", verification.contents),
        ("input", f"{_end(verification.input)}, {height} x {width} x {channels}"),
        ("output", f"{_end(verification.output)}, {verification.output_shape[-1]} {card.outputs}"),
        ("bytes", f"{verification.bytes:,} ({verification.gzip_bytes:,} under gzip)"),
        ("delegate partitions", str(verification.partitions)),
        (
            "same top-1 as the Keras model",
            f"{verification.agreement:.2%} of {verification.images} images",
        ),
        *_operator_rows(verification),
        *((f"held-out {key}", f"{value:.2f}") for key, value in sorted(card.metrics.items())),
        ("operators", operators),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    trained = f", trained on {card.dataset}" if card.dataset else ""
    return f"""# {name}

TensorFlow Lite flatbuffer ({verification.contents}) of {name}{trained}.
`card.json` says how an image becomes its input, `labels.txt` names its classes.

| what | value |
|---|---|
{table}

Run it with `pip install ai-edge-litert numpy pillow`:

```python
{snippet(card, verification.input_shape[0])}
```
"""


def _operator_rows(verification: Verification) -> list[tuple[str, str]]:
    if not verification.layers:
        return []
    steps = max(layer.max_steps for layer in verification.layers)
    text = f"{len(verification.layers)}, at most {steps} codes from their simulated layers"
    return [("operators verified one by one", text)]


def snippet(card: Card, batch: int = 1) -> str:
    """Python that classifies `photo.jpg`: crop, bilinear resize (half-pixel), codes, top-1."""
    height, width, channels = card.input_shape
    assert card.input is not None
    assert card.output is not None
    name = card.outputs
    repeated = f".repeat({batch}, axis=0)" if batch > 1 else ""
    codes = 'model.get_tensor(model.get_output_details()[0]["index"])[0]'
    lines = [
        "import numpy as np",
        "from ai_edge_litert.interpreter import Interpreter",
        "from PIL import Image",
        "",
        f'image = Image.open("photo.jpg").convert("{"L" if channels == 1 else "RGB"}")',
        *_crop(card.preprocessing, min(height, width)),
        f"size, box = ({width}, {height}), (0, 0, *image.size)",
        "how = size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR",
        'bands = [band.convert("F").transform(*how) for band in image.split()]',
        f"batch = {_coding(card.preprocessing, card.input)}[None]{repeated}",
        f'model = Interpreter("{MODEL}")',
        "model.allocate_tensors()",
        'model.set_tensor(model.get_input_details()[0]["index"], batch)',
        "model.invoke()",
        f"{name} = {codes}",
    ]
    if card.output.scale:
        zero, scale = card.output.zero_point, card.output.scale
        lines.append(f"{name} = ({name}.astype(np.float32) - {zero}) * {scale!r}")
    lines.append(f'labels = open("{LABELS}", encoding="utf-8").read().splitlines()')
    return "\n".join([*lines, f"print(labels[{name}.argmax()])"])


def _coding(way: Preprocessing, edge: Edge) -> str:
    """The expression that turns `bands` into what the file's input takes."""
    pixels = "np.stack(bands, axis=-1)"
    normal = f"({pixels} - {_literal(way.mean)}) / {_literal(way.std)}"
    if not edge.scale:
        return f"({normal}).astype(np.float32)"
    if set(way.mean) == {_PIXEL_CODES} and abs(edge.scale * 127.5 - 1) < 1e-6:
        shift = f" - {128 - edge.zero_point}" if edge.zero_point != 128 else ""
        return f"(np.round({pixels}){shift}).astype(np.{edge.dtype})"
    low, high = (0, 255) if edge.dtype == "uint8" else (-128, 127)
    codes = f"np.round({normal} / {edge.scale!r}) + {edge.zero_point}"
    return f"np.clip({codes}, {low}, {high}).astype(np.{edge.dtype})"


def _crop(way: Preprocessing, size: int) -> list[str]:
    if way.crop == "central":
        share = way.crop_fraction
        return [
            "w, h = image.size",
            f"x, y = int((w - w * {share}) / 2), int((h - h * {share}) / 2)  # {share:.1%}",
            "image = image.crop((x, y, w - x, h - y))",
        ]
    if way.crop == "square":
        return [
            "w, h = image.size",
            f"side = int({size} / {size + 32} * min(w, h))",
            "x, y = (w - side + 1) // 2, (h - side + 1) // 2",
            "image = image.crop((x, y, x + side, y + side))",
        ]
    return []


def _literal(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"np.array({list(values)})"


def _end(edge: Edge) -> str:
    dtype, scale, zero = edge.dtype, edge.scale, edge.zero_point
    return f"{dtype}, scale {scale:.6g}, zero point {zero}" if scale else dtype
