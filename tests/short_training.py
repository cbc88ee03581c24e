"""Short trainings: a few steps as the engine takes them, and fits of a model of two layers."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from small_models import CLASSES, INCEPTION, SIZE, inputs

from mobilenet.compression import method as methods
from mobilenet.configs.training import TrainConfig
from mobilenet.training import engine

STEPS, BATCH = 5, 8
CONFIG = TrainConfig(
    epochs=4,
    batch_size=BATCH,
    optimizer_name="adam",
    learning_scheduler_name="cosine",
    lr=0.02,
    label_smoothing=0.1,
    ma_decay_rate=0.5,
)


def stage_context(steps: int = 20, size: int = SIZE) -> methods.StageContext:
    return methods.StageContext(steps, INCEPTION, lambda count: inputs(count, size))


def train(
    model: Any,
    method: methods.Method | None,
    steps: int,
    size: int = SIZE,
    rate: float = 0.05,
    watch: Callable[[int], None] = lambda step: None,
    after_update: Callable[[tf.Tensor], None] = lambda step: None,
    eager: bool = False,
) -> float:
    """Some steps as the engine takes them, `watch` called after each; returns the last loss.

    Without a graph (`eager`) few steps take half the time.
    """

    def after_step(step: tf.Tensor) -> None:
        if method is not None:
            method.after_step(model, step)
        after_update(step)

    learner = engine.Learner(model, after_step)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(tf_keras.optimizers.SGD(rate, momentum=0.9), loss, run_eagerly=eager)
    images = inputs(8 * steps, size, seed=5)
    labels = (images[:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)
    value = 0.0
    for step in range(1, steps + 1):
        rows = slice(8 * (step - 1), 8 * step)
        value = float(learner.train_on_batch(images[rows], labels[rows]))
        watch(step)
    return value


def batches(start: int, context: tf.distribute.InputContext | None = None) -> Any:
    """Batches that are a function of their number alone, for ever; in parts for replicas."""

    def one(number: Any) -> Any:
        labels = tf.cast((tf.range(BATCH, dtype=tf.int64) + number) % CLASSES, tf.int32)
        noise = tf.random.stateless_normal((BATCH, 6, 6, 2), tf.stack([number, 3]))
        return noise + tf.cast(labels, tf.float32)[:, None, None, None], labels

    whole = tf.data.Dataset.counter(start).map(one)
    if context is None:
        return whole
    share = context.get_per_replica_batch_size(BATCH)
    return whole.unbatch().batch(share, drop_remainder=True)


@dataclasses.dataclass
class Recorder(tf_keras.callbacks.Callback):
    """Records weights and logs, and ends the run after an epoch, as a kill would."""

    stop_after: int | None = None
    weights: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    logs: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.weights.append([w.numpy() for w in self.model.model.weights])

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.stop_after:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.logs.append(dict(logs))


class Signal(tf_keras.callbacks.Callback):
    """Sends the process a signal in some step, from 1, of the process."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.left, self.number = step, number

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if not self.left:
            signal.raise_signal(self.number)


def make_job(folder: Path, config: TrainConfig = CONFIG, *callbacks: Any) -> engine.Job:
    validation = batches(100).take(2)
    return engine.Job("train", config, STEPS, batches, validation, CLASSES, folder, callbacks)
