"""Tuning without labels: offsets, gains and ranges are trained on the float model's outputs.

Images are cropped and mirrored anew in every epoch, and the float model is evaluated on each
variant: fifty unchanged images would be memorized. Kernels are frozen; they memorize even augmented
images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.quantizer_placement import WEIGHTS
from mobilenet.compression.quantization.int8.quantizers import ActivationQuantizer
from mobilenet.models.graph.batch_norm_folding import Folded
from mobilenet.models.graph.roles import Graph, kind, unwrap
from mobilenet.typing import Float32Array

_BATCH = 10
_MIN_CROP = 0.7  # of each side
_PART = 5  # images whose tensors are in memory together
_OFFSET_STEPS = 10.0  # unit of an offset, in steps of its tensor, so that one rate fits all
_RANGE_UNIT = 3.0  # unit of a range, as the logarithm of a factor; that of a gain is 1
_MIN_RATE = 0.01  # of the initial one


def augment(images: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Random crops of at least half of each image, at the images' size; half of them mirrored."""
    count = len(images)
    height = rng.uniform(_MIN_CROP, 1, count)
    width = rng.uniform(_MIN_CROP, 1, count)
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    mirrored = rng.random(count) < 0.5
    sides = np.stack([left, left + width])
    first, last = np.where(mirrored, sides[::-1], sides)
    boxes = np.stack([top, first, top + height, last], axis=1).astype(np.float32)
    crops: Float32Array = tf.image.crop_and_resize(
        images, boxes, np.arange(count), images.shape[1:3]
    ).numpy()
    return crops


class Tuner:
    """Trains offsets, gains and ranges of a model; it may be used more than once.

    Args:
        wrapped: a model from `scheme.wrap`.

    Attributes:
        offsets: each with the quantizer of the tensor that it is added to.
        range_variables: lower and upper ends of the ranges that are not fixed.
        variables: all that is trained: offsets, ranges, gains.
    """

    def __init__(self, wrapped: Any) -> None:
        self.model = wrapped
        quantizers = scheme.quantizers(wrapped)
        self.offsets = _find_offsets(wrapped, quantizers)
        self.range_variables = [
            quantizer.variables[name]
            for quantizer in quantizers.values()
            if isinstance(quantizer, ActivationQuantizer) and quantizer.fixed is None
            for name in ("low", "high")
        ]
        self.variables = [
            *(variable for variable, _ in self.offsets),
            *self.range_variables,
            *_find_gains(wrapped),
        ]
        images = tf.TensorSpec((None, *wrapped.input_shape[1:]), tf.float32)
        outputs = tf.TensorSpec((None, None), tf.float32)
        # one trace for every size of a part
        self._compute_gradients = tf.function(self._gradients_of, input_signature=[images, outputs])

    def tune(
        self,
        images: Float32Array,
        reference: Callable[[Float32Array], Float32Array],
        epochs: int = 10,
        rate: float = 1e-3,
        seed: int = 0,
        after_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
    ) -> list[float]:
        """Trains the variables in place, from their values, with Adam and a cosine schedule.

        Args:
            images: `[n, height, width, channels]`, preprocessed.
            reference: the float model, `[n, height, width, channels]` to `[n, classes]`.
            epochs: passes over the images; with more of them they are memorized.
            rate: initial learning rate.
            seed: of order, crops and mirroring.
            after_epoch: called after each epoch with its number, from 1, and its loss.

        Returns:
            Loss by epoch: squared error of the outputs as a share of their own square.
        """
        steps = epochs * -(-len(images) // _BATCH)
        schedule = tf_keras.optimizers.schedules.CosineDecay(rate, steps, alpha=_MIN_RATE)
        trained = _ScaledVariables(self, tf_keras.optimizers.Adam(schedule))
        rng = np.random.default_rng(seed)
        losses = []
        self.model.phase.tuning = True
        try:
            for epoch in range(epochs):
                order, error, power = rng.permutation(len(images)), 0.0, 0.0
                for start in range(0, len(images), _BATCH):
                    batch = augment(images[order[start : start + _BATCH]], rng)
                    expected = reference(batch)
                    batch_error, gradient = self.error_and_gradient(batch, expected)
                    trained.step(gradient / np.float32(expected.size))
                    error += batch_error
                    power += float(np.sum(np.square(expected)))
                losses.append(error / power)
                after_epoch(epoch + 1, losses[-1])
        finally:
            self.model.phase.tuning = False
        return losses

    def error_and_gradient(
        self, images: Float32Array, expected: Float32Array
    ) -> tuple[float, Float32Array]:
        """The squared error and its gradient, summed over parts that fit into memory."""
        total = 0.0
        gradient: Float32Array = np.zeros((), np.float32)
        for start in range(0, len(images), _PART):
            part = slice(start, start + _PART)
            error, gradients = self._compute_gradients(
                tf.constant(images[part]), tf.constant(expected[part])
            )
            total += float(error)
            gradient = gradient + _flatten(gradients)
        return total, gradient

    def _gradients_of(
        self, images: tf.Tensor, expected: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in self.variables:
                tape.watch(variable)
            outputs = tf.reshape(self.model(images, training=False), tf.shape(expected))
            error = tf.reduce_sum(tf.square(outputs - expected))
        zero = tf.UnconnectedGradients.ZERO
        return error, tape.gradient(error, self.variables, unconnected_gradients=zero)


class _ScaledVariables:
    """The variables of a tuner as one vector, in units in which one learning rate fits all.

    The optimizer updates that vector, which needs no graph, and the variables follow.
    """

    def __init__(self, tuner: Tuner, optimizer: Any) -> None:
        self.variables, self.optimizer = tuner.variables, optimizer
        sizes = [int(np.prod(v.shape)) for v in tuner.variables]
        offsets, ranges = len(tuner.offsets), len(tuner.range_variables)
        steps = [_OFFSET_STEPS * _step_size(quantizer) for _, quantizer in tuner.offsets]
        units = [_RANGE_UNIT] * ranges + [1.0] * (len(sizes) - offsets - ranges)
        self.offset_units = np.repeat(steps, sizes[:offsets])
        self.log_units = np.repeat(units, sizes[offsets:])
        self.initial = self.values = _flatten(tuner.variables)
        self.vector = tf.Variable(np.zeros_like(self.initial))
        self._sizes = sizes
        # hundreds of variables, which cost time if each is assigned from Python
        self._assign = tf.function(
            self._assign_all, input_signature=[tf.TensorSpec((sum(sizes),), tf.float32)]
        )
        optimizer.build([self.vector])

    def step(self, gradient: Float32Array) -> None:
        """An optimizer step along the gradient of all variables; they are updated."""
        count = len(self.offset_units)
        units = np.concatenate([self.offset_units, self.log_units * self.values[count:]])
        scaled = tf.constant((gradient * units).astype(np.float32))
        self.optimizer.apply_gradients([(scaled, self.vector)])
        vector = self.vector.numpy()
        offsets = self.initial[:count] + self.offset_units * vector[:count]
        others = self.initial[count:] * np.exp(self.log_units * vector[count:])
        self.values = np.concatenate([offsets, others]).astype(np.float32)
        self._assign(tf.constant(self.values))

    def _assign_all(self, values: tf.Tensor) -> None:
        for variable, value in zip(self.variables, tf.split(values, self._sizes), strict=True):
            variable.assign(tf.reshape(value, variable.shape))


def _flatten(tensors: list[Any]) -> Float32Array:
    return np.concatenate([x.numpy().ravel() for x in tensors])


def _find_gains(wrapped: Any) -> list[Any]:
    """The gain of every batch norm after a convolution."""
    graph = Graph(wrapped)
    pairs = [Folded(graph, layer) for layer in graph.layers if kind(layer) in WEIGHTS]
    return [pair.norm["gamma"] for pair in pairs if pair.norm and "gamma" in pair.norm]


def _find_offsets(
    wrapped: Any, quantizers: dict[str, Any]
) -> list[tuple[Any, ActivationQuantizer]]:
    """The last offset of every convolution, with the quantizer of the tensor it is added to."""
    graph = Graph(wrapped)
    offsets = []
    for layer in graph.layers:
        if kind(layer) not in WEIGHTS:
            continue
        pair = Folded(graph, layer)
        quantizer = _next_quantizer(graph, pair.output, quantizers)
        if pair.offset is not None and quantizer is not None:
            offsets.append((pair.offset, quantizer))
    return offsets


def _next_quantizer(
    graph: Graph, layer: Any, quantizers: dict[str, Any]
) -> ActivationQuantizer | None:
    """The first quantizer at or after a layer; `None` where its output branches before that."""
    while True:
        quantizer = quantizers.get(unwrap(layer).name)
        if isinstance(quantizer, ActivationQuantizer):
            return quantizer
        consumers = graph.consumers(layer)
        if len(consumers) != 1:
            return None
        layer = consumers[0]


def _step_size(quantizer: ActivationQuantizer) -> float:
    low, high = (float(quantizer.variables[name]) for name in ("low", "high"))
    return (high - low) / 255.0
