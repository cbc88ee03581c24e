"""Batch norms as a float16 scale and offset per channel: half the bytes of two of their four
vectors, and none of the other two. Loses what float16 cannot represent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from mobilenet.errors import UsageError
from mobilenet.models import builder
from mobilenet.models.graph import rebuild
from mobilenet.typing import Array


def fold_to_float16(model: tf_keras.Model) -> tf_keras.Model:
    """Copies a model with batch norms of a float16 scale and offset per channel.

    gamma becomes the scale, beta the offset, the mean 0 and the variance 1 - epsilon, so the layers
    stay what they are and do in inference what they did, but for the rounding. Where a layer has no
    gamma, its variance carries the scale; where it has no beta, its mean carries the offset.
    Training on from such a model starts from statistics that are not those of its images.

    Raises:
        UsageError: a scale or an offset is too large for float16.
    """
    copy = rebuild.copy(model)
    config = builder.config_of(model)
    if config is not None:
        copy.mobilenet_config = config
    for layer in copy.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.set_weights(_folded_weights(layer))
    return copy


def _folded_weights(layer: Any) -> list[Array]:
    """The weights of a batch norm, in Keras' order: gamma, beta, mean, variance."""
    epsilon = float(layer.epsilon)
    mean, variance = (np.asarray(w, np.float64) for w in layer.get_weights()[-2:])
    scale = 1 / np.sqrt(variance + epsilon)
    if layer.scale:
        scale *= np.asarray(layer.gamma, np.float64)
    scale = _round_to_float16(layer, "scale", scale)
    # From the rounded scale, so that rounding the scale does not move the channel's mean.
    offset = -mean * scale
    if layer.center:
        offset += np.asarray(layer.beta, np.float64)
    offset = _round_to_float16(layer, "offset", offset)
    weights = [scale] if layer.scale else []
    weights += [offset] if layer.center else []
    safe = np.where(scale == 0, 1.0, scale)
    new_mean = np.zeros_like(mean) if layer.center else -offset / safe
    # Without gamma the scale is positive; its variance cannot be below 0.
    new_variance = 1 - epsilon if layer.scale else np.maximum(1 / np.square(safe) - epsilon, 0)
    weights += [new_mean, np.broadcast_to(new_variance, mean.shape)]
    return [np.asarray(values, np.float32) for values in weights]


def _round_to_float16(layer: Any, what: str, values: Array) -> Array:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).astype(np.float64)
    if not np.isfinite(halves).all():
        worst = float(np.abs(values).max())
        expected = f"at most {float(np.finfo(np.float16).max):.0f}, as float16 can represent"
        raise UsageError(f"`fold_batch_norm` {layer.name} {what}", worst, expected, "leave it out")
    return halves
