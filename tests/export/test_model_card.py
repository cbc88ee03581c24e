"""The model card of an export folder: what the Hub's parser reads of it, its Markdown, and programs
with the numbers of the file.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from mobilenet.configs import archs
from mobilenet.configs.card import SIGMOID, Card, StageFigures, TensorType
from mobilenet.configs.dataset import PREPROCESSING, Preprocessing
from mobilenet.export import model_card, programs
from mobilenet.export.verification.verify import Verification

FLOAT = TensorType()
INT8 = TensorType("int8", float(np.float32(1 / 127.5)), 0)
INT8_OF_PHOTOS = TensorType("int8", 0.0187, -14)
UINT8 = TensorType("uint8", float(np.float32(1 / 127.5)), 128)
LOGITS = TensorType("int8", 0.0294, -48)
PIXELS = PREPROCESSING["inception"].replace(mean=(128.0,))
FILE = StageFigures(
    "convert", {"top1": 98.8889, "top5": 100.0, "loss": 0.12}, 360, 830000, 9000000, 400000, 900000
)
STAGES = (StageFigures("train", {"top1": 99.1667, "loss": 0.05}, 360, 830000, 9000000), FILE)
HOSTILE = ("<b>bold</b>", "a|b", "*c*", "[d](http://x.y)", "`e`", "---\nf: g", "# h", "&amp;")


def make_card(**changes: Any) -> Card:
    config = archs.get("mobilenet_v2", width_multiplier=0.35)
    values: dict[str, Any] = {
        "architecture": config.to_json(),
        "input_shape": (16, 24, 3),
        "preprocessing": PIXELS,
        "labels": tuple("abcdefgh"),
        "activation": "softmax",
        "dataset": "digits",
        "stage": "convert",
        "metrics": FILE.metrics,
        "stages": STAGES,
        "input": INT8,
        "output": LOGITS,
    }
    return Card(**{**values, **changes})


def render(card: Card, **changes: Any) -> str:
    assert card.input is not None and card.output is not None
    values: dict[str, Any] = {
        "operators": {"CONV_2D": 36, "MEAN": 1},
        "float_tensors": 0,
        "quantized": True,
        "contents": "int8",
        "input_shape": (1, *card.input_shape),
        "output_shape": (1, 8),
        "input": card.input,
        "output": card.output,
        "partitions": 1,
        "images": 200,
        "agreement": 0.99,
        "clear_images": 180,
        "agreement_clear": 1.0,
        "mean_steps": 0.4,
        "max_steps": 2.0,
        "signal_to_noise": 35.0,
        "degenerate": "",
        "bytes": 900000,
        "gzip_bytes": 700000,
    }
    return model_card.render(card, Verification(**{**values, **changes}))


def front_matter(text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return parsed


def shown_text(markdown: str) -> str:
    """The text of a page as a reader sees it, without code blocks; fails on HTML and links."""
    parts = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        assert token.type != "html_block"
        for child in token.children or ():
            assert child.type not in ("html_inline", "image", "em_open")
            assert child.type != "link_open" or "ai.google.dev" in str(child.attrs["href"])
            parts.append(child.content)
    return "\n".join(parts)


def test_the_hub_reads_its_metadata() -> None:
    hub = pytest.importorskip("huggingface_hub")
    text = render(make_card(initial_weights="mobilenet_v2_0.35_96", license="apache-2.0"))
    data = hub.ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("litert", "image-classification")
    assert (data.license, data.base_model) == ("apache-2.0", "google/mobilenet_v2_0.35_96")
    assert (data.datasets, data.metrics) == (["digits"], ["accuracy"])
    results = data.eval_results
    assert all(isinstance(result, hub.EvalResult) for result in results)
    assert [(r.metric_name, r.metric_value) for r in results] == [
        ("Top-1 accuracy", 0.988889),
        ("Top-5 accuracy", 1.0),
    ]
    assert {(r.dataset_type, r.dataset_split) for r in results} == {("digits", "test")}
    assert data.model_name == "MobileNetV2 0.35, 16 x 24, int8"


@pytest.mark.parametrize(
    ("name", "datasets", "config"),
    [
        ("cifar10", ["uoft-cs/cifar10"], None),
        ("imagenette/160px-v2:1.0.0", ["frgfm/imagenette"], "160px-v2"),
        ("image_folder", None, None),
        ("", None, None),
    ],
)
def test_datasets_have_the_hubs_identifiers(
    name: str, datasets: list[str] | None, config: str | None
) -> None:
    data = front_matter(render(make_card(dataset=name)))
    assert data.get("datasets") == datasets
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["type"] == (datasets or ["own_images"])[0]
    assert result["dataset"].get("config") == config


def test_figures_of_the_model_alone_are_no_results_of_the_file() -> None:
    text = render(make_card(stages=STAGES[:1]))
    assert not {"model-index", "metrics"} & set(front_matter(text))
    assert "| top-1 of the Keras model before conversion | 98.89 % |" in text
    assert "accuracy of this file was not measured" in text
    assert front_matter(text)["license"] == "unknown" and "No license was chosen" in text


def test_each_stage_has_its_figures() -> None:
    text = render(make_card(notes=("half of the weights",)))
    assert "| train | 99.17 | 0.0500 | 9,000,000 | 830,000 |  |  |" in text
    assert "| convert | 98.89 | 0.1200 | 9,000,000 | 830,000 | 400,000 | 900,000 |" in text
    assert "| top-1 of 360 test images | 98.89 % |" in text
    assert "- half of the weights" in text


def test_text_of_the_user_is_shown_as_it_is() -> None:
    notes = ("calibrated on 9 images of /home/<me>/a_b*c*d", "x [y](z) $1$ ![i](j)")
    text = render(make_card(labels=HOSTILE, notes=notes, dataset="<i>:*", initial_weights="a_b_"))
    seen = " ".join(shown_text(text.split("---\n", 2)[2]).split())
    for part in (*HOSTILE, *notes, "a_b_"):
        assert " ".join(part.split()) in seen
    assert front_matter(text)["datasets"] == ["<i>"]


def test_several_labels_have_no_top_1() -> None:
    stage = StageFigures("convert", {"top1": 91.0, "top5": 91.0, "auc": 0.95, "f1": 0.9}, 50)
    text = render(make_card(activation=SIGMOID, stages=(stage,), metrics=stage.metrics))
    assert front_matter(text)["metrics"] == ["accuracy", "roc_auc", "f1"]
    assert "| AUC of 50 test images | 0.9500 |" in text and "top-" not in text.split("##")[0]
    assert "probabilities of 8 labels" in text


def quantized(pixels: np.ndarray, preprocessing: Preprocessing, kind: TensorType) -> np.ndarray:
    values = (pixels - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    if not kind.scale:
        return values.astype(np.float32)
    limits = np.iinfo(kind.dtype)
    steps = np.round(values / kind.scale) + kind.zero_point
    return np.clip(steps, limits.min, limits.max).astype(kind.dtype)


RUNTIME = """
#pragma once
#include <cstdio>
#include <memory>
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
namespace tflite {
namespace ops::builtin { struct BuiltinOpResolver {}; }
struct FlatBufferModel {
  static std::unique_ptr<FlatBufferModel> BuildFromFile(const char*) {
    return std::make_unique<FlatBufferModel>();
  }
};
struct Interpreter {
  alignas(16) char input[65536], output[4096];
  std::size_t size = 0;
  template <class T> T* typed_input_tensor(int) { size = sizeof(T); return (T*)input; }
  template <class T> T* typed_output_tensor(int) { return (T*)output; }
  TfLiteStatus AllocateTensors() { return kTfLiteOk; }
  TfLiteStatus Invoke() {
    auto* seen = std::fopen("input.bin", "wb");
    std::fwrite(input, size, PIXELS, seen);
    std::fclose(seen);
    auto* outputs = std::fopen("output.bin", "rb");
    (void)!std::fread(output, 1, sizeof(output), outputs);
    std::fclose(outputs);
    return kTfLiteOk;
  }
};
struct InterpreterBuilder {
  InterpreterBuilder(const FlatBufferModel&, const ops::builtin::BuiltinOpResolver&) {}
  TfLiteStatus operator()(std::unique_ptr<Interpreter>* made) {
    *made = std::make_unique<Interpreter>();
    return kTfLiteOk;
  }
};
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    ("preprocessing", "source", "sink", "activation"),
    [
        (PIXELS, INT8, LOGITS, "softmax"),
        (PREPROCESSING["imagenet"], INT8_OF_PHOTOS, LOGITS, SIGMOID),
        (PREPROCESSING["imagenet"], FLOAT, FLOAT, "softmax"),
    ],
)
def test_the_cpp_program_feeds_and_reads_the_file(
    tmp_path: Path,
    preprocessing: Preprocessing,
    source: TensorType,
    sink: TensorType,
    activation: str,
) -> None:
    """Compiled with a runtime that records its input and returns given outputs."""
    card = make_card(preprocessing=preprocessing, input=source, output=sink, activation=activation)
    (program,) = re.findall(r"```cpp\n(.*?)```", render(card), re.DOTALL)
    (tmp_path / "program.cc").write_text(program)
    for name in ("interpreter", "interpreter_builder", "kernels/register", "model_builder"):
        path = tmp_path / "tflite" / f"{name}.h"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('#pragma once\n#include "runtime.h"\n')
    (tmp_path / "runtime.h").write_text(RUNTIME)
    noise = np.random.default_rng(0)
    pixels = noise.integers(0, 256, (16, 24, 3), np.uint8)
    low, high = (-9, 9) if sink.dtype == "float32" else (np.iinfo(sink.dtype).min, 100)
    outputs = noise.integers(low, high, 8).astype(sink.dtype)
    (tmp_path / "pixels.raw").write_bytes(pixels.tobytes())
    (tmp_path / "output.bin").write_bytes(outputs.tobytes())
    flags = ["-std=c++17", "-Wall", "-Werror", f"-DPIXELS={pixels.size}", "-I", "."]
    subprocess.run(["g++", *flags, "program.cc", "-o", "program"], cwd=tmp_path, check=True)
    done = subprocess.run(["./program"], cwd=tmp_path, capture_output=True, text=True, check=True)
    seen = np.fromfile(tmp_path / "input.bin", source.dtype).reshape(pixels.shape)
    expected = quantized(pixels, preprocessing, source)
    np.testing.assert_allclose(seen, expected, rtol=1e-6, atol=1e-6)
    logits = (outputs.astype(np.float64) - sink.zero_point) * (sink.scale or 1)
    if activation == SIGMOID:
        shown = [float(line) for line in done.stdout.split()]
        np.testing.assert_allclose(shown, 1 / (1 + np.exp(-logits)), atol=1e-6)
    else:
        assert int(done.stdout) == logits.argmax()


@pytest.mark.parametrize(
    ("card", "lines"),
    [
        (
            make_card(),
            [
                "input.put((pixel - 128).toByte())",
                "private const val OUTPUT_SCALE = 0.0294f",
                "private const val OUTPUT_ZERO_POINT = -48",
                "val input = buffer(16 * 24 * 3 * 1)",
                "OUTPUT_SCALE * (output.get() - OUTPUT_ZERO_POINT)",
            ],
        ),
        (
            make_card(preprocessing=PREPROCESSING["imagenet"], input=INT8_OF_PHOTOS),
            [
                "private const val INPUT_SCALE = 0.0187f",
                "private const val INPUT_ZERO_POINT = -14",
                "floatArrayOf(123.675f, 116.28f, 103.53f)",
                "input.put(value.coerceIn(-128, 127).toByte())",
            ],
        ),
        (
            make_card(input=FLOAT, output=FLOAT),
            ["val input = buffer(16 * 24 * 3 * 4)", "input.putFloat(", "output.getFloat()"],
        ),
        (make_card(input=UINT8), ["input.put(pixel.toByte())"]),
    ],
)
def test_the_kotlin_function_has_the_numbers_of_the_file(card: Card, lines: list[str]) -> None:
    program = programs.kotlin(card, 8)
    assert not [line for line in lines if line not in program]
    assert program.count("{") == program.count("}") and program.count("(") == program.count(")")
