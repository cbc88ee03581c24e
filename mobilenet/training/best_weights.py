"""The weights of the best epoch, kept beside the model until its stage ends."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from mobilenet.metrics import Metrics
from mobilenet.models.graph import variables


class Best(tf.Module):
    """A copy of a model's weights as they were when held-out images went best.

    It is part of the resume state.

    Args:
        model: any model, wrapped or plain.

    Attributes:
        epoch: the one that is kept, from 1; 0 while there is none.
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

    def offer(self, epoch: int, held_out: Metrics) -> None:
        """Keeps the weights that the model has now where they score higher, or alike at less loss.

        Args:
            epoch: from 1.
            held_out: their figures on images that were not trained on.
        """
        before = (float(self.top1.numpy()), -float(self.loss.numpy()))
        if self.epoch.numpy() and (held_out.top1, -held_out.loss) <= before:
            return
        for copy, weight in zip(self.copies, self.weights, strict=True):
            copy.assign(tf.convert_to_tensor(weight))  # one value for all replicas
        self.epoch.assign(epoch)
        self.top1.assign(held_out.top1)
        self.loss.assign(held_out.loss)

    def assign(self) -> int:
        """Puts the kept weights in the model; returns their epoch, 0 where there are none."""
        kept = int(self.epoch.numpy())
        if kept:
            for copy, weight in zip(self.copies, self.weights, strict=True):
                weight.assign(copy)
        return kept
