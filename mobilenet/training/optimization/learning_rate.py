"""Learning-rate schedules: exponential, stepwise, cosine and constant, each with an optional linear
warm-up.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.configs.training import TrainConfig


class LearningRate(tf_keras.optimizers.schedules.LearningRateSchedule):
    """The rate of a stage.

    During the first `warmup_epochs` the rate climbs linearly from 0 to `lr`; after them it follows
    the schedule, counted from the start of the stage (tensorflow/models
    official/modeling/optimization, and the published MobileNet recipes). It is constant in
    `head_epochs`; both are counted from their end then, over the remaining epochs.

    Args:
        config: of the stage.
        steps_per_epoch: optimizer steps an epoch.
        restarted_at: updates before the optimizer, which counts its own, started anew.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int, restarted_at: Any = None) -> None:
        super().__init__()
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.restarted_at = restarted_at
        head = config.head_epochs
        self._after_head = config.replace(epochs=config.epochs - head, head_epochs=0)

    def __call__(self, step: Any) -> tf.Tensor:
        return self.at(step if self.restarted_at is None else step + self.restarted_at)

    def at(self, step: Any) -> tf.Tensor:
        """The rate of the update after `step` updates of the stage."""
        head = self.config.head_epochs
        epoch = tf.cast(step, tf.float32) / self.steps_per_epoch - head
        rate = self._scheduled(epoch)
        return tf.where(epoch < 0, self.config.lr, rate) if head else rate

    def _scheduled(self, epoch: tf.Tensor) -> tf.Tensor:
        config = self._after_head
        rate = config.lr * _FACTORS[config.learning_scheduler_name](config, epoch)
        if config.warmup_epochs > 0:
            climbing = config.lr * epoch / config.warmup_epochs
            rate = tf.where(epoch < config.warmup_epochs, climbing, rate)
        return rate

    def get_config(self) -> dict[str, Any]:
        return {"config": self.config.to_json(), "steps_per_epoch": self.steps_per_epoch}


def _exponential(config: TrainConfig, epoch: tf.Tensor) -> tf.Tensor:
    """A staircase: the factor applies at the end of each period (`staircase=True` of Keras)."""
    # The sliver keeps float32 from landing just below a whole number of periods.
    return tf.pow(config.lr_decay_rate, tf.floor(epoch / config.lr_decay_epochs + 1e-4))


def _stepwise(config: TrainConfig, epoch: tf.Tensor) -> tf.Tensor:
    """The factor applies at each of `lr_boundaries`; 0.1 at 1/2 and 3/4 of the stage without
    any.
    """
    boundaries = config.lr_boundaries or (config.epochs / 2, config.epochs * 3 / 4)
    passed = tf.add_n([tf.cast(epoch >= boundary, tf.float32) for boundary in boundaries])
    return tf.pow(config.lr_decay_rate if config.lr_boundaries else 0.1, passed)


def _cosine(config: TrainConfig, epoch: tf.Tensor) -> tf.Tensor:
    """Half a period from 1 to 0 over the stage (arXiv 1608.03983)."""
    share = tf.clip_by_value(epoch / max(config.epochs, 1), 0.0, 1.0)
    return 0.5 * (1 + tf.cos(math.pi * share))


def _constant(config: TrainConfig, epoch: tf.Tensor) -> tf.Tensor:
    del config
    return tf.ones_like(epoch)


_FACTORS = {
    "exponential": _exponential,
    "stepwise": _stepwise,
    "cosine": _cosine,
    "constant": _constant,
}
