"""Reconstruction after channel pruning: the remaining channels make up for the removed ones.

A convolution that has lost inputs is fitted again, kernel and offset, to the outputs that it had
before, by least squares on images without labels (He, Zhang and Sun, arXiv 1707.06168, equation 5).
Layers are visited in execution order, and each reads the outputs of the fitted layers before it, so
that it compensates their errors, too. A depthwise kernel reads one channel, which is there or not;
fitting it as well gained nothing.

Batch norms get the statistics of the thin model: otherwise its first training steps would normalize
with other statistics than those that the fit has assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.models.graph.batch_norm_folding import Folded
from mobilenet.models.graph.layerwise import LayerwiseRunner
from mobilenet.models.graph.roles import Graph, kind
from mobilenet.typing import Float32Array, Float64Array

_POSITIONS = 1 << 15  # of all images together, on which a layer is fitted
_MIN_IMAGES = 64  # on which a layer is fitted, even where fewer images have enough positions
_MAX_BYTES = 1 << 28  # of a feature map of all images; a larger one is computed when it is read


def reconstruct_consumers(original: Graph, masked: Graph, images: Float32Array) -> dict[str, float]:
    """Fits the layers that read pruned channels. The layers of `masked` are changed in place.

    Args:
        original: graph of the model with all of its channels.
        masked: graph of a model of the same shapes in which some channels are pruned.
        images: `[n, height, width, channels]`, preprocessed. A few hundred: every position of a map
            is a sample, but layers after the last pooling have one sample an image.

    Returns:
        Each layer's remaining squared error, as a share of that before the fit, by layer name.
    """
    images = np.random.default_rng(0).permutation(images)  # so that the first ones are of any class
    before, after = (
        LayerwiseRunner(graph, images, _fits_in_memory(len(images))) for graph in (original, masked)
    )
    errors: dict[str, float] = {}
    for target_layer, layer in zip(before.graph.layers, after.graph.layers, strict=True):
        if kind(layer) in ("Conv2D", "Dense") and getattr(layer, "groups", 1) == 1:
            error = _fit_layer(before, target_layer, after, layer)
            if error is not None:
                errors[layer.name] = error
        elif kind(layer) == "DepthwiseConv2D" and errors:
            _measure_statistics(after, layer)
        before.advance(target_layer)
        after.advance(layer)
    return errors


def _fit_layer(
    before: LayerwiseRunner, target_layer: Any, after: LayerwiseRunner, layer: Any
) -> float | None:
    """The remaining error; `None` where the inputs are unchanged, or there is no offset to fit."""
    target, pair = Folded(before.graph, target_layer), Folded(after.graph, layer)
    if pair.offset is None:
        return None
    gain, bias = target.affine()
    target_kernel = _matrix(target) * gain
    sums, changed = _Sums(), False
    count = _image_count(layer, len(before.images))
    positions = _sample_positions(layer, count)
    batches = zip(before.inputs(target_layer, count), after.inputs(layer, count), strict=True)
    for batch in batches:
        original, inputs = (np.asarray(value, np.float32) for value in batch)
        changed |= not np.array_equal(original, inputs)
        targets = _patches(layer, original, positions) @ target_kernel + bias
        sums.add(_patches(layer, inputs, positions), targets)
    return sums.fit(pair) if changed else None


def _measure_statistics(runner: LayerwiseRunner, layer: Any) -> None:
    """Gives the batch norm after a depthwise layer the statistics of that layer's outputs now."""
    norm = Folded(runner.graph, layer).norm
    if norm is None:
        return
    count, total, squares = 0, 0.0, 0.0
    for inputs in runner.inputs(layer, _image_count(layer, len(runner.images))):
        outputs = np.asarray(layer(inputs, training=False), np.float64)
        outputs = outputs.reshape(-1, outputs.shape[-1])
        count += len(outputs)
        total, squares = total + outputs.sum(axis=0), squares + np.square(outputs).sum(axis=0)
    norm["moving_mean"].assign(total / count)
    norm["moving_variance"].assign(np.maximum(squares / count - np.square(total / count), 0))


def _fits_in_memory(images: int) -> Callable[[Graph, Any], bool]:
    """Whether a layer's outputs of all images stay below the limit."""
    return lambda graph, layer: 4 * images * math.prod(graph.output(layer).shape[1:]) <= _MAX_BYTES


class _Sums:
    """Sufficient statistics of a least-squares fit: sums over the samples of the inputs
    `[n, inputs]`, of the targets `[n, outputs]`, and of their products."""

    def __init__(self) -> None:
        self.count = 0
        self.totals: list[Any] = [0.0] * 5

    def add(self, inputs: Float64Array, targets: Float64Array) -> None:
        self.count += len(inputs)
        batch = (
            *(inputs.sum(axis=0), targets.sum(axis=0), np.square(targets).sum(axis=0)),
            *(inputs.T @ inputs, inputs.T @ targets),
        )
        self.totals = [total + more for total, more in zip(self.totals, batch, strict=True)]

    def fit(self, pair: Folded) -> float:
        """Moves a layer to the least squared error; a channel without a kernel stays pruned.

        Ridge regression towards the present kernel, since the samples may not determine all of its
        directions: with as many inputs as samples the ridge weighs as much as they do.
        """
        mean, target_mean, power, squares, products = (total / self.count for total in self.totals)
        covariance = squares - np.outer(mean, mean)
        products = products - np.outer(mean, target_mean)
        own, (gain, bias) = _matrix(pair), pair.affine()
        active = (own != 0).any(axis=0) & (gain != 0)
        used = np.diag(covariance) > 0
        kernel = own * gain

        def error(kernel: Float64Array, offset: Float64Array) -> float:
            variance = power - target_mean**2 - 2 * (kernel * products).sum(axis=0)
            variance += (kernel * (covariance @ kernel)).sum(axis=0)
            shift = target_mean - mean @ kernel - offset
            return float((np.maximum(variance, 0) + shift**2)[active].sum())

        before = error(kernel, bias)
        ridge = np.trace(covariance) / self.count  # inputs / samples of their mean variance
        regularized = covariance[np.ix_(used, used)] + ridge * np.eye(used.sum())
        gap = (products - covariance @ kernel)[np.ix_(used, active)]
        kernel[np.ix_(used, active)] += np.linalg.solve(regularized, gap)
        offset = np.where(active, target_mean - mean @ kernel, bias)
        own = np.where(active, kernel / np.where(active, gain, 1.0), own)
        pair.kernel.assign(own.reshape(pair.kernel.shape))
        pair.shift(offset - bias)
        if pair.norm is not None and "gamma" in pair.norm:
            plain = pair.read(pair.own, "bias", 0.0)
            variance = np.maximum((own * (covariance @ own)).sum(axis=0), 0)
            pair.replace_statistics(mean @ own + plain, variance)
        return error(kernel, offset) / max(before, 1e-30)


def _matrix(pair: Folded) -> Float64Array:
    """A kernel as `[height * width * inputs, outputs]`."""
    return np.asarray(pair.kernel, np.float64).reshape(-1, pair.channels)


def _image_count(layer: Any, images: int) -> int:
    """How many images have enough positions: not all for large maps, which take long."""
    positions: int = math.prod(layer.output_shape[1:-1])
    return min(images, max(_MIN_IMAGES, -(-_POSITIONS // positions)))


def _sample_positions(layer: Any, images: int) -> npt.NDArray[np.int64]:
    """Positions of a layer's map that are samples, the same of every image: evenly over it."""
    count = math.prod(layer.output_shape[1:-1])
    samples = min(count, -(-_POSITIONS // images))
    positions: npt.NDArray[np.int64] = np.linspace(0, count - 1, samples).round().astype(np.int64)
    return positions


def _patches(layer: Any, inputs: Float32Array, positions: npt.NDArray[np.int64]) -> Float64Array:
    """What a kernel multiplies at these positions, `[samples, kernel height * width * inputs]`."""
    if kind(layer) == "Conv2D" and {*layer.kernel_size, *layer.strides} != {1}:
        inputs = tf.image.extract_patches(
            inputs,
            [1, *layer.kernel_size, 1],
            [1, *layer.strides, 1],
            [1, *layer.dilation_rate, 1],
            layer.padding.upper(),
        ).numpy()
    patches = inputs.reshape(len(inputs), -1, inputs.shape[-1])[:, positions]
    return np.asarray(patches.reshape(-1, patches.shape[-1]), np.float64)
