"""Tuning without labels: offsets, gains and ranges are trained until the rounded net answers as the
float net does.

Images are cropped and mirrored anew each time, and the float net is asked each time: fifty images
seen unchanged are learnt by heart. Kernels do not move, which learn even varied images by heart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.compression import variables
from mobilenet.compression.quantization import scheme
from mobilenet.compression.quantization.folding import Folded
from mobilenet.compression.quantization.placement import WEIGHTS
from mobilenet.compression.quantization.quantizers import ActivationQuantizer
from mobilenet.models.roles import Graph, kind

Floats = npt.NDArray[np.float32]
_BATCH = 10
_LEAST_SIDE = 0.7  # of a crop
_PART = 5  # images whose tensors are in memory together
_OFFSET_STEPS = 10.0  # a unit of an offset, in steps of its tensor: a rate then means the same
_RANGE_SHARE = 3.0  # a unit of a range, as the logarithm of a factor; of a gain it is 1
_LEAST_RATE = 0.01  # of the first


def tune(
    wrapped: Any,
    images: Floats,
    answers: Callable[[Floats], Floats],
    epochs: int = 10,
    rate: float = 1e-3,
    seed: int = 0,
    told: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[float]:
    """Trains offsets, gains and ranges of a net in place, by Adam under a cosine rate.

    Args:
        wrapped: a net from `scheme.wrap` with its ranges set.
        images: `[n, height, width, channels]`, preprocessed.
        answers: the float net, `[n, height, width, channels]` to `[n, classes]`.
        epochs: passes over the images; more learn the images by heart.
        rate: at the beginning.
        seed: of order, crops and mirroring.
        told: called behind each epoch with its number, counted from 1, and its loss.

    Returns:
        Loss by epoch: squared error of the outputs as a share of their own square.
    """
    steps = epochs * -(-len(images) // _BATCH)
    schedule = tf_keras.optimizers.schedules.CosineDecay(rate, steps, alpha=_LEAST_RATE)
    moved = _Moved(wrapped, tf_keras.optimizers.Adam(schedule))
    rng = np.random.default_rng(seed)
    losses = []
    wrapped.phase.tuning = True
    try:
        for epoch in range(epochs):
            order, error, power = rng.permutation(len(images)), 0.0, 0.0
            for start in range(0, len(images), _BATCH):
                batch = varied(images[order[start : start + _BATCH]], rng)
                wanted = answers(batch)
                error += moved.step(batch, wanted)
                power += float(np.sum(np.square(wanted)))
            losses.append(error / power)
            told(epoch + 1, losses[-1])
    finally:
        wrapped.phase.tuning = False
    return losses


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


class _Moved:
    """The variables of a net that move, and in which units."""

    def __init__(self, wrapped: Any, optimizer: Any) -> None:
        self.net, self.optimizer = wrapped, optimizer
        quantizers = scheme.quantizers(wrapped)
        self.offsets: list[Any] = []
        self.units: list[float] = []
        for variable, step in _offsets(wrapped, quantizers):
            self.offsets.append(variable)
            self.units.append(_OFFSET_STEPS * step)
        self.ends = [
            quantizer.variables[end]
            for quantizer in quantizers.values()
            if isinstance(quantizer, ActivationQuantizer) and quantizer.fixed is None
            for end in ("low", "high")
            if float(quantizer.variables[end]) != 0.0
        ]
        self.scaled = [*self.ends, *_gains(wrapped)]
        self.shares = [_RANGE_SHARE] * len(self.ends) + [1.0] * (len(self.scaled) - len(self.ends))
        self.first = [tf.constant(v) for v in (*self.offsets, *self.scaled)]
        self.parameters = [
            tf.Variable(tf.zeros_like(value), name=f"moved_{place}")
            for place, value in enumerate(self.first)
        ]
        optimizer.build(self.parameters)

        self._slopes = tf.function(self._slopes_of, reduce_retracing=True)
        self._move = tf.function(self._moved_by)

    def step(self, images: Floats, wanted: Floats) -> float:
        """One update, in parts that fit into the memory; the squared error before it."""
        total, slopes = 0.0, [tf.zeros_like(value) for value in self.first]
        for start in range(0, len(images), _PART):
            part = slice(start, start + _PART)
            error, found = self._slopes(tf.constant(images[part]), tf.constant(wanted[part]))
            total += float(error)
            slopes = [a + b for a, b in zip(slopes, found, strict=True)]
        self._move([slope / wanted.size for slope in slopes])
        return total

    def _slopes_of(self, images: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        moving = [*self.offsets, *self.scaled]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in moving:
                tape.watch(variable)
            found = tf.reshape(self.net(images, training=False), tf.shape(wanted))
            error = tf.reduce_sum(tf.square(found - wanted))
        none = tf.UnconnectedGradients.ZERO
        return error, tape.gradient(error, moving, unconnected_gradients=none)

    def _moved_by(self, slopes: list[tf.Tensor]) -> None:
        """An optimizer step in the parameters' units; the variables follow."""
        units = [
            *self.units,
            *(share * value for share, value in zip(self.shares, self.scaled, strict=True)),
        ]
        scaled = [slope * unit for slope, unit in zip(slopes, units, strict=True)]
        self.optimizer.apply_gradients(zip(scaled, self.parameters, strict=True))
        count = len(self.offsets)
        for place, variable in enumerate((*self.offsets, *self.scaled)):
            first, moved = self.first[place], self.parameters[place]
            variable.assign(
                first + self.units[place] * moved
                if place < count
                else first * tf.exp(self.shares[place - count] * moved)
            )


def _gains(wrapped: Any) -> list[Any]:
    """The gain of every batch norm behind a convolution."""
    graph = Graph(wrapped)
    pairs = [Folded(graph, layer) for layer in graph.layers if kind(layer) in WEIGHTS]
    return [pair.norm["gamma"] for pair in pairs if pair.norm and "gamma" in pair.norm]


def _offsets(wrapped: Any, quantizers: dict[str, Any]) -> list[tuple[Any, float]]:
    """The last offset of every convolution, and the step of the tensor that it is added to."""
    graph = Graph(wrapped)
    found = []
    for layer in graph.layers:
        if kind(layer) not in WEIGHTS:
            continue
        pair = Folded(graph, layer)
        step = _step_behind(graph, pair.output, quantizers)
        if pair.offset is not None and step:
            found.append((pair.offset, step))
    return found


def _step_behind(graph: Graph, layer: Any, quantizers: dict[str, Any]) -> float:
    """The step of the first rounding at or behind a layer; 0 where there is none."""
    while True:
        quantizer = quantizers.get(variables.inner(layer).name)
        if isinstance(quantizer, ActivationQuantizer):
            low, high = (float(quantizer.variables[end]) for end in ("low", "high"))
            return (high - low) / 255.0
        consumers = graph.consumers(layer)
        if len(consumers) != 1:
            return 0.0
        layer = consumers[0]
