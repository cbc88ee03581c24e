"""The weights of the epoch of the best validation metrics."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from mobilenet.metrics import Metrics
from mobilenet.models.graph import variables


class BestWeights(tf.Module):
    """A copy of a model's weights at the best epoch so far; part of the resume state.

    Args:
        model: any model, wrapped or plain.

    Attributes:
        epoch: the best one, from 1; 0 before the first.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(name="best")
        self.weights = list(model.weights)
        self.copies = [
            variables.state_variable(tf.convert_to_tensor(weight), "best")
            for weight in self.weights
        ]
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.top1 = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self.loss = tf.Variable(0.0, dtype=tf.float64, trainable=False)

    def update_if_better(self, epoch: int, held_out: Metrics) -> None:
        """Copies the model's weights if top-1 (of several labels AUC) is higher than before, or
        equal at a lower loss.

        Args:
            epoch: from 1.
            held_out: metrics of these weights on validation images.
        """
        before = (float(self.top1.numpy()), -float(self.loss.numpy()))
        if self.epoch.numpy() and (held_out.selection, -held_out.loss) <= before:
            return
        for copy, weight in zip(self.copies, self.weights, strict=True):
            copy.assign(tf.convert_to_tensor(weight))  # one value for all replicas
        self.epoch.assign(epoch)
        self.top1.assign(held_out.selection)
        self.loss.assign(held_out.loss)

    def restore(self) -> int:
        """Puts the best weights in the model; returns their epoch, 0 if there is none."""
        epoch = int(self.epoch.numpy())
        if epoch:
            for copy, weight in zip(self.copies, self.weights, strict=True):
                weight.assign(copy)
        return epoch
