"""Compares an int8 file with its float model, tensor by tensor: where signal is lost, and why."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.compression.quantization.post_training.steps import scales_channels
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError
from mobilenet.export.rewrites import float_fallback
from mobilenet.export.verification import error_diagnosis, operator_parity
from mobilenet.metrics import signal_to_noise
from mobilenet.models.graph.roles import Graph
from mobilenet.runtime import quantized_io
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite.tensors import name_paths
from mobilenet.typing import FloatArray

log = logging.getLogger("mobilenet")
_KINDS = {"DEPTHWISE_CONV_2D": "depthwise", "CONV_2D": "kernel", "FULLY_CONNECTED": "kernel"}


@dataclasses.dataclass(frozen=True)
class TensorComparison:
    """One quantized tensor of a file.

    Attributes:
        layer: of the float model whose output it is.
        operator: what computes it; the last with a kernel of several in float.
        low, high: smallest and largest value that it can represent.
        reached: smallest and largest value of the float model.
        outliers: largest absolute value of a channel, over that of the median channel.
        alone: signal-to-noise in dB if only this tensor is quantized; `None` without a signal.
        accumulated: the same as the file computes it, with all quantization before it.
        cause, remedy: human-readable; no remedy if nothing is wrong.
        tensor: its name in the file.
    """

    layer: str
    operator: str
    low: float
    high: float
    reached: tuple[float, float]
    outliers: float
    alone: float | None
    accumulated: float | None
    cause: str
    remedy: str
    tensor: str = ""


def compare(
    content: tflite_model.Flatbuffer,
    plain: Any,
    images: FloatArray,
    inputs: FloatArray,
    runner: Any = None,
) -> list[TensorComparison]:
    """The quantized tensors of a file, in execution order.

    Tensors and layers are matched by the names that the converter keeps.

    Args:
        content: the file.
        plain: the float model.
        images: `[n, height, width, channels]`, as `plain` takes them.
        inputs: the same, as the file takes them.
        runner: runs the file, see `operator_parity.tensor_values`.

    Raises:
        UsageError: no quantized tensor is named after a layer of the model, or shapes differ.
    """
    quantized = operator_parity.tensor_values(content, inputs, runner)
    graph = Graph(plain)
    order = {layer.name: index for index, layer in enumerate(graph.layers)}
    named = {}
    for op in content.operators:
        tensor = content.tensors[op.outputs[0]]
        layer = _layer_of(tensor.name, order)
        if layer and len(tensor.scales) == 1 and op.name not in operator_parity.MOVING:
            named[op.outputs[0]] = (layer, op)
    if not named:
        raise UsageError(
            "against",
            plain.name,
            "the model of the file: no quantized tensor has the name of a layer",
            "give the model folder that was converted",
        )
    real = _float_outputs(plain, [layer for layer, _ in named.values()], images)
    signals: dict[int, error_diagnosis.Signal] = {}
    floats = float_fallback.find_float_regions(content)
    return [
        _compare(content, quantized, signals, real, index, *named[index], floats.get(index))
        for index in named
    ]


def warn_of_another(file: Card, model: Card, where: str) -> None:
    """Warns if post-training int8 scaled the channels of a file's model, and `model` is another.

    Steps that only change offsets compensate for quantization: a comparison with the model before
    them is fair.

    Args:
        file, model: the cards of both.
        where: path of the model.
    """
    steps = file.quantization_steps
    scaled = any(step.accepted and scales_channels(step.name) for step in steps)
    if scaled and steps != model.quantization_steps:
        log.warning(
            "%s: the file is of a model whose channels post-training int8 has scaled, so that "
            "inner tensors differ by more than rounding; compare with the folder `fitted` of "
            "the converter, or that of the stage quantize",
            where,
        )


def _compare(
    content: tflite_model.Flatbuffer,
    quantized: dict[int, npt.NDArray[Any]],
    signals: dict[int, error_diagnosis.Signal],
    real: dict[str, FloatArray],
    index: int,
    layer: str,
    op: Any,
    region: float_fallback.FloatRegion | None,
) -> TensorComparison:
    scale, zero = quantized_io.scale_of(content.tensors[index])
    expected = real[layer]
    actual = quantized_io.dequantize(quantized[index], scale, zero)
    if actual.size != expected.size:
        raise UsageError(
            "against",
            f"{layer} of {list(expected.shape)}",
            f"a layer of {list(actual.shape)}, as in the file",
            "give the model folder that was converted",
        )
    ratio = signal_to_noise(expected, actual.reshape(expected.shape))
    signal = error_diagnosis.Signal(layer, expected, scale, zero, ratio)
    signals[index] = signal
    rounded = quantized_io.quantize(expected, "int8", scale, zero)
    sources = op.inputs if region is None else region.sources
    cause = error_diagnosis.diagnose(
        signal, [signals[i] for i in sources if i in signals], _KINDS.get(op.name, "other")
    )
    return TensorComparison(
        layer=layer,
        operator=op.name if region is None else region.name,
        low=signal.low,
        high=signal.high,
        reached=(float(expected.min()), float(expected.max())),
        outliers=signal.largest_channel()[1],
        alone=signal_to_noise(expected, quantized_io.dequantize(rounded, scale, zero)),
        accumulated=ratio,
        cause=cause.text,
        remedy=cause.remedy,
        tensor=content.tensors[index].name,
    )


def _layer_of(name: str, order: dict[str, int]) -> str:
    """The last of the layers that a tensor's name is joined from; empty where there is none."""
    words = [word for path in name_paths(name) for word in path]
    names = [word.removeprefix(float_fallback.QUANTIZED) for word in words]
    known = [name for name in names if name in order]
    return max(known, key=lambda word: order[word], default="")


def _float_outputs(plain: Any, names: list[str], images: FloatArray) -> dict[str, FloatArray]:
    unique = list(dict.fromkeys(names))
    model = tf_keras.Model(plain.inputs, [plain.get_layer(name).output for name in unique])
    outputs = model(tf.constant(images.astype(np.float32)), training=False)
    listed = outputs if len(unique) > 1 else [outputs]
    return {name: value.numpy() for name, value in zip(unique, listed, strict=True)}
