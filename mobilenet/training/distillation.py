"""A teacher for a stage: the model that it begins with, or another one that is loaded and
checked.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mobilenet import data
from mobilenet.configs.dataset import PREPROCESSING, Preprocessing
from mobilenet.configs.distillation import START, Distillation
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError
from mobilenet.export import freeze
from mobilenet.models import saving
from mobilenet.models.graph import rebuild
from mobilenet.tf1_loader import loading
from mobilenet.training.losses import Teacher
from mobilenet.weights import tf2_object

log = logging.getLogger("mobilenet")
_FLAG = "--distill"
_IMAGENET = 1000
_PLACES = (".keras", ".h5", ".hdf5")


@dataclasses.dataclass(frozen=True)
class Guide:
    """A model that stages learn from.

    Attributes:
        model: from images to logits, in float32, made outside any strategy.
        preprocessing: how pixels become its inputs.
        place: what a person calls it.
    """

    net: Any
    preprocessing: Preprocessing
    place: str

    def teacher(self, config: Distillation, given: Preprocessing) -> Teacher:
        """A twin that answers in inference mode, whose weights nothing trains.

        Must be called in the scope of the strategy that a stage trains in.

        Args:
            config: weight and temperature.
            given: how pixels became the inputs that it will be asked about.
        """
        own = rebuild.copy(self.net)
        convert = _conversion(given, self.preprocessing)

        def answer(images: tf.Tensor) -> tf.Tensor:
            return own(convert(images), training=False)

        return Teacher(answer, config.weight, config.temperature)

    def told(self, config: Distillation) -> str:
        return (
            f"distilled from {self.place}, weight {config.weight:g}, "
            f"temperature {config.temperature:g}"
        )


class Guides:
    """Which model each stage of a run learns from.

    Args:
        config: of the run.
        info: its data.
    """

    def __init__(self, config: RunConfig, info: data.DatasetInfo) -> None:
        self.config, self.info = config, info
        self.preprocessing = PREPROCESSING[config.dataset.preprocessing]

    def of(self, stage: str, start: Any, origin: str | None) -> Guide | None:
        """The model that a stage learns from, if any; called outside any strategy.

        Args:
            stage: one that trains.
            start: the model that it begins with.
            origin: where its weights come from; `None` where some are new and know nothing.

        Raises:
            UsageError: see `load`.
        """
        if self.config.distillation.model is not None:
            return self._other
        if self.config.distillation.teacher != START or stage == "train":
            return None
        if origin is None:
            log.info("%s: nothing is distilled from a start with weights that are new", stage)
            return None
        return Guide(freeze.float32_copy(start), self.preprocessing, origin)

    @functools.cached_property
    def _other(self) -> Guide:
        path = str(self.config.distillation.model)
        return load(path, self.info, self.config.image_size, self.preprocessing)


def load(path: str, info: data.DatasetInfo, image_size: int, preprocessing: Preprocessing) -> Guide:
    """Reads a teacher, and checks that it can answer for the images and classes of a run.

    Must be called outside any strategy.

    Args:
        path: a model folder, `.keras` or `.h5` file, SavedModel or TF1 checkpoint; one of 1001
            outputs serves 1000 classes without its background.
        info: the data of the run.
        image_size: of the run, in pixels.
        preprocessing: of the run; that of a model without a card.

    Raises:
        UsageError: it cannot be read, or has other classes or another input.
    """
    shape = (image_size, image_size, 3)
    try:
        net, own, labels = _read(path, info.num_classes, shape, preprocessing)
        model = freeze.float32_copy(net)
    except UsageError as error:
        raise error.within(_FLAG) from None
    classes = model.output_shape[1:]
    if classes != (info.num_classes,):
        raise UsageError(
            _FLAG,
            path,
            f"a teacher of {info.num_classes} classes; this one gives {_told(classes)}",
            "give a model that was trained on these classes",
        )
    if labels and info.labels and labels != info.labels:
        raise UsageError(
            _FLAG,
            path,
            f"a teacher of the classes {_begin(info.labels)}; this one has {_begin(labels)}",
            "give a model that was trained on these classes",
        )
    takes = model.input_shape[1:]
    if len(takes) != 3 or any(a not in (None, b) for a, b in zip(takes, shape, strict=True)):
        raise UsageError(
            _FLAG,
            path,
            f"a teacher that takes images of {_told(shape)}; this one takes {_told(takes)}",
            "give the --image_size of the teacher, or another teacher",
        )
    return Guide(model, own, path)


def _read(
    path: str, classes: int, shape: tuple[int, int, int], preprocessing: Preprocessing
) -> tuple[Any, Preprocessing, tuple[str, ...]]:
    """A model, its preprocessing and its labels."""
    place = Path(path)
    saved = any((place / name).is_file() for name in (saving.MODEL, "saved_model.pb"))
    if place.suffix in _PLACES or saved:
        model = saving.load(path)
        known = saved and (place / saving.CARD).is_file()
        return model.model, model.card.preprocessing if known else preprocessing, model.card.labels
    if tf2_object.is_one(path):
        raise UsageError(path, None, "a model with its architecture; a TF2 checkpoint has none")
    loaded = loading.load_tf1_checkpoint(
        path,
        input_shape=shape,
        classifier_activation=None,
        num_classes=_IMAGENET if classes == _IMAGENET else None,
    )
    return loaded.model, Preprocessing(), ()


def _conversion(from_: Preprocessing, to: Preprocessing) -> Callable[[tf.Tensor], tf.Tensor]:
    """Inputs by one preprocessing into those by another; what was cut off stays cut off."""
    if (from_.mean, from_.std) == (to.mean, to.std):
        return lambda images: images
    mean, std, own_mean, own_std = (
        np.asarray(value, np.float32) for value in (from_.mean, from_.std, to.mean, to.std)
    )
    scale, shift = std / own_std, (mean - own_mean) / own_std
    return lambda images: images * scale + shift


def _told(shape: tuple[int | None, ...]) -> str:
    return "x".join("any" if side is None else str(side) for side in shape)


def _begin(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:3]) + ", ..." * (len(labels) > 3)
