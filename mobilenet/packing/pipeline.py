"""From a saved model to its packed file, and back to a model folder or a float flatbuffer."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet import files
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.configs.conversion import ConversionConfig
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data import arrays
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.export.source import preprocessing_of
from mobilenet.models import saving
from mobilenet.packing import container, fp16_batch_norm
from mobilenet.packing import model as packed_model

FLATBUFFER = ".tflite"
_HALVED = "batch norms folded to a scale and an offset of float16; figures are from before"
Told = list[tuple[str, object]]


def pack(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    fold: bool = False,
    images: int = 16,
    data_of: Callable[[str], DatasetConfig] | None = None,
    image_size: int | None = None,
) -> Told:
    """Packs a saved model; every array is read back and compared before the file gets its name.

    Args:
        source: a model folder (with its ranges, where it has some) or another saved model.
        target: the file that is written; an earlier packed model is replaced.
        fold: round the batch norms to 16 bits, see `half_norms.folded`.
        images: on how many test images its effect is looked at.
        data_of: gives the data set of these, from the name of the one that the model was trained
            on.
        image_size: their height and width where the model leaves its size open.

    Returns:
        What a person wants to know of the file, a row each.

    Raises:
        UsageError: the model cannot be read or packed, or the file not written.
    """
    target = Path(target)
    if target.is_dir() or (target.is_file() and not container.is_one(target)):
        expected = "a new file or an earlier packed model"
        raise UsageError(str(target), None, expected, "choose another name")
    model, ranges = saving.load(source), int8_saving.read_ranges(source)
    effect: Told = []
    if fold:
        halved = fp16_batch_norm.folded(model.model)
        assert data_of is not None
        effect = _effect(model, halved, data_of(model.card.dataset), images, image_size)
        card = model.card.replace(notes=(*model.card.notes, _HALVED))
        model = saving.LoadedModel(halved, card)
    data = packed_model.pack(model, ranges)
    files.write_bytes(target, data)
    plain = sum(values.nbytes for values in model.model.get_weights())
    return [
        ("file", target),
        ("bytes", f"{len(data):,}"),
        ("weights", f"{model.model.count_params():,}, {plain:,} bytes"),
        ("ratio", f"{plain / len(data):.2f}"),
        *effect,
    ]


def unpack(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    image_size: int | None = None,
) -> Told:
    """Unpacks a model to a model folder, or straight to a float flatbuffer where the name says so.

    Args:
        source: a packed model.
        target: the folder, or a `.tflite` file, which gives logits and takes one image a call.
        image_size: height and width of the flatbuffer of a model that leaves its size open.

    Returns:
        What a person wants to know of what was made, a row each.

    Raises:
        UsageError: the file is not a whole packed model, or the target cannot be written.
    """
    target = Path(target)
    is_file = target.suffix == FLATBUFFER
    if not is_file:
        files.check_target(target, "target", replaces=(saving.MODEL, "a model"))
    elif target.is_dir():
        raise UsageError(str(target), None, "a file's name; a folder is in its place")
    found = packed_model.unpack(source)
    if not is_file:
        int8_saving.save_stage(found.loaded.model, target, found.loaded.card, found.ranges)
        told: Told = [("folder", target), ("weights", f"{found.loaded.model.count_params():,}")]
        return told if found.ranges is None else [*told, ("ranges", len(found.ranges))]
    data = flatbuffer(found, image_size)
    files.write_bytes(target, data)
    notes = [("made", "the float model; its ranges are left out")] * (found.ranges is not None)
    return [("file", target), *notes, *sizes(data)]


def flatbuffer(found: packed_model.Unpacked, image_size: int | None = None) -> bytes:
    """The float flatbuffer of an unpacked model: one image a call, logits.

    Raises:
        UsageError: the model leaves its size open and there is no `image_size`.
    """
    shape = ConversionConfig(image_size=image_size).input_shape(found.loaded.model.input_shape[1:])
    return tflite_converter.float_flatbuffer(found.loaded.model, input_shape=shape)


def sizes(data: bytes) -> Told:
    """Bytes of a flatbuffer, as it is and under gzip."""
    packed = len(gzip.compress(data, mtime=0))
    return [("float flatbuffer", f"{len(data):,}"), ("under gzip", f"{packed:,}")]


def _effect(
    net: saving.LoadedModel, halved: Any, data: DatasetConfig, count: int, image_size: int | None
) -> Told:
    """How far the outputs move."""
    shape = ConversionConfig(image_size=image_size).input_shape(net.model.input_shape[1:])
    way = preprocessing_of(net.card, data)
    images = arrays.load_images(data, "test", shape, way, count)
    before, after = (np.asarray(model(images, training=False)) for model in (net.model, halved))
    apart, largest = float(np.abs(after - before).max()), float(np.abs(before).max())
    told = f"{apart:.2e} at most, where the largest is {largest:.2e}; {len(images)} images"
    return [("outputs moved", told)]
