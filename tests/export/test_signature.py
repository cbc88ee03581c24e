"""The signature of a file and the names of its tensors, read by the runtimes themselves."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter
from small_models import CLASSES, SIZE, L, hard_swish_model, pixels
from tflite_files import invoke

import mobilenet
from mobilenet.configs.conversion import ConversionConfig
from mobilenet.export.rewrites import dynamic_range
from mobilenet.runtime import interpreter, micro
from mobilenet.tflite import editor
from mobilenet.tflite import model as tflite_model

IMAGES = (pixels(8).astype(np.float32) - 127.5) / 127.5


@functools.cache
def own_model() -> Any:
    return hard_swish_model()


@functools.cache
def foreign_model() -> Any:
    """As users write them: pixels in, a name with a slash."""
    tf_keras.utils.set_random_seed(1)
    layers = [
        L.Input((SIZE, SIZE, 3)),
        L.Rescaling(1 / 127.5, -1.0),
        L.Conv2D(8, 3, strides=2, activation="relu", name="stem"),
        L.GlobalAveragePooling2D(name="mean"),
        L.Dense(CLASSES, activation="softmax", name="scores"),
    ]
    return tf_keras.Sequential(layers, name="people/1")


@functools.cache
def converted(origin: str, number_format: str, activation: str = "none") -> bytes:
    model = own_model() if origin == "own" else foreign_model()
    images = IMAGES if origin == "own" else pixels(8).astype(np.float32)
    config = ConversionConfig(output_activation=activation)
    if number_format == "int8":
        quantized = mobilenet.quantize(model, images)
        return mobilenet.convert(quantized, images=images, config=config).content
    config = config.replace(number_format=number_format)
    return mobilenet.convert(model, images=images, config=config).content


def random_input(data: bytes) -> np.ndarray:
    detail = Interpreter(model_content=data).get_input_details()[0]
    values = pixels(1)
    if detail["dtype"] == np.int8:
        return (values.astype(np.int16) - 128).astype(np.int8)
    return (values / 127.5 - 1).astype(np.float32)


@pytest.mark.parametrize("number_format", ["int8", "float32", "dynamic_range"])
@pytest.mark.parametrize("origin", ["own", "foreign"])
def test_a_signature_runner_computes_what_the_graph_does(origin: str, number_format: str) -> None:
    data = converted(origin, number_format)
    values = random_input(data)
    expected = invoke(data, values)
    for kind in (Interpreter, tf.lite.Interpreter):
        runner = kind(model_content=data).get_signature_runner("serving_default")
        outputs = runner(images=values)
        assert list(outputs) == ["logits"]
        np.testing.assert_array_equal(outputs["logits"], expected)


def test_an_output_with_softmax_is_called_probabilities() -> None:
    data = converted("own", "float32", "softmax")
    outputs = Interpreter(model_content=data).get_signature_runner()(images=random_input(data))
    assert list(outputs) == ["probabilities"]
    assert outputs["probabilities"].sum() == pytest.approx(1, abs=1e-5)


def test_tensors_have_the_names_of_layers() -> None:
    names = [tensor.name for tensor in tflite_model.read(converted("foreign", "int8")).tensors]
    assert len(set(names)) == len(names)
    assert {"images", "stem/kernel", "stem/bias", "mean", "scores/kernel", "scores"} <= set(names)
    for data in (converted("own", "int8"), converted("own", "float32")):
        content = tflite_model.read(data)
        known = {*(layer.name for layer in own_model().layers), "images", "logits"}
        for tensor in content.tensors:
            for part in tensor.name.split(";"):
                assert part.split(":")[0].split("/")[0] in known, tensor.name
        kernels = {
            content.tensors[op.inputs[1]].name: content.tensors[op.inputs[1]].shape
            for op in content.operators
            if "CONV" in op.name or op.name == "FULLY_CONNECTED"
        }
        assert kernels == {
            "first/kernel": (8, 3, 3, 3),
            "middle/kernel": (1, 3, 3, 8),
            "last/kernel": (6, 1, 1, 8),
            "dense/kernel": (CLASSES, 6),
        }


def test_names_do_not_make_the_file_larger() -> None:
    """Apart from the signature itself, which is a few dozen bytes."""
    data = converted("own", "float32")
    model = editor.open_flatbuffer(data)
    for number, tensor in enumerate(model.subgraphs[0].tensors):
        tensor.name = str(number).encode()
    model.signatureDefs = None
    assert len(data) - len(editor.pack_flatbuffer(model)) < 800


def test_a_rewritten_file_has_its_signature() -> None:
    data = dynamic_range.quantize_kernels(converted("foreign", "float32"))
    values = random_input(data)
    outputs = Interpreter(model_content=data).get_signature_runner()(images=values)
    np.testing.assert_array_equal(outputs["logits"], invoke(data, values))
    assert "stem/kernel" in {tensor.name for tensor in tflite_model.read(data).tensors}


def test_a_file_with_a_signature_runs_on_a_micro_controller() -> None:
    pytest.importorskip(micro.MODULE)
    content = tflite_model.read(converted("foreign", "int8"))
    values = random_input(content.content)
    runners = interpreter.make_interpreter(content), micro.Interpreter(content)
    for runner in runners:
        runner.set_tensor(content.inputs[0], values)
        runner.invoke()
    usual, small = (runner.get_tensor(content.outputs[0]).astype(int) for runner in runners)
    assert np.abs(usual - small).max() <= 1


def test_a_saved_file_is_verified_operator_by_operator() -> None:
    quantized = mobilenet.quantize(own_model(), IMAGES)
    named = mobilenet.convert(quantized, images=IMAGES)
    again = mobilenet.verify(named.content, quantized, IMAGES)
    assert [row.layer for row in again.layers] == [row.layer for row in named.verification.layers]
    assert len(again.layers) == 9 and max(row.max_steps for row in again.layers) <= 1
