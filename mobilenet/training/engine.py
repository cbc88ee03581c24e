"""The training loop of every stage; it knows the interface of compression methods alone."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.compression.method import Method
from mobilenet.configs.card import SIGMOID, SOFTMAX
from mobilenet.configs.run import TrainConfig
from mobilenet.errors import UsageError
from mobilenet.evaluation import scoring
from mobilenet.models.graph import inference
from mobilenet.training import losses
from mobilenet.training.best_weights import BestWeights
from mobilenet.training.compression import prepare_step
from mobilenet.training.ema import Average
from mobilenet.training.resume import Checkpoints, Row
from mobilenet.training.schedules import LearningRate, create_optimizer

log = logging.getLogger("mobilenet")
TrainingData = Callable[[int], tf.data.Dataset]


@dataclasses.dataclass(frozen=True)
class Job:
    """What `fit` needs besides the model and the method.

    Attributes:
        name: of the stage.
        config: how it trains.
        steps_per_epoch: optimizer steps an epoch, on all replicas together.
        training: the endless batches from a given step on.
        validation: batches of every image once.
        classes: outputs of the model; 1 for two classes, or for one label.
        checkpoints: folder of the resume state.
        callbacks: Keras callbacks (progress, logs).
        teacher: whose outputs the model is trained towards, in addition to the labels.
        activation: `softmax`, or `sigmoid` of each output.
        multi_label: labels are `[batch, classes]` of 0 and 1, not class indices.
    """

    name: str
    config: TrainConfig
    steps_per_epoch: int
    training: TrainingData
    validation: tf.data.Dataset
    classes: int
    checkpoints: Path
    callbacks: tuple[Any, ...] = ()
    teacher: losses.Teacher | None = None
    activation: str = SOFTMAX
    multi_label: bool = False

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch


class Learner(tf_keras.Model):
    """The model that Keras trains: the network, and what happens after each of its updates.

    Attributes:
        model: the network; Keras sees its variables alone.
        after_update: called in the graph after each update, with its number (int64, from 1).
        teacher: adds its outputs to the targets of every batch; `None` trains on labels alone.
        statistics_frozen: training steps run in inference mode, so that batch-norm statistics
            stay as they are; a change takes effect with a new trace.
    """

    def __init__(
        self,
        model: Any,
        after_update: Callable[[tf.Tensor], None],
        teacher: losses.Teacher | None = None,
    ) -> None:
        super().__init__(name="learner")
        self.model = model
        self.after_update = after_update
        self.teacher = teacher
        self.statistics_frozen = False

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        updates_statistics = bool(training) and not self.statistics_frozen
        return tf.cast(self.model(inputs, training=updates_statistics), tf.float32)

    def train_step(self, data: Any) -> dict[str, Any]:
        logs = super().train_step(data)
        self.after_update(tf.identity(self.optimizer.iterations))
        return dict(logs)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
    ) -> Any:
        if self.teacher is not None:  # of the loss alone; metrics get the labels
            y = self.teacher.append_targets(y, x)
        return super().compute_loss(x, y, y_pred, sample_weight)


def fit(model: Any, method: Method | None, job: Job) -> list[Row]:
    """Trains `model` in place, from the newest resume state if there is one.

    The model ends with the averaged weights: those of the last epoch or, with `keep_best`, of the
    best epoch after which the method had reached its target, if any had. Call it in the scope of
    the strategy in which `model` was created.

    Args:
        model: functional, from images to logits.
        method: its `after_step` is compiled into the training step; its `apply` returned `model`.
        job: data, number of epochs and folders.

    Returns:
        One row an epoch: `epoch`, `loss`, `top1` (training), `val_loss`, `val_top1`, `lr`,
        `seconds`; top-1 in percent, of several labels the labels decided right. `val_auc` and
        `val_f1` of a sigmoid of several labels or one output. With `keep_best`, `kept` is 1 in the
        row of the epoch that the model ends with and 0 in the others.

    Raises:
        UsageError: the loss is no longer a number, or the resume state is not of this model.
    """
    rate = LearningRate(job.config, job.steps_per_epoch)
    optimizer = create_optimizer(job.config, rate)
    average = Average(model, job.config.ma_decay_rate)
    best = BestWeights(model) if job.config.keep_best else None
    of_labels = losses.binary_cross_entropy if job.activation == SIGMOID else losses.cross_entropy
    loss = of_labels(job.classes, job.config.label_smoothing)
    if job.teacher is not None:
        loss = losses.distillation_loss(loss, job.teacher, job.activation)

    def after_update(step: tf.Tensor) -> None:
        if method is not None:
            method.after_step(model, step)
        average.update(average_step(step, method), pruned=method is not None)

    learner = Learner(model, after_update, job.teacher)
    learner.compile(
        optimizer=optimizer,
        loss=loss,
        metrics=[_accuracy(job)],
    )
    learner.optimizer.build(model.trainable_variables)
    objects = {"model": model, "optimizer": learner.optimizer, "average": average}
    if method is not None:
        objects["method"] = method
    if best is not None:
        objects["best"] = best
    checkpoints = Checkpoints(job.checkpoints, **objects)
    done, rows = checkpoints.restore()
    if done:
        log.info("%s: continues after epoch %d of %d", job.name, done, job.config.epochs)
    epochs = _EpochCallback(learner, method, average, best, job, checkpoints, rate, rows)
    if done < job.config.epochs:
        learner.fit(
            job.training(done * job.steps_per_epoch),
            steps_per_epoch=job.steps_per_epoch,
            initial_epoch=done,
            epochs=job.config.epochs,
            verbose=0,
            callbacks=[epochs, *job.callbacks],
        )
    average.assign()
    return epochs.rows if best is None else _restore_best(best, job, epochs.rows)


def _accuracy(job: Job) -> Any:
    """The share of images, or of labels, that the logits decide right."""
    if job.multi_label or job.classes == 1:
        return tf_keras.metrics.BinaryAccuracy(name="top1", threshold=0.0)
    return tf_keras.metrics.SparseCategoricalAccuracy(name="top1")


def _restore_best(best: BestWeights, job: Job, rows: list[Row]) -> list[Row]:
    """Puts the best weights in the model and marks the row of their epoch; the last one without."""
    epoch = best.restore() or len(rows)
    if rows:
        top1 = rows[epoch - 1]["val_top1"]
        log.info(
            "%s: restored the weights of the best epoch, %d of %d, validation top-1 %0.2f %%",
            job.name,
            epoch,
            len(rows),
            top1,
        )
    return [{**row, "kept": int(row["epoch"] == epoch)} for row in rows]


def average_step(step: tf.Tensor, method: Method | None) -> tf.Tensor:
    """Number of the update for the moving average, which restarts after `average_restart_step`."""
    start = 0 if method is None else method.average_restart_step
    return tf.where(step > start, step - start, step)


class _EpochCallback(tf_keras.callbacks.Callback):
    """Validates the averaged weights and saves the resume state at the end of each epoch; traces
    the training step again when the method enters another phase.

    It is the first of the callbacks, so that the others get the complete row as their logs.
    """

    def __init__(
        self,
        learner: Learner,
        method: Method | None,
        average: Average,
        best: BestWeights | None,
        job: Job,
        checkpoints: Checkpoints,
        rate: LearningRate,
        rows: list[Row],
    ) -> None:
        super().__init__()
        self.learner, self.method, self.average, self.best = learner, method, average, best
        self.job, self.checkpoints, self.rate, self.rows = job, checkpoints, rate, rows
        self.infer = inference.compile_model(learner.model)
        self.started = 0.0
        self.done = 0  # steps before this epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        self.started = tf.timestamp().numpy()
        self.done = epoch * self.job.steps_per_epoch
        # Not in on_train_batch_begin: Keras warns of a slow one.
        self._prepare_step(self.done)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del logs
        if batch:
            self._prepare_step(self.done + batch)

    def _prepare_step(self, step: int) -> None:
        if self.method is None:
            return
        if prepare_step(self.method, self.learner, step):
            self.learner.make_train_function(force=True)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = logs if logs is not None else {}
        self._check_finite("loss", logs.get("loss", 0.0), epoch)
        seconds = float(tf.timestamp().numpy() - self.started)
        with self.average.swapped():
            held_out = scoring.score(
                self.infer, self.job.validation, activation=self.job.activation
            )
            self._check_finite("validation loss", held_out.loss, epoch)
            if self.best is not None and self._target_reached(epoch + 1):
                self.best.update_if_better(epoch + 1, held_out)
        row = {
            "epoch": epoch + 1,
            "loss": round(float(logs["loss"]), 5),
            "top1": round(100 * float(logs["top1"]), 3),
            "val_loss": round(held_out.loss, 5),
            "val_top1": round(held_out.top1, 3),
            "lr": float(self.rate(epoch * self.job.steps_per_epoch)),
            "seconds": round(seconds, 2),
        }
        figures = {"val_auc": held_out.auc, "val_f1": held_out.f1}
        row |= {name: round(value, 5) for name, value in figures.items() if value is not None}
        self.rows.append(row)
        logs.update(row)
        self.checkpoints.save(epoch + 1, self.rows)

    def _target_reached(self, epochs: int) -> bool:
        return self.method is None or self.method.target_reached(epochs * self.job.steps_per_epoch)

    def _check_finite(self, what: str, value: float, epoch: int) -> None:
        """Ends the run before a resume state with NaN or infinity is saved."""
        if not math.isfinite(value):
            stage = self.job.name.partition("_")[0]  # `prune_2` is of the stage `prune`
            lr = f"`{stage}.lr={self.job.config.lr / 10:g}`"
            remedy = f"try {lr} with `overwrite` or another `model_dir`"
            raise UsageError(what, f"{value} in epoch {epoch + 1}", "a finite number", remedy)
