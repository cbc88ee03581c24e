"""Linear quantization of weights: evenly spaced values between two ends that train.

The rules are those of wendazhou/nnet-compression-generalization `nnet/quantization/_minmax.py`;
weights stand still, the ends take the gradients of tf.quantization.fake_quant_with_min_max_vars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.compression.method import register
from mobilenet.compression.quantization.weight_sharing.base import (
    Parametrization,
    WeightSharingMethod,
)
from mobilenet.configs.weight_sharing import LinearQuantization
from mobilenet.models.graph import variables

_SPAN = 1e-6  # that is always left between the ends


class MinMax(Parametrization):
    """The two ends of a k x k kernel, at first its extremes; 2^bits values."""

    def __init__(self, kernel: npt.NDArray[np.float32], bits: int) -> None:
        self.bits = bits
        low, high = float(kernel.min()), float(kernel.max())
        if low == high:  # one value; a range without extent has no steps
            low, high = min(low, 0.0), max(high, 0.0)
        self.parameters = {"min": np.float32(low).reshape(()), "max": np.float32(high).reshape(())}

    def weights(self, kernel: Any, parameters: Mapping[str, Any]) -> tf.Tensor:
        return tf.quantization.fake_quant_with_min_max_vars(
            kernel, parameters["min"], parameters["max"], self.bits
        )

    def constrain(self, parameters: Mapping[str, Any]) -> None:
        variables.update(parameters["max"], _stay_above, [parameters["min"]])


class SignedMinMax(Parametrization):
    """The two ends of the magnitudes of a 1x1 kernel; the sign has a bit, and zero stays zero.

    2^(bits - 1) - 1 magnitudes, zero among them: the operator moves a range that starts above zero
    down to it.
    """

    def __init__(self, kernel: npt.NDArray[np.float32], bits: int) -> None:
        self.bits = bits - 1
        magnitudes = np.abs(kernel[kernel != 0])
        low, high = (magnitudes.min(), magnitudes.max()) if magnitudes.size else (0.0, 0.0)
        if low == high:
            low = 0.0
        self.parameters = {"min": np.float32(low).reshape(()), "max": np.float32(high).reshape(())}

    def weights(self, kernel: Any, parameters: Mapping[str, Any]) -> tf.Tensor:
        magnitude = tf.quantization.fake_quant_with_min_max_vars(
            tf.abs(kernel), parameters["min"], parameters["max"], self.bits, narrow_range=True
        )
        return magnitude * tf.sign(kernel)

    def constrain(self, parameters: Mapping[str, Any]) -> None:
        variables.update(parameters["min"], _stay_positive, [])
        variables.update(parameters["max"], _stay_above, [parameters["min"]])


@register
class Linear(WeightSharingMethod):
    """Trains the ends of every kernel's range."""

    config_type = LinearQuantization

    def code(self, kernel: npt.NDArray[np.float32], bits: int, matrix: bool) -> Parametrization:
        return SignedMinMax(kernel, bits) if matrix else MinMax(kernel, bits)


def _stay_positive(variable: Any) -> None:
    variable.assign(tf.maximum(variable, 0.0))


def _stay_above(variable: Any, low: Any) -> None:
    variable.assign(tf.maximum(variable, low + _SPAN))
