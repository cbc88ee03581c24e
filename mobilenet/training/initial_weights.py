"""Initial weights from files; layers are matched by name and shape, and the rest is listed."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tf_keras

from mobilenet import loading
from mobilenet.configs import released_weights
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.errors import UsageError, rename_parameters, shorten
from mobilenet.models import builder
from mobilenet.models.graph import flatten
from mobilenet.tf1_loader import loading as tf1_loading
from mobilenet.training.resolve_config import preprocessing_of, with_structure_of
from mobilenet.typing import Array, KerasModel
from mobilenet.weights import keras_applications, pretrained, tf2_object, timm

log = logging.getLogger("mobilenet")
_HEAD = "Logits"
_OF_BUILD = {  # parameters' names
    "init_checkpoint": "weights",
    "model_name": "name_or_config",
    "channels": "input_shape",
}


class _ForeignModelError(UsageError):
    """A model of which no layer is one of ours."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What was loaded.

    Attributes:
        loaded: layers that took their weights.
        new: layers that keep their initial ones.
        notes: what else was in the file, and what was done with it.
        ranges: of a TF1 checkpoint trained with fake quantization, by quantizer.
    """

    loaded: Sequence[str]
    new: Sequence[str]
    notes: Sequence[str] = ()
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def of_size(self, trained: tuple[int | None, ...], model: Any) -> Start:
        """With a note where the weights were trained on images of another size.

        Args:
            trained: height and width; `None` where they are open or not known.
            model: that has the weights now.
        """
        pairs = [(there, here) for there, here in zip(trained, model.input_shape[1:3], strict=True)]
        if all(None in pair or pair[0] == pair[1] for pair in pairs):
            return self
        (height, now_high), (width, now_wide) = pairs
        note = f"trained at {height} x {width} pixels, here {now_high} x {now_wide}"
        return dataclasses.replace(self, notes=(*self.notes, note))


def build(
    config: MobileNetConfig,
    input_shape: int | Sequence[int | None],
    weights: str | os.PathLike[str],
    keras: Any = None,
    offline: bool = False,
    keeps_classes: bool = True,
) -> KerasModel:
    """Builds a model that starts from weights.

    Args:
        config: of the model.
        input_shape: see `builder.build`.
        weights: see `load_into`; or `imagenet`. Those of a thinned model set the channels.
        keras: see `builder.build`.
        offline: fetch nothing.
        keeps_classes: the model has the classes of its config, not those of released weights.

    Raises:
        UsageError: see `load_into`; it names `weights`.
    """
    try:
        path = os.path.expanduser(os.fspath(weights))
    except TypeError:
        expected = "a path or the name of released weights"
        raise UsageError("weights", type(weights).__name__, expected) from None
    any_classes = config if keeps_classes else config.replace(num_classes=0)
    path = pretrained.resolve(path, any_classes, _longer_side(input_shape))
    released = pretrained.find(path)
    if released is not None and not keeps_classes:
        config = config.replace(num_classes=released.num_classes)
    try:
        pretrained.local_path(path, offline)
        config = with_structure_of(config, path).for_loaded_weights()
        model: KerasModel = builder.build(config, input_shape)
        load_into(model, path, config)
        own = preprocessing_of(path)
        if own is not None and not own.has_inputs_of(model.mobilenet_preprocessing):
            model.mobilenet_preprocessing = own
    except UsageError as error:
        renamed = rename_parameters(error, _OF_BUILD.get)
        if renamed.what not in (path, "weights"):
            raise renamed from None
        remedy = renamed.remedy
        if isinstance(error, _ForeignModelError):
            remedy = "mobilenet.load_model returns the model itself"
        raise UsageError("weights", path, renamed.expected, remedy) from None
    if keras is None or keras.layers.Layer is tf_keras.layers.Layer:
        return model
    other: KerasModel = builder.build(config, input_shape, keras)
    other.mobilenet_preprocessing = model.mobilenet_preprocessing
    other.set_weights(model.get_weights())
    return other


def _longer_side(input_shape: int | Sequence[int | None]) -> int | None:
    """In pixels; `None` where it is open."""
    sides = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)[:2]
    return max((side for side in sides if side), default=None)


def load_into(model: Any, path: str, config: MobileNetConfig) -> Start:
    """Fills `model` from a model folder, `.keras`, `.h5` or SavedModel, a checkpoint of TF1 or TF2,
    or timm's `.safetensors`; or from released weights by their name.

    Layers are those of this library or of keras.applications, also inside a model with a head of
    its own. The head stays new where the class counts differ or the file has another one;
    everything else must fit.

    Raises:
        UsageError: the file is none of these, is damaged, or belongs to another model.
    """
    if (released := pretrained.find(path)) is not None:
        return _of_released(model, released, config)
    form = loading.detect_form(path)
    if form == loading.HDF5:
        start = _of_hdf5(model, path, config)
    elif form == loading.SAFETENSORS:
        report = timm.load_into(model, config, path)
        start = _of_variables(report).of_size(report.size, model)
    elif form != loading.CHECKPOINT:
        source = loading.load_keras_model(path).model
        stored, channels = source.input_shape[-1], model.input_shape[-1]
        if channels != stored:
            raise UsageError("channels", channels, f"{stored}, as the weights of {path} take")
        layers = [layer for layer in flatten.innermost_layers(source) if layer.weights]
        theirs = {layer.name: layer.get_weights() for layer in layers}
        if keras_applications.are_names_of(theirs, model, config):
            found = keras_applications.assign_weights(model, theirs, path, config)
            start = _of_keras_applications(found)
        else:
            _check_not_foreign(model, theirs, path)
            start = _by_name(model, theirs, path)
        start = start.of_size(source.input_shape[1:3], model)
    elif tf2_object.is_tf2_checkpoint(path):
        names = [layer.name for layer in model.layers if layer.weights]
        start = _by_name(model, tf2_object.read_layers(path, names), path)
    else:
        start = _tf1(tf1_loading.load_into(model, config, path), model)
    log.info(
        "%s: weights of %d layers loaded%s",
        path,
        len(start.loaded),
        f"; new: {shorten(start.new)}" if start.new else "",
    )
    for note in start.notes:
        log.info("%s: %s", path, note)
    return start


def _of_released(
    model: Any, released: released_weights.ReleasedWeights, config: MobileNetConfig
) -> Start:
    path = str(pretrained.fetch(released.name))
    try:
        start = load_into(model, path, config)
    except UsageError as error:
        raise error.renamed(path, released.name) from error.__cause__
    log.info("initial weights %s", released)
    if released.source != released_weights.KERAS:  # its file does not tell the size
        return start
    return start.of_size((released.image_size, released.image_size), model)


def _of_hdf5(model: Any, path: str, config: MobileNetConfig) -> Start:
    try:
        return _of_keras_applications(keras_applications.load_weights(model, path, config))
    except UsageError:
        names = keras_applications.layer_names(path)
        if names and not keras_applications.are_names_of(names, model, config):
            _check_not_foreign(model, names, path)
        raise


def _check_not_foreign(model: Any, theirs: Iterable[str], path: str) -> None:
    """Refuses a model of which no layer is one of ours: it can be used only as it is.

    Raises:
        UsageError: it is one.
    """
    ours = {layer.name for layer in model.layers if layer.weights} - {_HEAD}
    if ours.isdisjoint(theirs):
        expected = f"weights of a MobileNet; the layers of this model are {shorten(theirs)}"
        remedy = f"`model={path}` takes the model itself"
        raise _ForeignModelError("init_checkpoint", path, expected, remedy)


def _of_keras_applications(report: keras_applications.Report) -> Start:
    notes = [f"left aside, its own head: {shorten(report.unused)}"] if report.unused else []
    return Start(report.loaded, report.new, notes)


def _tf1(report: tf1_loading.Report, model: Any) -> Start:
    side = None if report.release is None else report.release.image_size
    start = dataclasses.replace(_of_variables(report), ranges=report.ranges)
    return start.of_size((side, side), model)


def _of_variables(report: tf1_loading.Report | timm.Report) -> Start:
    layers = list(dict.fromkeys(weight.split("/")[0] for weight in report.loaded))
    aside = [f"{len(names)} {reason}" for reason, names in report.left_aside.items()]
    left = [f"left aside: {', '.join(aside)}"] if aside else []
    return Start(layers, report.new, [report.description, *report.notes, *left])


def _by_name(model: Any, theirs: Mapping[str, Sequence[Any]], path: str) -> Start:
    ours = {layer.name: layer for layer in model.layers if layer.weights}
    values: dict[str, list[Array]] = {}
    problems = [f"{name}: left over" for name in theirs if name not in ours and name != _HEAD]
    new = []
    for name, layer in ours.items():
        expected = [tuple(w.shape) for w in layer.weights]
        got = [w.shape for w in theirs.get(name, [])]
        if got == expected:
            values[name] = list(theirs[name])
        elif name == _HEAD and (not got or got[0][:-1] == expected[0][:-1]):
            new.append(name)
        else:
            problems.append(f"{name}: there {got or 'absent'}, here {expected}")
    if problems:
        raise UsageError(
            "init_checkpoint",
            path,
            f"weights of this model; {len(problems)} layers do not fit: {shorten(problems)}",
            "give the `model_name` and `width_multiplier` that it was trained with",
        )
    for name, arrays in values.items():
        ours[name].set_weights(arrays)
    return Start(list(values), new)
