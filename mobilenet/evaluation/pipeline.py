"""Evaluates a model or a file on a data set, on arrays or on batches.

A flatbuffer on arrays, the digits, class folders or a list of images is scored without TensorFlow.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mobilenet import metrics
from mobilenet.configs.base import MAX_BATCH, check_number
from mobilenet.configs.card import (
    SCALING,
    SOFTMAX,
    Card,
    activation_of,
    checked_labels,
    class_numbers,
    known_activation,
)
from mobilenet.configs.dataset import (
    DatasetConfig,
    Preprocessing,
    choose_preprocessing,
)
from mobilenet.data.in_memory import evenly_spaced
from mobilenet.errors import UsageError, one_of
from mobilenet.evaluation import arrays, data_source
from mobilenet.evaluation.predictions import Collector
from mobilenet.evaluation.result import Evaluation
from mobilenet.models import input_preprocessing
from mobilenet.runtime import evaluation as file_evaluation
from mobilenet.runtime.classifier import Classifier
from mobilenet.typing import Array, Float32Array, FloatArray, IntArray

if TYPE_CHECKING:
    from mobilenet.models.saving import LoadedModel

log = logging.getLogger("mobilenet")

_BLOCK = 64  # images whose outputs are taken together

EvaluatedModel: TypeAlias = "LoadedModel | Classifier"


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model is evaluated; see `mobilenet.evaluate`."""

    split: str = "test"
    batch_size: int = 32
    limit: int | None = None
    labels: Sequence[str] | None = None
    preprocessing: input_preprocessing.Choice = None
    exif: bool | None = None
    crop: input_preprocessing.Crop = None

    def __post_init__(self) -> None:
        one_of("split", self.split, file_evaluation.SPLITS)
        check_number("batch_size", self.batch_size, least=1, most=MAX_BATCH, integer=True)
        if self.limit is not None:
            check_number("limit", self.limit, least=1, integer=True)


@dataclasses.dataclass(frozen=True)
class _Case:
    """A model that is evaluated.

    Attributes:
        model: with the names of its classes and the preprocessing that were given.
        preprocessing: of the float model; `None` where its scaling is not known.
        name: of the model, a path or its own.
    """

    model: EvaluatedModel
    preprocessing: Preprocessing | None
    name: str


def evaluate(
    model: Any,
    data: Any,
    options: Options,
    data_dir: str | os.PathLike[str] | None = None,
    name: str = "",
) -> Evaluation:
    """Top-1, top-5 and loss; see `mobilenet.evaluate`.

    Args:
        model: a Keras model, a `LoadedModel`, `QuantizedModel`, `ConvertedFile` or `Classifier`.
        data: see `mobilenet.evaluate`.
        options: how.
        data_dir: where a data set that is named lies.
        name: of the model in the result.

    Raises:
        UsageError: see `mobilenet.evaluate`.
    """
    clock = _Clock()
    opened = evaluated_model(model)
    case = _case(opened, options, name or _name(opened))
    notes: list[str] = []
    if isinstance(data, DatasetConfig):
        source, split = data.name, options.split
        found = _on_dataset(case, _as_asked(data, options), options, notes, clock)
    elif isinstance(data, (str, os.PathLike)):
        source, split = os.fspath(data), options.split
        config = data_source.find_dataset(data, data_dir)
        with data_source.naming_data(data_dir):
            found = _on_dataset(case, _as_asked(config, options), options, notes, clock)
    else:
        source, split = "batches" if hasattr(data, "element_spec") else "arrays", ""
        if data_dir is not None:
            raise UsageError("data_dir", str(data_dir), "nothing, as `data` holds the images")
        found = _on_arrays(case, data, options, clock)
    figures = found.collector.metrics()
    if math.isnan(figures.loss):
        raise UsageError("model", "outputs with NaN", "finite outputs", "its weights are damaged")
    names = _class_names(case.model, found)
    return Evaluation(
        top1=figures.top1,
        top5=figures.top5,
        labels=dict(zip(names[-len(figures.labels) :], figures.labels, strict=False)),
        loss=figures.loss,
        images=figures.images,
        seconds=clock.seconds,
        startup_seconds=clock.first_seconds,
        images_per_second=clock.images_per_second,
        model=case.name,
        data=source,
        predictions=found.collector.predictions(found.paths, names),
        split=split,
        notes=tuple(notes),
        published=opened.card.published,
    )


class _Clock:
    """Times the first call of a model, which loads and compiles, apart from all others.

    Attributes:
        first_seconds: until the outputs of the first batch, from when the clock was made.
        images_per_second: of the batches after it; `None` where there is only one.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first = self._count = 0
        self.first_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Since the clock was made."""
        return time.monotonic() - self._started

    def count(self, images: int) -> None:
        """Takes note of a batch whose outputs are there."""
        self._last = self.seconds
        if not self._count:
            self._first, self.first_seconds = images, self._last
        self._count += images

    @property
    def images_per_second(self) -> float | None:
        if self._count == self._first or self._last <= self.first_seconds:
            return None
        return (self._count - self._first) / (self._last - self.first_seconds)


@dataclasses.dataclass(frozen=True)
class _Found:
    """What was computed for the images of a data set.

    Attributes:
        collector: their outputs.
        paths: of the images, or their numbers.
        labels: names of the classes of the data; none where it has none.
    """

    collector: Collector
    paths: Sequence[str]
    labels: Sequence[str] = ()


def _collect(
    collector: Collector,
    batches: Iterable[tuple[FloatArray, IntArray]],
    clock: _Clock,
) -> Collector:
    """The collector with the outputs and labels of all batches."""
    is_empty = True
    for outputs, labels in batches:
        is_empty = False
        clock.count(len(labels))
        collector.add(outputs, labels)
    if is_empty:
        raise UsageError("data set", None, "at least one image")
    return collector


def _class_names(model: EvaluatedModel, found: _Found) -> tuple[str, ...]:
    """The names of the classes of a model; where it has numbers alone, those of the data.

    Returns:
        One a class, without a background; of several labels an image one a label of the data.
    """
    outputs, matching = _outputs(model), found.collector.matching
    numbers = class_numbers(outputs)
    names = list(model.card.labels)
    if len(names) != len(numbers):
        names = list(numbers)
    if tuple(names) == numbers and len(found.labels) == len(matching.indices):
        for index, label in zip(matching.indices, found.labels, strict=True):
            names[index] = label
    if found.collector.has_several_labels:
        return tuple(names[index] for index in matching.indices)
    return tuple(names[1:] if matching.background else names)


def evaluated_model(model: Any) -> EvaluatedModel:
    """A model in memory with its card, or a file.

    Args:
        model: a Keras model, a `LoadedModel`, `QuantizedModel`, `ConvertedFile` or `Classifier`.

    Raises:
        UsageError: names `model`: it is none of these, or has no classes.
    """
    if isinstance(model, Classifier):
        return model
    is_keras = is_keras_model(model)
    if not is_keras and callable(getattr(model, "classifier", None)):
        return evaluated_model(model.classifier())
    if is_keras or not isinstance(getattr(model, "card", None), Card):
        from mobilenet.evaluation import keras_classifier

        return keras_classifier.with_card(model)
    shape = model.model.output_shape
    if not isinstance(shape, tuple) or len(shape) < 2 or math.prod(shape[1:]) != shape[-1]:
        raise UsageError("model", f"outputs {shape}", "a classifier, with outputs [batch, classes]")
    loaded: LoadedModel = model
    return loaded


def is_keras_model(model: Any) -> bool:
    """Whether it is a model of tf_keras, which is not imported for that."""
    tf_keras = sys.modules.get("tf_keras")
    return tf_keras is not None and isinstance(model, tf_keras.Model)


def _name(model: EvaluatedModel) -> str:
    if isinstance(model, Classifier):
        return str(model.path or "flatbuffer")
    return str(getattr(model.model, "name", "model"))


def _outputs(model: EvaluatedModel) -> int:
    """How many outputs the model has."""
    return model.output_count if isinstance(model, Classifier) else model.model.output_shape[-1]


def _meaning(model: EvaluatedModel) -> tuple[bool, str]:
    """Whether the outputs are probabilities, and what turns logits into them."""
    activation = activation_of(model.card.activation, _outputs(model))
    return model.card.outputs == "probabilities", activation


def _case(model: EvaluatedModel, options: Options, name: str) -> _Case:
    """The model as it was asked for.

    Raises:
        UsageError: there are not as many labels as classes, or no such preprocessing.
    """
    card, given = model.card, options.preprocessing
    if options.labels is not None:
        card = card.replace(labels=checked_labels(options.labels, _outputs(model)))
    if isinstance(model, Classifier):
        of_float_model = input_preprocessing.of_float_model(card)
        card = input_preprocessing.with_file_preprocessing(card, given, options.crop)
        if given is not None:
            of_float_model = choose_preprocessing(given, card.input_shape[2])
        return _Case(model.with_card(card), of_float_model, name)
    card = input_preprocessing.with_preprocessing(card, given, options.crop)
    preprocessing = None if SCALING in card.assumed else card.preprocessing
    return _Case(dataclasses.replace(model, card=card), preprocessing, name)


def _completed(case: _Case, data: DatasetConfig) -> EvaluatedModel:
    """The model with a preprocessing for the images of a data set."""
    model = case.model
    if isinstance(model, Classifier):
        usual = model.card.preprocessing
        card = input_preprocessing.complete_card(model.card, case.name, usual=usual)
        return model.with_card(card)
    # A crop that was not chosen for the model is that of the data: digits fill their images.
    usual = data.model_preprocessing
    card = input_preprocessing.complete_card(model.card, case.name, usual=usual)
    return dataclasses.replace(model, card=card)


def _as_asked(data: DatasetConfig, options: Options) -> DatasetConfig:
    return data if options.exif is None else data.replace(exif=options.exif)


def _on_dataset(
    case: _Case, data: DatasetConfig, options: Options, notes: list[str], clock: _Clock
) -> _Found:
    def note(text: str) -> None:
        notes.append(text)
        log.info("%s", text)

    model = _completed(case, data)
    if isinstance(model, Classifier) and data.name in file_evaluation.DATASETS:
        return _of_file(model, data, options, note, clock)
    return _with_tensorflow(model, data, options, note, clock)


def _of_file(
    file: Classifier,
    data: DatasetConfig,
    options: Options,
    note: Callable[[str], None],
    clock: _Clock,
) -> _Found:
    left_out: list[UsageError] = []
    images = file_evaluation.open_images(
        file,
        data.name,
        data.data_dir,
        options.split,
        options.limit,
        label_offset=data.label_offset,
        on_note=note,
        max_pixels=data.max_pixels,
        exif=data.exif,
    )
    collector = Collector(images.matching, *_meaning(file))
    paths: list[str] = []
    on_corrupt = left_out.append if data.skip_corrupt else None
    rows = iter(file_evaluation.run(file, images, on_corrupt))
    while block := list(itertools.islice(rows, _BLOCK if paths else 1)):
        sources, outputs, labels = zip(*block, strict=True)
        clock.count(len(block))
        collector.add(np.stack(outputs), np.array(labels))
        paths += map(str, sources)
    if not paths:
        raise file_evaluation.no_images(data.name, options.split)
    if left_out:
        note(f"{len(left_out)} images left out, first {left_out[0]}")
    return _Found(collector, paths, images.labels)


def _with_tensorflow(
    model: EvaluatedModel,
    data: DatasetConfig,
    options: Options,
    note: Callable[[str], None],
    clock: _Clock,
) -> _Found:
    from mobilenet import data as datasets
    from mobilenet.data import pipeline
    from mobilenet.data.arrays import explain_errors
    from mobilenet.data.datasets import image_names, open_split
    from mobilenet.evaluation import scoring
    from mobilenet.models.graph import inference

    names = file_evaluation.names(model) if isinstance(model, Classifier) else model.card.labels
    height, width, channels = model.card.input_shape
    with explain_errors(data, options.split):
        info = datasets.describe(data)
        outputs = _outputs(model)
        if info.multi_label:
            own = model.card.activation
            matching = metrics.match_labels(outputs, names, info.labels, own)
        else:
            classes = info.num_classes
            matching = metrics.match_classes(outputs, names, classes, info.labels, data.name)
        for line in (*info.notes, info.assumed.get(options.split, ""), matching.note):
            if line:
                note(line)
        opened = open_split(data, options.split)
        batches = datasets.load(
            data,
            options.split,
            image_size=(height, width),
            batch_size=options.batch_size,
            channels=channels,
            preprocessing=model.card.preprocessing,
            limit=options.limit,
            opened=opened,
        )
        if isinstance(model, Classifier):
            infer = scoring.infer_flatbuffer(model, model.card.preprocessing)
        else:
            infer = inference.compile_model(model.model)
        collector = Collector(matching, *_meaning(model))
        _collect(collector, scoring.run(infer, batches), clock)
    numbers = pipeline.held_out_numbers(opened.size, options.limit)
    if len(numbers) != len(collector):  # records that were left out are known on reading alone
        numbers = np.arange(len(collector))
    return _Found(collector, image_names(opened, numbers), info.labels)


def _on_arrays(case: _Case, data: Any, options: Options, clock: _Clock) -> _Found:
    if options.split != Options.split:
        expected = "nothing, as `data` holds the images of one split"
        raise UsageError("split", options.split, expected)
    if options.exif is not None:
        raise UsageError("exif", options.exif, "nothing, as `data` holds pixels")
    model, count = case.model, _outputs(case.model)
    matching = metrics.binary_mapping() if count == 1 else metrics.identity_mapping(count)
    shape = model.input_shape if isinstance(model, Classifier) else model.model.input_shape[1:]
    preprocessing = case.preprocessing
    classes, size = len(matching.indices), options.batch_size
    has_labels = known_activation(model.card.activation, count) != SOFTMAX
    checked = arrays.batches(data, shape, classes, size, options.limit, preprocessing, has_labels)
    run = _of_batches(model, preprocessing)
    batches = ((run(images), indices) for images, indices in checked)
    collector = _collect(Collector(matching, *_meaning(model)), batches, clock)
    collector = collector.with_one_class_each()
    total = len(collector) if hasattr(data, "element_spec") else len(data[0])
    return _Found(collector, [str(n) for n in evenly_spaced(total, options.limit)])


def _of_batches(
    model: EvaluatedModel, preprocessing: Preprocessing | None
) -> Callable[[Array], Float32Array]:
    """Runs a model on batches of images as the model takes them.

    Args:
        model: the model.
        preprocessing: how pixels became the images; needed for a file alone.
    """
    if not isinstance(model, Classifier):
        from mobilenet.evaluation import keras_classifier

        return keras_classifier.compiled(model.model)
    file, scaling = model, preprocessing or model.card.preprocessing
    mean, std = (np.asarray(values, np.float32) for values in (scaling.mean, scaling.std))

    def run(images: Array) -> Float32Array:
        if images.dtype.kind in "iu":  # pixels
            return file.logits(images)
        if preprocessing is None and SCALING not in file.card.assumed:
            expected = "that of the float model, which its int8 file does not have"
            raise UsageError("preprocessing", None, expected, "give it, or images as uint8 pixels")
        return file.logits(images.astype(np.float32) * std + mean)

    return run
