"""A model on disk: `model.keras` and `card.json` in one folder, written whole.

What is read comes from anyone: description, sizes and links are checked before Keras sees them (see
`safe_loading` and `hdf5`), and only weights and architecture are taken, never settings to compile
with, assets, or a graph to run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from mobilenet import archives, files, strict_json
from mobilenet.configs.card import ACTIVATIONS, CARD, Card
from mobilenet.errors import UsageError
from mobilenet.models import (
    checkpoint_index,
    hdf5,
    input_preprocessing,
    keras3,
    safe_loading,
)
from mobilenet.models.graph.roles import Graph

MODEL = "model.keras"
SAVED_MODEL = "saved_model.pb"  # the file that makes a folder a SavedModel
_MEMBERS = ("metadata.json", "config.json", "model.weights.h5")  # of a .keras file
_KINDS = "a model folder, a .keras or .h5 file or a SavedModel folder"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model and its card."""

    model: Any
    card: Card


def save(model: Any, folder: str | os.PathLike[str], card: Card) -> Path:
    """Writes `model.keras` and `card.json` as one folder, whole or not at all.

    An older one is replaced. The optimizer is left out: the folder holds the model, not the run.

    Raises:
        UsageError: the model is not tf_keras', the folder holds other things, or cannot be written.
    """
    import tf_keras

    target = Path(folder)
    if not isinstance(model, tf_keras.Model):
        raise UsageError(
            "model",
            type(model).__module__,
            "a tf_keras model",
            "load_model reads its files",
        )
    files.check_target(folder, "folder", replaces=(MODEL, "a model"))
    plain = tf_keras.Model(model.inputs, model.outputs, name=model.name)
    with files.replacing(target) as temporary:
        temporary.mkdir()
        plain.save(temporary / MODEL)
        files.write_json(temporary / CARD, card.to_json())
    return target


def load(path: str | os.PathLike[str]) -> LoadedModel:
    """Reads a folder that `save` wrote, a `.keras` or `.h5` file of Keras 2 or 3, or a Keras 2
    SavedModel folder.

    Without a stored card, one is derived from the model's shapes.

    Raises:
        UsageError: nothing there, no model in it, a broken file, or layers and functions that are
            not read.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(str(path), None, f"{_KINDS}; there is nothing there")
    if not (path.is_file() or path.is_dir()):
        raise UsageError(str(path), None, f"{_KINDS}, not a pipe or device")
    try:
        source, model = _model_of(path)
        own_card = source.parent / CARD
        has_own = source.name in (MODEL, SAVED_MODEL) and own_card.is_file()
        card = _fitted_card(Card.from_file(own_card), model) if has_own else card_of(model)
    except UsageError as error:
        raise error if str(path) in error.what else error.within(str(path)) from None
    except Exception as error:  # whatever Keras, zipfile or h5py makes of a broken file
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise UsageError(
            str(path), None, f"a whole Keras model ({_first_line(error)})", "save it again"
        ) from None
    model.mobilenet_config = card.model_config()
    if has_own:
        model.mobilenet_preprocessing = card.preprocessing
    return LoadedModel(model, card)


def _model_of(path: Path) -> tuple[Path, Any]:
    """The model at `path`, and the file that holds it."""
    if path.is_dir():
        if (path / MODEL).is_file():
            return path / MODEL, _load_keras(path / MODEL)
        if (path / SAVED_MODEL).is_file():
            return path / SAVED_MODEL, _load_saved_model(path)
        raise UsageError(str(path), None, f"{_KINDS}; it holds no {MODEL}")
    if path.suffix == ".keras":
        return path, _load_keras(path)
    if path.suffix in (".h5", ".hdf5"):
        return path, _load_h5(path)
    raise UsageError(str(path), None, _KINDS)


def with_card(model: Any) -> LoadedModel:
    """A model in memory, with the card that it was loaded with or one of what can be seen in it.

    Args:
        model: a `LoadedModel`, or a functional or Sequential tf_keras model.

    Raises:
        UsageError: names `model`: it is none of these, or takes no single image.
    """
    from mobilenet.models.builder import config_of
    from mobilenet.models.graph import flatten

    if isinstance(model, LoadedModel):
        return model
    flatten.check_functional(model)
    card, config = card_of(model), config_of(model)
    return LoadedModel(model, card.replace(architecture=config.to_json()) if config else card)


def card_of(model: Any) -> Card:
    """What can be seen in the model itself."""
    from mobilenet.models.graph import flatten
    from mobilenet.models.graph.final_activation import final_activation

    shape = _image_shape(model)
    graph = Graph(flatten.inline(model))
    activation = final_activation(model)
    if activation in ACTIVATIONS:
        outputs = "probabilities"
    else:
        has_classes = any(graph.role(layer) == "classifier" for layer in graph.layers)
        outputs = "logits" if has_classes else "features"
    known = activation if activation in ACTIVATIONS else None
    preprocessing, assumed = input_preprocessing.of_model(model)
    return Card(
        input_shape=shape,
        preprocessing=preprocessing,
        assumed=assumed,
        outputs=outputs,
        activation=known,
    )


def _fitted_card(card: Card, model: Any) -> Card:
    """The card with the model's own input size, wherever that is fixed.

    Raises:
        UsageError: the model takes no single image, or the card describes one of other channels.
    """
    shape = tuple(
        known if side is None else side
        for side, known in zip(_image_shape(model), card.input_shape, strict=True)
    )
    return card if shape == card.input_shape else card.replace(input_shape=shape)


def _image_shape(model: Any) -> tuple[Any, ...]:
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        shapes = [list(image.shape[1:]) for image in model.inputs]
        raise UsageError("model", shapes, "one input of [height, width, channels]")
    return tuple(model.input_shape[1:])


def _load_keras(path: Path) -> Any:
    import h5py

    if not zipfile.is_zipfile(path):
        raise UsageError(
            str(path),
            None,
            "a whole .keras file (a zip archive)",
            "it may be cut short: copy or save it again",
        )
    expected = f"a .keras file of {', '.join(_MEMBERS)} alone"
    archives.check_zip(path, "|".join(map(re.escape, _MEMBERS)), expected, "save it again")
    with zipfile.ZipFile(path) as archive:
        metadata, config = (_json(_member(archive, name)) for name in _MEMBERS[:2])
        version = metadata.get("keras_version") if isinstance(metadata, dict) else None
        description = _description(config, version)
        with tempfile.TemporaryDirectory(prefix="mobilenet-") as folder:  # compressed: not seekable
            weights = archive.extract(_MEMBERS[2], folder)
            model = safe_loading.build(description, _checked_numbers(weights))
            if keras3.is_version(version):
                with h5py.File(weights, "r") as stored:
                    keras3.load_weights(model, stored)
            else:
                model.load_weights(weights)
    return model


def _description(config: Any, version: object) -> dict[str, Any]:
    """What is recognized of a model's description, of Keras 2 or 3."""
    return safe_loading.sanitize(keras3.to_keras2(config) if keras3.is_version(version) else config)


def _load_h5(path: Path) -> Any:
    import h5py

    numbers = _checked_numbers(path)
    with h5py.File(path, "r") as file:
        config = hdf5.text_attribute(file, "model_config")
        version = hdf5.text_attribute(file, "keras_version")
    if config is None:
        raise UsageError(
            str(path),
            None,
            "a whole model; this file holds weights alone",
            "give it to `init_checkpoint`",
        )
    model = safe_loading.build(_description(_json(config), version), numbers)
    model.load_weights(path)
    return model


def _load_saved_model(path: Path) -> Any:
    """Architecture and weights of a SavedModel; its own graph is not run."""
    from google.protobuf.message import DecodeError
    from tf_keras.protobuf import saved_metadata_pb2

    metadata, nodes = path / "keras_metadata.pb", saved_metadata_pb2.SavedMetadata()
    if metadata.is_file() and metadata.stat().st_size <= strict_json.MAX_BYTES:
        with contextlib.suppress(DecodeError):
            nodes.ParseFromString(metadata.read_bytes())
    root = next((node for node in nodes.nodes if node.node_path == "root"), None)
    if root is None:
        raise UsageError(
            str(path),
            None,
            "a SavedModel that Keras 2 wrote; this one has no layers",
            "load the .keras file instead",
        )
    prefix = path / "variables" / "variables"
    entries = checkpoint_index.read_index(str(prefix))
    description = safe_loading.sanitize(_json(root.metadata))
    values = sum(math.prod(entry.shape) for entry in entries.values())
    model = safe_loading.build(description, values)
    model.load_weights(str(prefix)).assert_existing_objects_matched().expect_partial()
    return model


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        return file.read(strict_json.MAX_BYTES + 1)


def _json(text: str | bytes) -> Any:
    try:
        return strict_json.loads(text)
    except strict_json.InvalidJSON as error:
        raise UsageError("description", None, f"JSON ({error})") from None


def _checked_numbers(path: str | os.PathLike[str]) -> int:
    """How many numbers an HDF5 file holds, once all its headers are checked."""
    try:
        with hdf5.open_checked(path) as (_, numbers):
            return numbers
    except hdf5.UnsafeFile as error:
        raise UsageError("weights", None, f"an HDF5 file of its own ({error})") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
