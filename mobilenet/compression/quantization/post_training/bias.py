"""Bias correction: each channel gets back the mean that rounding has moved.

Rounded kernels add up to something else than the kernels did, and what they read is rounded too. On
a channel that is far from zero this is a constant offset (Nagel et al., arXiv 1906.04721, section
4.2). Convolutions are visited in execution order, each with all corrections before it in force.

A convolution is linear: its mean over images is what it makes of the mean image. So one pass over
the rounded net gives all corrections.

Convolutions behind a global pool are left alone. They have one value an image where others have
thousands of places, and what follows in a squeeze-excite gate bends too much for means to go by:
corrected too, the logits of a real V3-small shrink to .71 of their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.compression import variables
from mobilenet.compression.folding import Array, Folded
from mobilenet.compression.quantization.placement import WEIGHTS
from mobilenet.models.roles import Graph, kind

_BATCH = 25


def correct(
    wrapped: Any, images: npt.NDArray[np.float32], targets: Mapping[str, Array]
) -> tuple[npt.NDArray[np.float32], dict[str, float]]:
    """Corrects the offsets of all convolutions. In place.

    Args:
        wrapped: a net from `scheme.wrap` with its ranges set.
        images: `[n, height, width, channels]`, preprocessed.
        targets: mean of each output channel in the original float net, times the channel's
            equalization factor, by name of the convolution.

    Returns:
        The outputs of the corrected net, `[n, classes]`, and the largest correction of each
        convolution.
    """
    walk = _Walk(wrapped, images)
    done: dict[str, float] = {}
    for layer in walk.graph.layers:
        if kind(layer) in WEIGHTS:
            pair = Folded(walk.graph, layer)
            if pair.offset is not None and pair.name in targets and _has_places(layer):
                amounts = targets[pair.name] - walk.mean(pair)
                pair.shift(amounts)
                done[pair.name] = float(np.abs(amounts).max())
        walk.step(layer)
    return walk.outputs(), done


class _Walk:
    """A net over all images, layer by layer.

    What is rounded is computed and kept until its last reader has been; what is not waits for the
    layer behind it, so that no unrounded tensor of all images is ever in memory.
    """

    def __init__(self, wrapped: Any, images: npt.NDArray[np.float32]) -> None:
        self.graph = Graph(wrapped)
        self.images = images
        self.kept: dict[int, list[Any]] = {}
        self.waiting: dict[int, tuple[Any, list[Any]]] = {}  # where it starts, layers since
        self.readers = {id(x): len(self.graph.consumers(x)) for x in self.graph.layers}

    def step(self, layer: Any) -> None:
        """Takes a layer's turn; those in front of it have had theirs."""
        before = self.graph.producers(layer)
        if not before:
            starts = range(0, len(self.images), _BATCH)
            self.kept[id(layer)] = [tf.constant(self.images[s : s + _BATCH]) for s in starts]
            return
        if len(before) > 1:
            parts = zip(*(self.kept[id(x)] for x in before), strict=True)
            self.kept[id(layer)] = [layer(list(part), training=False) for part in parts]
            self._release(before)
            return
        start, layers = self.waiting.pop(id(before[0]), (before[0], []))
        layers = [*layers, layer]
        consumers = self.graph.consumers(layer)
        alone = len(consumers) == 1 and len(self.graph.producers(consumers[0])) == 1
        if alone and not _rounded(layer):
            self.waiting[id(layer)] = start, layers
            return
        self.kept[id(layer)] = [_through(layers, part) for part in self.kept[id(start)]]
        self._release([start])

    def _release(self, read: list[Any]) -> None:
        for layer in read:
            self.readers[id(layer)] -= 1
            if not self.readers[id(layer)]:
                del self.kept[id(layer)]

    def mean(self, pair: Folded) -> Array:
        """Mean of each output channel of a convolution, whose kernel is rounded as it is now."""
        source = self.graph.producers(pair.layer)[0]
        start, layers = self.waiting.get(id(source), (source, []))
        total: Any = 0.0
        for part in self.kept[id(start)]:
            total += tf.reduce_sum(_through(layers, part), axis=0, keepdims=True)
        plain = pair.read(pair.own, "bias", 0.0)
        out = np.asarray(pair.layer(total / len(self.images), training=False), np.float64)
        multiplier, bias = pair.affine()
        found = out.reshape(-1, out.shape[-1]).mean(axis=0)
        mean: Array = (found - plain) * multiplier + bias
        return mean

    def outputs(self) -> npt.NDArray[np.float32]:
        """`[images, classes]` of the last layer."""
        found = [part.numpy() for part in self.kept[id(self.graph.layers[-1])]]
        return np.concatenate(found).reshape(len(self.images), -1)


def _has_places(layer: Any) -> bool:
    """Whether a layer reads a map of more than one place."""
    shape = layer.input_shape
    return len(shape) == 4 and tuple(shape[1:3]) != (1, 1)


def _through(layers: list[Any], part: Any) -> Any:
    for layer in layers:
        part = layer(part, training=False)
    return part


def _rounded(layer: Any) -> bool:
    config = getattr(layer, "quantize_config", None)
    return bool(config and config.get_output_quantizers(layer))


def original_means(observed: Mapping[str, Any], graph: Graph) -> dict[str, Array]:
    """Mean of each output channel by name of the convolution, of a plain net as observed."""
    found = {}
    for layer in graph.layers:
        if kind(layer) in WEIGHTS:
            pair = Folded(graph, layer)
            name = variables.inner(pair.output).name
            if name in observed:
                found[pair.name] = np.asarray(observed[name].mean, np.float64)
    return found
