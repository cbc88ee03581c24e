"""Opens a saved model in any form that this library reads.

Each form is checked before Keras or TensorFlow sees it, as docs/security.md describes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from mobilenet import files, object_storage
from mobilenet.compression.quantization.int8 import quantized_model
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8.quantized_model import QuantizedModel
from mobilenet.errors import UsageError
from mobilenet.models import frozen_graph, saving
from mobilenet.models.saving import LoadedModel
from mobilenet.packing import container
from mobilenet.packing import model as packed_model
from mobilenet.runtime import classifier
from mobilenet.tf1_loader import loading as tf1_loading
from mobilenet.tf1_loader import locate
from mobilenet.weights import pretrained, safetensors_file, tf2_object

FROZEN_GRAPH, KERAS, HDF5, SAVED_MODEL = "frozen graph", "Keras model", "HDF5 file", "SavedModel"
PACKED, CHECKPOINT, FLATBUFFER = "packed file", "checkpoint", "flatbuffer"
SAFETENSORS, PICKLE = "safetensors file", "pickle"
RELEASED = "released weights"
_EXPECTED = (
    "a model folder, a .keras or .h5 file, a SavedModel folder, a frozen graph, a packed file, "
    "timm's .safetensors file or a TF1 checkpoint"
)


@dataclasses.dataclass(frozen=True)
class _Form:
    """One form of a saved model.

    Attributes:
        name: as in messages.
        matches: whether a path is meant as this form, by its suffix, the files in a folder, or the
            first bytes of a file.
        load: reads it; with the quantizers of an int8 model if the second argument is true.
    """

    name: str
    matches: Callable[[Path], bool]
    load: Callable[[Path, bool], LoadedModel]


def load_model(
    path: str | os.PathLike[str], quantizers: bool = True, *, offline: bool = False
) -> LoadedModel:
    """Loads a model and its card from any form of saved model.

    Args:
        path: a model folder, `.keras` or `.h5` file, Keras SavedModel, frozen graph (`.pb` or its
            folder), packed file, TF1 checkpoint (see `load_tf1_checkpoint`), or `.safetensors` file
            of timm (see `mobilenet.weights.timm.load`). With `://` on object storage. Or the name
            of released weights, which are fetched (see `list_weights`).
        quantizers: load a model that has activation ranges with its quantizers, which compute as
            the int8 file will; `False` loads its float model.
        offline: fetch nothing.

    Returns:
        The model (of a frozen graph a callable that runs it) and its card; where none is stored,
        one with what can be read from the model. With quantizers a `QuantizedModel`.

    Raises:
        UsageError: there is no saved model, or it is damaged, or holds layers, operators or
            functions that are not allowed.

    Examples:
        >>> model = load_model("runs/mobilenet_v1_digits/quantize").model
    """
    if files.is_remote(path):
        with object_storage.local_copy(str(path)) as copy:
            return load_model(copy, quantizers)
    if (released := pretrained.find(path)) is not None:
        return pretrained.load(released.name, offline)
    path = Path(path)
    return _find_form(path).load(path, quantizers)


def load_keras_model(path: str | os.PathLike[str], *, offline: bool = False) -> LoadedModel:
    """Loads the float model, for uses that need its layers: without quantizers.

    Args:
        path, offline: see `load_model`.

    Raises:
        UsageError: see `load_model`; or it is a frozen graph, which has no layers.
    """
    if (released := pretrained.find(path)) is not None:
        return pretrained.load(released.name, offline)
    path = Path(path)
    form = _find_form(path)
    if form.name == FROZEN_GRAPH:
        raise UsageError(str(path), None, "a model with layers; a frozen graph has none")
    return form.load(path, False)


def detect_form(path: str | os.PathLike[str]) -> str:
    """Which form of saved model `path` is, by its name and first bytes: one of the names above.

    Raises:
        UsageError: there is no saved model.
    """
    return RELEASED if pretrained.find(path) else _find_form(Path(path)).name


def _find_form(path: Path) -> _Form:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(str(path), None, f"{_EXPECTED}, not a pipe or device")
    form = next((form for form in _FORMS if form.matches(path)), None)
    if form is not None:
        return form
    if path.exists():
        raise UsageError(str(path), None, _EXPECTED)
    nearest = pretrained.nearest_name(path)
    raise UsageError(str(path), None, f"{_EXPECTED}; there is nothing there", nearest)


def _load_frozen_graph(path: Path, quantizers: bool) -> LoadedModel:
    return frozen_graph.load(path)


def _load_keras(path: Path, quantizers: bool) -> LoadedModel:
    loaded = saving.load(path)
    if not (quantizers and int8_saving.has_ranges(path)):
        return loaded
    return quantized_model.load(path, loaded)


def _load_packed(path: Path, quantizers: bool) -> LoadedModel:
    unpacked = packed_model.unpack(path)
    if not quantizers or unpacked.ranges is None:
        return unpacked.loaded
    model, card = unpacked.loaded.model, unpacked.loaded.card
    try:
        wrapped = int8_saving.assemble(unpacked.loaded, unpacked.ranges, "xnnpack")
    except UsageError as error:
        raise error.within(str(path)) from None
    return QuantizedModel(wrapped, card, model, card.quantization_steps)


def _load_checkpoint(path: Path, quantizers: bool) -> LoadedModel:
    if tf2_object.is_tf2_checkpoint(path):
        expected = "a model with its architecture; a TF2 checkpoint has none"
        raise UsageError(str(path), None, expected, "load it as `init_checkpoint`")
    loaded = tf1_loading.load_tf1_checkpoint(path)
    return LoadedModel(loaded.model, loaded.card)


def _load_safetensors(path: Path, quantizers: bool) -> LoadedModel:
    from mobilenet.weights import timm

    loaded = timm.load(path)
    return LoadedModel(loaded.model, loaded.card)


def _refuse_pickle(path: Path, quantizers: bool) -> LoadedModel:
    raise safetensors_file.pickle_refused(path)


def _refuse_flatbuffer(path: Path, quantizers: bool) -> LoadedModel:
    if not path.exists():
        raise UsageError(str(path), None, f"{_EXPECTED}; there is nothing there")
    expected = "a model with layers or a graph; a flatbuffer has none"
    raise UsageError(str(path), None, expected, "mobilenet.runtime.Classifier runs it")


def _matcher(*suffixes: str, file: str = "") -> Callable[[Path], bool]:
    """Whether a path has one of the suffixes, or is a folder with that file."""
    return lambda path: path.suffix in suffixes or bool(file and (path / file).is_file())


_FORMS = (  # the first that matches is taken
    _Form(FROZEN_GRAPH, frozen_graph.is_frozen_graph, _load_frozen_graph),
    _Form(KERAS, _matcher(".keras", file=saving.MODEL), _load_keras),
    _Form(SAVED_MODEL, _matcher(file=saving.SAVED_MODEL), _load_keras),
    _Form(HDF5, _matcher(".h5", ".hdf5"), _load_keras),
    _Form(PACKED, container.is_packed_file, _load_packed),
    _Form(FLATBUFFER, classifier.is_flatbuffer, _refuse_flatbuffer),
    _Form(SAFETENSORS, _matcher(safetensors_file.SUFFIX), _load_safetensors),
    _Form(CHECKPOINT, locate.is_checkpoint, _load_checkpoint),
    _Form(PICKLE, _matcher(*safetensors_file.PICKLES), _refuse_pickle),
)
