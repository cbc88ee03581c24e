"""One fit for every stage: it knows the interface of a method, and no method."""

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
from mobilenet.configs.run import TrainConfig
from mobilenet.errors import UsageError
from mobilenet.evaluation import scoring
from mobilenet.training import losses, optimizers
from mobilenet.training.best_weights import Best
from mobilenet.training.ema import Average
from mobilenet.training.resume import Checkpoints, Row
from mobilenet.training.schedules import LearningRate

log = logging.getLogger("mobilenet")
TrainingData = Callable[[int], tf.data.Dataset]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a fit needs besides the model and the method.

    Attributes:
        name: of the stage.
        config: how it trains.
        steps_per_epoch: optimizer steps an epoch, on all replicas together.
        training: batches from a given step on, for ever.
        validation: every image once.
        classes: number of classes.
        checkpoints: where the resume state is kept.
        callbacks: Keras callbacks that watch (progress, logs).
        teacher: whose answers the model trains towards, beside the labels.
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

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch


class Learner(tf_keras.Model):
    """A model while it trains.

    Attributes:
        model: what trains; its variables are the only ones that Keras sees.
        behind: called with the number of the update, behind each one, in the graph.
        teacher: answers every batch that the model trains on, where there is one.
        still: training steps run in inference mode; changing it needs a new trace.
    """

    def __init__(
        self,
        model: Any,
        behind: Callable[[tf.Tensor], None],
        teacher: losses.Teacher | None = None,
    ) -> None:
        super().__init__(name="learner")
        self.net = model
        self.behind = behind
        self.teacher = teacher
        self.still = False

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        return tf.cast(self.net(inputs, training=bool(training) and not self.still), tf.float32)

    def train_step(self, data: Any) -> dict[str, Any]:
        logs = super().train_step(data)
        self.behind(tf.identity(self.optimizer.iterations))
        return dict(logs)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
    ) -> Any:
        if self.teacher is not None:  # metrics are given the labels alone
            y = self.teacher.beside(y, x)
        return super().compute_loss(x, y, y_pred, sample_weight)


def fit(model: Any, method: Method | None, job: Job) -> list[Row]:
    """Trains `model` in place, from the newest resume state where there is one.

    Ends with the averaged weights in the model: the last ones, or with `keep_best` those of the
    best epoch behind which the method had settled, where there is one. Must be called in the scope
    of the strategy that `model` was made in.

    Args:
        model: functional, from images to logits.
        method: whose `after_step` is compiled into the step; its `apply` has made `model`.
        job: data, length and places.

    Returns:
        One row an epoch: `epoch`, `loss`, `top1` (training), `val_loss`, `val_top1`, `lr`,
        `seconds`; top-1 in percent. With `keep_best`, `kept` is 1 in the row of the epoch that
        the model ends with and 0 in the others.

    Raises:
        UsageError: the loss is no longer a number, or the resume state is not of this model.
    """
    rate = LearningRate(job.config, job.steps_per_epoch)
    optimizer = optimizers.make(job.config, rate)
    average = Average(model, job.config.ma_decay_rate)
    best = Best(model) if job.config.keep_best else None
    loss = losses.cross_entropy(job.classes, job.config.label_smoothing)
    if job.teacher is not None:
        loss = losses.distilled(loss, job.teacher)

    def behind(step: tf.Tensor) -> None:
        if method is not None:
            method.after_step(model, step)
        average.update(averaged(step, method), pruned=method is not None)

    learner = Learner(model, behind, job.teacher)
    learner.compile(
        optimizer=optimizer,
        loss=loss,
        metrics=[tf_keras.metrics.SparseCategoricalAccuracy(name="top1")],
    )
    learner.optimizer.build(model.trainable_variables)
    objects = {"net": model, "optimizer": learner.optimizer, "average": average}
    if method is not None:
        objects["method"] = method
    if best is not None:
        objects["best"] = best
    checkpoints = Checkpoints(job.checkpoints, **objects)
    done, rows = checkpoints.restore()
    watcher = _Epochs(learner, method, average, best, job, checkpoints, rate, rows)
    if done < job.config.epochs:
        learner.fit(
            job.training(done * job.steps_per_epoch),
            steps_per_epoch=job.steps_per_epoch,
            initial_epoch=done,
            epochs=job.config.epochs,
            verbose=0,
            callbacks=[watcher, *job.callbacks],
        )
    average.assign()
    return watcher.rows if best is None else _with_best(best, job, watcher.rows)


def _with_best(best: Best, job: Job, rows: list[Row]) -> list[Row]:
    """Puts the best weights in the model and marks their row; the last ones stay without any."""
    kept = best.assign() or len(rows)
    if rows:
        top1 = rows[kept - 1]["val_top1"]
        log.info("%s: epoch %d of %d is kept, val top-1 %0.2f %%", job.name, kept, len(rows), top1)
    return [{**row, "kept": int(row["epoch"] == kept)} for row in rows]


def averaged(step: tf.Tensor, method: Method | None) -> tf.Tensor:
    """The number of the update, counted anew where the method made another model of it."""
    start = 0 if method is None else method.average_restart_step
    return tf.where(step > start, step - start, step)


class _Epochs(tf_keras.callbacks.Callback):
    """At the end of each epoch: a row with validation of the averaged weights, the resume state.

    Before each step: a new trace of it where the method has entered another phase.

    Stands first among the callbacks, so that the others find the finished row in their logs.
    """

    def __init__(
        self,
        learner: Learner,
        method: Method | None,
        average: Average,
        best: Best | None,
        job: Job,
        checkpoints: Checkpoints,
        rate: LearningRate,
        rows: list[Row],
    ) -> None:
        super().__init__()
        self.learner, self.method, self.average, self.best = learner, method, average, best
        self.job, self.checkpoints, self.rate, self.rows = job, checkpoints, rate, rows
        self.infer = scoring.inference(learner.net)
        self.started = 0.0
        self.done = 0  # steps before this epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        self.started = tf.timestamp().numpy()
        self.done = epoch * self.job.steps_per_epoch
        self._enter(self.done)  # here, as Keras warns of a batch that begins slowly

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del logs
        if batch:
            self._enter(self.done + batch)

    def _enter(self, step: int) -> None:
        if self.method is None:
            return
        still = self.method.statistics_frozen(step)
        entered = self.method.before_step(step)
        if entered or still != self.learner.still:
            self.learner.still = still
            self.learner.make_train_function(force=True)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = logs if logs is not None else {}
        self._check_finite("loss", logs.get("loss", 0.0), epoch)
        trained = float(tf.timestamp().numpy() - self.started)
        with self.average.swapped():
            held_out = scoring.score(self.infer, self.job.validation)
            self._check_finite("validation loss", held_out.loss, epoch)
            if self.best is not None and self._has_settled(epoch + 1):
                self.best.offer(epoch + 1, held_out)
        row = {
            "epoch": epoch + 1,
            "loss": round(float(logs["loss"]), 5),
            "top1": round(100 * float(logs["top1"]), 3),
            "val_loss": round(held_out.loss, 5),
            "val_top1": round(held_out.top1, 3),
            "lr": float(self.rate(epoch * self.job.steps_per_epoch)),
            "seconds": round(trained, 2),
        }
        self.rows.append(row)
        logs.update(row)
        self.checkpoints.save(epoch + 1, self.rows)

    def _has_settled(self, epochs: int) -> bool:
        return self.method is None or self.method.target_reached(epochs * self.job.steps_per_epoch)

    def _check_finite(self, what: str, value: float, epoch: int) -> None:
        """Ends the run before a state without numbers is kept."""
        if not math.isfinite(value):
            flag = "--lr" if self.job.name == "train" else f"--{self.job.name}_lr"
            remedy = (
                f"try {flag} {self.job.config.lr / 10:g} with --overwrite or another --model_dir"
            )
            raise UsageError(what, f"{value} in epoch {epoch + 1}", "a finite number", remedy)
