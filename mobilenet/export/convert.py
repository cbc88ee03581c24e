"""A net to the bytes of a flatbuffer, quietly: the converter's chatter stays off the terminal."""

from __future__ import annotations

import logging
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow.lite.python.convert_phase import (
    ConverterError,  # tf.lite does not export it
)

from mobilenet.configs.compression import TARGETS
from mobilenet.errors import UsageError, one_of
from mobilenet.export import freeze, stem
from mobilenet.export.form import IO

_SHOWN = 500  # characters of a message of the converter
_log = logging.getLogger(__name__)


def float_flatbuffer(
    model: tf_keras.Model,
    batch: int | None = 1,
    input_shape: tuple[int, ...] | None = None,
    softmax: bool = False,
) -> bytes:
    """Converts a float net: float32 at both ends, hard-swish fused to HARD_SWISH.

    Args:
        model: a functional net of plain layers, as trained; mixed precision and strategies are
            undone.
        batch: images a call; `None` leaves it open.
        input_shape: `[height, width, channels]` where the model leaves its size open.
        softmax: probabilities out instead of logits.

    Returns:
        The bytes of the `.tflite` file.

    Raises:
        UsageError: see `freeze.float32_copy` and `freeze.freeze`.
        RuntimeError: the converter refused; its messages are in the text.
    """
    copy = freeze.float32_copy(model)
    copy = freeze.with_softmax(copy) if softmax else copy
    return _convert(freeze.freeze(copy, batch, input_shape))


def int8_flatbuffer(
    model: tf_keras.Model,
    io: str = "int8",
    batch: int | None = 1,
    input_shape: tuple[int, ...] | None = None,
    target: str = "xnnpack",
) -> bytes:
    """Converts a net that carries fake-quant operators, on its input too, to int8.

    The ranges are those of the operators, so no representative data is wanted. An operator without
    ranges stays float in the file without a word from the converter: `verify` must look at what
    came out.

    Args:
        model: the quantized net, in float32, outside any strategy; its input is
            `(pixel - 128) / 127.5`.
        io: type of both ends; `float32` puts QUANTIZE and DEQUANTIZE there.
        batch: images a call; `None` leaves it open.
        input_shape: `[height, width, channels]` where the model leaves its size open.
        target: `xnnpack` lets the first convolution read pairs of pixels, see `stem.pair`;
            `generic` leaves it.

    Returns:
        The bytes of the `.tflite` file.

    Raises:
        UsageError: `io` or `target` is not known, the net has no fake-quant operator, or see
            `freeze.freeze`.
        RuntimeError: the converter refused; its messages are in the text.
    """
    one_of("--io", io, IO)
    one_of("--target", target, TARGETS)
    frozen = freeze.freeze(model, batch, input_shape)
    if not freeze.fake_quant_count(frozen):
        raise UsageError(
            "model",
            model.name,
            "a net with fake-quant operators",
            "quantize it first, or convert it to float",
        )
    data = _convert(frozen, int8=True, edge=tf.dtypes.as_dtype(io))
    return stem.pair(data) if target == "xnnpack" else data


def _convert(frozen: Any, int8: bool = False, edge: tf.DType = tf.float32) -> bytes:
    refused: Exception | None = None
    with freeze.quiet() as messages:
        try:
            converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
            if int8:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.inference_input_type = converter.inference_output_type = edge
            data = bytes(converter.convert())
        except (ConverterError, RuntimeError, ValueError) as error:
            refused = error
    if refused is not None:
        reason = " ".join(str(refused).split())[:_SHOWN] or type(refused).__name__
        raise RuntimeError(f"the TFLite converter refused the net: {reason}") from refused
    for line in messages:
        if "error:" in line:  # told by the converter without failing: an operator has stayed float
            _log.warning("converter: %s", line.strip()[:_SHOWN])
    return data
