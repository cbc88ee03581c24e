"""The moving statistics of batch norms: whether they fit images, and replacing them while inference
stays the same.

In inference a batch norm divides by its moving statistics. After a few steps at a high decay they
are still those of the initial model: every layer then rescales its signal, and calibrated ranges
do not fit the activations seen in training. Batch norms that were folded have no statistics to
check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.configs import recipes
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import kind, unwrap

_IMAGES = 8
_BATCH = 32
FILL_IMAGES = 256  # enough for means and variances of every channel
# Trained models, Google's among them, measured 0.12 to 3.4, on other kinds of images too; models
# after 20 steps at a decay of 0.9997 measured 0.0004.
_FACTOR = 15.0
_LEAST = 1e-9  # has a logarithm, unlike 0


def shorten_momentum(model: Any, steps: int) -> dict[str, float]:
    """Lets moving statistics follow a training of so many steps. In place.

    Returns:
        The momentum that layers had before, by name.
    """
    before = {x.name: x.momentum for x in model.layers if kind(x) == "BatchNormalization"}
    for name, momentum in before.items():
        model.get_layer(name).momentum = recipes.batch_norm_decay(steps, momentum)
    return before


def statistics_warning(model: Any, images: npt.NDArray[np.float32]) -> str:
    """Warns of batch norms whose moving statistics are not those of images.

    The measure of a batch norm is the distance of its inputs from the moving mean, in moving
    standard deviations: root mean square over the images, median over the channels. 1 fits.

    Args:
        model: a plain model.
        images: `[n, height, width, channels]`, preprocessed as the model takes them; a few suffice.

    Returns:
        A message with the cause and the remedy; empty if the statistics fit.
    """
    norms = [
        layer
        for layer in model.layers
        if kind(layer) == "BatchNormalization" and not has_no_statistics(layer)
    ]
    if not norms:
        return ""
    reader = tf_keras.Model(model.inputs, [layer.input for layer in norms])
    inputs = reader(tf.constant(images[:_IMAGES]), training=False)
    figures = [
        _figure(layer, value)
        for layer, value in zip(norms, inputs if len(norms) > 1 else [inputs], strict=True)
    ]
    off = [index for index, figure in enumerate(figures) if not 1 / _FACTOR < figure < _FACTOR]
    if not off:
        return ""
    first = norms[off[0]]
    worst = max((figures[index] for index in off), key=lambda figure: abs(np.log(figure)))
    return (
        f"the moving statistics of {len(off)} of {len(norms)} batch norms are not those of the "
        f"images, from {first.name} on (signals up to {worst:.2g} times as wide as expected): the "
        f"activation ranges will not fit; train with a lower momentum (`batch_norm_decay` of "
        f"MobileNets) than {first.momentum:g}, or for more epochs"
    )


def fill_statistics(model: Any, images: Callable[[], npt.NDArray[np.float32]]) -> list[str]:
    """Gives batch norms without statistics those of images; inference outputs are unchanged.

    In a checkpoint with folded kernels, all batch norms have mean 0 and one variance for all
    channels. Inference is right with them, but training normalizes by the mean and variance of the
    batch and would start from a different function. Here gamma and beta are changed along with the
    statistics, so that both modes agree.

    Args:
        model: a functional model, changed in place.
        images: returns `[n, height, width, channels]`, preprocessed as the model takes them; only
            called if a layer needs them.

    Returns:
        The names of the layers that were filled.
    """
    batch_norms = [layer for layer in model.layers if kind(layer) == "BatchNormalization"]
    empty = [layer for layer in batch_norms if has_no_statistics(layer)]
    if not empty:
        return []
    reader = tf_keras.Model(model.inputs, [layer.input for layer in empty])
    samples = images()
    sums, squares = [0.0] * len(empty), [0.0] * len(empty)
    for start in range(0, len(samples), _BATCH):
        inputs = reader(tf.constant(samples[start : start + _BATCH]), training=False)
        for index, value in enumerate(inputs if len(empty) > 1 else [inputs]):
            pixels = value.numpy().reshape(-1, value.shape[-1]).astype(np.float64)
            # Layers differ in their number of pixels, so means of the batch are summed.
            sums[index] += pixels.mean(0) * len(value)
            squares[index] += np.square(pixels).mean(0) * len(value)
    for layer, total, square in zip(empty, sums, squares, strict=True):
        mean = total / len(samples)
        variance = np.maximum(square / len(samples) - np.square(mean), 0.0)
        replace_statistics(layer, mean, variance)
    return [layer.name for layer in empty]


def replace_statistics(layer: Any, mean: Any, variance: Any) -> None:
    """Sets the statistics of a batch norm, and gamma and beta so that inference is unchanged.

    Args:
        layer: a batch norm, wrapped or not, with gamma and beta.
        mean, variance: `[channels]`.
    """
    named = variables.named(layer)
    epsilon = unwrap(layer).epsilon
    gamma, beta, old_mean, old_variance = (
        np.asarray(tf.convert_to_tensor(named[name]), np.float64)
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    slope = gamma / np.sqrt(old_variance + epsilon)
    named["gamma"].assign(slope * np.sqrt(variance + epsilon))
    named["beta"].assign(beta + (mean - old_mean) * slope)
    named["moving_mean"].assign(mean)
    named["moving_variance"].assign(variance)


def has_no_statistics(layer: Any) -> bool:
    """Whether a batch norm came folded: all means are zero and all variances the same."""
    mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    return not mean.any() and len(variance) > 1 and np.ptp(variance) == 0


def _figure(layer: Any, value: tf.Tensor) -> float:
    """Deviation of the median channel from its moving mean; infinite if it is not finite."""
    mean, variance = (
        np.asarray(tf.convert_to_tensor(x), np.float64)
        for x in (layer.moving_mean, layer.moving_variance)
    )
    inputs = np.asarray(tf.cast(value, tf.float32), np.float64).reshape(-1, len(mean))
    square = np.square(inputs - mean).mean(0)
    active = (variance > layer.epsilon) | ~(square <= layer.epsilon)  # the others are constant
    if not active.any():
        return 1.0
    figure = float(np.sqrt(np.median((square / (variance + layer.epsilon))[active])))
    return max(figure, _LEAST) if np.isfinite(figure) else float("inf")
