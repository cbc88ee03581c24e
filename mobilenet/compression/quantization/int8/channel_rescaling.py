"""A `Rescaling` of channels in int8: a depthwise 1x1 convolution of constants.

A file has no int8 operator for `x * scale + offset`, as `Normalization` and the preprocessing of
keras.applications have it. A depthwise kernel has a scale for each channel and a bias of 32 bits,
so it computes the same and rounds once, also where the constants differ by channel. The float
model keeps its layer; only the model with quantizers has the convolution, under the same name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from mobilenet.models.graph.roles import kind


def is_channel_rescaling(layer: Any) -> bool:
    """Whether a layer of maps has a constant for each channel, or both a scale and an offset."""
    if kind(layer) != "Rescaling" or len(layer.input_shape) != 4 or layer.input_shape[-1] is None:
        return False
    scale, offset = np.asarray(layer.scale), np.asarray(layer.offset)
    if scale.size == offset.size == 1:
        return float(scale) != 1.0 and float(offset) != 0.0
    channels = layer.input_shape[-1]
    return {scale.size, offset.size} <= {1, channels}


def as_convolution(layer: Any) -> Any:
    """A new layer that computes the same; it does not train."""
    channels = layer.input_shape[-1]
    kernel, bias = (
        tf_keras.initializers.Constant(np.broadcast_to(np.ravel(values), channels).tolist())
        for values in (layer.scale, layer.offset)
    )
    return tf_keras.layers.DepthwiseConv2D(
        1,
        depthwise_initializer=kernel,
        bias_initializer=bias,
        trainable=False,
        dtype=layer.dtype_policy,
        name=layer.name,
    )
