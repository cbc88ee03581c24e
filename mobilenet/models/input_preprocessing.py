"""What the inputs of a model mean: how pixels of 0 to 255 become them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from mobilenet.configs.card import CROP, SCALING, Card
from mobilenet.configs.dataset import (
    CUSTOM,
    FROM_METADATA,
    PREPROCESSING,
    Preprocessing,
    choose_crop,
    choose_preprocessing,
)
from mobilenet.typing import Float64Array

log = logging.getLogger("mobilenet")

Choice = str | Preprocessing | Sequence[Any] | None
Crop = str | float | None
Constants = tuple[Float64Array, Float64Array]  # mean and deviation of each channel

_INCEPTION = Preprocessing()
_PIXELS = "raw"  # the preprocessing of models that take pixels
_GRID_MEAN = 128.0  # of an int8 file: quantized value = pixel - 128
_SIZES = frozenset({"ZeroPadding2D", "Cropping2D", "Resizing", "CenterCrop"})
_LEAST_OF_PIXELS = 10.0  # deviation or mean; photos have about 60 and 120, or 0.25 and 0.5
_LEAST_MEAN = 0.1  # of pixels from 0 to 1; handwritten digits on black have 0.13
_PIXELS_PER_UNIT = 1 / 100.0  # a smaller deviation makes pixels of inputs from 0 to 1


def resolve(model: Any, preprocessing: Choice = None) -> Preprocessing:
    """How pixels become the inputs of a model.

    Args:
        model: functional or Sequential tf_keras model.
        preprocessing: a name of `configs.dataset.PREPROCESSING`; a `Preprocessing`; or `(mean,
            std)`, each a number or one for each channel, for `(pixel - mean) / std`. `None` takes
            what is stored with the model, or else is read from its first layers; of a model whose
            first layers do not scale, inputs are taken to be pixels scaled to [-1, 1], which one
            line of the log says.

    Raises:
        UsageError: names `preprocessing`: it is none of these, or not for the channels of the
            model; names `model`: see `flatten`.
    """
    if preprocessing is not None:
        channels = model.inputs[0].shape[-1] if getattr(model, "inputs", None) else None
        return choose_preprocessing(preprocessing, channels)
    found, assumed = of_model(model)
    if SCALING in assumed:
        log.warning("%s", _assumption(found, (SCALING,), model.name))
    return found


def known(model: Any, preprocessing: Choice = None) -> Preprocessing | None:
    """As `resolve`; `None` where it would assume."""
    if preprocessing is not None:
        return resolve(model, preprocessing)
    found, assumed = of_model(model)
    return None if SCALING in assumed else found


def complete_card(
    card: Card,
    name: str,
    preprocessing: Choice = None,
    crop: Crop = None,
    usual: Preprocessing = _INCEPTION,
    *,
    from_files: bool = True,
) -> Card:
    """The card with what is given, and with what is usual where nothing is known.

    One line of the log and a note of the card say what is assumed.

    Args:
        card: of a model.
        name: of the model, for the line.
        preprocessing: see `resolve`; `None` takes that of the card.
        crop: one of `configs.dataset.CROPS`, or the share of each side that a central crop keeps;
            `None` takes that of the preprocessing.
        usual: what is assumed, such as the preprocessing of the data.
        from_files: images are cropped; of arrays the crop does not matter and stays unknown.

    Raises:
        UsageError: names `preprocessing` or `crop`.
    """
    card = with_preprocessing(card, preprocessing, crop)
    assumed = tuple(part for part in card.assumed if part == SCALING or from_files)
    if not assumed:
        return card
    found = card.preprocessing
    if SCALING in assumed:
        found = usual if CROP in card.assumed else _with_crop_of(usual, found)
    elif CROP in assumed:
        found = _with_crop_of(found, usual)
    line = _assumption(found, assumed, name)
    log.warning("%s", line)
    left = tuple(part for part in card.assumed if part not in assumed)
    return card.replace(preprocessing=found, assumed=left, notes=(*card.notes, line))


def with_preprocessing(card: Card, preprocessing: Choice = None, crop: Crop = None) -> Card:
    """The card with what is given instead of its own; see `complete_card`."""
    if preprocessing is not None:
        found = _chosen(card, preprocessing)
        assumed = (CROP,) if found.name == CUSTOM and found.crop == _INCEPTION.crop else ()
        card = card.replace(preprocessing=found, assumed=assumed)
    if crop is None:
        return card
    left = tuple(part for part in card.assumed if part != CROP)
    return card.replace(preprocessing=choose_crop(card.preprocessing, crop), assumed=left)


def with_file_preprocessing(card: Card, preprocessing: Choice = None, crop: Crop = None) -> Card:
    """As `with_preprocessing`, for the card of a `.tflite` file.

    A file of a model with this preprocessing has its own numbers for it, and keeps them.
    """
    if preprocessing is not None:
        is_same = _chosen(card, preprocessing) == of_float_model(card)
        preprocessing = None if is_same else preprocessing
    return with_preprocessing(card, preprocessing, crop)


def _chosen(card: Card, preprocessing: Choice) -> Preprocessing:
    """What is given for a model; names and numbers leave images as upright as its card."""
    assert preprocessing is not None
    found = choose_preprocessing(preprocessing, card.input_shape[2])
    if isinstance(preprocessing, Preprocessing):
        return found
    return found.replace(exif=card.preprocessing.exif)


def of_float_model(card: Card) -> Preprocessing | None:
    """How pixels become the inputs of the model that a file was made of; `None` if not known.

    The card of an int8 file has a mean of 128 instead of that of the float model; where that takes
    pixels, the numbers of its first layer.

    Args:
        card: of the file.
    """
    stored = card.preprocessing
    if SCALING in card.assumed:
        return None
    is_on_grid = set(stored.mean) == {_GRID_MEAN} and stored.name != FROM_METADATA
    if stored.name == _PIXELS or is_on_grid:
        known = PREPROCESSING.get(stored.name)
        return known and known.replace(exif=stored.exif)
    return stored


def of_model(model: Any) -> tuple[Preprocessing, tuple[str, ...]]:
    """The preprocessing that is known of a model, and what of it is assumed (see `Card.assumed`).

    Args:
        model: functional or Sequential tf_keras model.
    """
    from mobilenet.models.builder import config_of

    stored = getattr(model, "mobilenet_preprocessing", None)
    if isinstance(stored, Preprocessing):
        return stored, ()
    if config_of(model) is not None:
        return _INCEPTION, (CROP,)
    found = read(model)
    return (_INCEPTION, (SCALING, CROP)) if found is None else (found, (CROP,))


def read(model: Any) -> Preprocessing | None:
    """The preprocessing whose inputs the first layers of a model scale; its crop is not known.

    `Rescaling`, `Normalization`, operators and constants that equal them, and batch norms are
    scalings, also several in sequence and after changes of size or of the order of channels. Their
    mean and deviation tell pixels from 0 to 255 (`raw`) from pixels scaled to [0, 1] (`unit`) or
    [-1, 1] (`inception`) before the model, since a model scales its inputs to values around 1.

    Args:
        model: functional or Sequential tf_keras model.

    Returns:
        `None` where the first layers do not scale, or these constants fit none of them.
    """
    from mobilenet.models.graph import flatten, operators

    calls = flatten.inline_calls(model)
    channels = int(model.inputs[0].shape[-1] or 1) if len(model.inputs[0].shape) == 4 else 1
    if not model.inputs[0].dtype.is_floating:
        return PREPROCESSING[_PIXELS]
    scale, offset = np.ones(channels), np.zeros(channels)
    is_scaled, call = False, calls.only_consumer(calls.inputs[0].call)
    while call is not None:
        constants = operators.rescaling(call)
        if constants is not None:
            factor, shift = (np.asarray(constant) for constant in constants)
            scale, offset = factor * scale, factor * offset + shift
            is_scaled = True
        elif call.kind.__name__ not in _SIZES and call.suffix != operators.REORDERED:
            break
        call = calls.only_consumer(call)
    if is_scaled and scale.all():
        return _preprocessing_of(-offset / scale, 1 / np.abs(scale))
    statistics = None if call is None else _statistics(call)
    return None if is_scaled or statistics is None else _preprocessing_of(*statistics)


def _statistics(call: Any) -> Constants | None:
    """Mean and deviation of the inputs of a batch norm."""
    if call.kind.__name__ != "BatchNormalization":
        return None
    mean, variance = (
        np.asarray(x, np.float64) for x in (call.layer.moving_mean, call.layer.moving_variance)
    )
    return mean, np.sqrt(variance)


def _preprocessing_of(mean: Float64Array, deviation: Float64Array) -> Preprocessing | None:
    """What is scaled by `(input - mean) / deviation`."""
    if (deviation >= _LEAST_OF_PIXELS).all() or (mean >= _LEAST_OF_PIXELS).all():
        return PREPROCESSING[_PIXELS]
    if np.allclose(mean, -1):
        return _INCEPTION
    is_normalized = mean.min() >= _LEAST_MEAN and mean.max() < 1 and deviation.max() <= 1
    is_multiplied = np.allclose(mean, 0) and deviation.max() <= _PIXELS_PER_UNIT
    return PREPROCESSING["unit"] if is_normalized or is_multiplied else None


def _with_crop_of(found: Preprocessing, usual: Preprocessing) -> Preprocessing:
    return found.replace(
        crop=usual.crop, crop_fraction=usual.crop_fraction, interpolation=usual.interpolation
    )


def _assumption(found: Preprocessing, assumed: Sequence[str], name: str) -> str:
    """The line that says what is assumed."""
    if SCALING not in assumed:
        return f"{name} does not state its crop: {found.part} is taken"
    low, high = found.input_range
    crop = f" of {found.part}" if CROP in assumed else ""
    return (
        f"the inputs of {name} are taken to be pixels{crop} scaled to [{low:g}, {high:g}]; give "
        "another preprocessing, such as 'raw' for 0 to 255, or (mean, std)"
    )
