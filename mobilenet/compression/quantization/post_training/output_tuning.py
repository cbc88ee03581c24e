"""Tuning without labels: offsets, gains and ranges are trained until the rounded model answers as
the float model does.

Images are cropped and mirrored anew each time, and the float model is asked each time: fifty images
seen unchanged are learnt by heart. Kernels do not move, which learn even varied images by heart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.quantizer_placement import WEIGHTS
from mobilenet.compression.quantization.int8.quantizers import ActivationQuantizer
from mobilenet.models.graph.batch_norm_folding import Folded
from mobilenet.models.graph.roles import Graph, kind, unwrap

Floats = npt.NDArray[np.float32]
_BATCH = 10
_LEAST_SIDE = 0.7  # of a crop
_PART = 5  # images whose tensors are in memory together
_OFFSET_STEPS = 10.0  # a unit of an offset, in steps of its tensor: a rate then means the same
_RANGE_SHARE = 3.0  # a unit of a range, as the logarithm of a factor; of a gain it is 1
_LEAST_RATE = 0.01  # of the first


def varied(images: Floats, rng: np.random.Generator) -> Floats:
    """Random crops of half of each image or more, at the images' size; half of them mirrored."""
    count = len(images)
    height = rng.uniform(_LEAST_SIDE, 1, count)
    width = rng.uniform(_LEAST_SIDE, 1, count)
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    turned = rng.random(count) < 0.5
    ends = np.stack([left, left + width])
    first, last = np.where(turned, ends[::-1], ends)
    boxes = np.stack([top, first, top + height, last], axis=1).astype(np.float32)
    found: Floats = tf.image.crop_and_resize(
        images, boxes, np.arange(count), images.shape[1:3]
    ).numpy()
    return found


class Tuner:
    """Offsets, gains and ranges of a model, which may be trained more than once.

    Args:
        wrapped: a model from `scheme.wrap`.
    """

    def __init__(self, wrapped: Any) -> None:
        self.net = wrapped
        quantizers = scheme.quantizers(wrapped)
        self.offsets = _offsets(wrapped, quantizers)
        self.ends = [
            quantizer.variables[end]
            for quantizer in quantizers.values()
            if isinstance(quantizer, ActivationQuantizer) and quantizer.fixed is None
            for end in ("low", "high")
        ]
        self.moving = [*(variable for variable, _ in self.offsets), *self.ends, *_gains(wrapped)]
        self._slopes = tf.function(self._slopes_of, reduce_retracing=True)

    def tune(
        self,
        images: Floats,
        answers: Callable[[Floats], Floats],
        epochs: int = 10,
        rate: float = 1e-3,
        seed: int = 0,
        told: Callable[[int, float], None] = lambda epoch, loss: None,
    ) -> list[float]:
        """Trains them in place from where they are, by Adam under a cosine rate.

        Args:
            images: `[n, height, width, channels]`, preprocessed.
            answers: the float model, `[n, height, width, channels]` to `[n, classes]`.
            epochs: passes over the images; more learn the images by heart.
            rate: at the beginning.
            seed: of order, crops and mirroring.
            told: called behind each epoch with its number, counted from 1, and its loss.

        Returns:
            Loss by epoch: squared error of the outputs as a share of their own square.
        """
        steps = epochs * -(-len(images) // _BATCH)
        schedule = tf_keras.optimizers.schedules.CosineDecay(rate, steps, alpha=_LEAST_RATE)
        moved = _Moved(self, tf_keras.optimizers.Adam(schedule))
        rng = np.random.default_rng(seed)
        losses = []
        self.net.phase.tuning = True
        try:
            for epoch in range(epochs):
                order, error, power = rng.permutation(len(images)), 0.0, 0.0
                for start in range(0, len(images), _BATCH):
                    batch = varied(images[order[start : start + _BATCH]], rng)
                    wanted = answers(batch)
                    found, slopes = self.slopes(batch, wanted)
                    moved.step(slopes / np.float32(wanted.size))
                    error += found
                    power += float(np.sum(np.square(wanted)))
                losses.append(error / power)
                told(epoch + 1, losses[-1])
        finally:
            self.net.phase.tuning = False
        return losses

    def slopes(self, images: Floats, wanted: Floats) -> tuple[float, Floats]:
        """The squared error and its gradient, summed over parts that fit into the memory."""
        total, slopes = 0.0, np.float32(0.0)
        for start in range(0, len(images), _PART):
            part = slice(start, start + _PART)
            error, found = self._slopes(tf.constant(images[part]), tf.constant(wanted[part]))
            total += float(error)
            slopes = slopes + _flat(found)
        return total, slopes

    def _slopes_of(self, images: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in self.moving:
                tape.watch(variable)
            found = tf.reshape(self.net(images, training=False), tf.shape(wanted))
            error = tf.reduce_sum(tf.square(found - wanted))
        none = tf.UnconnectedGradients.ZERO
        return error, tape.gradient(error, self.moving, unconnected_gradients=none)


class _Moved:
    """How far a training has moved the variables of a model, in units of its own: one vector, which
    an optimizer needs no graph for."""

    def __init__(self, tuner: Tuner, optimizer: Any) -> None:
        self.moving, self.optimizer = tuner.moving, optimizer
        sizes = [int(np.prod(v.shape)) for v in tuner.moving]
        self.ends = np.cumsum(sizes)[:-1]
        offsets, ranges = len(tuner.offsets), len(tuner.ends)
        steps = [_OFFSET_STEPS * _step(quantizer) for _, quantizer in tuner.offsets]
        shares = [_RANGE_SHARE] * ranges + [1.0] * (len(sizes) - offsets - ranges)
        self.steps = np.repeat(steps, sizes[:offsets])
        self.shares = np.repeat(shares, sizes[offsets:])
        self.first = self.values = _flat(tuner.moving)
        self.moved = tf.Variable(np.zeros_like(self.first))
        optimizer.build([self.moved])

    def step(self, slopes: Floats) -> None:
        """An optimizer step along the gradient of all variables; they follow."""
        count = len(self.steps)
        units = np.concatenate([self.steps, self.shares * self.values[count:]])
        slope = tf.constant((slopes * units).astype(np.float32))
        self.optimizer.apply_gradients([(slope, self.moved)])
        moved = self.moved.numpy()
        added = self.first[:count] + self.steps * moved[:count]
        scaled = self.first[count:] * np.exp(self.shares * moved[count:])
        self.values = np.concatenate([added, scaled]).astype(np.float32)
        for variable, value in zip(self.moving, np.split(self.values, self.ends), strict=True):
            variable.assign(value.reshape(variable.shape))


def _flat(tensors: list[Any]) -> Floats:
    return np.concatenate([x.numpy().ravel() for x in tensors])


def _gains(wrapped: Any) -> list[Any]:
    """The gain of every batch norm behind a convolution."""
    graph = Graph(wrapped)
    pairs = [Folded(graph, layer) for layer in graph.layers if kind(layer) in WEIGHTS]
    return [pair.norm["gamma"] for pair in pairs if pair.norm and "gamma" in pair.norm]


def _offsets(wrapped: Any, quantizers: dict[str, Any]) -> list[tuple[Any, ActivationQuantizer]]:
    """The last offset of every convolution, and what rounds the tensor that it is added to."""
    graph = Graph(wrapped)
    found = []
    for layer in graph.layers:
        if kind(layer) not in WEIGHTS:
            continue
        pair = Folded(graph, layer)
        quantizer = _rounding_behind(graph, pair.output, quantizers)
        if pair.offset is not None and quantizer is not None:
            found.append((pair.offset, quantizer))
    return found


def _rounding_behind(
    graph: Graph, layer: Any, quantizers: dict[str, Any]
) -> ActivationQuantizer | None:
    """The first rounding at or behind a layer; none where what it makes is rounded in two ways."""
    while True:
        quantizer = quantizers.get(unwrap(layer).name)
        if isinstance(quantizer, ActivationQuantizer):
            return quantizer
        consumers = graph.consumers(layer)
        if len(consumers) != 1:
            return None
        layer = consumers[0]


def _step(quantizer: ActivationQuantizer) -> float:
    low, high = (float(quantizer.variables[end]) for end in ("low", "high"))
    return (high - low) / 255.0
