"""Whether the moving statistics of batch norms are those of images, before ranges are taken.

In inference a batch norm divides by its moving statistics. A few steps at a high decay leave them
those of the initial model: every layer then widens or narrows its signal anew, and the ranges that
a calibration takes fit nothing that training shows. Batch norms that came folded hold no statistics
at all, and none is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.models.graph.roles import kind

_IMAGES = 8
# Trained models, Google's weights too, were seen at 0.12 to 3.4, on images of another kind as well;
# models after 20 steps at a decay of 0.9997 at 0.0004.
_FACTOR = 15.0
_LEAST = 1e-9  # a figure that still has a logarithm


def statistics_warning(model: Any, images: npt.NDArray[np.float32]) -> str:
    """Tells of batch norms whose moving statistics are not those of images.

    The figure of a batch norm is the distance of its input from the moving mean in moving
    deviations, a mean square over the images and the median of the channels: 1 where it fits.

    Args:
        model: a plain model, in inference mode as it is calibrated.
        images: `[n, height, width, channels]`, preprocessed as the model takes them; a few suffice.

    Returns:
        One line with the cause and the remedy; empty where the statistics fit.
    """
    norms = [
        layer
        for layer in model.layers
        if kind(layer) == "BatchNormalization" and not has_no_statistics(layer)
    ]
    if not norms:
        return ""
    reader = tf_keras.Model(model.inputs, [layer.input for layer in norms])
    found = reader(tf.constant(images[:_IMAGES]), training=False)
    figures = [
        _figure(layer, value)
        for layer, value in zip(norms, found if len(norms) > 1 else [found], strict=True)
    ]
    off = [place for place, figure in enumerate(figures) if not 1 / _FACTOR < figure < _FACTOR]
    if not off:
        return ""
    first = norms[off[0]]
    worst = max((figures[place] for place in off), key=lambda figure: abs(np.log(figure)))
    return (
        f"the moving statistics of {len(off)} of {len(norms)} batch norms are not those of the "
        f"images, from {first.name} on (signals up to {worst:.2g} times as wide as they say): the "
        f"activation ranges will not fit; train with a lower --batch_norm_decay than "
        f"{first.momentum:g}, or for more epochs"
    )


def has_no_statistics(layer: Any) -> bool:
    """Whether a batch norm came folded: all means are zero and all variances the same."""
    mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    return not mean.any() and len(variance) > 1 and np.ptp(variance) == 0


def _figure(layer: Any, value: tf.Tensor) -> float:
    """Deviations from the moving mean, the median channel's; infinite where there is no number."""
    mean, variance = (
        np.asarray(tf.convert_to_tensor(x), np.float64)
        for x in (layer.moving_mean, layer.moving_variance)
    )
    inputs = np.asarray(tf.cast(value, tf.float32), np.float64).reshape(-1, len(mean))
    square = np.square(inputs - mean).mean(0)
    alive = (variance > layer.epsilon) | ~(square <= layer.epsilon)  # a dead channel tells nothing
    if not alive.any():
        return 1.0
    figure = float(np.sqrt(np.median((square / (variance + layer.epsilon))[alive])))
    return max(figure, _LEAST) if np.isfinite(figure) else float("inf")
