"""Uniform quantization of weights: evenly spaced values between a trained minimum and maximum.

The rules are those of wendazhou/nnet-compression-generalization `nnet/quantization/_minmax.py`;
weights are frozen, minimum and maximum have the gradients of
tf.quantization.fake_quant_with_min_max_vars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mobilenet.compression.method import register
from mobilenet.compression.quantization.weight_sharing.base import (
    Parametrization,
    WeightSharingMethod,
)
from mobilenet.configs.weight_sharing import LinearQuantization
from mobilenet.models.graph import variables
from mobilenet.typing import Float32Array

_MIN_WIDTH = 1e-6  # of the range


class MinMax(Parametrization):
    """Minimum and maximum of a k x k kernel, initially its extremes; 2^bits values."""

    def __init__(self, kernel: Float32Array, bits: int) -> None:
        self.bits = bits
        low, high = float(kernel.min()), float(kernel.max())
        if low == high:  # one value; a range without extent has no steps
            low, high = min(low, 0.0), max(high, 0.0)
        self.parameters = {"min": np.asarray(low, np.float32), "max": np.asarray(high, np.float32)}

    def weights(self, kernel: Any, parameters: Mapping[str, Any]) -> tf.Tensor:
        return tf.quantization.fake_quant_with_min_max_vars(
            kernel, parameters["min"], parameters["max"], self.bits
        )

    def constrain(self, parameters: Mapping[str, Any]) -> None:
        variables.update(parameters["max"], _keep_above, [parameters["min"]])


class SignedMinMax(Parametrization):
    """Minimum and maximum of the magnitudes of a 1x1 kernel; the sign has a bit, zero stays zero.

    There are 2^(bits - 1) - 1 magnitudes, zero among them: the operator extends a range that starts
    above zero down to it.
    """

    def __init__(self, kernel: Float32Array, bits: int) -> None:
        self.bits = bits - 1
        magnitudes = np.abs(kernel[kernel != 0])
        low, high = (magnitudes.min(), magnitudes.max()) if magnitudes.size else (0.0, 0.0)
        if low == high:
            low = 0.0
        self.parameters = {"min": np.asarray(low, np.float32), "max": np.asarray(high, np.float32)}

    def weights(self, kernel: Any, parameters: Mapping[str, Any]) -> tf.Tensor:
        magnitude = tf.quantization.fake_quant_with_min_max_vars(
            tf.abs(kernel), parameters["min"], parameters["max"], self.bits, narrow_range=True
        )
        return magnitude * tf.sign(kernel)

    def constrain(self, parameters: Mapping[str, Any]) -> None:
        variables.update(parameters["min"], _keep_positive, [])
        variables.update(parameters["max"], _keep_above, [parameters["min"]])


@register
class Linear(WeightSharingMethod):
    """Trains minimum and maximum of every kernel."""

    config_type = LinearQuantization

    def parametrize(self, kernel: Float32Array, bits: int, matrix: bool) -> Parametrization:
        return SignedMinMax(kernel, bits) if matrix else MinMax(kernel, bits)


def _keep_positive(variable: Any) -> None:
    variable.assign(tf.maximum(variable, 0.0))


def _keep_above(variable: Any, low: Any) -> None:
    variable.assign(tf.maximum(variable, low + _MIN_WIDTH))
