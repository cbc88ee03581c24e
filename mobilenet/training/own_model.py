"""The user's own model as the start of a run: read once, compared with the data, and stored in the
run folder, which needs the file no more.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet import loading
from mobilenet.configs.base import sides
from mobilenet.configs.card import (
    ACTIVATIONS,
    SIGMOID,
    SOFTMAX,
    Card,
    checked_labels,
    known_activation,
)
from mobilenet.configs.own_model import OwnModel
from mobilenet.configs.run import RunConfig
from mobilenet.data.split import DatasetInfo
from mobilenet.errors import UsageError, shorten
from mobilenet.models import input_preprocessing, saving
from mobilenet.models.graph import final_activation, flatten
from mobilenet.models.saving import LoadedModel
from mobilenet.training import resolve_config
from mobilenet.training.model_identity import files_of
from mobilenet.training.resolve_config import Explicit

log = logging.getLogger("mobilenet")
FOLDER = "initial_model"  # in the run folder
_CHANNELS = (1, 3)


@dataclasses.dataclass(frozen=True)
class Start:
    """The model that the stages of a run start from.

    Attributes:
        model: flat, to logits, of the size and channels of the run's images.
        card: what is known of it.
    """

    model: Any
    card: Card

    def save(self, folder: Path) -> None:
        """Stores it in a run folder that does not have it yet.

        Raises:
            UsageError: it has a layer that is not read from files.
        """
        if not (folder / FOLDER).is_dir():
            saving.save(self.model, folder / FOLDER, self.card)
            saving.load(folder / FOLDER)


def read(own: OwnModel, folder: Path | None, loaded: LoadedModel | None = None) -> LoadedModel:
    """The model that a run starts from: that in its folder, else in memory, else at its path.

    Args:
        own: of the config of the run.
        folder: of a run of this model, `None` for a new one.
        loaded: the model, where it is one in memory.

    Raises:
        UsageError: it cannot be read.
    """
    if folder is not None and (folder / FOLDER).is_dir():
        return loading.load_keras_model(folder / FOLDER)
    if loaded is not None:
        return loaded
    if own.path is None or not any(files_of(own.path)):
        expected = "the model; the run was ended before it was stored in its folder"
        raise UsageError("model", own.path or own.name, expected)
    return loading.load_keras_model(own.path)


def resolve(
    config: RunConfig, loaded: LoadedModel, explicit: Explicit
) -> tuple[RunConfig, DatasetInfo, Start]:
    """The run's config with what its model and its data decide, as `resolve_config.resolve`.

    Args:
        config: of the run.
        loaded: its model, see `read`.
        explicit: what was set by the user.

    Returns:
        The config, what the data hold, and the model that the stages start from.

    Raises:
        UsageError: the data cannot be used; or the model does not fit the data, what was set, or
            training.
    """
    own = config.model
    assert isinstance(own, OwnModel)
    info = resolve_config.describe(config, explicit)
    config = resolve_config.with_augmentation(config, info)
    config = _with_shape_of(loaded.model, config, explicit)
    model, ends_with = _flat(loaded.model, config.input_shape)
    outputs = _outputs(model)
    known = ends_with if ends_with in ACTIVATIONS else loaded.card.activation
    activation = _activation(own.name, known_activation(known, outputs), config, info)
    _check_outputs(own.name, outputs, activation, info)
    labels = checked_labels(info.labels, outputs)
    _compare_labels(own.name, loaded.card.labels, labels)
    card = input_preprocessing.complete_card(
        loaded.card,
        own.name,
        config.dataset.preprocessing if explicit.preprocessing else None,
        usual=config.dataset.model_preprocessing,
    )
    architecture = card.model_config()
    if architecture is not None:
        model.mobilenet_config = architecture.replace(classifier_activation=None)
        architecture = model.mobilenet_config
    card = Card(
        architecture={} if architecture is None else architecture.to_json(),
        input_shape=config.input_shape,
        preprocessing=config.dataset.with_exif(card.preprocessing),
        labels=labels,
        label_offset=config.dataset.label_offset,
        activation=activation,
        dataset=config.dataset.name,
        stage=FOLDER,
        notes=card.notes,
    )
    own = own.replace(num_classes=outputs, preprocessing=card.preprocessing)
    distillation = resolve_config.with_teacher(config.distillation, info)
    resolved = config.replace(model=own, activation=activation, distillation=distillation)
    return resolved, info, Start(model, card)


def _with_shape_of(model: Any, config: RunConfig, explicit: Explicit) -> RunConfig:
    """The config with the image size and channels of the model, wherever these are fixed."""
    (*own_sides, own_channels) = _image_shape(model)
    given = sides(config.image_size)
    size = tuple(there or here for there, here in zip(own_sides, given, strict=True))
    channels = own_channels or config.channels
    if explicit.image_size and size != given:
        expected = f"{' x '.join(map(str, size))}, as the model takes"
        raise UsageError("image_size", config.image_size, expected, "leave it out")
    if channels not in _CHANNELS:
        raise UsageError("model", f"{channels} channels", "a model of images of 1 or 3 channels")
    if explicit.channels and channels != config.channels:
        raise UsageError("channels", config.channels, f"{channels}, as the model takes")
    if None in own_sides and not explicit.image_size:
        log.info("the model leaves the size of its images open; %d x %d is taken", *size)
    return config.replace(image_size=size, channels=channels)


def _image_shape(model: Any) -> tuple[int | None, int | None, int | None]:
    flatten.check_functional(model)
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        got = ", ".join(str(list(shape)) for shape in shapes)
        raise UsageError("model", f"inputs {got}", "one input of [height, width, channels]")
    height, width, channels = shapes[0]
    return height, width, channels


def _flat(model: Any, shape: tuple[int, int, int]) -> tuple[Any, str]:
    """The model to its logits, for batches of images of any number; and what it ends with."""
    calls = flatten.plain_calls(model)
    ends_with = final_activation.cut_final_activation(calls)
    for source in calls.inputs:
        size = {"batch_input_shape": (None, *shape)}
        source.call.config = {**source.call.config, **size}
    flat = calls.build()
    if not flat.trainable_weights:
        raise UsageError("model", "no layer with trainable weights", "layers that can be trained")
    return flat, ends_with


def _outputs(model: Any) -> int:
    shapes = [tuple(tensor.shape[1:]) for tensor in model.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 1 or shapes[0][0] is None:
        got = ", ".join(str(list(shape)) for shape in shapes)
        raise UsageError("model", f"outputs {got}", "a classifier: one output of [classes]")
    return int(shapes[0][0])


def _activation(name: str, known: str | None, config: RunConfig, info: DatasetInfo) -> str:
    """What turns the outputs into probabilities: that of the model, else what is asked for."""
    asked = config.activation
    if None not in (known, asked) and known != asked:
        raise UsageError("activation", asked, f"{known}, as the model has", "leave it out")
    if info.multi_label and SOFTMAX in (known, asked):
        expected = "a sigmoid for data with several labels an image"
        raise UsageError("model" if asked is None else "activation", SOFTMAX, expected)
    if known or asked:
        return str(known or asked)
    assumed = SIGMOID if info.multi_label else SOFTMAX
    log.info("the outputs of %s are taken to be logits of a %s", name, assumed)
    return assumed


def _check_outputs(name: str, outputs: int, activation: str, info: DatasetInfo) -> None:
    classes = info.num_classes
    fitting = {classes}
    if activation == SIGMOID and classes == 2 and not info.multi_label:
        fitting = {1, 2}
    if outputs not in fitting:
        raise UsageError(
            "model",
            f"{name} with {outputs} outputs",
            f"{classes}, the classes of the data ({shorten(info.labels)})",
            "replace its last layer by one for these classes, and save it again",
        )


def _compare_labels(name: str, own: Sequence[str], of_data: Sequence[str]) -> None:
    """Checks that outputs are the classes of the data; without names their order is assumed."""
    if own and tuple(own) != tuple(of_data):
        expected = f"the classes of the data ({shorten(of_data)})"
        raise UsageError("model", f"{name} of the classes {shorten(own)}", expected)
    if not own:
        log.info("the outputs of %s are taken to be, in this order: %s", name, shorten(of_data))
