"""Bias correction: each output channel gets back the mean that quantization has shifted.

Quantized kernels have other sums than the kernels, and their inputs are quantized too. On average
over many positions this is a constant offset of each channel (Nagel et al., arXiv 1906.04721,
section 4.2). Convolutions are corrected in execution order, each after all corrections before it.

A convolution is linear: its mean over images is its output for the mean image. So one pass over the
quantized model gives all corrections.

Convolutions after a global pool are not corrected. They have one value an image where others have
thousands of positions, and what follows in a squeeze-excite gate is too nonlinear for a mean to be
representative: with them corrected, the logits of a real V3-small shrink to 0.71 of their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mobilenet.compression.quantization.int8.quantizer_placement import WEIGHTS
from mobilenet.models.graph.batch_norm_folding import Folded
from mobilenet.models.graph.layerwise import LayerwiseRunner
from mobilenet.models.graph.roles import Graph, kind, unwrap
from mobilenet.typing import Float32Array, Float64Array


def correct_biases(
    wrapped: Any, images: Float32Array, targets: Mapping[str, Float64Array]
) -> tuple[Float32Array, dict[str, float]]:
    """Corrects the offsets of all convolutions. In place.

    Args:
        wrapped: a model from `scheme.wrap` with its ranges set.
        images: `[n, height, width, channels]`, preprocessed.
        targets: mean of each output channel in the original float model, times the channel's
            equalization factor, by name of the convolution.

    Returns:
        The outputs of the corrected model, `[n, classes]`, and the largest correction of each
        convolution, by name.
    """
    runner = LayerwiseRunner(Graph(wrapped), images, _is_stored)
    corrections: dict[str, float] = {}
    for layer in runner.graph.layers:
        if kind(layer) in WEIGHTS:
            pair = Folded(runner.graph, layer)
            if pair.offset is not None and pair.name in targets and _reads_positions(layer):
                amounts = targets[pair.name] - _output_mean(runner, pair)
                pair.shift(amounts)
                corrections[pair.name] = float(np.abs(amounts).max())
        runner.advance(layer)
    outputs = np.concatenate(list(runner.outputs(runner.graph.layers[-1])))
    return outputs.reshape(len(images), -1), corrections


def original_means(observations: Mapping[str, Any], graph: Graph) -> dict[str, Float64Array]:
    """Mean of each output channel by name of the convolution, of a plain model as observed."""
    means = {}
    for layer in graph.layers:
        if kind(layer) in WEIGHTS:
            pair = Folded(graph, layer)
            name = unwrap(pair.output).name
            if name in observations:
                means[pair.name] = np.asarray(observations[name].mean, np.float64)
    return means


def _output_mean(runner: LayerwiseRunner, pair: Folded) -> Float64Array:
    """Mean of each output channel of a convolution, with its kernel quantized."""
    total: Any = 0.0
    for part in runner.inputs(pair.layer):
        total += tf.reduce_sum(part, axis=0, keepdims=True)
    plain = pair.read(pair.own, "bias", 0.0)
    output = np.asarray(pair.layer(total / len(runner.images), training=False), np.float64)
    multiplier, bias = pair.affine()
    mean: Float64Array = (output.reshape(-1, output.shape[-1]).mean(axis=0) - plain) * multiplier
    return mean + bias


def _reads_positions(layer: Any) -> bool:
    """Whether a layer reads a map of more than one position."""
    shape = layer.input_shape
    return len(shape) == 4 and tuple(shape[1:3]) != (1, 1)


def _is_quantized(layer: Any) -> bool:
    config = getattr(layer, "quantize_config", None)
    return bool(config and config.get_output_quantizers(layer))


def _is_stored(graph: Graph, layer: Any) -> bool:
    """Whether the runner stores an output: one that is quantized, or that is joined or branches.

    Others are computed when the next layer needs them, so that no float tensor of all images is
    ever in memory.
    """
    readers = graph.consumers(layer)
    alone = len(readers) == 1 and len(graph.producers(readers[0])) == 1
    return not alone or _is_quantized(layer) or len(graph.producers(layer)) > 1
