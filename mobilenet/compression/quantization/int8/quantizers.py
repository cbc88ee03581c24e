"""The quantizers of kernels, activations and the input: the int8 file's arithmetic in float.

They are tfmot `Quantizer`s. tfmot's own quantizers give a depthwise kernel one range for all
channels, start activation ranges at -6..6 and compute gradients of the ranges. These have a range
per channel, take ranges from data and pass the gradient through: after a ReLU6, whose own gradient
masks, and with ranges that follow the extremes nothing is lost by that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.quantization.keras import quantizers as tfmot

from mobilenet.models.graph import variables

BITS = 8
MAX_PIXEL = 255
_DEAD = 1e-20  # after long weight decay a kernel's scale may have no inverse in float32


class Phase:
    """The mode of a model's quantizers, which share it; read while a function is traced.

    Attributes:
        observing: activations pass unchanged while their ranges are observed.
        delayed: training steps are those of the float model, and ranges are observed. Inference
            quantizes, so that an evaluation shows what the file would do.
        exporting: weight ranges are the stored ones, and the input is on the file's own grid.
        tuning: gradients reach the activation ranges themselves.
        building: the model is being built, which needs shapes alone: nothing is rounded.
        decay: of the moving activation ranges, by observation.
    """

    def __init__(self) -> None:
        self.observing = False
        self.delayed = False
        self.exporting = False
        self.tuning = False
        self.building = False
        self.decay = 0.99


class _Quantizer(tfmot.Quantizer):
    """A quantizer with a phase; tfmot passes its variables to every call."""

    def __init__(self) -> None:
        self.phase = Phase()
        self.variables: dict[str, tf.Variable] = {}

    def _variable(self, layer: Any, name: str, shape: tuple[int, ...], value: float) -> tf.Variable:
        variable = layer.add_weight(
            name,
            shape=shape,
            initializer=tf.constant_initializer(value),
            trainable=False,
            dtype=tf.float32,
            experimental_autocast=False,
            # Each replica assigns to its copy; all assign the same value.
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )
        self.variables[name.rsplit("_", 1)[-1]] = variable
        return variable

    def get_config(self) -> dict[str, Any]:
        return {}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return id(self)


class WeightQuantizer(_Quantizer):
    """Symmetric int8 of a kernel, a range for each output channel.

    Args:
        kind: `conv` (channels on axis -1), `depthwise` (axes 2 and 3) or `dense` (one range for
            all, since the converter takes no per-channel dense kernel).
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, tf.Variable]:
        shape = tuple(int(size) for size in tensor_shape)
        by_kind = {"conv": (shape[-1],), "depthwise": (shape[-2] * shape[-1],), "dense": ()}
        channels = by_kind[self.kind]
        return {"absmax": self._variable(layer, f"{name}_absmax", channels, 0.0)}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        if self.phase.building:
            return tf.convert_to_tensor(inputs)
        if self.phase.delayed and training:
            return inputs
        kernel = self._channels_last(inputs)
        abs_max = weights["absmax"] if self.phase.exporting else self.abs_max(inputs)
        if self.kind == "dense":
            quantized = tf.quantization.fake_quant_with_min_max_vars(
                kernel, -abs_max, abs_max, BITS, narrow_range=True
            )
        elif self.phase.exporting:  # the operator that the converter knows
            quantized = tf.quantization.fake_quant_with_min_max_vars_per_channel(
                kernel, -abs_max, abs_max, BITS, narrow_range=True
            )
        else:
            quantized = _fake_quantize(kernel, abs_max)
        quantized = tf.cast(tf.reshape(quantized, tf.shape(inputs)), inputs.dtype)
        return quantized if self.phase.exporting else _pass_gradient(inputs, quantized)

    def abs_max(self, kernel: Any) -> Any:
        """The largest magnitude of each channel; that of the layer for a dead channel."""
        kernel = self._channels_last(kernel)
        axes = None if self.kind == "dense" else list(range(len(kernel.shape) - 1))
        abs_max = tf.reduce_max(tf.abs(kernel), axes)
        return tf.where(abs_max > _DEAD, abs_max, tf.maximum(tf.reduce_max(abs_max), 1e-3))

    def _channels_last(self, kernel: Any) -> Any:
        kernel = tf.cast(kernel, tf.float32)
        if self.kind != "depthwise":
            return kernel
        height, width, channels, multiplier = kernel.shape
        return tf.reshape(kernel, (height, width, channels * multiplier))

    def get_config(self) -> dict[str, Any]:
        return {"kind": self.kind}


class ActivationQuantizer(_Quantizer):
    """Asymmetric int8 of a tensor, one range that always includes zero.

    Args:
        fixed: low and high where the arithmetic fixes them (a ReLU6 inside a hard sigmoid); `None`
            takes them from data: calibration's first batch assigns them, later ones and training
            update them by 1 - `Phase.decay`.
        rectified: no value is below zero, so that low stays zero and is not computed.
    """

    def __init__(self, fixed: tuple[float, float] | None = None, rectified: bool = False) -> None:
        super().__init__()
        self.fixed = None if fixed is None else (float(fixed[0]), float(fixed[1]))
        self.rectified = rectified

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, tf.Variable]:
        del tensor_shape
        low, high = self.fixed or (0.0, 0.0)
        return {
            "low": self._variable(layer, f"{name}_low", (), low),
            "high": self._variable(layer, f"{name}_high", (), high),
        }

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        if self.phase.building:
            return inputs
        values = tf.cast(inputs, tf.float32)
        low, high = weights["low"], weights["high"]
        if self.fixed is None and (self.phase.observing or training):
            self._observe(values, low, high)
        # Rounding where the range is fixed costs time and gives tuning no gradient to learn from.
        skipped = self.phase.tuning and self.fixed is not None
        if skipped or self.phase.observing or (self.phase.delayed and training):
            return inputs
        quantized = tf.quantization.fake_quant_with_min_max_vars(values, low, high, BITS)
        quantized = tf.cast(quantized, inputs.dtype)
        plain = self.phase.exporting or self.phase.tuning
        return quantized if plain else _pass_gradient(inputs, quantized)

    def _observe(self, values: Any, low: Any, high: Any) -> None:
        values = tf.stop_gradient(values)
        share: Any = 1.0 - self.phase.decay
        if self.phase.observing or self.phase.delayed:
            # Otherwise ranges are calibrated before, and the operators cost time.
            share = tf.where(tf.equal(low, 0.0) & tf.equal(high, 0.0), 1.0, share)
        # The images of all replicas: quantization is that of one device with the whole batch.
        maximum = variables.max_over_replicas(tf.reduce_max(values))
        if not self.rectified:
            maximum = tf.maximum(maximum, 0.0)
            minimum = -variables.max_over_replicas(-tf.reduce_min(values))
            low.assign_add(share * (tf.minimum(minimum, 0.0) - low))
        high.assign_add(share * (maximum - high))

    def get_config(self) -> dict[str, Any]:
        return {"fixed": self.fixed, "rectified": self.rectified}


class InputQuantizer(_Quantizer):
    """Pixels on the file's grid: the quantized value of a pixel is exactly the pixel minus 128.

    With the usual `p / 127.5 - 1` every pixel is halfway between two quantized values, and the
    simulation and the file round some of them differently. The scheme therefore shifts its input to
    `(p - 128) / std`, for another mean to `(p - round(mean)) / std`; an exported file takes its
    input there. Where the first layer of the model is a `Rescaling`, the quantizer computes it.

    Args:
        mean, std: in pixels, of the preprocessing together with the first layer.
        scale, shift: of the first layer.
    """

    def __init__(self, mean: float, std: float, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.mean, self.std = float(mean), float(std)
        self.scale, self.shift = float(scale), float(shift)

    @property
    def zero(self) -> int:
        """The pixel that is zero on the file's grid."""
        return round(self.mean)

    @property
    def range(self) -> tuple[float, float]:
        return -self.zero / self.std, (MAX_PIXEL - self.zero) / self.std

    def to_grid(self, values: Any) -> Any:
        """Inputs of the float model as the file takes them."""
        offset = self.shift + (self.mean - self.zero) / self.std
        return values * np.float32(self.scale) + np.float32(offset)

    def undo_rescaling(self, values: Any) -> Any:
        """Inputs of the file as the first layer of the float model takes them, on the same grid."""
        return (values - np.float32(self.shift)) / np.float32(self.scale)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, tf.Variable]:
        del tensor_shape, name, layer
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        values = tf.cast(inputs, tf.float32)
        if not self.phase.exporting:
            values = self.to_grid(values)
        quantized = tf.quantization.fake_quant_with_min_max_args(values, *self.range, BITS)
        return tf.cast(quantized, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "scale": self.scale, "shift": self.shift}


def _fake_quantize(kernel: Any, abs_max: Any) -> Any:
    """The fake-quant operator of `[..., channels]`, bit for bit and 15 times as fast.

    The operator reads memory channel by channel. Its clamp is left out: no weight exceeds its own
    channel's maximum. `divide_no_nan` keeps TensorFlow from turning a division by a constant into a
    product that rounds differently.
    """
    scale = tf.math.divide_no_nan(2.0 * abs_max, 254.0)
    inverse = tf.math.divide_no_nan(254.0, 2.0 * abs_max)
    return tf.floor((kernel + 127.0 * scale) * inverse - 126.5) * scale


@tf.custom_gradient
def _pass_gradient(inputs: Any, quantized: Any) -> Any:
    """`quantized` in the forward pass, the gradient of `inputs` in the backward pass."""

    def gradient(upstream: Any) -> tuple[Any, None]:
        return upstream, None

    return tf.identity(quantized), gradient
