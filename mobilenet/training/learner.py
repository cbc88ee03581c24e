"""The model that Keras' `fit` trains: the network, and what happens with each of its updates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.models.graph import variables
from mobilenet.training import compiled_step, losses
from mobilenet.training.batch_augmentation import BatchAugmentation
from mobilenet.training.distillation import features
from mobilenet.training.drop_path import DropPath
from mobilenet.training.optimization import accumulation


class Learner(tf_keras.Model):
    """The model that Keras trains: the network, and what happens after each of its updates.

    Attributes:
        model: the network; Keras sees its variables alone.
        after_update: called in the graph after each update, with its number (int64, from 1).
        teacher: adds its outputs to the targets of every batch; `None` trains on labels alone.
        statistics_frozen: training steps run in inference mode, so that batch-norm statistics
            stay as they are; a change takes effect with a new trace.
        frozen: ids of variables that are not trained now; a change takes effect with a new trace.
        restarted_at: updates before the optimizer started anew; 0 if it has not.
        start: epoch, and step in it, with which `fit` begins.
        bad_step: number of the first update of this process after which the mean loss of the epoch
            was no finite number; 0 if there is none.
        jit: XLA compiles the update, without `after_update`.
        accumulation_steps: parts of a batch that are computed one after the other.
        augmentation: of whole batches, by the step; `None` leaves them as they are.
        drop_path: the forward pass of training steps; `None` is that of the model.
        traced: `traced.part` is the part of the batch that a thread traces; each replica has one.
    """

    def __init__(
        self,
        model: Any,
        after_update: Callable[[tf.Tensor], None],
        teacher: losses.Teacher | None = None,
        jit: bool = False,
        accumulation_steps: int = 1,
        augmentation: BatchAugmentation | None = None,
        drop_path: DropPath | None = None,
    ) -> None:
        super().__init__(name="learner")
        self.jit, self.accumulation_steps = jit, accumulation_steps
        self.augmentation, self.drop_path = augmentation, drop_path
        self.traced = threading.local()
        self.model = model
        self.after_update = after_update
        self.teacher = teacher
        self._student: features.Student | None = None
        if teacher is not None and teacher.features is not None:
            self._student = features.Student(model, teacher.features.of_student(model))
        self.statistics_frozen = False
        self.frozen: frozenset[int] = frozenset()
        self.restarted_at = variables.state_variable(tf.zeros([], tf.int64), "restarted_at")
        self.start = (0, 0)
        # Metrics are those of all replicas already; Keras would add them up over workers.
        self.distribute_reduction_method = "first"
        self.bad_step = variables.state_variable(tf.zeros([], tf.int64), "bad_step")

    @property
    def step(self) -> tf.Tensor:
        """Number of updates so far, int64."""
        return self.optimizer.iterations + self.restarted_at

    @property
    def draw(self) -> tf.Tensor:
        """Number of the forward pass, int64, by which layers draw: of each part of each step."""
        part = tf.cast(getattr(self.traced, "part", 0), tf.int64)
        return self.step * self.accumulation_steps + part

    @property
    def trainable_weights(self) -> list[Any]:
        return [w for w in self.model.trainable_weights if id(w) not in self.frozen]

    def restart_optimizer(self) -> None:
        """Sets the optimizer's moments and its number of updates to zero."""
        self.restarted_at.assign(self.step)
        optimizer: Any = self.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a loss scale
        for variable in optimizer.variables:
            variable.assign(tf.zeros_like(variable))

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        updates_statistics = bool(training) and not self.statistics_frozen
        if self._student is not None and training:
            return self._student.logits(inputs, updates_statistics)
        forward = self.model if self.drop_path is None or not training else self.drop_path
        return tf.cast(forward(inputs, training=updates_statistics), tf.float32)

    def train_step(self, data: Any) -> dict[str, Any]:
        update = super().train_step
        if self.augmentation is not None:
            images, labels = data
            data = self.augmentation.apply(images, labels, self.step)
        if self.accumulation_steps > 1:
            logs = accumulation.train_step(self, data, self.accumulation_steps)
        else:
            logs = compiled_step.train_step(self, update, data) if self.jit else dict(update(data))
        step = self.step
        self.after_update(step)
        variables.update(self.bad_step, _note_first, [step, tf.math.is_finite(logs["loss"])])
        return logs

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
    ) -> Any:
        if self.teacher is not None:  # of the loss alone; metrics get the labels
            maps = () if self._student is None else self._student.maps(y_pred)
            y = self.teacher.append_targets(y, x, maps)
        return super().compute_loss(x, y, y_pred, sample_weight)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        del x, sample_weight
        self.update_metrics(y, y_pred)
        logs: dict[str, Any] = self.get_metrics_result()
        return logs

    def update_metrics(self, targets: Any, logits: Any) -> None:
        """Adds the images of a batch to the metrics."""
        if self.teacher is not None:
            targets = self.teacher.labels_of(targets, logits.shape[1])
        if self.augmentation is not None:
            targets = self.augmentation.decided(targets)
        self.compiled_metrics.update_state(targets, logits, None)

    def build_metrics(self) -> list[Any]:
        """Creates the running metrics of an epoch, as the first step does; returns variables."""
        self.compiled_loss.build(self.model.output)
        self.compiled_metrics.build(self.model.output, self.model.output)
        return [variable for metric in self.metrics for variable in metric.variables]

    def _maybe_load_initial_counters_from_ckpt(self, steps_per_epoch: int, epoch: int) -> Any:
        """Keras' hook for a `fit` that begins inside an epoch; its BackupAndRestore uses it too."""
        del steps_per_epoch, epoch
        return self.start


def _note_first(bad_step: Any, step: tf.Tensor, is_finite: tf.Tensor) -> None:
    bad_step.assign(tf.where(is_finite | (bad_step > 0), bad_step, step))
