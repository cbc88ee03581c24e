"""Conversion of a Keras model to the bytes of a flatbuffer, without the converter's log output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras
from tensorflow.lite.python.convert_phase import (
    ConverterError,  # tf.lite does not export it
)

from mobilenet.configs.conversion import IO_TYPES
from mobilenet.configs.quantization import TARGETS
from mobilenet.errors import UsageError, one_of
from mobilenet.export import freeze
from mobilenet.export.rewrites import float_fallback, int16x8, space_to_depth_stem
from mobilenet.runtime import quantized_io

_SHOWN = 500  # characters of a message of the converter
_log = logging.getLogger(__name__)


def float_flatbuffer(
    model: tf_keras.Model,
    batch: int | None = 1,
    input_shape: tuple[int, ...] | None = None,
    activation: str | None = None,
) -> bytes:
    """Converts a float model: float32 input and output, hard-swish fused to HARD_SWISH.

    Args:
        model: a functional model of plain layers, as trained; mixed precision and strategies are
            undone.
        batch: images per call; `None` leaves it open.
        input_shape: `[height, width, channels]` where the model leaves its size open.
        activation: `softmax` or `sigmoid`: probabilities as outputs instead of logits.

    Returns:
        The bytes of the `.tflite` file.

    Raises:
        UsageError: see `freeze.float32_copy` and `freeze.freeze`.
        RuntimeError: the converter refused; its messages are in the text.
    """
    return _convert(freeze.freeze(_plain(model, activation), batch, input_shape))


def float16_flatbuffer(
    model: tf_keras.Model,
    batch: int | None = 1,
    input_shape: tuple[int, ...] | None = None,
    activation: str | None = None,
) -> bytes:
    """As `float_flatbuffer`, with every weight stored as float16: half the size, the same speed.

    A DEQUANTIZE before each operator makes it float32 again; the delegate does that once.
    """

    def set_float16(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]

    return _convert(freeze.freeze(_plain(model, activation), batch, input_shape), set_float16)


def int16x8_flatbuffer(
    model: tf_keras.Model,
    images: npt.NDArray[np.float32],
    batch: int = 1,
    input_shape: tuple[int, ...] | None = None,
    activation: str | None = None,
) -> bytes:
    """Converts a float model to int8 kernels and int16 activations with float32 input and output.

    What the converter would get wrong is rewritten first, see `int16x8`.

    Args:
        model, batch, input_shape, activation: as in `float_flatbuffer`.
        images: `[n, height, width, channels]`, preprocessed for the model; the ranges are those of
            their activations.
    """

    def set_int16x8(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        converter.representative_dataset = representative

    def representative() -> Iterator[list[npt.NDArray[np.float32]]]:
        for block in quantized_io.batches(images, batch):
            yield [block]

    prepared = int16x8.prepare_model(_plain(model, activation), images)
    return _convert(freeze.freeze(prepared, batch, input_shape), set_int16x8)


def _plain(model: tf_keras.Model, activation: str | None) -> tf_keras.Model:
    copy = freeze.float32_copy(model)
    return freeze.with_activation(copy, activation)


def int8_flatbuffer(
    model: tf_keras.Model,
    io: str = "int8",
    batch: int | None = 1,
    input_shape: tuple[int, ...] | None = None,
    target: str = "xnnpack",
    float_layers: float_fallback.FloatLayers = float_fallback.NO_FLOAT_LAYERS,
) -> bytes:
    """Converts a model that carries fake-quant operators, on its input too, to int8.

    The ranges are those of the operators, so no representative data is needed. The converter
    silently leaves an operator without ranges in float: `verify` must check the result.

    Args:
        model: the quantized model, in float32, outside any strategy; its input is
            `(pixel - 128) / 127.5`.
        io: type of input and output; `float32` adds QUANTIZE and DEQUANTIZE.
        batch: images per call; `None` leaves it open.
        input_shape: `[height, width, channels]` where the model leaves its size open.
        target: `xnnpack` lets the first convolution read pairs of pixels, see
            `space_to_depth_stem.pair_pixels`; `generic` leaves it.
        float_layers: layers without a fake-quant operator on their kernel, which compute in float.

    Returns:
        The bytes of the `.tflite` file.

    Raises:
        UsageError: `io` or `target` is not known, the model has no fake-quant operator, or see
            `freeze.freeze`.
        RuntimeError: the converter refused; its messages are in the text.
    """
    one_of("io", io, IO_TYPES)
    one_of("target", target, TARGETS)
    frozen = freeze.freeze(model, batch, input_shape)
    if not freeze.fake_quant_count(frozen):
        raise UsageError(
            "model",
            model.name,
            "a model with fake-quant operators",
            "quantize it first, or convert it to float",
        )

    def set_int8(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(io)

    data = float_fallback.restore_float(_convert(frozen, set_int8), float_layers.kernels)
    return space_to_depth_stem.pair_pixels(data) if target == "xnnpack" else data


def _convert(frozen: Any, configure: Callable[[Any], None] = lambda converter: None) -> bytes:
    refusal: Exception | None = None
    with freeze.quiet() as messages:
        try:
            converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
            configure(converter)
            data = bytes(converter.convert())
        except (ConverterError, RuntimeError, ValueError) as error:
            refusal = error
    if refusal is not None:
        reason = " ".join(str(refusal).split())[:_SHOWN] or type(refusal).__name__
        raise RuntimeError(f"the TFLite converter refused the model: {reason}") from refusal
    for line in messages:
        if "error:" in line:  # the converter does not fail: an operator has stayed float
            _log.warning("converter: %s", line.strip()[:_SHOWN])
    return data
