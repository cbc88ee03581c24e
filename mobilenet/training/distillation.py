"""A teacher for a stage: the model that it begins with, or another one that is loaded and
checked.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from mobilenet import data, loading
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import Preprocessing
from mobilenet.configs.distillation import START, Distillation
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError
from mobilenet.export import freeze
from mobilenet.models import input_preprocessing
from mobilenet.models.graph import rebuild
from mobilenet.tf1_loader.loading import load_tf1_checkpoint
from mobilenet.training.losses import Teacher
from mobilenet.weights import tf2_object, timm

log = logging.getLogger("mobilenet")
_PARAMETER = "teacher"
_PREPROCESSING = "distillation.preprocessing"
_IMAGENET = 1000


@dataclasses.dataclass(frozen=True)
class TeacherModel:
    """The model that a stage is distilled from.

    Attributes:
        model: from images to logits, in float32, created outside any strategy.
        preprocessing: how pixels become its inputs.
        name: its path, or the stage that trained it.
    """

    model: Any
    preprocessing: Preprocessing
    name: str

    def teacher(self, config: Distillation, preprocessing: Preprocessing) -> Teacher:
        """A copy that runs in inference mode and is not trained.

        Must be called in the scope of the strategy that the stage trains in.

        Args:
            config: weight and temperature.
            preprocessing: of the images that the student trains on.
        """
        copy = rebuild.copy(self.model)
        convert = _conversion(preprocessing, self.preprocessing)

        def predict(images: tf.Tensor) -> tf.Tensor:
            return copy(convert(images), training=False)

        return Teacher(predict, config.weight, config.temperature)

    def note(self, config: Distillation) -> str:
        """What the model's card says of it."""
        return (
            f"distilled from {self.name}, weight {config.weight:g}, "
            f"temperature {config.temperature:g}"
        )


class Teachers:
    """The teacher of each stage of a run.

    Args:
        config: of the run.
        info: its data.
    """

    def __init__(self, config: RunConfig, info: data.DatasetInfo) -> None:
        self.config, self.info = config, info
        self.preprocessing = config.preprocessing

    def of(self, stage: str, start: Any, origin: str | None) -> TeacherModel | None:
        """The teacher of a stage, or `None`; must be called outside any strategy.

        Args:
            stage: one that trains.
            start: the model that it starts from.
            origin: where its weights come from; `None` if some of them are untrained.

        Raises:
            UsageError: see `load`.
        """
        if self.config.distillation.model is not None:
            return self._other
        if self.config.distillation.teacher != START or stage == "train":
            return None
        if origin is None:
            log.info("%s: distillation skipped, the starting weights are untrained", stage)
            return None
        return TeacherModel(freeze.float32_copy(start), self.preprocessing, origin)

    @functools.cached_property
    def _other(self) -> TeacherModel:
        path = str(self.config.distillation.model)
        info = dataclasses.replace(self.info, num_classes=self.config.model.num_classes or 0)
        given = self.config.distillation.preprocessing
        return load(path, info, self.config.input_shape, self.preprocessing, given)


def load(
    path: str,
    info: data.DatasetInfo,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    given: str | None = None,
) -> TeacherModel:
    """Reads a teacher, and checks that it fits the images and classes of a run.

    Must be called outside any strategy.

    Args:
        path: a model folder, `.keras` or `.h5` file, SavedModel, timm's `.safetensors` or TF1
            checkpoint, of which one of 1001 outputs serves 1000 classes without its background.
        info: the data of the run, with as many classes as its models have outputs.
        shape: of the run's images, `(height, width, channels)`.
        preprocessing: of the run; that of a model of which none is known.
        given: the preprocessing of the teacher instead of its own, see `input_preprocessing`.

    Raises:
        UsageError: it cannot be read, or has other classes or another input.
    """
    try:
        source, card = _read(path, info.num_classes, shape)
        model = freeze.float32_copy(source)
    except UsageError as error:
        raise error.within(f"`{_PARAMETER}`") from None
    try:
        card = input_preprocessing.complete_card(
            card, path, given, usual=preprocessing, from_files=False
        )
    except UsageError as error:
        raise UsageError(_PREPROCESSING, error.got, error.expected, error.remedy) from None
    labels = card.labels
    classes = model.output_shape[1:]
    if classes != (info.num_classes,):
        raise UsageError(
            _PARAMETER,
            path,
            f"a teacher of {info.num_classes} classes; this one gives {_format_shape(classes)}",
            "give a model that was trained on these classes",
        )
    if labels and info.labels and labels != info.labels:
        raise UsageError(
            _PARAMETER,
            path,
            f"a teacher of the classes {_begin(info.labels)}; this one has {_begin(labels)}",
            "give a model that was trained on these classes",
        )
    takes = model.input_shape[1:]
    if len(takes) != 3 or any(a not in (None, b) for a, b in zip(takes, shape, strict=True)):
        raise UsageError(
            _PARAMETER,
            path,
            f"a teacher that takes images of {_format_shape(shape)}; "
            f"this one takes {_format_shape(takes)}",
            "give the `image_size` and `channels` of the teacher, or another teacher",
        )
    return TeacherModel(model, card.preprocessing, path)


def _read(path: str, classes: int, shape: tuple[int, int, int]) -> tuple[Any, Card]:
    """A model and its card."""
    form = loading.detect_form(path)
    if form == loading.CHECKPOINT and not tf2_object.is_tf2_checkpoint(path):
        checkpoint = load_tf1_checkpoint(
            path,
            input_shape=shape,
            classifier_activation=None,
            num_classes=_IMAGENET if classes == _IMAGENET else None,
        )
        return checkpoint.model, checkpoint.card.replace(labels=())
    if form == loading.SAFETENSORS:
        of_timm = timm.load(path, input_shape=shape)
        return of_timm.model, of_timm.card
    loaded = loading.load_keras_model(path)
    return loaded.model, loaded.card


def _conversion(from_: Preprocessing, to: Preprocessing) -> Callable[[tf.Tensor], tf.Tensor]:
    """Inputs by one preprocessing into those by another; what was cut off stays cut off."""
    if (from_.mean, from_.std) == (to.mean, to.std):
        return lambda images: images
    mean, std, own_mean, own_std = (
        np.asarray(value, np.float32) for value in (from_.mean, from_.std, to.mean, to.std)
    )
    scale, shift = std / own_std, (mean - own_mean) / own_std
    return lambda images: images * scale + shift


def _format_shape(shape: tuple[int | None, ...]) -> str:
    return "x".join("any" if side is None else str(side) for side in shape)


def _begin(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:3]) + ", ..." * (len(labels) > 3)
