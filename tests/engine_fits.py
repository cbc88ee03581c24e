"""Fits of a model of two layers, on batches that are a function of their number alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mobilenet.configs.run import TrainConfig
from mobilenet.training import engine

CLASSES, STEPS, BATCH = 3, 5, 8
CONFIG = TrainConfig(
    epochs=4,
    batch_size=BATCH,
    optimizer_name="adam",
    learning_scheduler_name="cosine",
    lr=0.02,
    label_smoothing=0.1,
    ma_decay_rate=0.5,
)


def make_model() -> Any:
    tf_keras.utils.set_random_seed(1)
    layers = tf_keras.layers
    source = layers.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, strides=2, use_bias=False, name="Conv")(source)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    return tf_keras.Model(source, layers.Dense(CLASSES)(layers.Flatten()(x)))


def batches(start: int) -> Any:
    """Batches that are a function of their number alone, for ever."""

    def one(number: Any) -> Any:
        labels = tf.cast((tf.range(BATCH, dtype=tf.int64) + number) % CLASSES, tf.int32)
        noise = tf.random.stateless_normal((BATCH, 6, 6, 2), tf.stack([number, 3]))
        return noise + tf.cast(labels, tf.float32)[:, None, None, None], labels

    return tf.data.Dataset.counter(start).map(one)


@dataclasses.dataclass
class Watch(tf_keras.callbacks.Callback):
    """Keeps what a test wants to see, and ends the run after an epoch, as a kill would."""

    stop_after: int | None = None
    weights: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    logs: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.weights.append([w.numpy() for w in self.model.model.weights])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.logs.append(dict(logs))
        if epoch + 1 == self.stop_after:
            raise KeyboardInterrupt


def job_of(folder: Path, config: TrainConfig = CONFIG, *callbacks: Any) -> engine.Job:
    validation = batches(100).take(2)
    return engine.Job("train", config, STEPS, batches, validation, CLASSES, folder, callbacks)
