"""Image classification by a Keras model or a frozen graph."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from mobilenet.configs.card import class_count, class_numbers
from mobilenet.errors import UsageError
from mobilenet.models import saving
from mobilenet.models.graph import inference
from mobilenet.models.saving import LoadedModel
from mobilenet.runtime import images
from mobilenet.runtime.classifier import ImageClassifier
from mobilenet.typing import Array, Float32Array


class KerasClassifier(ImageClassifier):
    """A Keras model or frozen graph that classifies like `mobilenet.runtime.Classifier`.

    Attributes:
        model: the model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        """Takes a model and its card.

        Raises:
            UsageError: it has no classes, or not as many as labels.
        """
        self.model, self.card, self._is_first = loaded.model, loaded.card, True
        height, width, channels = self.card.input_shape
        self.input_shape = (height, width, channels)
        shape = self.model.output_shape[1:]
        if len(shape) != 1 or self.card.outputs == "features":
            raise UsageError("model", list(shape), "a model that has classes, not features")
        self.output_count = int(shape[0])
        self.labels = self.card.labels or class_numbers(shape[0])
        if len(self.labels) != class_count(shape[0]):
            expected = f"{class_count(shape[0])} labels in its card.json, one a class"
            raise UsageError("model", len(self.labels), expected)

    def run(self, pixels: Float32Array) -> Float32Array:
        """Outputs `[classes]` of one image of the model's size, pixels 0 to 255."""
        batch = images.normalize(pixels, self.card.preprocessing)[None]
        outputs: Float32Array
        if self._is_first:  # one image is not worth the time of compiling
            self._is_first = False
            outputs = np.asarray(self.model(batch, training=False))[0]
        else:
            outputs = self._compiled(batch)[0]
        return outputs

    @functools.cached_property
    def _compiled(self) -> Callable[[Array], Float32Array]:
        return compiled(self.model)


def with_card(model: Any) -> LoadedModel:
    """A classifier in memory, and a card of what can be seen in it.

    Raises:
        UsageError: names `model`: it is no functional or Sequential tf_keras model, has several
            inputs or outputs, or takes no images or has no classes.
    """
    loaded = saving.with_card(model)
    shapes = [list(tensor.shape) for tensor in model.outputs]
    if len(shapes) != 1 or None in shapes[0][1:] or math.prod(shapes[0][1:]) != shapes[0][-1]:
        expected = "a classifier, with outputs [batch, classes]"
        raise UsageError("model", f"outputs {shapes}", expected)
    is_known = loaded.card.outputs != "features"
    return loaded if is_known else LoadedModel(model, loaded.card.replace(outputs="logits"))


def compiled(model: Any) -> Callable[[Array], Float32Array]:
    """Runs a model on batches: images `[n, height, width, channels]` to outputs `[n, classes]`."""
    infer = inference.compile_model(model)
    return lambda images: np.asarray(infer(tf.constant(images.astype(np.float32))))
