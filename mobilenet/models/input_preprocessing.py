"""What the inputs of a model mean: how pixels of 0 to 255 become them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mobilenet.configs.dataset import PREPROCESSING, Preprocessing, choose_preprocessing
from mobilenet.models.builder import config_of
from mobilenet.models.graph import flatten
from mobilenet.models.graph.calls import CallList

log = logging.getLogger("mobilenet")

Choice = str | Preprocessing | Sequence[Any] | None
_SIZES = frozenset({"ZeroPadding2D", "Cropping2D", "Resizing", "CenterCrop"})


def resolve(model: Any, preprocessing: Choice = None) -> Preprocessing:
    """How pixels become the inputs of a model.

    Args:
        model: functional or Sequential tf_keras model.
        preprocessing: a name of `configs.dataset.PREPROCESSING`; a `Preprocessing`; or `(mean,
            std)`, each a number or one for each channel, for `(pixel - mean) / std`. `None` takes
            what is stored with the model. Of a model without this, whose first layer is
            `Rescaling` or `Normalization` (or operators that equal one), the inputs are pixels
            from 0 to 255; of any other, pixels scaled to [-1, 1], which one line of the log says.

    Raises:
        UsageError: names `preprocessing`: it is none of these, or not for the channels of the
            model; names `model`: see `flatten`.
    """
    if preprocessing is None:
        return _stored(model) or _read(model)
    channels = model.inputs[0].shape[-1] if getattr(model, "inputs", None) else None
    return choose_preprocessing(preprocessing, channels)


def _stored(model: Any) -> Preprocessing | None:
    """The preprocessing of a model that this library built or loaded."""
    stored = getattr(model, "mobilenet_preprocessing", None)
    if isinstance(stored, Preprocessing):
        return stored
    return Preprocessing() if config_of(model) is not None else None


def _read(model: Any) -> Preprocessing:
    if scales_pixels(flatten.inline_calls(model)):
        return PREPROCESSING["raw"]
    log.info(
        "the inputs of %s are taken to be pixels scaled to [-1, 1]; give another preprocessing, "
        "such as 'raw' for 0 to 255, or (mean, std)",
        model.name,
    )
    return Preprocessing()


def scales_pixels(calls: CallList) -> bool:
    """Whether a `Rescaling` is the first layer of a model, after changes of size."""
    tensors = {calls.inputs[0].call}
    for call in calls.calls[1:]:
        if not any(tensor.call in tensors for tensor in call.inputs):
            continue
        if call.kind.__name__ not in _SIZES:
            return call.kind.__name__ == "Rescaling"
        tensors.add(call)
    return False
