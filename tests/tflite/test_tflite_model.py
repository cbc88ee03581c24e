"""The reader of flatbuffers against the interpreter's own listing, and against invalid files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import tflite_files

from mobilenet.errors import UsageError
from mobilenet.runtime import interpreter
from mobilenet.tflite import model as tflite_model

pytest.importorskip("tensorflow", reason="TensorFlow's converter makes the files")
pytest.importorskip("ai_edge_litert", reason="its listing is what is compared with")

KINDS = ("float", "float16", "dynamic", "sparse", "int8", "uint8")


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_and_operators_are_those_of_the_interpreter(kind: str) -> None:
    data = tflite_files.flatbuffer(kind)
    ours = tflite_model.read(data)
    runner = interpreter.make_interpreter(data)
    details = {d["index"]: d for d in runner.get_tensor_details()}
    assert ours.inputs == tuple(d["index"] for d in runner.get_input_details())
    assert ours.outputs == tuple(d["index"] for d in runner.get_output_details())
    names = [node["op_name"] for node in runner._get_ops_details() if node["op_name"] != "DELEGATE"]
    assert [operator.name for operator in ours.operators] == names
    for tensor in ours.tensors:
        theirs = details[tensor.index]
        assert tensor.name == theirs["name"]
        assert tensor.shape == tuple(theirs["shape"])
        assert np.dtype(tensor.dtype) == theirs["dtype"]
        np.testing.assert_array_equal(tensor.scales, theirs["quantization_parameters"]["scales"])
        np.testing.assert_array_equal(
            tensor.zero_points, theirs["quantization_parameters"]["zero_points"]
        )
        if tensor.data is not None:
            np.testing.assert_array_equal(tensor.data, runner.get_tensor(tensor.index))


def test_weights_are_those_of_the_model() -> None:
    weights = tflite_model.read(tflite_files.flatbuffer("float")).weights()
    expected = [w for w in small_models.tiny_v1().get_weights() if np.any(w)]
    assert sum(tensor.elements for tensor in weights) >= sum(w.size for w in expected)
    kernel = next(w for w in weights if w.shape == (8, 3, 3, 3))
    np.testing.assert_allclose(kernel.data, np.transpose(expected[0], (3, 0, 1, 2)), rtol=1e-6)
    assert all(tensor.dtype == "float32" for tensor in weights)  # no axes, no shapes


def test_float_tensors() -> None:
    assert tflite_model.read(tflite_files.flatbuffer("int8")).float_tensors() == []
    everything = tflite_model.read(tflite_files.flatbuffer("float"))
    assert (
        len(everything.float_tensors()) == sum(t.dtype == "float32" for t in everything.tensors) > 8
    )


def test_depthwise_kernel_has_a_scale_per_channel_on_its_last_axis() -> None:
    read = tflite_model.read(tflite_files.flatbuffer("int8"))
    operator = next(op for op in read.operators if op.name == "DEPTHWISE_CONV_2D")
    kernel = read.tensors[operator.inputs[1]]
    assert (kernel.shape, kernel.quantized_dimension, kernel.scales.size) == ((1, 3, 3, 8), 3, 8)
    assert operator.options["stride_h"] == 1 and read.operators[0].options["stride_w"] == 2


def test_sparse_file_is_detected_as_sparse() -> None:
    read = tflite_model.read(tflite_files.flatbuffer("sparse"))
    sparse = [tensor for tensor in read.tensors if tensor.is_sparse]
    assert sparse and all(len(t.buffer) < 4 * t.elements and t.data is None for t in sparse)


def refused(data: bytes) -> str:
    with pytest.raises(UsageError) as caught:
        tflite_model.read(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_truncation_is_refused() -> None:
    data = tflite_files.flatbuffer("int8")
    for length in [*range(0, len(data) - 16, 7), len(data) - 16]:
        refused(data[:length])


@pytest.mark.parametrize("size", [1, 8, 64, 4096])
def test_random_bytes_are_refused(size: int) -> None:
    noise = np.random.default_rng(size)
    for _ in range(50):
        body = noise.integers(0, 256, size, np.uint8).tobytes()
        refused(body)
        refused(body[:4] + b"TFL3" + body[8:])


def edited(change: Callable[[Any], None], kind: str = "int8") -> bytes:
    """A file of sound structure and changed content, packed by the generated schema."""
    import flatbuffers

    schema = tflite_model.schema()
    model = schema.ModelT.InitFromPackedBuf(tflite_files.flatbuffer(kind), 0)
    change(model)
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def graph(model: Any) -> Any:
    return model.subgraphs[0]


def put(holder: Any, field: str, index: int, value: int) -> None:
    """Sets one item of a vector (the generated classes give read-only arrays)."""
    values = np.array(getattr(holder, field))
    values[index] = value
    setattr(holder, field, values)


def last(model: Any) -> int:
    """The tensor between pooling and the dense layer."""
    return int(graph(model).operators[-1].inputs[0])


EDITS: dict[str, tuple[Callable[[Any], None], str]] = {
    "operator input": (lambda m: put(graph(m).operators[0], "inputs", 0, 999), "input tensor 999"),
    "operator output": (lambda m: put(graph(m).operators[0], "outputs", 0, -7), "output tensor -7"),
    "operator code": (lambda m: setattr(graph(m).operators[1], "opcodeIndex", 77), "code 77"),
    "unknown code": (lambda m: setattr(m.operatorCodes[0], "builtinCode", 9999), "9999"),
    "buffer index": (lambda m: setattr(graph(m).tensors[1], "buffer", 500), "buffer 500"),
    "buffer size": (
        lambda m: setattr(m.buffers[graph(m).tensors[1].buffer], "data", [1, 2, 3]),
        "of 3 bytes",
    ),
    "graph input": (lambda m: put(graph(m), "inputs", 0, 400), "input tensor 400"),
    "graph output": (lambda m: put(graph(m), "outputs", 0, 400), "output tensor 400"),
    "tensor type": (lambda m: setattr(graph(m).tensors[0], "type", 99), "type 99"),
    "negative size": (lambda m: put(graph(m).tensors[0], "shape", 1, -32), "shape"),
    "huge input": (lambda m: put(graph(m).tensors[0], "shape", 1, 32 + 2**24), "elements together"),
    "large input": (lambda m: put(graph(m).tensors[0], "shape", 1, 32 + 2**12), "CONV_2D"),
    "batch": (lambda m: put(graph(m).tensors[0], "shape", 0, 5), "CONV_2D"),
    "scales": (
        lambda m: setattr(graph(m).tensors[1].quantization, "scale", [1.0, 2.0, 3.0]),
        "3 scales",
    ),
    "infinite scale": (
        lambda m: setattr(graph(m).tensors[0].quantization, "scale", [np.inf]),
        "finite",
    ),
    "order": (lambda m: graph(m).operators.reverse(), "which is not yet computed"),
    "stride": (lambda m: setattr(graph(m).operators[0].builtinOptions, "strideH", 0), "strides"),
    "dilation": (
        lambda m: setattr(graph(m).operators[0].builtinOptions, "dilationHFactor", 0),
        "dilated",
    ),
    "no bias": (
        lambda m: setattr(graph(m).operators[1], "inputs", graph(m).operators[1].inputs[:2]),
        "DEPTHWISE_CONV_2D with 2 inputs",
    ),
    "operands": (lambda m: setattr(graph(m).operators[0], "inputs", [0]), "1 inputs"),
    "options": (
        lambda m: setattr(graph(m).operators[0], "builtinOptionsType", 2),
        "DepthwiseConv2DOptions",
    ),
    "mean": (lambda m: put(graph(m).tensors[last(m)], "shape", 0, 9999999), "MEAN"),
    "dense": (lambda m: put(graph(m).tensors[graph(m).outputs[0]], "shape", 0, 4), "FULLY"),
    "variable": (
        lambda m: [setattr(tensor, "isVariable", True) for tensor in graph(m).tensors],
        "a variable and a constant",
    ),
    "no graph": (lambda m: setattr(m, "subgraphs", []), "graph"),
    "version": (lambda m: setattr(m, "version", 2), "version 2"),
}


def test_an_unchanged_file_survives_the_editing() -> None:
    assert len(tflite_model.read(edited(lambda model: None)).operators) == 7


@pytest.mark.parametrize("name", EDITS)
def test_invalid_fields_are_refused_by_name(name: str) -> None:
    change, message = EDITS[name]
    assert message in refused(edited(change))


def test_bad_sparse_indices_are_refused() -> None:
    def spoil(model: Any) -> None:
        for tensor in graph(model).tensors:
            if tensor.sparsity is not None:
                for level in tensor.sparsity.dimMetadata:
                    if level.format == 1:
                        put(level.arrayIndices, "values", -1, 200)
                        return

    assert (
        len(tflite_model.read(edited(lambda model: None, "sparse")).operators) > 7
    )  # DENSIFY as well
    assert "sparse" in refused(edited(spoil, "sparse"))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a model", b"\0\0\0\0TFL3"])
def test_files_that_are_not_models_are_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.tflite"):
        tflite_model.read(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder"):
        tflite_model.read(tmp_path)


FUZZ = """
import random, sys
from mobilenet.errors import UsageError
from mobilenet.tflite import model as flatbuffer
from mobilenet.runtime import interpreter

counts = {"refused": 0, "ran": 0}
for path in sys.argv[1:]:
    whole = open(path, "rb").read()
    for seed in range(130):
        chance = random.Random(seed)
        data = bytearray(whole)
        if chance.random() < 0.15:
            del data[chance.randrange(len(data)):]
        else:
            for _ in range(chance.choice([1, 1, 1, 2, 4])):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            interpreter.make_interpreter(bytes(data)).invoke()
            counts["ran"] += 1
        except (UsageError, ValueError, RuntimeError):  # the last two: from a kernel in invoke
            counts["refused"] += 1
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(counts["refused"], counts["ran"], int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_damaged_files_neither_crash_nor_claim_memory(tmp_path: Path) -> None:
    paths = []
    for kind in ("float", "int8", "sparse"):
        paths.append(tmp_path / f"{kind}.tflite")
        paths[-1].write_bytes(tflite_files.flatbuffer(kind))
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    refusals, ran, megabytes = map(int, done.stdout.split())
    assert refusals > 75 and ran > 75  # flips in weights are legal; flips in offsets are not
    assert megabytes < 600  # a whole file takes 50
