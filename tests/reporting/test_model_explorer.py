"""Overlays for Model Explorer: its format, and zeros against those that were planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")

from mobilenet import profiler  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.reporting import model_explorer  # noqa: E402
from mobilenet.reporting.int8_comparison import TensorComparison  # noqa: E402


def converted(types: list[Any]) -> bytes:
    """A convolution and a dense layer with 3 of 4 and 1 of 8 weights zero."""
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(8)]
    )
    for weights, period in ((model.weights[0], (1, 0, 0, 0)), (model.weights[2], (0, *[1] * 7))):
        weights.assign(np.broadcast_to(np.float32(period), weights.shape))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if types:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = types
    content: bytes = converter.convert()
    return content


@pytest.mark.parametrize("types", [[], [tf.float16]], ids=["float32", "float16"])
def test_sparsity_of_each_kernel_has_the_name_of_an_output(
    types: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.tflite").write_bytes(converted(types))
    folder = tmp_path / "overlays"
    profiler.run([str(tmp_path / "model.tflite"), "--nolatency", f"--overlay={folder}"])
    assert str(folder / "sparsity.json") in capsys.readouterr().out
    overlay = json.loads((folder / "sparsity.json").read_text())
    assert set(overlay) == {"name", "results", "thresholds"}
    assert sorted(node["value"] for node in overlay["results"].values()) == [12.5, 75]
    interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    names = {detail["index"]: detail["name"] for detail in interpreter.get_tensor_details()}
    computed = [op for op in interpreter._get_ops_details() if "CONV" in op["op_name"]]
    assert overlay["results"][names[computed[0]["outputs"][0]]] == {"value": 75}


def test_a_tensor_without_a_signal_has_no_noise(tmp_path: Path) -> None:
    lines = [
        TensorComparison(name, "ADD", 0, 1, (0, 1), 1, ratio, ratio, "", "", f"block/{name};Relu")
        for name, ratio in (("a", 12.345), ("b", None))
    ]
    (path,) = model_explorer.write([model_explorer.noise(lines)], tmp_path / "new")
    overlay = json.loads(path.read_text())
    assert overlay["results"] == {"block/a;Relu": {"value": pytest.approx(12.345, abs=0.006)}}
    bounds = [limit["value"] for limit in overlay["thresholds"]]
    assert bounds == sorted(bounds)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="overlay: got '.*', expected a folder that can be"):
        model_explorer.write([], tmp_path / "file")
