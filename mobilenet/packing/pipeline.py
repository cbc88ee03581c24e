"""Packs a saved model into a file, and unpacks it to a model folder or a float flatbuffer."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

from mobilenet import files
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.quantized_model import QuantizedModel
from mobilenet.configs.base import ImageSize
from mobilenet.configs.card import checked_labels
from mobilenet.configs.conversion import ConversionConfig
from mobilenet.configs.dataset import DatasetConfig, Preprocessing
from mobilenet.data import arrays
from mobilenet.errors import UsageError
from mobilenet.export import bundle, tflite_converter, tflite_metadata
from mobilenet.models import input_preprocessing, saving
from mobilenet.packing import container, fp16_batch_norm, packed_file
from mobilenet.packing import model as packed_model
from mobilenet.packing.packed_file import PackedFile

FLATBUFFER = ".tflite"
_FOLDED_NOTE = "batch norms folded to a scale and an offset of float16; figures are from before"
Rows = list[tuple[str, object]]


def pack_saved_model(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    fold: bool = False,
    images: int = 16,
    data_of: Callable[[str], DatasetConfig] | None = None,
    image_size: ImageSize | None = None,
    preprocessing: input_preprocessing.Choice = None,
    crop: input_preprocessing.Crop = None,
) -> Rows:
    """Packs a saved model; every array is read back and compared before the file gets its name.

    Args:
        source: a model folder (with its ranges, where it has some) or another saved model.
        target: the file that is written; an earlier packed model is replaced.
        fold: round the batch norms to 16 bits, see `fp16_batch_norm.fold_to_float16`.
        images: on how many test images its effect is measured.
        data_of: gives their data set, from the name of the one that the model was trained on.
        image_size: their height and width where the model leaves its size open.
        preprocessing, crop: see `input_preprocessing.complete_card`.

    Returns:
        Rows of a table about the file: what, value.

    Raises:
        UsageError: the model cannot be read or packed, or the file not written.
    """
    target = Path(target)
    if target.is_dir() or (target.is_file() and not container.is_packed_file(target)):
        expected = "a new file or an earlier packed model"
        raise UsageError(str(target), None, expected, "choose another name")
    model, ranges = saving.load(source), int8_saving.read_ranges(source)
    data, usual = None, Preprocessing()
    if fold:
        assert data_of is not None
        data = data_of(model.card.dataset)
        usual = data.model_preprocessing
    card = input_preprocessing.complete_card(
        model.card, str(source), preprocessing, crop, usual, from_files=data is not None
    )
    model = saving.LoadedModel(model.model, card)
    effect: Rows = []
    if data is not None:
        folded = _folded(model)
        effect = _effect(model, folded.model, data, images, image_size)
        model = folded
    packed = _packed_file(model, ranges)
    packed.save(target, overwrite=True)
    return [
        ("file", target),
        ("bytes", f"{len(packed.content):,}"),
        ("weights", f"{packed.weights:,}, {packed.weight_bytes:,} bytes"),
        ("ratio", f"{packed.ratio:.2f}"),
        *effect,
    ]


def pack(
    model: Any,
    path: str | os.PathLike[str] | None = None,
    fold: bool = False,
    overwrite: bool = False,
    preprocessing: str | Preprocessing | Sequence[Any] | None = None,
    labels: Sequence[str] | None = None,
) -> PackedFile:
    """A packed model in memory, written where a path is given; see `mobilenet.pack`.

    Args:
        model: a Keras model, a `LoadedModel` or `QuantizedModel`, or the path of a saved model.
        path: the file.
        fold: round the batch norms to 16 bits, see `fp16_batch_norm.fold_to_float16`.
        overwrite: replace an earlier packed model.
        preprocessing, labels: for the card, where they are not stored with the model.

    Raises:
        UsageError: the model cannot be read or packed, or the file not written.
    """
    if path is not None:
        packed_file.check_target(path, overwrite=overwrite)
    loaded, ranges = _model_and_ranges(model)
    card = loaded.card
    if preprocessing is not None or isinstance(model, tf_keras.Model):
        name = loaded.model.name
        card = input_preprocessing.complete_card(card, name, preprocessing, from_files=False)
    if labels is not None:
        card = card.replace(labels=checked_labels(labels, loaded.model.output_shape[-1]))
    loaded = saving.LoadedModel(loaded.model, card)
    packed = _packed_file(_folded(loaded) if fold else loaded, ranges)
    if path is not None:
        packed.save(path, overwrite)
    return packed


def _model_and_ranges(model: Any) -> tuple[saving.LoadedModel, scheme.Ranges | None]:
    """A float model with its card, and the ranges of a quantized one."""
    if isinstance(model, (str, os.PathLike)):
        return saving.load(model), int8_saving.read_ranges(model)
    if isinstance(model, QuantizedModel):
        return saving.LoadedModel(model.float_model, model.card), model.ranges
    return saving.with_card(model), None


def _folded(loaded: saving.LoadedModel) -> saving.LoadedModel:
    card = loaded.card.replace(notes=(*loaded.card.notes, _FOLDED_NOTE))
    return saving.LoadedModel(fp16_batch_norm.fold_to_float16(loaded.model), card)


def _packed_file(model: saving.LoadedModel, ranges: scheme.Ranges | None) -> PackedFile:
    content = packed_model.pack(model, ranges)
    weight_bytes = sum(values.nbytes for values in model.model.get_weights())
    return PackedFile(content, model.model.count_params(), weight_bytes)


def unpack_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    image_size: ImageSize | None = None,
) -> Rows:
    """Unpacks a model to a model folder, or to a float flatbuffer if the name ends in `.tflite`.

    Args:
        source: a packed model.
        target: the folder, or a `.tflite` file, which has logits as outputs, takes one image per
            call, and has the card's normalization and labels as metadata.
        image_size: height and width of the flatbuffer of a model that leaves its size open.

    Returns:
        Rows of a table about what was written: what, value.

    Raises:
        UsageError: the file is not a whole packed model, or the target cannot be written.
    """
    target = Path(target)
    is_file = target.suffix == FLATBUFFER
    if not is_file:
        files.check_target(target, "target", replaces=(saving.MODEL, "a model"))
    elif target.is_dir():
        raise UsageError(str(target), None, "a file's name; it is a folder")
    unpacked = packed_model.unpack(source)
    if not is_file:
        int8_saving.save_stage(unpacked.loaded.model, target, unpacked.loaded.card, unpacked.ranges)
        rows: Rows = [("folder", target), ("weights", f"{unpacked.loaded.model.count_params():,}")]
        return rows if unpacked.ranges is None else [*rows, ("ranges", len(unpacked.ranges))]
    data = flatbuffer(unpacked, image_size)
    card, classes = unpacked.loaded.card, unpacked.loaded.model.output_shape[-1]
    if card.outputs != "features":
        card = card.replace(outputs="logits")
    data = tflite_metadata.attach(data, bundle.file_card(card, classes, quantized=False))
    files.write_bytes(target, data)
    notes = [("note", "the float model, without its ranges")] * (unpacked.ranges is not None)
    return [("file", target), *notes, *sizes(data)]


def flatbuffer(unpacked: packed_model.Unpacked, image_size: ImageSize | None = None) -> bytes:
    """The float flatbuffer of an unpacked model: one image a call, logits.

    Raises:
        UsageError: the model leaves its size open and there is no `image_size`.
    """
    shape = ConversionConfig(image_size=image_size).input_shape(
        unpacked.loaded.model.input_shape[1:]
    )
    return tflite_converter.float_flatbuffer(unpacked.loaded.model, input_shape=shape)


def sizes(data: bytes) -> Rows:
    """Bytes of a flatbuffer, as it is and under gzip."""
    packed = len(gzip.compress(data, mtime=0))
    return [("float flatbuffer", f"{len(data):,}"), ("under gzip", f"{packed:,}")]


def _effect(
    loaded: saving.LoadedModel,
    folded: Any,
    data: DatasetConfig,
    count: int,
    image_size: ImageSize | None,
) -> Rows:
    """How far folding moves the outputs."""
    model = loaded.model
    shape = ConversionConfig(image_size=image_size).input_shape(model.input_shape[1:])
    images = arrays.load_images(data, "test", shape, loaded.card.preprocessing, count)
    before, after = (np.asarray(x(images, training=False)) for x in (model, folded))
    difference, largest = float(np.abs(after - before).max()), float(np.abs(before).max())
    text = f"{difference:.2e} at most, the largest output is {largest:.2e}; {len(images)} images"
    return [("output difference", text)]
