"""Freezing and converting: against Keras, with all input types, and on models that cannot be
converted.
"""

from __future__ import annotations

import os
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter
from small_models import (
    CLASSES,
    SIZE,
    FakeQuant,
    L,
    fake_quant_model,
    file_inputs,
    hard_swish_model,
    pixels,
)
from tflite_files import invoke, io_details

from mobilenet.configs.conversion import IO_TYPES
from mobilenet.errors import UsageError
from mobilenet.export import freeze, tflite_converter
from mobilenet.tflite import model as tflite_model


def test_frozen_function_has_the_outputs_of_the_model() -> None:
    model = hard_swish_model()
    frozen = freeze.freeze(model, batch=None)
    assert not frozen.graph.variables
    (outputs,) = frozen(tf.constant(file_inputs(pixels(4))))
    np.testing.assert_allclose(outputs, model(file_inputs(pixels(4)), training=False), atol=1e-6)


def test_batch_is_fixed_unless_left_open() -> None:
    model = hard_swish_model(softmax=True)
    assert freeze.freeze(model).inputs[0].shape.as_list() == [1, SIZE, SIZE, 3]
    assert freeze.freeze(model, batch=None).inputs[0].shape.as_list() == [None, SIZE, SIZE, 3]
    assert list(io_details(tflite_converter.float_flatbuffer(model))[0]["shape_signature"]) == [
        1,
        SIZE,
        SIZE,
        3,
    ]
    assert list(
        io_details(tflite_converter.float_flatbuffer(model, batch=None))[0]["shape_signature"]
    ) == [
        -1,
        SIZE,
        SIZE,
        3,
    ]


def test_float32_copy_is_independent() -> None:
    model = hard_swish_model(softmax=True)
    copy = freeze.float32_copy(model)
    before = copy(file_inputs(pixels(2))).numpy()
    np.testing.assert_allclose(tf.nn.softmax(before), model(file_inputs(pixels(2))), atol=1e-6)
    model.set_weights([0 * w for w in model.get_weights()])
    np.testing.assert_array_equal(copy(file_inputs(pixels(2))), before)


def test_mixed_precision_model_becomes_float32() -> None:
    plain = hard_swish_model()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        mixed = hard_swish_model()
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert mixed.outputs[0].dtype == tf.bfloat16
    mixed.set_weights(plain.get_weights())
    files = [tflite_converter.float_flatbuffer(model) for model in (mixed, plain)]
    np.testing.assert_array_equal(*(invoke(data, file_inputs(pixels(3))) for data in files))


def test_model_of_a_strategy_is_copied_out_of_it() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = hard_swish_model(softmax=True)
        with pytest.raises(RuntimeError, match="strategy scope"):
            freeze.float32_copy(model)
    copy = freeze.float32_copy(model)
    kinds = {op.type for op in freeze.freeze(copy).graph.get_operations()}
    assert not {kind for kind in kinds if "Collective" in kind or kind == "AddN"}
    np.testing.assert_allclose(
        tf.nn.softmax(copy(file_inputs(pixels(2)))), model(file_inputs(pixels(2))), atol=1e-6
    )


@pytest.mark.parametrize("head", ["softmax layer", "activation layer", "dense with softmax"])
def test_softmax_is_left_out(head: str) -> None:
    source = L.Input((SIZE, SIZE, 3))
    x = L.GlobalAveragePooling2D()(source)
    if head == "dense with softmax":
        x = L.Dense(CLASSES, activation="softmax")(x)
    else:
        x = L.Dense(CLASSES)(x)
        x = L.Softmax()(x) if head == "softmax layer" else L.Activation("softmax")(x)
    model = tf_keras.Model(source, x)
    kernel, bias = model.get_weights()
    outputs = invoke(tflite_converter.float_flatbuffer(model), file_inputs(pixels(3)))
    np.testing.assert_allclose(
        outputs, file_inputs(pixels(3)).mean(axis=(1, 2)) @ kernel + bias, atol=1e-5
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weight_that_is_not_finite_is_named(value: float) -> None:
    model = hard_swish_model(softmax=True)
    weights = model.get_layer("dense").get_weights()
    weights[1][2] = value
    model.get_layer("dense").set_weights(weights)
    with pytest.raises(UsageError, match=r"weight dense/bias.*finite"):
        tflite_converter.float_flatbuffer(model)


def test_models_that_cannot_be_frozen_are_refused() -> None:
    source = L.Input((None, None, 3))
    open_size = tf_keras.Model(source, L.GlobalAveragePooling2D()(source))
    with pytest.raises(UsageError, match=r"input shape: got .*None.*fixed height"):
        freeze.freeze(open_size)
    assert freeze.freeze(open_size, input_shape=(8, 6, 3)).inputs[0].shape.as_list() == [1, 8, 6, 3]
    with pytest.raises(UsageError, match=r"input shape: got .8, 6, 1.*one that the model takes"):
        freeze.freeze(open_size, input_shape=(8, 6, 1))
    with pytest.raises(UsageError, match=r"model: got 'model', expected a model, not its path"):
        freeze.freeze("model")
    with pytest.raises(UsageError, match="one input and one output"):
        freeze.freeze(tf_keras.Model(source, [L.ReLU()(source), L.ReLU()(source)]))
    wrapped = tf_keras.Sequential(
        [L.Input((4, 8, 8, 3)), L.TimeDistributed(L.Conv2D(2, 1), name="outer")]
    )
    with pytest.raises(UsageError, match=r"outer.*plain layers"):
        freeze.float32_copy(wrapped)


def test_float_file_has_keras_outputs_and_fused_hard_swish() -> None:
    model = hard_swish_model()
    data = tflite_converter.float_flatbuffer(model)
    np.testing.assert_allclose(
        invoke(data, file_inputs(pixels(40))),
        model(file_inputs(pixels(40)), training=False),
        atol=1e-5,
    )
    runner = Interpreter(model_content=data)
    assert "HARD_SWISH" in {op["op_name"] for op in runner._get_ops_details()}


@pytest.mark.parametrize("io", IO_TYPES)
def test_int8_inputs_and_outputs(quantized: tf_keras.Model, int8_file: bytes, io: str) -> None:
    data = tflite_converter.int8_flatbuffer(quantized, io)
    source, sink = io_details(data)
    assert {source["dtype"], sink["dtype"]} == {np.dtype(io).type}
    values = invoke(int8_file, (pixels(40).astype(np.int16) - 128).astype(np.int8)).astype(
        np.float64
    )
    scale, zero = io_details(int8_file)[1]["quantization"]
    if io == "uint8":
        assert source["quantization"] == (pytest.approx(1 / 127.5), 128)
        np.testing.assert_array_equal(invoke(data, pixels(40)).astype(int) - 128, values)
    if io == "float32":
        np.testing.assert_allclose(
            invoke(data, file_inputs(pixels(40))), (values - zero) * scale, atol=1e-5
        )


def test_int8_pixel_is_the_pixel_minus_128(int8_file: bytes) -> None:
    scale, zero = io_details(int8_file)[0]["quantization"]
    values = (np.arange(256) - 128) / 127.5 / scale + zero
    np.testing.assert_allclose(values, np.arange(256) - 128, atol=1e-4)


def test_float_model_is_not_converted_to_int8() -> None:
    with pytest.raises(UsageError, match="fake-quant"):
        tflite_converter.int8_flatbuffer(hard_swish_model(softmax=True))
    with pytest.raises(UsageError, match="did you mean int8"):
        tflite_converter.int8_flatbuffer(fake_quant_model(), "int9")


def test_model_wrapped_by_tfmot_becomes_int8() -> None:
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    source = L.Input((SIZE, SIZE, 3))
    x = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(8, 3, use_bias=False)(source)))
    model = tf_keras.Model(source, L.Dense(CLASSES)(L.Flatten()(L.AveragePooling2D(7)(x))))
    wrapped = tfmot.quantization.keras.quantize_model(model)
    wrapped(file_inputs(pixels(40)), training=True)
    actual = tflite_model.read(tflite_converter.int8_flatbuffer(wrapped))
    assert actual.float_tensors() == []
    assert "CONV_2D" in {op.name for op in actual.operators}


def test_refusal_of_the_converter_is_reported() -> None:
    class Unsupported(L.Layer):
        def call(self, file_inputs: tf.Tensor) -> tf.Tensor:
            return tf.nest.map_structure(tf.stop_gradient, tf.raw_ops.Digamma(x=file_inputs))

    source = L.Input((SIZE, SIZE, 3))
    with pytest.raises(RuntimeError, match=r"refused the model: .*Digamma") as caught:
        tflite_converter.int8_flatbuffer(
            tf_keras.Model(source, Unsupported()(FakeQuant(-1.0, 1.0)(source)))
        )
    assert caught.value.__cause__ is not None


def test_quiet_captures_what_c_code_writes(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), freeze.quiet() as lines:
        os.write(2, b"first\nsecond \xff\n")
        warnings.warn("third", UserWarning, stacklevel=1)
        raise KeyError
    assert lines == ["first", "second \N{REPLACEMENT CHARACTER}"]
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_conversion_prints_nothing(int8_file: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    tflite_converter.int8_flatbuffer(fake_quant_model())
    tflite_converter.float_flatbuffer(hard_swish_model(softmax=True))
    print("still here", file=sys.stderr)
    assert capfd.readouterr().err == "still here\n"
