"""The weights of the epoch of the best validation metrics."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from mobilenet.configs.card import SIGMOID
from mobilenet.configs.training import TrainConfig
from mobilenet.errors import UsageError
from mobilenet.metrics import Metrics
from mobilenet.models.graph import variables

_OF_SIGMOID = ("auc", "f1")


class BestWeights(tf.Module):
    """A copy of a model's weights at the best epoch so far; part of the resume state.

    Args:
        model: any model, wrapped or plain.
        metric: one of `configs.training.BEST_METRICS`; `None` is `Metrics.selection`.

    Attributes:
        epoch: the best one, from 1; 0 before the first.
    """

    def __init__(self, model: Any, metric: str | None = None) -> None:
        super().__init__(name="best")
        self.metric = metric
        self.weights = list(model.weights)
        self.copies = [
            variables.state_variable(tf.convert_to_tensor(weight), "best")
            for weight in self.weights
        ]
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.value = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self.loss = tf.Variable(0.0, dtype=tf.float64, trainable=False)

    def update_if_better(self, epoch: int, held_out: Metrics) -> None:
        """Copies the model's weights if the metric is better than before, or equal at a lower loss.

        Args:
            epoch: from 1.
            held_out: metrics of these weights on validation images.
        """
        before = (float(self.value.numpy()), -float(self.loss.numpy()))
        value = self._value_of(held_out)
        if self.epoch.numpy() and (value, -held_out.loss) <= before:
            return
        for copy, weight in zip(self.copies, self.weights, strict=True):
            copy.assign(tf.convert_to_tensor(weight))  # one value for all replicas
        self.epoch.assign(epoch)
        self.value.assign(value)
        self.loss.assign(held_out.loss)

    def _value_of(self, held_out: Metrics) -> float:
        """The metric that selects the best epoch; the higher, the better."""
        if self.metric is None:
            return held_out.selection
        value = getattr(held_out, self.metric)
        if value is None:  # AUC of images that all have a label, or none
            return -math.inf
        return -float(value) if self.metric == "loss" else float(value)

    def restore(self) -> int:
        """Puts the best weights in the model; returns their epoch, 0 if there is none."""
        epoch = int(self.epoch.numpy())
        if epoch:
            for copy, weight in zip(self.copies, self.weights, strict=True):
                weight.assign(copy)
        return epoch


def check_metric(config: TrainConfig, activation: str) -> None:
    """Checks that a stage's `best_metric` is one of its model.

    Raises:
        UsageError: it is one of a sigmoid, which the model does not have.
    """
    if config.best_metric in _OF_SIGMOID and activation != SIGMOID:
        expected = "top1, top5 or loss of a softmax"
        raise UsageError("best_metric", config.best_metric, expected)
