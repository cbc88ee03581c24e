"""Verification: against the runtime's own values, and on files with each known fault."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from small_models import (
    CLASSES,
    SIZE,
    L,
    QuantConv,
    fake_quant_model,
    families,
    file_inputs,
    hard_swish_model,
    pixels,
)
from tflite_files import invoke, io_details

from mobilenet.configs.conversion import VerificationLimits
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.export.verification import verify


@pytest.fixture(scope="module")
def reference(quantized: tf_keras.Model) -> np.ndarray:
    return quantized(file_inputs(pixels(40)), training=False).numpy()


def check(data: bytes, reference: np.ndarray, **changes: object) -> verify.Verification:
    expected = {"expect_int8": True, "io": "int8", **changes}
    return verify.verify(data, reference, file_inputs(pixels(len(reference))), **expected)


def test_good_file_passes(int8_file: bytes, reference: np.ndarray) -> None:
    actual = check(int8_file, reference)
    assert actual.ok, actual.faults
    assert actual.operators == {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 1, "MEAN": 1, "RESHAPE": 1}
    assert (actual.float_tensors, actual.partitions, actual.images) == (0, 1, 40)
    assert actual.input_shape == (1, SIZE, SIZE, 3)
    assert actual.output_shape == (1, CLASSES)
    assert (actual.input.dtype, actual.input.zero_point) == ("int8", 0)
    assert actual.output.scale == pytest.approx(24 / 255)
    assert actual.bytes == len(int8_file)
    assert (
        len(gzip.decompress(gzip.compress(int8_file, 9))) == actual.bytes > actual.gzip_bytes > 500
    )
    assert actual.agreement_clear == 1.0
    assert actual.mean_steps < 0.5


def test_comparison_is_in_output_steps(int8_file: bytes) -> None:
    values = invoke(int8_file, (pixels(40).astype(np.int16) - 128).astype(np.int8)).astype(
        np.float64
    )
    scale, zero = io_details(int8_file)[1]["quantization"]
    own = (values - zero) * scale
    keras = own.copy()
    order = own.argsort(axis=1)
    for image in range(20):  # twenty near ties rounded differently, by one step
        keras[image, order[image, -2]] = own[image].max() + scale
    keras[20, order[20, -2]] = own[20].max() + 5 * scale  # one clear disagreement
    actual = check(int8_file, keras)
    assert actual.agreement == pytest.approx(19 / 40)
    assert actual.clear_images == 20
    assert actual.agreement_clear == pytest.approx(19 / 20)
    steps = np.abs(keras - own) / scale
    assert actual.mean_steps == pytest.approx(steps.mean())
    assert actual.max_steps == pytest.approx(steps.max())


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_other_input_types_pass(quantized: tf_keras.Model, reference: np.ndarray, io: str) -> None:
    actual = check(tflite_converter.int8_flatbuffer(quantized, io), reference, io=io)
    assert actual.ok, actual.faults
    assert actual.input.dtype == actual.output.dtype == io
    assert actual.mean_steps < 0.5


def test_float_file_passes() -> None:
    model = hard_swish_model()
    data = tflite_converter.float_flatbuffer(model)
    actual = check(data, model(file_inputs(pixels(40))).numpy(), expect_int8=False, io="float32")
    assert actual.ok, actual.faults
    assert actual.operators["HARD_SWISH"] == 1
    assert actual.max_steps < 0.1
    assert actual.float_tensors > 0
    actual = check(data, model(file_inputs(pixels(40))).numpy())
    assert any("float tensors inside" in fault for fault in actual.faults)
    assert any("input is float32 instead of int8" in fault for fault in actual.faults)


def test_open_and_larger_batches_are_run_to_the_last_image(
    quantized: tf_keras.Model, reference: np.ndarray
) -> None:
    for batch in (None, 16):
        actual = check(tflite_converter.int8_flatbuffer(quantized, batch=batch), reference)
        assert actual.images == 40
        assert actual.mean_steps < 0.5


def test_float_region_is_a_fault(reference: np.ndarray) -> None:
    model = fake_quant_model(island=True)
    actual = check(tflite_converter.int8_flatbuffer(model), model(file_inputs(pixels(40))).numpy())
    assert not actual.ok
    assert any("float tensors inside" in fault for fault in actual.faults)
    assert "float operators: DEQUANTIZE, DEPTHWISE_CONV_2D, CONV_2D, QUANTIZE" in actual.faults
    assert not any(";" in fault for fault in actual.faults)


def test_kernel_scale_per_tensor_is_a_fault() -> None:
    model = fake_quant_model(per_tensor=True)
    (fault,) = check(
        tflite_converter.int8_flatbuffer(model), model(file_inputs(pixels(40))).numpy()
    ).faults
    assert "1 scales for 16 channels" in fault


def test_input_grid_off_the_pixels_is_a_fault() -> None:
    model = fake_quant_model(low=-0.9)
    actual = check(tflite_converter.int8_flatbuffer(model), model(file_inputs(pixels(40))).numpy())
    assert any("instead of 1/127.5 and 0" in fault for fault in actual.faults)


def test_wrong_input_types_are_a_fault(
    quantized: tf_keras.Model, int8_file: bytes, reference: np.ndarray
) -> None:
    assert any(
        "input is int8 instead of uint8" in f
        for f in check(int8_file, reference, io="uint8").faults
    )
    float_io = tflite_converter.int8_flatbuffer(quantized, "float32")
    assert any("output is float32 instead of int8" in f for f in check(float_io, reference).faults)


def test_saturated_bias_is_a_fault() -> None:
    model = fake_quant_model()
    layer = next(
        layer for layer in model.layers if isinstance(layer, QuantConv) and layer.filters == 16
    )
    kernel, bias = layer.get_weights()
    kernel[..., 3], bias[3] = 1e-9, 1.5
    layer.set_weights([kernel, bias])
    actual = check(tflite_converter.int8_flatbuffer(model), model(file_inputs(pixels(40))).numpy())
    assert any("1 biases out of int32's range" in fault for fault in actual.faults)


def test_uniform_bias_is_a_fault() -> None:
    model = fake_quant_model()
    layer = next(
        layer for layer in model.layers if isinstance(layer, QuantConv) and layer.filters == 16
    )
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel, np.full_like(bias, 0.5)])
    actual = check(tflite_converter.int8_flatbuffer(model), model(file_inputs(pixels(40))).numpy())
    assert any("one quantized bias for all channels" in fault for fault in actual.faults)


def test_another_model_is_a_fault(int8_file: bytes, reference: np.ndarray) -> None:
    other = np.roll(reference, 1, axis=1)
    actual = check(int8_file, other)
    assert any(fault.startswith("agreement on 40 clear images") for fault in actual.faults)
    limits = VerificationLimits(min_agreement=0.9, max_mean_steps=1.0)
    faults = check(int8_file, other, limits=limits).faults
    assert [fault.split()[0] for fault in faults] == ["agreement", "logits"]
    limits = VerificationLimits()
    (fault,) = check(int8_file, np.full_like(reference, np.nan), limits=limits).faults
    assert "not finite" in fault


class Outside(L.Layer):
    """An operator that XNNPACK does not take."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.cumsum(inputs, axis=-1)


def test_partitions_warn_or_fail_by_their_limit() -> None:
    source = L.Input((SIZE, SIZE, 3))
    x = L.Conv2D(CLASSES, 3)(Outside()(L.Conv2D(4, 3)(source)))
    model = tf_keras.Model(source, L.GlobalAveragePooling2D()(x))
    data, logits = tflite_converter.float_flatbuffer(model), model(file_inputs(pixels(40))).numpy()
    message = ("2 delegate partitions instead of 1 (outside: 1 CUMSUM)",)
    actual = check(data, logits, expect_int8=False, io="float32")
    assert (actual.partitions, actual.faults, actual.warnings) == (2, (), message)
    actual = check(
        data,
        logits,
        expect_int8=False,
        io="float32",
        limits=VerificationLimits(min_clear_agreement=0.97, max_partitions=1),
    )
    assert (actual.faults, actual.warnings) == (message, ())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_part_of_a_file_is_refused(int8_file: bytes, reference: np.ndarray, share: float) -> None:
    with pytest.raises(UsageError, match="TensorFlow Lite file"):
        check(int8_file[: int(share * len(int8_file))], reference)


def test_images_that_do_not_fit_are_refused(int8_file: bytes, reference: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"inputs: got .*16, 16, 3"):
        verify.verify(
            int8_file, reference, file_inputs(pixels(40))[:, :8], expect_int8=True, io="int8"
        )
    with pytest.raises(UsageError, match=r"images of shape .*, one at least"):
        verify.verify(
            int8_file, reference[:0], file_inputs(pixels(40))[:0], expect_int8=True, io="int8"
        )
    with pytest.raises(UsageError, match=r"reference logits: got .40, 3.*as the file gives"):
        check(int8_file, reference[:, :3])


def test_verification_is_frozen_and_goes_into_json(int8_file: bytes, reference: np.ndarray) -> None:
    actual = check(int8_file, reference)
    with pytest.raises(dataclasses.FrozenInstanceError):
        actual.bytes = 0
    assert actual.to_json()["ok"] is True
    assert actual.to_json()["input"]["dtype"] == "int8"


@pytest.mark.parametrize("name", families())
def test_float_file_of_every_model_is_one_partition(
    name: str, small_model: Callable[..., Any], float_file: Callable[..., bytes]
) -> None:
    model, data = small_model(name, short=True), float_file(name, short=True)
    batch = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    actual = verify.verify(data, model(batch).numpy(), batch, expect_int8=False)
    assert (actual.partitions, actual.faults, actual.warnings) == (1, (), ())
    swish = sum(layer.name.endswith("_hard_swish") for layer in model.layers)
    assert actual.operators.get("HARD_SWISH", 0) == swish
    outputs = invoke(data, batch)
    np.testing.assert_allclose(outputs, model(batch), atol=1e-3 * np.abs(outputs).max())


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ([0] * 100, "the model decides alike on 100 of 100 images"),
        ([0] * 96 + [1] * 4, "the model decides alike on 96 of 100 images"),
        ([0] * 95 + [1] * 5, ""),
        ([0] * 9, ""),  # so few may be of one class
        ([1] * 10, "the model decides alike on 10 of 10 images"),
    ],
)
def test_one_class_for_nearly_all_images_says_nothing(classes: list[int], text: str) -> None:
    noise = np.random.default_rng(0).uniform(0, 0.1, (len(classes), 2))
    assert verify.find_degenerate(np.eye(2)[classes] + noise, np.array(classes)) == text


@pytest.mark.parametrize(("most", "text"), [(90, ""), (91, "decides alike on 91 of 100 images")])
def test_of_three_classes_fewer_images_of_one_say_nothing(most: int, text: str) -> None:
    classes = np.zeros(100, int)
    classes[most:] = 1 + np.arange(100 - most) % 2
    noise = np.random.default_rng(0).uniform(0, 0.1, (100, 3))
    assert verify.find_degenerate(np.eye(3)[classes] + noise, classes).endswith(text)
    assert bool(text) == bool(verify.find_degenerate(np.eye(3)[classes] + noise, classes))


def test_constant_outputs_say_nothing() -> None:
    logits = np.tile([[0.3, 0.1, 0.2]], (12, 1))
    text = "the model has the same outputs for all 12 images"
    several = np.arange(12) % 3
    assert verify.find_degenerate(logits, several) == text
    assert verify.find_degenerate(logits + 1e-6 * several[:, None], several) == text
    assert verify.find_degenerate(logits + 0.1 * several[:, None], several) == ""
    labels = np.tile([[True, False], [False, True]], (6, 1))  # of a sigmoid
    assert verify.find_degenerate(logits + 0.1 * several[:, None], labels) == ""
    text = "the model decides alike on 12 of 12 images"
    assert verify.find_degenerate(logits + 0.1 * several[:, None], labels[::2].repeat(2, 0)) == text
