"""Faults of the converter and their workarounds; each fault is first seen to exist."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from int8_files import Int8Model, operator_steps, quantize_to_file
from small_models import CLASSES, INCEPTION, SIZE, L, file_inputs, inputs, pixels, toy

from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import calibrate
from mobilenet.compression.quantization.int8.converter_workarounds import Repair, repair_layers
from mobilenet.export import tflite_converter
from mobilenet.tflite import model as tflite_model

HALVES = 0.5 ** np.arange(8)


def scale_channels(layer: Any, factors: np.ndarray) -> None:
    """Multiplies the kernel of each output channel."""
    values = layer.get_weights()
    depthwise = "Depthwise" in type(layer).__name__
    shape = (1, 1, -1, 1) if depthwise else (1, 1, 1, -1)
    values[0] = values[0] * np.resize(factors, values[0].shape[2 if depthwise else 3]).reshape(
        shape
    )
    layer.set_weights(values)


def set_entries(variable: Any, value: float, channels: slice) -> None:
    values = variable.numpy().copy()
    values[channels] = value
    variable.assign(values)


def dead(size: float) -> Any:
    """Channel 0 of every convolution has a kernel of that size under a bias of 1.5."""
    model = toy()
    for name, norm in (("a", "a_norm"), ("b", "b_norm"), ("c", "c_norm"), ("d", None)):
        layer = model.get_layer(name)
        scale_channels(layer, np.where(np.arange(16) == 0, 0.0, 1.0)[: 16 if name == "d" else 8])
        values = layer.get_weights()
        channel = (..., 0, slice(None)) if name == "b" else (..., 0)
        values[0][channel] = size
        layer.set_weights(values)
        variable = layer.bias if norm is None else model.get_layer(norm).beta
        set_entries(variable, 1.5, slice(0, 1))
    return model


def multiplier(gamma: float) -> Any:
    """Channel 0 of every batch norm is multiplied by gamma and has a bias of 1.5."""
    model = toy()
    for name in ("a_norm", "b_norm", "c_norm"):
        set_entries(model.get_layer(name).gamma, gamma, slice(0, 1))
        set_entries(model.get_layer(name).moving_variance, 4.0, slice(0, 1))
        set_entries(model.get_layer(name).beta, 1.5, slice(0, 1))
    return model


def uniform() -> Any:
    """Every bias entry is 0.5, with channel ranges 1, 1/2, 1/4 ..."""
    model = toy()
    for name in ("a", "b", "c", "d"):
        scale_channels(model.get_layer(name), HALVES)
    for name in ("a_norm", "b_norm", "c_norm"):
        set_entries(model.get_layer(name).beta, 0.5, slice(None))
    set_entries(model.get_layer("d").bias, 0.5, slice(None))
    return model


def gated(bias: float) -> Any:
    """A squeeze-excite block whose excite bias is almost zero: the 3 folded into it is uniform."""
    tf_keras.utils.set_random_seed(4)
    source = L.Input((SIZE, SIZE, 3))
    x = L.BatchNormalization()(L.Conv2D(8, 3, 2, use_bias=False, name="stem")(source))
    x = L.ReLU(6.0, name="stem_act")(x)
    y = L.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    y = L.ReLU(name="squeeze_act")(L.Conv2D(8, 1, name="squeeze")(y))
    y = L.Rescaling(1.0, 3.0, name="shift")(L.Conv2D(8, 1, name="excite")(y))
    y = L.Rescaling(1 / 6, name="gate")(L.ReLU(6.0, name="gate_act")(y))
    x = L.Multiply(name="product")([x, y])
    x = L.Conv2D(CLASSES, 1, name="logits")(L.GlobalAveragePooling2D(keepdims=True)(x))
    model = tf_keras.Model(source, L.Flatten()(x))
    scale_channels(model.get_layer("excite"), HALVES)
    set_entries(model.get_layer("squeeze").bias, 0.5, slice(0, 4))
    values = bias * np.arange(8, dtype=np.float32)
    model.get_layer("excite").bias.assign(values)
    return model


def dead_gate() -> Any:
    """The excite convolution has a bias of zero and nearly dead kernels: only the 3 is large."""
    model = gated(0.01)
    scale_channels(model.get_layer("excite"), np.where(np.arange(8) < 2, 1e-7, 1.0))
    return model


def plain_norm() -> Any:
    """Dead channels before batch norms without gamma and beta."""
    tf_keras.utils.set_random_seed(5)
    source = L.Input((SIZE, SIZE, 3))
    x = L.Conv2D(8, 3, 2, use_bias=False, name="a")(source)
    x = L.BatchNormalization(scale=False, center=False, name="a_norm")(x)
    x = L.ReLU(6.0, name="a_act")(x)
    x = L.Conv2D(CLASSES, 1, name="e")(L.GlobalAveragePooling2D(keepdims=True)(x))
    model = tf_keras.Model(source, L.Flatten()(x))
    values = model.get_layer("a").get_weights()
    values[0][..., 0] = 1e-7
    model.get_layer("a").set_weights(values)
    set_entries(model.get_layer("a_norm").moving_mean, -1.5, slice(0, 1))
    return model


def constant_input() -> Any:
    """Channel 0 of `a` is always 0, and the batch norm of `b` multiplies it by a million."""
    model = toy()
    values = model.get_layer("a").get_weights()
    values[0][..., 0] = 0.0
    model.get_layer("a").set_weights(values)
    set_entries(model.get_layer("b_norm").gamma, 1e6, slice(0, 1))
    set_entries(model.get_layer("b_norm").beta, 0.9, slice(0, 1))
    return model


CASES = {
    "kernel 1e-6": (functools.partial(dead, 1e-6), {"a_act", "b_act", "c_norm", "d_act"}),
    "gamma 1e-9": (functools.partial(multiplier, 1e-9), {"a_act", "b_act", "c_norm"}),
    "uniform bias": (uniform, {"a_act", "b_act", "c_norm", "d_act"}),
    "folded 3": (functools.partial(gated, 0.0), {"gate_act"}),
    "folded 3, biases below its float32 step": (functools.partial(gated, 1e-9), {"gate_act"}),
    "dead under a folded 3": (dead_gate, {"gate_act"}),
    "no gamma, no beta": (plain_norm, {"a_act"}),
    "constant input": (constant_input, {"b_act"}),
}


@functools.cache
def quantized(case: str, repair: bool) -> Int8Model:
    return quantize_to_file(CASES[case][0](), workarounds=repair)


@pytest.mark.parametrize("case", CASES)
def test_unrepaired_the_file_is_wrong(case: str) -> None:
    """If this fails, the converter was fixed and the workaround can go."""
    steps = operator_steps(quantized(case, False), pixels(4))
    wrong = {layer for layer, off in steps.items() if off.max() > 3}
    assert wrong == CASES[case][1]


@pytest.mark.parametrize("case", CASES)
def test_repaired_every_operator_is_within_a_step(case: str) -> None:
    steps = operator_steps(quantized(case, True), pixels(4))
    assert CASES[case][1] <= set(steps)
    assert max(off.max() for off in steps.values()) <= 1
    assert tflite_model.read(quantized(case, True).data).float_tensors() == []


@pytest.mark.parametrize("case", CASES)
def test_repair_changes_no_output(case: str) -> None:
    """Within a step of the logits: the wider range of a dead channel may round it to zero."""
    after = quantized(case, True)
    outputs = after.wrapped(file_inputs(pixels(16)), training=False).numpy()
    low, high = after.ranges[after.plain.layers[-2].name]
    assert np.abs(outputs - after.logits).max() <= 1.01 * (high - low) / 255


def test_gamma_of_exactly_zero_stays_float_unless_repaired() -> None:
    """The converter reports `scale out of expressed type range` and raises nothing."""
    wrong = quantize_to_file(multiplier(0.0), workarounds=False)
    assert tflite_model.read(wrong.data).float_tensors()
    right = quantize_to_file(multiplier(0.0))
    assert tflite_model.read(right.data).float_tensors() == []
    steps = operator_steps(right, pixels(4))
    assert max(off.max() for off in steps.values()) <= 1


def test_negative_gamma_needs_no_repair() -> None:
    model = multiplier(-1.0)
    wrapped = scheme.wrap(model, INCEPTION)
    calibrate(wrapped, inputs(32))
    assert repair_layers(wrapped) == []
    steps = operator_steps(quantize_to_file(model), pixels(4))
    assert max(off.max() for off in steps.values()) <= 1


def test_a_kernel_of_exact_zeros_needs_no_repair() -> None:
    """The weight quantizer gives such a channel the range of its neighbours."""
    steps = operator_steps(quantize_to_file(dead(0.0), workarounds=False), pixels(4))
    assert max(off.max() for off in steps.values()) <= 1


def test_repairs_are_reported_by_layer() -> None:
    repairs = {}
    for case in ("kernel 1e-6", "uniform bias", "constant input"):
        wrapped = scheme.wrap(CASES[case][0](), INCEPTION)
        calibrate(wrapped, inputs(32))
        repairs[case] = repair_layers(wrapped)
    assert repairs["kernel 1e-6"] == [Repair(name, 1, False) for name in "abcd"]
    assert repairs["uniform bias"] == [Repair(name, 0, True) for name in "abcd"]
    assert repairs["constant input"] == [Repair("b", 1, False)]


def test_a_model_of_dead_layers_converts() -> None:
    """All channels of a layer at once, and a classifier of zeros."""
    model = toy()
    for name in ("c", "e"):
        kernel = model.get_layer(name).kernel
        kernel.assign(tf.zeros_like(kernel))
    wrapped = scheme.wrap(model, INCEPTION)
    calibrate(wrapped, inputs(8))
    int8_saving.prepare_export(wrapped)
    assert tflite_model.read(tflite_converter.int8_flatbuffer(wrapped)).float_tensors() == []
