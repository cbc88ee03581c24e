"""Reads a teacher from any form of saved model, and matches its classes with those of a run."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from mobilenet import data, loading
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import Preprocessing
from mobilenet.configs.distillation import Distillation
from mobilenet.errors import UsageError
from mobilenet.export import freeze
from mobilenet.models import input_preprocessing
from mobilenet.tf1_loader.loading import load_tf1_checkpoint
from mobilenet.training.distillation.teacher_model import TeacherModel
from mobilenet.typing import IntArray
from mobilenet.weights import tf2_object, timm

log = logging.getLogger("mobilenet")
_PARAMETER = "teacher"
_PREPROCESSING = "distillation.preprocessing"
_IMAGE_SIZE = "distillation.image_size"
_IMAGENET = 1000
_CHANNELS = (1, 3)


def load(
    config: Distillation,
    info: data.DatasetInfo,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
) -> TeacherModel:
    """Reads a teacher, and checks that it fits the images and classes of a run.

    Must be called outside any strategy.

    Args:
        config: its path and size, and the preprocessing that replaces its own. The path is that of
            a model folder, `.keras` or `.h5` file, SavedModel, timm's `.safetensors` or TF1
            checkpoint, or the name of released weights. Of a quantized model its float weights
            teach.
        info: the data of the run, with as many classes as its models have outputs.
        shape: of the run's images, `(height, width, channels)`.
        preprocessing: of the run; that of a model of which none is known.

    Raises:
        UsageError: it cannot be read, or has other classes or other inputs than images.
    """
    path = str(config.model)
    try:
        source, card = _read(path, info.num_classes, shape, config.image_size)
        model = freeze.float32_copy(source)
    except UsageError as error:
        raise error.within(f"`{_PARAMETER}`") from None
    try:
        card = input_preprocessing.complete_card(
            card, path, config.preprocessing, usual=preprocessing, from_files=False
        )
    except UsageError as error:
        raise UsageError(_PREPROCESSING, error.got, error.expected, error.remedy) from None
    _check_input(model, path, config.image_size)
    outputs = _outputs(model, card.labels, path, info)
    return TeacherModel(model, card.preprocessing, path, config.image_size, outputs)


def _read(
    path: str, classes: int, shape: tuple[int, int, int], side: int | None
) -> tuple[Any, Card]:
    """A model and its card; weights of any size become a model of the run's, or of `side`."""
    height, width = side or shape[0], side or shape[1]
    form = loading.detect_form(path)
    if form == loading.CHECKPOINT and not tf2_object.is_tf2_checkpoint(path):
        checkpoint = load_tf1_checkpoint(
            path,
            input_shape=(height, width),
            classifier_activation=None,
            num_classes=_IMAGENET if classes == _IMAGENET else None,
        )
        return checkpoint.model, checkpoint.card.replace(labels=())
    if form == loading.SAFETENSORS:
        of_timm = timm.load(path, input_shape=(height, width))
        return of_timm.model, of_timm.card
    loaded = loading.load_keras_model(path)
    return loaded.model, loaded.card


def _check_input(model: Any, path: str, side: int | None) -> None:
    """Checks that a teacher takes images, and those of the size that was set."""
    takes = model.input_shape[1:]
    if len(takes) != 3 or takes[2] not in _CHANNELS:
        raise UsageError(
            _PARAMETER,
            path,
            f"a teacher of images of 1 or 3 channels; this one takes {_format_shape(takes)}",
            "give another teacher",
        )
    if side is not None and any(own not in (None, side) for own in takes[:2]):
        raise UsageError(
            _IMAGE_SIZE,
            side,
            f"the size of the teacher, {_format_shape(takes)}",
            "leave it out: images are resized to what the teacher takes",
        )


def _outputs(
    model: Any, labels: tuple[str, ...], path: str, info: data.DatasetInfo
) -> IntArray | None:
    """The outputs of a teacher that are the classes of the run, in their order; `None` for all.

    Raises:
        UsageError: some class of the run is none of the teacher's.
    """
    shape, classes = model.output_shape[1:], info.num_classes
    if shape == (len(labels),) and info.labels and labels != info.labels:
        return _by_label(labels, path, info.labels)
    if shape == (classes,):
        return None
    if shape == (_IMAGENET + 1,) and classes == _IMAGENET:
        return np.arange(1, _IMAGENET + 1)
    raise UsageError(
        _PARAMETER,
        path,
        f"a teacher of {classes} classes, or with labels among which they are; "
        f"this one gives {_format_shape(shape)}",
        "give a model that was trained on these classes",
    )


def _by_label(labels: tuple[str, ...], path: str, classes: tuple[str, ...]) -> IntArray:
    """The position of each class in a teacher's labels."""
    positions = {label: position for position, label in enumerate(labels)}
    ambiguous = len(positions) != len(labels)
    if ambiguous or not set(classes) <= positions.keys():
        raise UsageError(
            _PARAMETER,
            path,
            f"a teacher of the classes {_begin(classes)}; this one has {_begin(labels)}",
            "give a model that was trained on these classes",
        )
    log.info("%s: %d of its %d classes teach, by their labels", path, len(classes), len(labels))
    return np.asarray([positions[label] for label in classes])


def _format_shape(shape: tuple[int | None, ...]) -> str:
    return "x".join("any" if side is None else str(side) for side in shape)


def _begin(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:3]) + ", ..." * (len(labels) > 3)
