"""A net on disk: `model.keras` and `card.json` in one folder, written whole, read with suspicion.

What is read is checked before Keras sees it: a file that carries Python code (`Lambda`) or names
modules that are not Keras' is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet import files
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError

from .roles import Graph, kind

MODEL = "model.keras"
CARD = "card.json"
_MODULES = ("keras", "tf_keras", "builtins", "tensorflow_model_optimization", "mobilenet")
_CODE = ("Lambda", "__lambda__")
_WRAPPERS = {  # tfmot's classes, and how a net gets rid of them
    "PruneLowMagnitude": "save what tfmot.sparsity.keras.strip_pruning gives",
    **dict.fromkeys(
        ("QuantizeLayer", "QuantizeWrapper", "QuantizeWrapperV2", "QuantizeAnnotate"),
        "save the float net from before quantize_model",
    ),
}
_KINDS = "a model folder, a .keras or .h5 file or a SavedModel folder"


@dataclasses.dataclass(frozen=True)
class Net:
    """A net and its card."""

    model: Any
    card: Card


def save(model: Any, folder: str | os.PathLike[str], card: Card) -> Path:
    """Writes `model.keras` and `card.json` as one folder, whole or not at all.

    An older one is replaced. The optimizer is left out: the folder holds the net, not the run.

    Raises:
        UsageError: the model is not tf_keras', the folder holds other things, or cannot be written.
    """
    import tf_keras

    target = Path(folder)
    if not isinstance(model, tf_keras.Model):
        raise UsageError(
            "model", type(model).__module__, "a tf_keras model", "Keras 3 models save themselves"
        )
    check_place(target)
    plain = tf_keras.Model(model.inputs, model.outputs, name=model.name)
    with files.replacing(target) as temporary:
        temporary.mkdir()
        plain.save(temporary / MODEL)
        files.write_json(temporary / CARD, card.to_json())
    return target


def check_place(folder: str | os.PathLike[str]) -> None:
    """Refuses a place where other things would be lost.

    Raises:
        UsageError: it is a file, or a folder that holds no net.
    """
    target = Path(folder)
    if target.is_file() or (
        target.is_dir() and any(target.iterdir()) and not (target / MODEL).exists()
    ):
        raise UsageError(
            str(target), None, "a new folder or one that holds a net", "choose another folder"
        )


def load(path: str | os.PathLike[str]) -> Net:
    """Reads a folder that `save` wrote, a `.keras` or `.h5` file, or a Keras SavedModel folder.

    Without a card beside it, one is made from the model's shapes.

    Raises:
        UsageError: nothing there, no model in it, a broken file, a Keras 3 file, or code inside.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(str(path), None, f"{_KINDS}; there is nothing there")
    try:
        if path.is_dir():
            source = path / MODEL
            if source.is_file():
                model = _load_keras(source)
            elif (path / "saved_model.pb").is_file():
                source = path / "saved_model.pb"
                model = _load_saved_model(path)
            else:
                raise UsageError(str(path), None, f"{_KINDS}; it holds no {MODEL}")
        elif path.suffix == ".keras":
            source, model = path, _load_keras(path)
        elif path.suffix in (".h5", ".hdf5"):
            source, model = path, _load_h5(path)
        else:
            raise UsageError(str(path), None, _KINDS)
    except UsageError:
        raise
    except Exception as error:  # whatever Keras, zipfile or h5py makes of a broken file
        raise UsageError(
            str(path), None, f"a whole Keras model ({_first_line(error)})", "save it again"
        ) from None
    beside = source.parent / CARD
    has_own = source.name in (MODEL, "saved_model.pb") and beside.is_file()
    card = read_card(beside) if has_own else card_of(model)
    model.mobilenet_config = architecture(card)
    return Net(model, card)


def architecture(card: Card) -> MobileNetConfig | None:
    """The net's config, for `builder.config_of`; none where the card has none, or a later one."""
    try:
        return MobileNetConfig.from_json(card.architecture) if card.architecture else None
    except UsageError:
        return None


def read_card(path: Path) -> Card:
    """Reads a `card.json`."""
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise UsageError(str(path), None, "a card: a JSON object")
    try:
        return Card.from_json(value)
    except UsageError as error:
        raise error.within(str(path)) from None


def card_of(model: Any) -> Card:
    """What can be seen in the model itself."""
    graph = Graph(model)
    last = graph.layers[-1]
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    if kind(last) == "Softmax" or activation in ("softmax", "sigmoid"):
        outputs = "probabilities"
    else:
        has_classes = any(graph.role(layer) == "classifier" for layer in graph.layers)
        outputs = "logits" if has_classes else "features"
    return Card(input_shape=tuple(model.input_shape[1:]), outputs=outputs)


def _load_keras(path: Path) -> Any:
    import tf_keras

    if not zipfile.is_zipfile(path):
        raise UsageError(
            str(path),
            None,
            "a whole .keras file (a zip archive)",
            "it may be cut short: copy or save it again",
        )
    with zipfile.ZipFile(path) as archive:
        metadata = json.loads(archive.read("metadata.json"))
        config = json.loads(archive.read("config.json"))
    _check_version(path, metadata.get("keras_version", ""))
    check_config(path, config)
    return tf_keras.models.load_model(path, compile=False, safe_mode=True)


def _load_h5(path: Path) -> Any:
    import h5py
    import tf_keras

    with h5py.File(path, "r") as file:
        config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
    if config is None:
        raise UsageError(
            str(path),
            None,
            "a whole model; this file holds weights alone",
            "give it to --init_checkpoint",
        )
    _check_version(path, _text(version))
    check_config(path, json.loads(_text(config)))
    return tf_keras.models.load_model(path, compile=False, safe_mode=True)


def _load_saved_model(path: Path) -> Any:
    import tf_keras
    from tf_keras.protobuf import saved_metadata_pb2

    metadata = path / "keras_metadata.pb"
    if not metadata.is_file():
        raise UsageError(
            str(path),
            None,
            "a SavedModel that Keras 2 wrote; this one has no layers",
            "load the .keras file instead",
        )
    nodes = saved_metadata_pb2.SavedMetadata()
    nodes.ParseFromString(metadata.read_bytes())
    for node in nodes.nodes:
        check_config(path, json.loads(node.metadata))
    return tf_keras.models.load_model(path, compile=False)


def _check_version(path: Path, version: str) -> None:
    if str(version).startswith("3"):
        raise UsageError(
            str(path),
            f"keras_version {version}",
            "a file of tf_keras (Keras 2)",
            "build(config) anew and copy: set_weights(keras3_model.get_weights())",
        )


def check_config(path: Path, config: Any) -> None:
    """Refuses what would run code on loading, before anything is made from it.

    Args:
        path: named in the error.
        config: JSON of a Keras model.

    Raises:
        UsageError: a `Lambda`, a class that is not Keras', or a wrapper of tfmot.
    """
    for part in _objects(config):
        if part.get("class_name") in _CODE:
            raise UsageError(
                str(path),
                part["class_name"],
                "stock Keras layers alone; a Lambda carries code that is not run",
            )
        if part.get("class_name") in _WRAPPERS:
            name = part["class_name"]
            raise UsageError(str(path), name, "a net that is not wrapped by tfmot", _WRAPPERS[name])
        module = part.get("module")
        if (
            isinstance(module, str)
            and "class_name" in part
            and module.split(".")[0] not in _MODULES
        ):
            raise UsageError(
                str(path), f"{module}.{part['class_name']}", "stock Keras layers alone"
            )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
