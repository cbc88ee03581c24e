"""The model that a stage is distilled from, and what it computes of a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from mobilenet.configs.dataset import Preprocessing
from mobilenet.configs.distillation import Distillation
from mobilenet.models.graph import rebuild
from mobilenet.training import losses
from mobilenet.training.distillation import features, input_conversion
from mobilenet.training.losses import Teacher
from mobilenet.typing import IntArray


@dataclasses.dataclass(frozen=True)
class TeacherModel:
    """The model that a stage is distilled from.

    Attributes:
        model: from images to logits, in float32, created outside any strategy.
        preprocessing: how pixels become its inputs.
        name: its path, or the stage that trained it.
        image_size: side of its images; `None` where the model fixes it or takes the run's.
        outputs: those that are the classes of the run, in their order; `None` for all.
    """

    model: Any
    preprocessing: Preprocessing
    name: str
    image_size: int | None = None
    outputs: IntArray | None = None

    def teacher(
        self, config: Distillation, preprocessing: Preprocessing, channels: int | None = None
    ) -> Teacher:
        """A copy that runs in inference mode and is not trained.

        Must be called in the scope of the strategy that the stage trains in.

        Args:
            config: weights, temperature and layers.
            preprocessing: of the images that the student trains on.
            channels: of these images; as many as the teacher takes when left out.

        Raises:
            UsageError: the teacher does not have a feature map.
        """
        copy = rebuild.copy(self.model)
        height, width, own = self.model.input_shape[1:]
        size = (height or self.image_size, width or self.image_size)
        convert = input_conversion.converter(
            preprocessing, self.preprocessing, size, (channels or own, own)
        )
        maps = features.of_teacher(copy, config.feature_layers) if config.features else []

        def select(logits: tf.Tensor) -> tf.Tensor:
            return logits if self.outputs is None else tf.gather(logits, self.outputs, axis=1)

        def predict(images: tf.Tensor) -> tf.Tensor:
            return select(copy(convert(images), training=False))

        if not maps:
            return Teacher(predict, config.weight, config.temperature)
        call = features.with_outputs(copy, maps)

        def predict_with_maps(images: tf.Tensor) -> tuple[tf.Tensor, losses.Maps]:
            logits, values = call(convert(images))
            return select(logits), values

        compared = losses.Features(
            predict_with_maps,
            lambda student: features.of_student(student, config.feature_layers),
            features.similarity_distance,
            config.features,
        )
        return Teacher(predict, config.weight, config.temperature, compared)

    def note(self, config: Distillation) -> str:
        """What the model's card says of it."""
        compared = f", features {config.features:g}" if config.features else ""
        return (
            f"distilled from {self.name}, weight {config.weight:g}, "
            f"temperature {config.temperature:g}{compared}"
        )
