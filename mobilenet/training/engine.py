"""The training loop of every stage; it knows the interface of compression methods alone."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.compression.method import Method
from mobilenet.configs.card import SIGMOID, SOFTMAX
from mobilenet.configs.training import TrainConfig
from mobilenet.errors import UsageError
from mobilenet.evaluation import scoring
from mobilenet.models.graph import inference, variables
from mobilenet.training import (
    batch_augmentation,
    class_weights,
    compiled_step,
    drop_path,
    interruption,
    losses,
    random_state,
    strategy,
)
from mobilenet.training.best_weights import BestWeights
from mobilenet.training.compression import prepare_step
from mobilenet.training.freezing import Freezing
from mobilenet.training.learner import Learner
from mobilenet.training.optimization import layer_decay, rate_finder
from mobilenet.training.optimization.ema import Average
from mobilenet.training.optimization.learning_rate import LearningRate
from mobilenet.training.optimization.optimizers import create_optimizer
from mobilenet.training.optimization.rate_finder import RateCurve, RateSearch
from mobilenet.training.resume import Checkpoints, Position, Row, newest_state

log = logging.getLogger("mobilenet")
_STEPS_PER_CHECK = 50  # of the loss: reading a value waits for the device
_STEPS_PER_AGREEMENT = 10  # of several workers on saving a state, which they do together
TrainingData = Callable[..., tf.data.Dataset]


@dataclasses.dataclass(frozen=True)
class Job:
    """What `fit` needs besides the model and the method.

    Attributes:
        name: of the stage.
        config: how it trains.
        steps_per_epoch: optimizer steps an epoch, on all replicas together.
        training: the endless batches from a given step on; under a strategy of several replicas it
            also gets the input context, and returns the batches of this worker's replicas.
        validation: batches of every image once.
        classes: outputs of the model; 1 for two classes, or for one label.
        checkpoints: folder of the resume state.
        callbacks: Keras callbacks (progress, logs).
        teacher: whose outputs the model is trained towards, in addition to the labels.
        activation: `softmax`, or `sigmoid` of each output.
        multi_label: labels are `[batch, classes]` of 0 and 1, not class indices.
        seed: of dropout.
        checkpoint_minutes: after which the state of an unfinished epoch is saved.
        keep_checkpoints: number of states that are kept.
        steps_per_execution: that are sent to the device at a time.
        publish: called after a state was saved.
        jit_compile: XLA compiles the update of the weights.
        class_weights: of the loss of an image with its label, by class; `None` weighs all alike.
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
    seed: int = 0
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 3
    steps_per_execution: int = 1
    publish: Callable[[], None] = lambda: None
    jit_compile: bool = False
    class_weights: Sequence[float] | None = None

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch


def fit(model: Any, method: Method | None, job: Job) -> list[Row]:
    """Trains `model` in place, from the newest resume state if there is one: the weights after it
    are those of a run that was never interrupted.

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
        `val_f1` of a sigmoid of several labels or one output; `sparsity` and `target_sparsity`, in
        0..1, of methods that prune. With `keep_best`, `kept` is 1 in the
        row of the epoch that the model ends with and 0 in the others.

    Raises:
        UsageError: the loss is no longer a number, the resume state cannot be used or written, or
            XLA does not compile the model.
        KeyboardInterrupt: after Ctrl-C; as on SIGTERM, the state was saved after the last step.
    """
    freezing = Freezing(model, job.config, job.steps_per_epoch)
    average = Average(model, job.config.ma_decay_rate)
    best = BestWeights(model, job.config.best_metric) if job.config.selects_best else None
    local = variables.per_replica(model)

    def after_update(step: tf.Tensor) -> None:
        if method is not None:
            method.after_step(model, step)
        variables.average(local)
        average.update(average_step(step, method), pruned=method is not None)

    learner = _learner(model, job, after_update)
    _freeze(learner, freezing, freezing.head_steps)
    restarted_at = learner.restarted_at if freezing.head_steps else None
    rate = LearningRate(job.config, job.steps_per_epoch, restarted_at)
    _compile(learner, job, rate)
    running = learner.build_metrics()
    objects = {
        "model": model,
        "optimizer": learner.optimizer,
        "average": average,
        "metrics": running,
        "method": method,
        "best": best,
        "restarted_at": restarted_at,
    }
    objects = {name: value for name, value in objects.items() if value is not None}
    is_chief = strategy.worker_of(tf.distribute.get_strategy()).is_chief
    checkpoints = Checkpoints(job.checkpoints, job.keep_checkpoints, is_chief, **objects)
    position = checkpoints.restore()
    _check_position(position, job)
    with interruption.Interruption() as signals:
        epochs = _Epochs(
            learner, method, average, best, freezing, job, rate, position, running, signals
        )
        states = _States(epochs, checkpoints)
        with _drawn(learner, job):
            _run_epochs(learner, job, epochs, states)
    freezing.undo()
    average.assign()
    return epochs.rows if best is None else _restore_best(best, job, epochs.rows)


def find_rate(model: Any, method: Method | None, job: Job, search: RateSearch) -> RateCurve:
    """Trains `model` for some steps at rising rates, with the update that `fit` makes.

    Args:
        model, method, job: as for `fit`, on one device.
        search: which rates.
    """

    def after_update(step: tf.Tensor) -> None:
        if method is not None:
            method.after_step(model, step)

    freezing = Freezing(model, job.config, job.steps_per_epoch)
    learner = _learner(model, job, after_update)
    _freeze(learner, freezing, freezing.head_steps)
    _compile(learner, job, search.lowest)
    batches = iter(job.training(0))

    def train_step(rate: float) -> float:
        if method is not None and prepare_step(method, learner, int(learner.step)):
            learner.make_train_function(force=True)
        learner.optimizer.learning_rate.assign(rate)
        logs = learner.train_on_batch(*next(batches), return_dict=True, reset_metrics=True)
        return float(logs["loss"])

    with _drawn(learner, job):
        return rate_finder.measure(train_step, job.name, search)


def _drawn(learner: Learner, job: Job) -> contextlib.AbstractContextManager[None]:
    """Layers and dropped paths draw by the seed of the stage and the number of the pass."""
    further = () if learner.drop_path is None else learner.drop_path.layers
    return random_state.drawn_by_step(learner.model, job.seed, lambda: learner.draw, further)


def _learner(model: Any, job: Job, after_update: Callable[[tf.Tensor], None]) -> Learner:
    augmentation = batch_augmentation.of_job(job.config, job.seed, job.classes, job.multi_label)
    return Learner(
        model,
        after_update,
        job.teacher,
        job.jit_compile,
        job.config.accumulation_steps,
        augmentation,
        drop_path.of_stage(model, job.config),
    )


def _freeze(learner: Learner, freezing: Freezing, step: int) -> bool:
    """Freezes what the update after `step` updates leaves as it is; whether that has changed."""
    frozen = freezing.frozen_at(step)
    if frozen is learner.frozen:
        return False
    freezing.apply(frozen)
    learner.frozen = frozen
    return True


def _compile(learner: Learner, job: Job, rate: Any) -> None:
    """Compiles with the optimizer, loss and metrics of a job; `frozen` is set before."""
    of_labels = losses.binary_cross_entropy if job.activation == SIGMOID else losses.cross_entropy
    loss = of_labels(job.classes, job.config.label_smoothing)
    if job.class_weights is not None:
        loss = class_weights.weighted(loss, job.class_weights)
    if job.teacher is not None:
        loss = losses.distillation_loss(loss, job.teacher, job.activation)
    decay, trained = job.config.layer_decay, learner.trainable_variables
    factors = None if decay == 1 else layer_decay.rate_factors(learner.model, decay)
    learner.compile(
        optimizer=create_optimizer(job.config, rate, trained, factors),
        loss=loss,
        metrics=[_accuracy(job)],
        steps_per_execution=job.steps_per_execution,
    )
    learner.optimizer.build(trained)


def _check_position(position: Position, job: Job) -> None:
    """Says where training continues.

    Raises:
        UsageError: the epochs of the resume state have another length.
    """
    done, step = len(position.rows), position.step
    inside = step - done * job.steps_per_epoch
    if not 0 <= inside <= job.steps_per_epoch:
        expected = f"the state of epochs of {job.steps_per_epoch} steps; the data have changed"
        raise UsageError(str(job.checkpoints), None, expected, "start again with `overwrite`")
    if step:
        where = f", step {inside} of {job.steps_per_epoch} of the next" if inside else ""
        of = job.config.epochs
        log.info("%s: continues after epoch %d of %d%s", job.name, done, of, where)


def _run_epochs(learner: Learner, job: Job, epochs: _Epochs, states: _States) -> None:
    """Trains from where `epochs` is to the last epoch, or until a signal arrives."""
    callbacks = tf_keras.callbacks.CallbackList([epochs, *job.callbacks, states], model=learner)
    try:
        if epochs.first_step == job.steps_per_epoch:  # stopped before it was validated
            epoch = len(epochs.rows)
            callbacks.on_epoch_begin(epoch)
            logs = {name: float(value) for name, value in learner.get_metrics_result().items()}
            callbacks.on_epoch_end(epoch, logs)
            epochs.first_step = 0
        learner.start = (len(epochs.rows), epochs.first_step)
        if len(epochs.rows) < job.config.epochs and not epochs.is_over():
            with compiled_step.explained_errors() if job.jit_compile else contextlib.nullcontext():
                learner.fit(
                    _batches(job, states.step),
                    steps_per_epoch=job.steps_per_epoch,
                    initial_epoch=len(epochs.rows),
                    epochs=job.config.epochs,
                    verbose=0,
                    callbacks=callbacks,
                )
    except interruption.Interrupted:
        states.save()
        epochs.signals.deliver()


def _batches(job: Job, step: int) -> Any:
    """The batches from a step on, each of which the replicas of the strategy share."""
    devices = tf.distribute.get_strategy()
    if devices.num_replicas_in_sync == 1:
        return job.training(step)
    return devices.distribute_datasets_from_function(lambda context: job.training(step, context))


def _accuracy(job: Job) -> Any:
    """The share of images, or of labels, that the logits decide right."""
    if job.multi_label or job.classes == 1:
        return tf_keras.metrics.BinaryAccuracy(name="top1", threshold=0.0)
    return tf_keras.metrics.SparseCategoricalAccuracy(name="top1")


def _restore_best(best: BestWeights, job: Job, rows: list[Row]) -> list[Row]:
    """Puts the best weights in the model and marks the row of their epoch; the last one without."""
    epoch = best.restore() or len(rows)
    if rows:
        row = rows[epoch - 1]
        log.info(
            "%s: restored the weights of the best epoch, %d of %d, validation top-1 %0.2f %%%s",
            job.name,
            epoch,
            len(rows),
            row["val_top1"],
            f", best by {best.metric}" if best.metric else "",
        )
    return [{**row, "kept": int(row["epoch"] == epoch)} for row in rows]


def average_step(step: tf.Tensor, method: Method | None) -> tf.Tensor:
    """Number of the update for the moving average, which restarts after `average_restart_step`."""
    start = 0 if method is None else method.average_restart_step
    return tf.where(step > start, step - start, step)


class _Epochs(tf_keras.callbacks.Callback):
    """Validates the averaged weights at the end of each epoch; traces the training step again when
    the method enters another phase.

    It is the first of the callbacks, so that the others get the complete row as their logs.
    """

    def __init__(
        self,
        learner: Learner,
        method: Method | None,
        average: Average,
        best: BestWeights | None,
        freezing: Freezing,
        job: Job,
        rate: LearningRate,
        position: Position,
        running: list[Any],
        signals: interruption.Interruption,
    ) -> None:
        super().__init__()
        self.learner, self.method, self.average, self.best = learner, method, average, best
        self.freezing, self.job, self.rate, self.signals = freezing, job, rate, signals
        self.is_restarted = not freezing.head_steps or bool(learner.restarted_at.numpy())
        self.infer = inference.compile_model(learner.model)
        self.is_alone = strategy.worker_of(tf.distribute.get_strategy()).count == 1
        self.rows = list(position.rows)
        self.done = len(self.rows) * job.steps_per_epoch  # steps before this epoch
        self.first_step = position.step - self.done  # of this epoch
        self.started = 0.0
        self._seconds = position.seconds
        self._running = [(variable, variable.numpy()) for variable in running]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        self.started = time.monotonic()
        self.done = epoch * self.job.steps_per_epoch
        if self.first_step:
            self.started -= self._seconds
            for variable, value in self._running:
                variable.assign(value)
        # Not in on_train_batch_begin: Keras warns of a slow one.
        if self.first_step < self.job.steps_per_epoch:
            self._prepare_step(self.done + self.first_step)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del logs
        if batch != self.first_step:
            self._prepare_step(self.done + batch)

    def _prepare_step(self, step: int) -> None:
        changed = _freeze(self.learner, self.freezing, step)
        if not self.is_restarted and step >= self.freezing.head_steps:
            self.learner.restart_optimizer()
            self.is_restarted = True
        if self.method is not None:
            changed = prepare_step(self.method, self.learner, step) or changed
        if changed:
            self.learner.make_train_function(force=True)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = logs if logs is not None else {}
        self.check_loss(float(logs["loss"]))
        seconds = time.monotonic() - self.started
        with self.average.swapped():
            with self.signals.immediate() if self.is_alone else contextlib.nullcontext():
                held_out = scoring.score(
                    self.infer, self.job.validation, activation=self.job.activation
                )
            if not math.isfinite(held_out.loss):
                self._refuse("validation loss", held_out.loss, self.done + self.job.steps_per_epoch)
            if self.best is not None and self._target_reached(epoch + 1):
                self.best.update_if_better(epoch + 1, held_out)
        row = {
            "epoch": epoch + 1,
            "loss": round(float(logs["loss"]), 5),
            "top1": round(100 * float(logs["top1"]), 3),
            "val_loss": round(held_out.loss, 5),
            "val_top1": round(held_out.top1, 3),
            "lr": float(self.rate.at(epoch * self.job.steps_per_epoch)),
            "seconds": round(seconds, 2),
        }
        figures = {"val_auc": held_out.auc, "val_f1": held_out.f1}
        row |= {name: round(value, 5) for name, value in figures.items() if value is not None}
        row |= self._sparsity((epoch + 1) * self.job.steps_per_epoch)
        self.rows.append(row)
        self.first_step = 0
        logs.update(row)
        if self.is_over():
            assert self.best is not None
            self.model.stop_training = True
            if len(self.rows) < self.job.config.epochs:
                log.info(
                    "%s: ends after epoch %d of %d: the last %d were no better than epoch %d",
                    *(self.job.name, len(self.rows), self.job.config.epochs),
                    *(self.job.config.early_stopping, int(self.best.epoch.numpy())),
                )

    def is_over(self) -> bool:
        """Whether training stops early; all workers call it at the same point."""
        patience = self.job.config.early_stopping
        if not patience:
            return False
        assert self.best is not None
        best = int(self.best.epoch.numpy())  # 0 until the method has reached its target
        stops = 0 < best <= len(self.rows) - patience
        return strategy.any_worker(tf.distribute.get_strategy(), stops)[0]

    def _sparsity(self, step: int) -> Row:
        sparsity = None if self.method is None else self.method.sparsity(step)
        if sparsity is None:
            return {}
        return {
            "sparsity": round(sparsity.now, 5),
            "target_sparsity": round(sparsity.target, 5),
        }

    def _target_reached(self, epochs: int) -> bool:
        return self.method is None or self.method.target_reached(epochs * self.job.steps_per_epoch)

    def check_loss(self, value: float | None = None) -> None:
        """Ends the run, before its state is saved, if the loss has become NaN or infinite.

        Args:
            value: the mean loss of the epoch so far; read from the metrics when left out.
        """
        step = int(self.learner.bad_step.numpy())
        if step:
            value = float(self.learner.metrics[0].result()) if value is None else value
            self._refuse("loss", value, step)

    def _refuse(self, what: str, value: float, step: int) -> None:
        stage = self.job.name.partition("_")[0]  # `prune_2` is of the stage `prune`
        lr = f"`{stage}.lr={self.job.config.lr / 10:g}`"
        epoch = (step - 1) // self.job.steps_per_epoch + 1
        rate = float(self.rate.at(step - 1))
        state = newest_state(self.job.checkpoints)
        last = f"; the last good state is {state}" if state else ""
        raise UsageError(
            what,
            f"{value} at step {step} in epoch {epoch}, learning rate {rate:.3g}",
            "a finite number",
            f"try {lr} with `overwrite` or another `model_dir`{last}",
        )


class _States(tf_keras.callbacks.Callback):
    """Saves the resume state: at the end of each epoch, some minutes after the last one, and when a
    signal asks the process to end.

    It is the last of the callbacks: what the others write of an epoch is written before it counts
    as done.
    """

    def __init__(self, epochs: _Epochs, checkpoints: Checkpoints) -> None:
        super().__init__()
        self.epochs, self.checkpoints = epochs, checkpoints
        self.step = epochs.done + epochs.first_step
        self.saved_at, self.saved = time.monotonic(), (self.step, len(epochs.rows))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        del logs
        before, self.step = self.step, self.epochs.done + batch + 1
        is_due = False
        if self.epochs.is_alone or _passed(_STEPS_PER_AGREEMENT, before, self.step):
            is_due = self._agree()
        if _passed(_STEPS_PER_CHECK, before, self.step):
            self.epochs.check_loss()
        if is_due:
            self.save()

    def _agree(self) -> bool:
        """Whether a state is due on any worker.

        Raises:
            Interrupted: a signal has arrived on any worker.
        """
        is_due = time.monotonic() - self.saved_at >= 60 * self.epochs.job.checkpoint_minutes
        signals = self.epochs.signals
        own = [signals.number == number for number in interruption.SIGNALS]
        is_due, *received = strategy.any_worker(tf.distribute.get_strategy(), is_due, *own)
        if any(received):
            if signals.number is None:
                log.info("another worker is interrupted")
            signals.note(interruption.SIGNALS[received.index(True)])
            raise interruption.Interrupted
        return is_due

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        del epoch, logs
        self.save()
        self._agree()

    def save(self) -> None:
        """Saves the state after the last step, unless it is the newest one already.

        Raises:
            UsageError: the loss is no number, or the state cannot be written.
        """
        if self.saved == (self.step, len(self.epochs.rows)):
            return
        self.epochs.check_loss()
        seconds = round(time.monotonic() - self.epochs.started, 2)
        self.checkpoints.save(Position(self.step, tuple(self.epochs.rows), seconds))
        self.epochs.job.publish()
        self.saved_at, self.saved = time.monotonic(), (self.step, len(self.epochs.rows))


def _passed(steps: int, before: int, after: int) -> bool:
    """Whether an execution of one or several steps has passed a multiple of `steps`."""
    return before // steps < after // steps
