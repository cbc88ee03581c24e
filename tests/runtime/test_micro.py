"""Files under TensorFlow Lite Micro: the same outputs, the memory it takes, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tflite_files

from mobilenet.errors import UsageError
from mobilenet.runtime import interpreter, micro
from mobilenet.tflite import editor
from mobilenet.tflite import model as tflite_model


def content(kind: str, softmax: bool = False) -> tflite_model.Flatbuffer:
    return tflite_model.read(tflite_files.flatbuffer(kind, softmax))


@pytest.mark.parametrize("kind", ["int8", "uint8", "float"])
@pytest.mark.parametrize("softmax", [False, True])
def test_it_has_the_outputs_of_the_other_runtime(kind: str, softmax: bool) -> None:
    pytest.importorskip(micro.MODULE)
    file = content(kind, softmax)
    runners = interpreter.make_interpreter(file), micro.Interpreter(file)
    source = file.tensors[file.inputs[0]]
    noise = np.random.default_rng(0)
    for _ in range(5):
        if kind == "float":
            image = noise.uniform(-1, 1, source.shape).astype(np.float32)
        else:
            limits = np.iinfo(source.dtype)
            image = noise.integers(limits.min, limits.max, source.shape, source.dtype)
        for runner in runners:
            runner.set_tensor(file.inputs[0], image)
            runner.invoke()
        usual, small = (runner.get_tensor(file.outputs[0]) for runner in runners)
        assert small.dtype == usual.dtype and small.shape == usual.shape
        difference = np.abs(small.astype(np.float64) - usual)
        assert difference.max() <= (1e-4 if kind == "float" else 2)
        assert np.ptp(usual.astype(np.float64)) > (1e-2 if kind == "float" else 10)


def test_the_arena_is_what_the_runtime_takes() -> None:
    runtime = pytest.importorskip(micro.MODULE)
    file = content("int8")
    arena = micro.Interpreter(file).arena()
    assert arena.total == arena.activations + arena.persistent
    # The largest that live side by side: what the last convolution reads and what it makes.
    assert arena.activations == 16 * 16 * (16 + 24)
    runtime.Interpreter.from_bytes(file.content, arena_size=arena.total + 256)
    with pytest.raises(RuntimeError, match="failed to allocate"), interpreter.quiet():
        runtime.Interpreter.from_bytes(file.content, arena_size=arena.total - 1024)


def test_operators_are_named_as_a_program_registers_them() -> None:
    assert micro.resolver_calls(content("int8", True)) == (
        *("AddConv2D", "AddDepthwiseConv2D", "AddFullyConnected", "AddMean", "AddSoftmax"),
    )
    assert "AddQuantize" in micro.resolver_calls(content("uint8"))


@pytest.mark.parametrize(
    ("kind", "reason"), [("float16", "it has float16"), ("sparse", "it has DENSIFY")]
)
def test_what_it_cannot_run_costs_a_line(kind: str, reason: str) -> None:
    pytest.importorskip(micro.MODULE)
    with pytest.raises(UsageError, match=f"TensorFlow Lite Micro: expected a file.*{reason}"):
        micro.Interpreter(content(kind))


def twice(model: Any) -> None:
    model.subgraphs.append(model.subgraphs[0])


def without_outputs(model: Any) -> None:
    model.subgraphs[0].outputs = []


def without_a_bias(model: Any) -> None:
    depthwise = model.subgraphs[0].operators[1]
    depthwise.inputs = np.array([*depthwise.inputs[:2], -1], np.int32)


def of_another_kind(model: Any) -> None:
    mean = model.subgraphs[0].operators[5]
    mean.builtinOptionsType, mean.builtinOptions = 0, None
    code = model.operatorCodes[mean.opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = _LESS


def of_hybrid_kernels(model: Any) -> None:
    """An operator of int8 weights with a float input."""
    graph = model.subgraphs[0]
    graph.tensors[graph.operators[1].inputs[0]].type = tflite_model.schema().TensorType.FLOAT32


_LESS = 58  # schema.fbs: BuiltinOperator


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (twice, "2 graphs"),
        (without_outputs, "no outputs"),
        (without_a_bias, "leaves its bias out"),
        (of_another_kind, "it has LESS"),
        (of_hybrid_kernels, "takes"),
    ],
)
def test_what_would_end_the_process_costs_a_line(
    change: Callable[[Any], None], reason: str
) -> None:
    pytest.importorskip(micro.MODULE)
    model = editor.open_flatbuffer(tflite_files.flatbuffer("int8"))
    change(model)
    with pytest.raises(UsageError, match=reason):
        micro.describe_requirements(tflite_model.read(editor.pack_flatbuffer(model)))


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, micro.MODULE, None)
    with pytest.raises(UsageError, match="pip install tflite-micro"):
        micro.Interpreter(content("int8"))
