"""C++ sources of a file for TensorFlow Lite Micro: the array has its bytes, the resolver its
operators, the arena its tensors.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import tflite_files
from ai_edge_litert.interpreter import Interpreter

from mobilenet.configs.card import Card, TensorType
from mobilenet.errors import UsageError
from mobilenet.export import c_array
from mobilenet.runtime import micro
from mobilenet.tflite import editor
from mobilenet.tflite import model as tflite_model

CARD = Card(
    input_shape=(32, 32, 3),
    input=TensorType("int8", 0.0078125, -1),
    output=TensorType("int8", 0.0625, 5),
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

# A resolver that knows each operator once and no more than its size; adding prints its name.
RESOLVER = """
#pragma once
#include <cstdio>
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
namespace tflite {
template <unsigned size> struct MicroMutableOpResolver {
  unsigned count = 0;
  TfLiteStatus Add(const char* name) {
    if (count == size) return kTfLiteError;
    ++count;
    std::printf("%s\\n", name);
    return kTfLiteOk;
  }
  TfLiteStatus AddConv2D() { return Add("CONV_2D"); }
  TfLiteStatus AddDepthwiseConv2D() { return Add("DEPTHWISE_CONV_2D"); }
  TfLiteStatus AddFullyConnected() { return Add("FULLY_CONNECTED"); }
  TfLiteStatus AddMean() { return Add("MEAN"); }
  TfLiteStatus AddSoftmax() { return Add("SOFTMAX"); }
};
}
"""
# Writes the pixels that it gets; its largest output is that of class 3.
INTERPRETER = """
#pragma once
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
namespace tflite {
struct Model {};
inline const Model* GetModel(const unsigned char*) { static Model model; return &model; }
struct Tensor { struct { signed char* int8; } data; };
struct MicroInterpreter {
  signed char values[4096] = {}, outputs[16] = {-7, 2, 8, 9, 9};
  Tensor in{{values}}, out{{outputs}};
  template <class... T> MicroInterpreter(T&&...) {}
  TfLiteStatus AllocateTensors() { return kTfLiteOk; }
  Tensor* input(int) { return &in; }
  Tensor* output(int) { return &out; }
  TfLiteStatus Invoke() {
    return values[0] == -128 && values[3071] == 127 ? kTfLiteOk : kTfLiteError;
  }
};
}
"""
PROGRAM = """
#include <cstdint>
#include <vector>
int Classify(const unsigned char* pixels);
#include "model_data.h"
#include "model_data.h"
#include "op_resolver.h"
int main() {
  ModelOpResolver resolver;
  if (AddModelOperators(resolver) != kTfLiteOk) return 1;
  if (resolver.Add("one more") == kTfLiteOk) return 2;
  std::fflush(stdout);
  std::vector<unsigned char> pixels(32 * 32 * 3, 255);
  pixels[0] = 0;
  if (Classify(pixels.data()) != 3) return 4;
  if (reinterpret_cast<std::uintptr_t>(g_model_data) % 16) return 3;
  static_assert(kInputHeight == 32 && kInputChannels == 3 && kOutputCount == 10);
  static_assert(kInputScale == 0.0078125f && kInputZeroPoint == -1);
  static_assert(kOutputScale == 0.0625f && kOutputZeroPoint == 5);
  auto* file = std::fopen("copy.tflite", "wb");
  std::fwrite(g_model_data, 1, g_model_data_len, file);
  return std::fclose(file);
}
"""


@needs_compiler
def test_the_sources_compile_to_the_bytes_and_operators_of_the_file(tmp_path: Path) -> None:
    data = tflite_files.flatbuffer("int8", True)
    for name, text in c_array.write_sources(data, CARD).texts.items():
        (tmp_path / name).write_text(text)
    includes = tmp_path / "tensorflow/lite/micro"
    includes.mkdir(parents=True)
    (includes / "micro_mutable_op_resolver.h").write_text(RESOLVER)
    (includes / "micro_interpreter.h").write_text(INTERPRETER)
    (includes.parent / "schema").mkdir()
    (includes.parent / "schema/schema_generated.h").write_text("")
    page = (Path(__file__).parents[2] / "docs/micro.md").read_text()
    (tmp_path / "page.cc").write_text(page.split("```cpp\n")[1].split("```")[0])
    (tmp_path / "main.cc").write_text(PROGRAM)
    command = "g++ -std=c++17 -Wall -Wextra -Werror -I. main.cc page.cc model_data.cc -o program"
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    done = subprocess.run(["./program"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / "copy.tflite").read_bytes() == data
    details = Interpreter(model_content=data, num_threads=1)._get_ops_details()
    operators = {row["op_name"] for row in details} - {"DELEGATE"}
    assert done.stdout.split() == 2 * sorted(operators)  # of the program, and of the page


def test_the_arena_is_measured_where_the_runtime_is(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip(micro.MODULE)
    content = tflite_model.read(tflite_files.flatbuffer("int8", True))
    measured = c_array.arena_size(content)
    assert measured.is_measured and measured.bytes % 16 == 0
    runtime.Interpreter.from_bytes(content.content, arena_size=measured.bytes)
    monkeypatch.setattr(micro, "can_measure", lambda content: False)
    estimated = c_array.arena_size(content)
    assert measured.bytes <= estimated.bytes < 3 * measured.bytes
    assert "estimated, not measured" in str(estimated)


def test_the_estimate_is_that_of_tensors_that_live_at_the_same_time() -> None:
    """The largest of `tiny_v1`: what the last convolution reads and what it writes."""
    content = tflite_model.read(tflite_files.flatbuffer("int8", True))
    assert micro.estimate_arena(content) - micro._persistent_bound(content) == 16 * 16 * (16 + 24)


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("sparse", "DENSIFY"),
        ("float16", "float16"),
        ("hybrid", "CONV_2D of float32 with an int8 kernel"),
    ],
)
def test_what_the_runtime_lacks_is_named(kind: str, lacking: str) -> None:
    if kind == "hybrid":
        model = editor.open_flatbuffer(tflite_files.flatbuffer("int8", True))
        graph = model.subgraphs[0]
        graph.tensors[graph.operators[0].inputs[0]].type = tflite_model.schema().TensorType.FLOAT32
        data = editor.pack_flatbuffer(model)
    else:
        data = tflite_files.flatbuffer(kind)
    with pytest.raises(UsageError, match=f"format: got 'c_array'.*it lacks {lacking}"):
        c_array.write_sources(data, CARD)


def test_its_operators_are_those_of_the_installed_runtime() -> None:
    """By the names of the functions that register them in the extension module."""
    runtime = pytest.importorskip(micro.MODULE)
    binary = Path(str(runtime.__file__)).with_name("_runtime.so").read_bytes()
    builtin = [n for n in vars(tflite_model.schema().BuiltinOperator) if n.isupper()]
    registered = {n for n in builtin if f"Register_{n}E".encode() in binary}
    assert registered == micro.OPERATORS
