"""TFLite Metadata in the file: the meaning of input and output, and the labels appended to it.

Apps that use the Task Library or MediaPipe read how an image becomes the input, and the class
names, from the file alone. Schema: tensorflow/tflite-support, metadata_schema.fbs; the Python
package of that name is no longer maintained, and the few tables needed here are written directly.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np

from mobilenet.configs.card import SIGMOID, Card
from mobilenet.export.rewrites import tensor_names
from mobilenet.tflite import editor
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite.metadata import (
    AXIS_LABELS,
    IDENTIFIER,
    NAME,
    NORMALIZATION,
    OUTPUTS_NAME,
    PREPROCESSING_NAME,
)

LABELS = "labels.txt"
IMAGES = "images"  # name of the input
_PARSER = "1.0.0"  # the oldest reader that knows these tables
_RGB, _GRAYSCALE = 1, 2  # ColorSpaceType
_FEATURES, _IMAGE = 1, 2  # ContentProperties
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the file depends on the model alone


def attach(data: bytes, card: Card) -> bytes:
    """Adds names of tensors, a signature and metadata to a flatbuffer, and appends its labels.

    The signature `serving_default` has the input `images` and an output named as on the card.

    Args:
        data: the file as converted.
        card: preprocessing, labels and meaning of the outputs; of the file, not of the float model.
    """
    schema = tflite_model.schema()
    model = editor.open_flatbuffer(data)
    content = tflite_model.read(data)
    tensor_names.rename(model, content, IMAGES, card.outputs)
    editor.set_signature(model, [IMAGES], [card.outputs])
    blobs = {
        NAME: model_metadata(card, content.tensors[content.inputs[0]].shape),
        PREPROCESSING_NAME: json.dumps(card.preprocessing.to_json()).encode(),
    }
    labels = _output_labels(card, content.tensors[content.outputs[0]].shape[-1])
    if card.activation == SIGMOID:
        stored = {"activation": SIGMOID}
        if len(labels) < len(card.labels):
            stored["negative"] = card.labels[0]
        blobs[OUTPUTS_NAME] = json.dumps(stored).encode()
    for name, blob in blobs.items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(blob, np.uint8)
        entry.name, entry.buffer = name, len(model.buffers)
        model.buffers = [*model.buffers, buffer]
        model.metadata = [*(model.metadata or []), entry]
    output = io.BytesIO()
    output.write(editor.pack_flatbuffer(model))
    with zipfile.ZipFile(output, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(
            zipfile.ZipInfo(LABELS, _EARLIEST), "".join(f"{label}\n" for label in labels)
        )
    return output.getvalue()


def _output_labels(card: Card, outputs: int) -> tuple[str, ...]:
    """A name for each output: of one output that of the second class, whose it is."""
    return card.labels[-1:] if outputs == 1 else card.labels


def model_metadata(card: Card, shape: Sequence[int]) -> bytes:
    """The metadata as a flatbuffer of its own.

    Args:
        card: of the file.
        shape: of its input, `[batch, height, width, channels]`.
    """
    tables = _Tables()
    size = tables.table([_uint(shape[2]), _uint(shape[1])])
    color = _RGB if shape[3] == 3 else _GRAYSCALE
    image = tables.table([_byte(color), _part(size)])
    mean, std = (
        np.asarray(v, np.float32) for v in (card.preprocessing.mean, card.preprocessing.std)
    )
    options = tables.table([_part(tables.floats(mean)), _part(tables.floats(std))])
    unit = tables.table([_union(NORMALIZATION), _part(options)])
    stats = tables.table(
        [_part(tables.floats((255 - mean) / std)), _part(tables.floats((0 - mean) / std))]
    )
    source = tables.table(
        [
            _part(tables.text("image")),
            _part(tables.text("Pixels, normalized by (pixel - mean) / std.")),
            None,
            _part(tables.table([_union(_IMAGE), _part(image)])),
            _part(tables.parts([unit])),
            _part(stats),
        ]
    )
    sink = _output(tables, card)
    graph = tables.table([None, None, _part(tables.parts([source])), _part(tables.parts([sink]))])
    trained = f", trained on {card.dataset}" if card.dataset else ""
    root = tables.table(
        [
            _part(tables.text(card.title)),
            _part(tables.text(f"Image classifier{trained}.")),
            _part(tables.text("1")),
            _part(tables.parts([graph])),
            None,
            None,
            None,
            _part(tables.text(_PARSER)),
        ]
    )
    return tables.finish(root)


def _output(tables: _Tables, card: Card) -> int:
    labels = tables.table(
        [
            _part(tables.text(LABELS)),
            _part(tables.text("Class names by index.")),
            _byte(AXIS_LABELS),
        ]
    )
    name = "probability" if card.outputs == "probabilities" else card.outputs
    return tables.table(
        [
            _part(tables.text(name)),
            _part(tables.text(_describe_output(card))),
            None,
            _part(tables.table([_union(_FEATURES), _part(tables.table([]))])),
            None,
            None,
            _part(tables.parts([labels])),
        ]
    )


def _describe_output(card: Card) -> str:
    if card.activation == SIGMOID:
        formula = ": 1 / (1 + exp(-logit)) is a probability" if card.outputs == "logits" else ""
        return f"The {card.outputs} of a sigmoid, of each label by itself{formula}."
    return f"The {card.outputs} of {len(card.labels)} classes."


@dataclasses.dataclass(frozen=True)
class _Field:
    """A value of a table and the builder's method that stores it."""

    method: str
    value: int


def _byte(value: int) -> _Field:
    return _Field("PrependInt8Slot", value)


def _union(value: int) -> _Field:
    return _Field("PrependUint8Slot", value)


def _uint(value: int) -> _Field:
    return _Field("PrependUint32Slot", int(value))


def _part(offset: int) -> _Field:
    return _Field("PrependUOffsetTRelativeSlot", offset)


class _Tables:
    """Builds a flatbuffer from its leaves to its root."""

    def __init__(self) -> None:
        self._builder = flatbuffers.Builder(1024)

    def text(self, value: str) -> int:
        return int(self._builder.CreateString(value))

    def floats(self, values: Any) -> int:
        return int(self._builder.CreateNumpyVector(np.asarray(values, np.float32)))

    def parts(self, offsets: Sequence[int]) -> int:
        self._builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._builder.PrependUOffsetTRelative(offset)
        return int(self._builder.EndVector())

    def table(self, fields: Sequence[_Field | None]) -> int:
        """A table whose slots are `fields` in order; `None` leaves one out."""
        self._builder.StartObject(len(fields))
        for slot, field in enumerate(fields):
            if field is not None:
                getattr(self._builder, field.method)(slot, field.value, 0)
        return int(self._builder.EndObject())

    def finish(self, root: int) -> bytes:
        self._builder.Finish(root, IDENTIFIER)
        return bytes(self._builder.Output())
