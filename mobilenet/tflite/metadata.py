"""TFLite Metadata of a file: the normalization of its input and the labels of its output.

Schema: tensorflow/tflite-support, metadata_schema.fbs. What is damaged, too large or does not fit
the model is as if it were not there: a file works without its metadata.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mobilenet import archives, strict_json
from mobilenet.configs.card import ACTIVATIONS
from mobilenet.configs.dataset import FROM_METADATA, PREPROCESSING, Preprocessing
from mobilenet.errors import UsageError
from mobilenet.tflite.buffer_reader import BufferReader, MalformedFlatbufferError, Table
from mobilenet.tflite.model import Flatbuffer
from mobilenet.typing import Array

NAME = "TFLITE_METADATA"
IDENTIFIER = b"M001"
PREPROCESSING_NAME = "MOBILENET_PREPROCESSING"  # name and crop, for which the schema has no field
OUTPUTS_NAME = "MOBILENET_OUTPUTS"  # of a sigmoid: `activation`, and `negative`, the other class
AXIS_LABELS = 2  # AssociatedFileType.TENSOR_AXIS_LABELS
NORMALIZATION = 1  # ProcessUnitOptions
_MAX_BYTES = 1 << 24  # also of the labels: a million names
_MAX_JSON_BYTES = 4096
_MAX_MAGNITUDE = 1e6  # of mean and standard deviation, and of its inverse


@dataclasses.dataclass(frozen=True)
class FileMetadata:
    """The metadata of a classifier's file.

    Attributes:
        preprocessing: mean and standard deviation of the input, and the crop where it is stored;
            `None` without them.
        labels: class names by index; empty without them.
        output: the name of the output, such as `probability`.
        activation: what turns logits into probabilities, as on the card; `None` if not stored.
        is_own: this library wrote it, with the name and crop of the preprocessing.
    """

    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    output: str = ""
    activation: str | None = None
    is_own: bool = False


def read(flatbuffer: Flatbuffer, channels: int, classes: int) -> FileMetadata:
    """The metadata of a file with one input and one output.

    Args:
        flatbuffer: the file.
        channels: of its input.
        classes: of its output.
    """
    blob = flatbuffer.metadata.get(NAME, memoryview(b""))
    if bytes(blob[4:8]) != IDENTIFIER or len(blob) > _MAX_BYTES:
        return FileMetadata()
    try:
        return _metadata(bytes(blob), flatbuffer, channels, classes)
    except MalformedFlatbufferError:
        return FileMetadata()


def _metadata(blob: bytes, flatbuffer: Flatbuffer, channels: int, classes: int) -> FileMetadata:
    root = BufferReader(blob).table(int.from_bytes(blob[:4], "little"), "the metadata")
    graphs = root.tables(3, "graph metadata")
    if not graphs:
        return FileMetadata()
    sources, sinks = (graphs[0].tables(slot, "tensor metadata") for slot in (2, 3))
    normalization = _normalization(sources[0], channels) if len(sources) == 1 else None
    stored = None if normalization is None else _stored(flatbuffer, normalization)
    if len(sinks) != 1:
        return FileMetadata(stored or normalization, is_own=stored is not None)
    labels = _labels(sinks[0], flatbuffer.content, classes)
    outputs = _json(flatbuffer, OUTPUTS_NAME)
    negative, activation = outputs.get("negative"), outputs.get("activation")
    if len(labels) == 1 and isinstance(negative, str):
        labels = (negative, *labels)
    return FileMetadata(
        stored or normalization,
        labels,
        sinks[0].text(0, "the name of an output"),
        activation if activation in ACTIVATIONS else None,
        stored is not None,
    )


def _normalization(source: Table, channels: int) -> Preprocessing | None:
    """Mean and standard deviation, with the crop of a known preprocessing that has the same."""
    for unit in source.tables(4, "process unit"):
        options = unit.table(1, "the options of a process unit")
        if unit.number(0, "B") != NORMALIZATION or options is None:
            continue
        mean, std = (options.array(slot, "<f4", "the normalization") for slot in (0, 1))
        if not all(_is_usable(values, channels) for values in (mean, std)):
            return None
        if std.min() < 1 / _MAX_MAGNITUDE:
            return None
        return _named(Preprocessing(FROM_METADATA, tuple(map(float, mean)), tuple(map(float, std))))
    return None


def _named(found: Preprocessing) -> Preprocessing:
    """The known preprocessing of these numbers; an int8 file may have a whole number as mean."""
    for known in PREPROCESSING.values():
        if _is_same(known, found):
            return known
        on_grid = known.replace(mean=tuple(float(round(value)) for value in known.mean))
        if len(known.mean) == 1 and _is_same(on_grid, found):
            return on_grid
    return found


def _is_usable(values: Array, channels: int) -> bool:
    fits = len(values) in (1, channels) and bool(np.isfinite(values).all())
    return fits and float(np.abs(values).max()) <= _MAX_MAGNITUDE


def _is_same(first: Preprocessing, second: Preprocessing) -> bool:
    """Whether mean and standard deviation are equal as the file stores them."""
    with np.errstate(over="ignore"):
        return all(
            np.array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
            for a, b in ((first.mean, second.mean), (first.std, second.std))
        )


def _stored(flatbuffer: Flatbuffer, normalization: Preprocessing) -> Preprocessing | None:
    """The preprocessing with its name and crop, if it has the normalization of the metadata."""
    values = _json(flatbuffer, PREPROCESSING_NAME)
    if not values:
        return None
    try:
        stored = Preprocessing.from_json(values)
        return stored if _is_same(stored, normalization) else None
    except UsageError:
        return None


def _json(flatbuffer: Flatbuffer, name: str) -> dict[str, Any]:
    """An object that this library stored; empty where there is none."""
    blob = flatbuffer.metadata.get(name, memoryview(b""))
    if not 0 < len(blob) <= _MAX_JSON_BYTES:
        return {}
    try:
        values = strict_json.loads(bytes(blob))
    except strict_json.InvalidJSON:
        return {}
    return values if isinstance(values, dict) else {}


def _labels(sink: Table, content: bytes, classes: int) -> tuple[str, ...]:
    """The lines of the label file that is appended to the model, where each class has one."""
    files = [f for f in sink.tables(6, "associated file") if f.number(2, "b") == AXIS_LABELS]
    files.sort(key=lambda file: bool(file.text(3, "a locale")))  # the one of no locale first
    if not files:
        return ()
    data = archives.appended_member(content, files[0].text(0, "a file name"), _MAX_BYTES)
    if data is None:
        return ()
    text = data.decode("utf-8", "replace").removesuffix("\n")
    if text.count("\n") + 1 != classes:
        return ()
    return tuple(line.removesuffix("\r") for line in text.split("\n"))
