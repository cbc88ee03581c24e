"""What stays takes over from the channels that went: least squares, on images without labels.

A convolution that has lost inputs is fitted again, kernel and offset, to what it gave before (He,
Zhang and Sun, arXiv 1707.06168, equation 5). Layers are visited in execution order, and each reads
what the fitted layers in front of it give, so that it makes up for their errors, too. A depthwise
kernel reads one channel, which is there or gone; fitting it as well won nothing.

Statistics of batch norms become those of the thinner model, or its first training steps would see
another model than the one that was fitted.
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

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_PLACES = 1 << 15  # of all images together, that a layer is fitted on
_IMAGES = 64  # that a layer is fitted on at least, where they have more places than that
_KEPT = 1 << 28  # bytes of a tensor of all images; a larger one is computed anew where it is read


def fit(before: Any, silenced: Any, images: Floats) -> dict[str, float]:
    """Fits the layers behind silent channels. `silenced` is changed, in place.

    Args:
        before: the model with all of its channels.
        silenced: a model of the same shapes in which some channels are silent.
        images: `[n, height, width, channels]`, preprocessed. A few hundred: every place of a map is
            a sample, but the layers behind the last pool have one an image.

    Returns:
        What is left of each layer's squared error, as a share of that before, by layer.
    """
    images = np.random.default_rng(0).permutation(images)  # the first ones are of all classes
    old, new = (LayerwiseRunner(model, images, _keeps(len(images))) for model in (before, silenced))
    done: dict[str, float] = {}
    for was, now in zip(old.graph.layers, new.graph.layers, strict=True):
        if kind(now) in ("Conv2D", "Dense") and getattr(now, "groups", 1) == 1:
            left = _fit(old, was, new, now)
            if left is not None:
                done[now.name] = left
        elif kind(now) == "DepthwiseConv2D" and done:
            _measure(new, now)
        old.advance(was)
        new.advance(now)
    return done


def _fit(old: LayerwiseRunner, was: Any, new: LayerwiseRunner, now: Any) -> float | None:
    """One layer; `None` where it reads what it read before, or has no offset to move."""
    target, pair = Folded(old.graph, was), Folded(new.graph, now)
    if pair.offset is None:
        return None
    gain, bias = target.affine()
    wanted = _matrix(target) * gain
    sums, changed = _Sums(), False
    enough = _enough(now, len(old.images))
    places = _places(now, enough)
    for both in zip(old.inputs(was, enough), new.inputs(now, enough), strict=True):
        once, read = (np.asarray(value, np.float32) for value in both)
        changed |= not np.array_equal(once, read)
        sums.add(_rows(now, read, places), _rows(now, once, places) @ wanted + bias)
    return sums.improve(pair) if changed else None


def _measure(runner: LayerwiseRunner, layer: Any) -> None:
    """Gives the batch norm behind a depthwise layer the statistics of what it reads now."""
    norm = Folded(runner.graph, layer).norm
    if norm is None:
        return
    count, total, squares = 0, 0.0, 0.0
    for read in runner.inputs(layer, _enough(layer, len(runner.images))):
        made = np.asarray(layer(read, training=False), np.float64)
        made = made.reshape(-1, made.shape[-1])
        count += len(made)
        total, squares = total + made.sum(axis=0), squares + np.square(made).sum(axis=0)
    norm["moving_mean"].assign(total / count)
    norm["moving_variance"].assign(np.maximum(squares / count - np.square(total / count), 0))


def _keeps(images: int) -> Callable[[Graph, Any], bool]:
    """Keeps what all images fill no more than the limit with."""
    return lambda graph, layer: 4 * images * math.prod(graph.output(layer).shape[1:]) <= _KEPT


class _Sums:
    """What decides a fit: means of inputs `[n, inputs]`, of targets `[n, outputs]`, of products."""

    def __init__(self) -> None:
        self.count = 0
        self.totals: list[Any] = [0.0] * 5

    def add(self, inputs: Array, targets: Array) -> None:
        self.count += len(inputs)
        found = (
            *(inputs.sum(axis=0), targets.sum(axis=0), np.square(targets).sum(axis=0)),
            *(inputs.T @ inputs, inputs.T @ targets),
        )
        self.totals = [total + more for total, more in zip(self.totals, found, strict=True)]

    def improve(self, pair: Folded) -> float:
        """Moves a layer to the least squared error; a channel without a kernel stays silent.

        A ridge holds a kernel where it is in directions that the samples say little of: as many
        inputs as samples, and it weighs as much as they do.
        """
        reads, gives, power, squares, products = (total / self.count for total in self.totals)
        squares = squares - np.outer(reads, reads)
        products = products - np.outer(reads, gives)
        own, (gain, bias) = _matrix(pair), pair.affine()
        live = (own != 0).any(axis=0) & (gain != 0)
        heard = np.diag(squares) > 0
        kernel = own * gain

        def error(kernel: Array, offset: Array) -> float:
            apart = power - gives**2 - 2 * (kernel * products).sum(axis=0)
            apart += (kernel * (squares @ kernel)).sum(axis=0)
            return float(
                (np.maximum(apart, 0) + (gives - reads @ kernel - offset) ** 2)[live].sum()
            )

        was = error(kernel, bias)
        ridge = np.trace(squares) / self.count  # inputs / samples of their mean variance
        held = squares[np.ix_(heard, heard)] + ridge * np.eye(heard.sum())
        gap = (products - squares @ kernel)[np.ix_(heard, live)]
        kernel[np.ix_(heard, live)] += np.linalg.solve(held, gap)
        offset = np.where(live, gives - reads @ kernel, bias)
        own = np.where(live, kernel / np.where(live, gain, 1.0), own)
        pair.kernel.assign(own.reshape(pair.kernel.shape))
        pair.shift(offset - bias)
        if pair.norm is not None and "gamma" in pair.norm:
            plain = pair.read(pair.own, "bias", 0.0)
            variance = np.maximum((own * (squares @ own)).sum(axis=0), 0)
            pair.replace_statistics(reads @ own + plain, variance)
        return error(kernel, offset) / max(was, 1e-30)


def _matrix(pair: Folded) -> Array:
    """A kernel as `[height * width * inputs, outputs]`."""
    return np.asarray(pair.kernel, np.float64).reshape(-1, pair.channels)


def _enough(layer: Any, images: int) -> int:
    """How many images have places enough: for large maps, which are dear, not all."""
    places: int = math.prod(layer.output_shape[1:-1])
    return min(images, max(_IMAGES, -(-_PLACES // places)))


def _places(layer: Any, images: int) -> npt.NDArray[np.int64]:
    """Places of a layer's map that are samples, the same of every image: evenly over it."""
    count = math.prod(layer.output_shape[1:-1])
    taken = min(count, -(-_PLACES // images))
    places: npt.NDArray[np.int64] = np.linspace(0, count - 1, taken).round().astype(np.int64)
    return places


def _rows(layer: Any, read: Floats, places: npt.NDArray[np.int64]) -> Array:
    """What a kernel multiplies at these places, `[samples, kernel height * width * inputs]`."""
    if kind(layer) == "Conv2D" and {*layer.kernel_size, *layer.strides} != {1}:
        read = tf.image.extract_patches(
            read,
            [1, *layer.kernel_size, 1],
            [1, *layer.strides, 1],
            [1, *layer.dilation_rate, 1],
            layer.padding.upper(),
        ).numpy()
    rows = read.reshape(len(read), -1, read.shape[-1])[:, places]
    return np.asarray(rows.reshape(-1, rows.shape[-1]), np.float64)
