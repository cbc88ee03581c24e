"""The first convolution on pairs of pixels: the same values, a checked kernel, and exceptions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from int8_files import Int8Model, quantize_to_file
from small_models import file_inputs, pixels, toy

from mobilenet.export import tflite_converter
from mobilenet.export.rewrites import space_to_depth_stem
from mobilenet.export.verification import operator_parity, verify
from mobilenet.runtime import interpreter
from mobilenet.tflite import editor
from mobilenet.tflite import model as tflite_model

IMAGES = pixels(6, seed=4)


@pytest.fixture(scope="module")
def converted() -> Int8Model:
    model = toy(bias=True)
    kernel = model.get_layer("a").kernel
    kernel.assign(np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0, kernel))
    return quantize_to_file(model)


@pytest.fixture(scope="module")
def plain_file(converted: Int8Model) -> bytes:
    return tflite_converter.int8_flatbuffer(converted.wrapped, target="generic")


def convolution(data: bytes) -> tuple[Any, Any]:
    """The first convolution of a file, and its kernel."""
    content = tflite_model.read(data)
    first = next(op for op in content.operators if op.name == "CONV_2D")
    return first, content.tensors[first.inputs[1]]


def run_graph(data: bytes, images: np.ndarray) -> np.ndarray:
    """Quantized outputs of quantized inputs, by the runtime alone; all images at once where the
    batch is open.
    """
    runner = Interpreter(model_content=data, num_threads=1)
    (source,) = runner.get_input_details()
    batch = source["shape_signature"][0]
    if batch == -1:
        batch = len(images)
        runner.resize_tensor_input(source["index"], images.shape)
    runner.allocate_tensors()
    rows = []
    for start in range(0, len(images), batch):
        runner.set_tensor(source["index"], images[start : start + batch])
        runner.invoke()
        rows.append(runner.get_tensor(runner.get_output_details()[0]["index"]).copy())
    return np.concatenate(rows)


def quantized(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.int16) - 128).astype(np.int8)


def test_a_kernel_on_pairs_holds_the_single_ones_and_a_column_of_zeros(
    converted: Int8Model, plain_file: bytes
) -> None:
    op, paired = convolution(converted.data)
    before, single = convolution(plain_file)
    assert single.shape == (8, 3, 3, 3)
    assert paired.shape == (8, 3, 2, 6)
    assert (before.options["stride_w"], op.options["stride_w"], op.options["stride_h"]) == (2, 1, 2)
    for column in range(4):
        part = paired.data[:, :, column // 2, 3 * (column % 2) : 3 * (column % 2) + 3]
        np.testing.assert_array_equal(part, single.data[:, :, column] if column < 3 else 0)
    assert len(converted.data) < len(plain_file) + 1500
    assert interpreter.partitions(interpreter.make_interpreter(converted.data)) == 1


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_values_stay_the_same(converted: Int8Model, io: str) -> None:
    plain = tflite_converter.int8_flatbuffer(converted.wrapped, io, target="generic")
    pair = space_to_depth_stem.pair_pixels(plain)
    fed = {"int8": quantized(IMAGES), "uint8": IMAGES, "float32": file_inputs(IMAGES)}[io]
    assert convolution(pair)[1].shape == (8, 3, 2, 6)
    assert len(np.unique(run_graph(plain, fed), axis=0)) > 1
    np.testing.assert_array_equal(run_graph(pair, fed), run_graph(plain, fed))


@pytest.mark.parametrize("batch", [2, None])
def test_batches_are_paired_too(converted: Int8Model, plain_file: bytes, batch: int | None) -> None:
    data = tflite_converter.int8_flatbuffer(converted.wrapped, batch=batch)
    assert convolution(data)[1].shape == (8, 3, 2, 6)
    np.testing.assert_array_equal(
        run_graph(data, quantized(IMAGES)), run_graph(plain_file, quantized(IMAGES))
    )


def edited(data: bytes, tensors: dict[int, list[int]], options: dict[str, int]) -> bytes:
    """The first convolution of a file alone, with other options and shapes of its tensors:
    0 its input, 1 its kernel, 3 its output."""
    model = editor.open_flatbuffer(data)
    graph = model.subgraphs[0]
    graph.operators, model.signatureDefs = graph.operators[:1], None
    (operator,) = graph.operators
    graph.outputs = operator.outputs
    for folder, shape in tensors.items():
        graph.tensors[[*operator.inputs, *operator.outputs][folder]].shape = shape
    for name, value in options.items():
        setattr(operator.builtinOptions, name, value)
    return editor.pack_flatbuffer(model)


OTHERS: dict[str, tuple[dict[int, list[int]], dict[str, int]]] = {
    "odd width": ({0: [1, 16, 15, 3]}, {}),
    "stride 1": ({3: [1, 8, 16, 8]}, {"strideW": 1}),
    "valid": ({3: [1, 7, 7, 8]}, {"padding": 1}),
    "dilated": ({}, {"dilationWFactor": 2}),
    "width 9": ({1: [8, 1, 9, 3]}, {}),
    "nine channels": ({0: [1, 16, 16, 9], 1: [8, 1, 3, 9]}, {}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_others_are_left_as_they_are(plain_file: bytes, case: str) -> None:
    same, data = edited(plain_file, {}, {}), edited(plain_file, *OTHERS[case])
    assert space_to_depth_stem.pair_pixels(same) != same
    assert space_to_depth_stem.pair_pixels(data) is data


def test_float_files_are_left_as_they_are(converted: Int8Model) -> None:
    data = tflite_converter.float_flatbuffer(converted.plain)
    assert space_to_depth_stem.pair_pixels(data) is data


def test_a_constant_that_others_share_is_not_changed(plain_file: bytes) -> None:
    model = editor.open_flatbuffer(plain_file)
    graph = model.subgraphs[0]
    op, kernel = convolution(plain_file)
    twin = copy.deepcopy(graph.tensors[op.inputs[1]])
    graph.tensors = [*graph.tensors, twin]
    changed = editor.open_flatbuffer(space_to_depth_stem.pair_pixels(editor.pack_flatbuffer(model)))
    again = changed.subgraphs[0].tensors[len(graph.tensors) - 1]
    assert bytes(changed.buffers[again.buffer].data) == bytes(kernel.buffer)


def test_verification_unpairs_pixels(converted: Int8Model) -> None:
    rows, faults = operator_parity.compare_operators(
        tflite_model.read(converted.data), converted.wrapped, converted.plain, file_inputs(IMAGES)
    )
    assert faults == []
    (own,) = [row for row in rows if row.layer == "a_act"]
    kernel = converted.plain.get_layer("a").kernel.numpy()
    assert own.kernel_zeros == pytest.approx(np.mean(kernel == 0), abs=0.02)
    assert own.max_steps <= 1


def test_a_weight_after_the_last_column_is_a_fault(converted: Int8Model) -> None:
    _, kernel = convolution(converted.data)
    values = kernel.data.copy()
    values[2, 1, 1, 4] = 1
    data = converted.data.replace(bytes(kernel.buffer), values.tobytes())
    assert len(data) == len(converted.data)
    actual = verify.verify(
        data,
        converted.wrapped(file_inputs(IMAGES), training=False).numpy(),
        file_inputs(IMAGES),
        expect_int8=True,
        io="int8",
        simulated=converted.wrapped,
        plain=converted.plain,
    )
    assert "a: a kernel of [36, 8] instead of [27, 8]" in actual.faults
