"""The two quantizers, and the one of the input: what the int8 file computes, said in float.

Subclasses of tfmot's `Quantizer`, so that its `quantize_apply` can place them. Its stock quantizers
give a depthwise kernel one range for all channels, start activation ranges at -6..6 and pay a
gradient for the ranges; these keep a range per channel, take ranges from data and pass the gradient
through (behind a ReLU6, whose own gradient masks, and with ranges that follow the extremes nothing
is lost by that).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_model_optimization.quantization.keras import quantizers as tfmot

BITS = 8
LOWEST, HIGHEST = -128, 127
_DEAD = 1e-20  # years of weight decay leave kernels whose scale has no inverse in float32


class Phase:
    """What the quantizers of one model are doing; shared by them, read while a function is traced.

    Attributes:
        observing: activations pass unchanged while their ranges are taken.
        delayed: training steps are those of the float model; ranges are taken meanwhile. Inference
            rounds as ever, so that an evaluation tells what the file would do.
        exporting: weight ranges are the stored ones, and the input comes on the file's own grid.
        tuning: gradients reach the activation ranges themselves.
        decay: of the moving activation ranges, by observation.
    """

    def __init__(self) -> None:
        self.observing = False
        self.delayed = False
        self.exporting = False
        self.tuning = False
        self.decay = 0.99


class _Quantizer(tfmot.Quantizer):
    """A quantizer with a phase; tfmot hands its variables back at every call."""

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
            # Each replica sees its own images: the range that counts is the mean of theirs.
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
        if self.phase.delayed and training:
            return inputs
        kernel = self._channels_last(inputs)
        reach = weights["absmax"] if self.phase.exporting else self.abs_max(inputs)
        if self.kind == "dense":
            quantized = tf.quantization.fake_quant_with_min_max_vars(
                kernel, -reach, reach, BITS, narrow_range=True
            )
        elif self.phase.exporting:  # the operator that the converter knows
            quantized = tf.quantization.fake_quant_with_min_max_vars_per_channel(
                kernel, -reach, reach, BITS, narrow_range=True
            )
        else:
            quantized = _rounded(kernel, reach)
        quantized = tf.cast(tf.reshape(quantized, tf.shape(inputs)), inputs.dtype)
        return quantized if self.phase.exporting else _pass_gradient(inputs, quantized)

    def abs_max(self, kernel: Any) -> Any:
        """The largest magnitude of each channel; a dead channel gets a harmless range."""
        kernel = self._channels_last(kernel)
        axes = None if self.kind == "dense" else list(range(len(kernel.shape) - 1))
        reach = tf.reduce_max(tf.abs(kernel), axes)
        return tf.where(reach > _DEAD, reach, tf.maximum(tf.reduce_max(reach), 1e-3))

    def _channels_last(self, kernel: Any) -> Any:
        kernel = tf.cast(kernel, tf.float32)
        if self.kind != "depthwise":
            return kernel
        height, width, channels, multiplier = kernel.shape
        return tf.reshape(kernel, (height, width, channels * multiplier))

    def get_config(self) -> dict[str, Any]:
        return {"kind": self.kind}


class ActivationQuantizer(_Quantizer):
    """Asymmetric int8 of a tensor, one range that always holds zero.

    Args:
        fixed: low and high where the arithmetic decides them (a ReLU6 inside a hard sigmoid);
            `None` takes them from data: calibration's first batch assigns, later ones and
            training move them by 1 - `Phase.decay`.
        rectified: no value is below zero, so that low stays there and is not looked for.
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
        values = tf.cast(inputs, tf.float32)
        low, high = weights["low"], weights["high"]
        if self.fixed is None and (self.phase.observing or training):
            self._observe(values, low, high)
        # A gate's own rounding costs a tuning time and teaches it nothing.
        passed = self.phase.tuning and self.fixed is not None
        if passed or self.phase.observing or (self.phase.delayed and training):
            return inputs
        quantized = tf.quantization.fake_quant_with_min_max_vars(values, low, high, BITS)
        quantized = tf.cast(quantized, inputs.dtype)
        plain = self.phase.exporting or self.phase.tuning
        return quantized if plain else _pass_gradient(inputs, quantized)

    def _observe(self, values: Any, low: Any, high: Any) -> None:
        values = tf.stop_gradient(values)
        share: Any = 1.0 - self.phase.decay
        if self.phase.observing or self.phase.delayed:
            # Otherwise training starts from calibrated ranges, and operators cost.
            share = tf.where(tf.equal(low, 0.0) & tf.equal(high, 0.0), 1.0, share)
        most = tf.reduce_max(values)
        if not self.rectified:
            most = tf.maximum(most, 0.0)
            low.assign_add(share * (tf.minimum(tf.reduce_min(values), 0.0) - low))
        high.assign_add(share * (most - high))

    def get_config(self) -> dict[str, Any]:
        return {"fixed": self.fixed, "rectified": self.rectified}


class InputQuantizer(_Quantizer):
    """Pixels on the file's grid: the code of a pixel is exactly the pixel minus 128.

    With the usual `p / 127.5 - 1` every pixel lies halfway between two codes, and the simulation
    and the file round some of them apart. Inside the scheme an input is therefore moved to
    `(p - 128) / std`; an exported file takes its input there already.

    Args:
        mean, std: of the preprocessing, in pixels.
    """

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = float(mean), float(std)

    @property
    def range(self) -> tuple[float, float]:
        return LOWEST / self.std, HIGHEST / self.std

    @property
    def offset(self) -> float:
        """From an input of the float model to the file's grid."""
        return (self.mean + LOWEST) / self.std

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, tf.Variable]:
        del tensor_shape, name, layer
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        values = tf.cast(inputs, tf.float32)
        if not self.phase.exporting:
            values += self.offset
        quantized = tf.quantization.fake_quant_with_min_max_args(values, *self.range, BITS)
        return tf.cast(quantized, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}


def _rounded(kernel: Any, reach: Any) -> Any:
    """What the fake-quant operator makes of `[..., channels]`, bit for bit and 15 times as fast.

    The operator walks through memory channel by channel. Its clamp is left out: no weight is beyond
    its own channel's reach. `divide_no_nan` keeps TensorFlow from turning a division by a constant
    into a product that rounds otherwise.
    """
    scale = tf.math.divide_no_nan(2.0 * reach, 254.0)
    inverse = tf.math.divide_no_nan(254.0, 2.0 * reach)
    return tf.floor((kernel + 127.0 * scale) * inverse - 126.5) * scale


@tf.custom_gradient
def _pass_gradient(inputs: Any, quantized: Any) -> Any:
    """`quantized` going forward, the identity of `inputs` going back."""

    def gradient(upstream: Any) -> tuple[Any, None]:
        return upstream, None

    return tf.identity(quantized), gradient
