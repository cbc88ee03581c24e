"""Bias correction: each channel gets back the mean that rounding has moved.

Rounded kernels add up to something else than the kernels did, and what they read is rounded too. On
a channel that is far from zero this is a constant offset (Nagel et al., arXiv 1906.04721, section
4.2). Convolutions are visited in execution order, each with all corrections before it in force.

A convolution is linear: its mean over images is what it makes of the mean image. So one pass over
the rounded model gives all corrections.

Convolutions behind a global pool are left alone. They have one value an image where others have
thousands of places, and what follows in a squeeze-excite gate bends too much for means to go by:
corrected too, the logits of a real V3-small shrink to 0.71 of their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.compression.quantization.int8.quantizer_placement import WEIGHTS
from mobilenet.models.graph.batch_norm_folding import Array, Folded
from mobilenet.models.graph.layerwise import LayerwiseRunner
from mobilenet.models.graph.roles import Graph, kind, unwrap


def correct(
    wrapped: Any, images: npt.NDArray[np.float32], targets: Mapping[str, Array]
) -> tuple[npt.NDArray[np.float32], dict[str, float]]:
    """Corrects the offsets of all convolutions. In place.

    Args:
        wrapped: a model from `scheme.wrap` with its ranges set.
        images: `[n, height, width, channels]`, preprocessed.
        targets: mean of each output channel in the original float model, times the channel's
            equalization factor, by name of the convolution.

    Returns:
        The outputs of the corrected model, `[n, classes]`, and the largest correction of each
        convolution.
    """
    runner = LayerwiseRunner(wrapped, images, _keeps)
    done: dict[str, float] = {}
    for layer in runner.graph.layers:
        if kind(layer) in WEIGHTS:
            pair = Folded(runner.graph, layer)
            if pair.offset is not None and pair.name in targets and _has_places(layer):
                amounts = targets[pair.name] - _mean(runner, pair)
                pair.shift(amounts)
                done[pair.name] = float(np.abs(amounts).max())
        runner.advance(layer)
    last = np.concatenate(list(runner.outputs(runner.graph.layers[-1])))
    return last.reshape(len(images), -1), done


def _mean(runner: LayerwiseRunner, pair: Folded) -> Array:
    """Mean of each output channel of a convolution, whose kernel is rounded as it is now."""
    total: Any = 0.0
    for part in runner.inputs(pair.layer):
        total += tf.reduce_sum(part, axis=0, keepdims=True)
    plain = pair.read(pair.own, "bias", 0.0)
    out = np.asarray(pair.layer(total / len(runner.images), training=False), np.float64)
    multiplier, bias = pair.affine()
    found = out.reshape(-1, out.shape[-1]).mean(axis=0)
    mean: Array = (found - plain) * multiplier + bias
    return mean


def _has_places(layer: Any) -> bool:
    """Whether a layer reads a map of more than one place."""
    shape = layer.input_shape
    return len(shape) == 4 and tuple(shape[1:3]) != (1, 1)


def _rounded(layer: Any) -> bool:
    config = getattr(layer, "quantize_config", None)
    return bool(config and config.get_output_quantizers(layer))


def _keeps(graph: Graph, layer: Any) -> bool:
    """Keeps what is rounded and what several layers read or make.

    What is not rounded waits for the layer behind it: no unrounded tensor of all images is ever in
    memory.
    """
    readers = graph.consumers(layer)
    alone = len(readers) == 1 and len(graph.producers(readers[0])) == 1
    return not alone or _rounded(layer) or len(graph.producers(layer)) > 1


def original_means(observed: Mapping[str, Any], graph: Graph) -> dict[str, Array]:
    """Mean of each output channel by name of the convolution, of a plain model as observed."""
    found = {}
    for layer in graph.layers:
        if kind(layer) in WEIGHTS:
            pair = Folded(graph, layer)
            name = unwrap(pair.output).name
            if name in observed:
                found[pair.name] = np.asarray(observed[name].mean, np.float64)
    return found
