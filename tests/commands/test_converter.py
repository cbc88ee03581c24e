"""`python -m mobilenet.converter`: a verified file from each kind of model, or one line and no
file.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_runs
import int8_files
import numpy as np
import pytest
import small_models
import yaml
from command_runs import FinishedRun

import mobilenet
from mobilenet import converter
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.configs import archs
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError, VerificationError
from mobilenet.models import saving
from mobilenet.runtime.classifier import Classifier
from mobilenet.tflite import model as tflite_model

tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")


@pytest.fixture(scope="module")
def run(finished_run: FinishedRun) -> Path:
    return finished_run[0]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short V1 of random weights with its ranges, as the trainer leaves it; 64 px."""
    folder = tmp_path_factory.mktemp("short") / "quantize"
    model = int8_files.int8_family("mobilenet_v1")
    digits = tuple(map(str, range(10)))
    fields = {"dataset": "digits", "labels": digits, "preprocessing": small_models.INCEPTION}
    saving.save(model.plain, folder, Card(input_shape=(64, 64, 3), **fields))
    int8_saving.save_ranges(folder, model.ranges)
    return folder


def converted(capfd: pytest.CaptureFixture[str], *args: object) -> dict[str, str]:
    """The table that it prints."""
    capfd.readouterr()
    converter.run([*map(str, args)])
    out, err = capfd.readouterr()
    assert err == ""
    rows = [line.split("  ", 1) for line in out.splitlines() if "  " in line]
    return {row[0].strip(): row[1].strip() for row in rows}


def input_and_output(path: Path) -> tuple[Any, Any, tflite_model.Flatbuffer]:
    content = tflite_model.read(path)
    return content.tensors[content.inputs[0]], content.tensors[content.outputs[0]], content


def test_a_quantized_folder_gives_the_file_of_the_chain(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = converted(capfd, "--model", run / "quantize", "--output", tmp_path / "out")
    data = (tmp_path / "out/model.tflite").read_bytes()
    assert data == (run / "export/model.tflite").read_bytes()
    assert table["float tensors inside"] == "0"
    assert table["input"] == "int8 [1, 32, 32, 3]"
    assert table["operators verified"] == "28, 1 steps apart at most"
    assert table["bytes"].startswith(f"{len(data):,} ")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "card.json", "labels.txt", "model.tflite",
    ]  # fmt: skip


def test_c_array_adds_the_sources(
    quantized: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["--format=c_array", "--verify_images=40"]
    table = converted(capfd, "--model", quantized, "--output", tmp_path / "out", *args)
    names = {"model_data.h", "model_data.cc", "op_resolver.h", "model.tflite"}
    assert names < {path.name for path in (tmp_path / "out").iterdir()}
    assert table["C++ sources"] == "model_data.h, model_data.cc, op_resolver.h"
    resolver = (tmp_path / "out/op_resolver.h").read_text()
    calls = re.findall(r"resolver\.(Add\w+)\(\)", resolver)
    assert calls == ["AddConv2D", "AddDepthwiseConv2D", "AddMean", "AddReshape"]
    assert table["resolver"].startswith("MicroMutableOpResolver<4>: AddConv2D")


@pytest.mark.parametrize("io", ["uint8", pytest.param("float32", marks=pytest.mark.slow)])
def test_int8_inputs_and_outputs_get_the_chosen_type(
    run: Path, tmp_path: Path, io: str, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["--io", io, "--verify_images=40"]
    table = converted(capfd, "--model", run / "quantize", "--output", tmp_path / "out", *args)
    source, target, content = input_and_output(tmp_path / "out/model.tflite")
    assert source.dtype == target.dtype == io
    assert all(
        t.dtype != "float32" or t.index in (*content.inputs, *content.outputs)
        for t in content.tensors
    )
    assert "of 40 images" in table["same top-1 as the model"]
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    both = [Classifier(path).logits(images) for path in (tmp_path / "out", run / "export")]
    step = float(input_and_output(run / "export/model.tflite")[1].scales[0])
    np.testing.assert_allclose(*both, atol=1.01 * step)


def test_the_model_card_has_the_figures_of_the_run(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())["stages"]
    text = (run / "export/README.md").read_text()
    for stage in report:
        row = (
            f"| {stage['stage']} | {stage['top1']:.2f} | {stage['loss']:.4f} | {stage['macs']:,} |"
        )
        assert row in text
    data = yaml.safe_load(text.split("---\n")[1])
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(report[-1]["top1"] / 100, abs=1e-5)
    assert "Initial weights: random. Data: digits." in text


def test_a_license_is_an_identifier_of_the_hub(run: Path) -> None:
    with pytest.raises(UsageError, match="license: got 'Apache 2.0', expected an identifier"):
        converter.run(["--model", str(run / "train"), "--license=Apache 2.0"])


def test_a_float_folder_gives_a_float_file_with_the_outputs_of_keras(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By default, it is written next to the model's folder."""
    shutil.copytree(run / "train", tmp_path / "model")
    table = converted(capfd, "--model", tmp_path / "model", "--license=mit")
    assert "\nlicense: mit\n" in (tmp_path / "export/README.md").read_text()
    assert table["file"] == str(tmp_path / "export/model.tflite")
    assert table["same top-1 as the model"].startswith("100.00%")
    source, target, _ = input_and_output(tmp_path / "export/model.tflite")
    assert source.dtype == target.dtype == "float32"
    model = tf_keras.models.load_model(run / "train/model.keras", compile=False)
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    expected = model.predict(images / np.float32(127.5) - 1, verbose=0)
    np.testing.assert_allclose(Classifier(tmp_path / "export").logits(images), expected, atol=1e-4)


def test_a_model_without_a_folder_is_verified_on_the_digits(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tf_keras.models.load_model(run / "train/model.keras", compile=False)
    model.save(tmp_path / "model.keras")
    table = converted(capfd, "--model", tmp_path / "model.keras", "--output", tmp_path / "out")
    assert table["same top-1 as the model"] == "100.00% of 200 images"
    assert input_and_output(tmp_path / "out/model.tflite")[0].dtype == "float32"


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--io=int4"], ["--io: got 'int4'", "one of int8, uint8, float32", "did you mean int8?"]),
        (["--target=tpu"], ["--target: got 'tpu'", "one of xnnpack, generic"]),
        (["--output_activation=relu"], ["--output_activation: got 'relu'", "none, softmax"]),
        (["--batch=0"], ["--batch: got 0", "at least 1"]),
        (["--min_agreement=98"], ["--min_agreement: got 98.0", "at most 1"]),
        (["--max_partitions=0"], ["--max_partitions: got 0", "at least 1"]),
        (["--image_size=64"], ["--image_size: got 64", "32 x 32, the size of the model"]),
        (["--verify_images=0"], ["--verify_images: got 0", "at least 1"]),
        (["--dataset_name=digit"], ["'digit'", "did you mean digits?"]),
        (["--dataset_name=image_folder"], ["--data_dir", "a folder of class folders"]),
        (["--output={file}"], ["--output: got '{file}'", "a file has that name"]),
        (["--output=/proc/out"], ["--output: got '/proc/out'", "that can be written", "another"]),
    ],
)
def test_invalid_flags_leave_no_file(
    run: Path, tmp_path: Path, args: list[str], parts: list[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    args = [word.replace("{file}", str(tmp_path / "file")) for word in args]
    if not args[0].startswith("--output"):
        args.append(f"--output={tmp_path / 'out'}")
    with pytest.raises(UsageError) as caught:
        converter.run([f"--model={run / 'train'}", *args])
    for part in parts:
        assert part.replace("{file}", str(tmp_path / "file")) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_int8_inputs_and_outputs_of_a_float_model_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8"):
        converter.run([f"--model={run / 'train'}", "--io=int8", f"--output={tmp_path / 'out'}"])
    assert list(tmp_path.iterdir()) == []


def test_batch_softmax_and_labels_go_into_the_file(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["--batch=3", "--output_activation=softmax", "--verify_images=40"]
    table = converted(capfd, "--model", run / "quantize", "--output", tmp_path / "out", *args)
    assert table["input"] == "int8 [3, 32, 32, 3]"
    assert table["output"] == "int8 [3, 10], probabilities"
    assert table["operators verified"].startswith("29, ")  # the softmax is one
    with zipfile.ZipFile(tmp_path / "out/model.tflite") as archive:
        assert archive.namelist() == ["labels.txt"]
    model, other = Classifier(tmp_path / "out"), Classifier(run / "export")
    assert model.card.outputs == "probabilities"
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    logits = other.logits(images).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model.logits(images), expected, atol=2 / 256)


def test_results_outside_a_limit_leave_no_file(quantized: Path, tmp_path: Path) -> None:
    """Status 3 and one line; nothing new is in the folder, what was there stays."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.tflite").write_bytes(b"older")
    args = ["--model", quantized, "--output", tmp_path / "out", "--verify_images=40"]
    done = command_runs.run_command("converter", *args, "--max_operator_steps=0")
    assert done.returncode == 3
    assert re.search(r"steps from the simulated layer, above 0.*it was not written", done.stderr)
    assert done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "model.tflite"]
    assert (tmp_path / "out/model.tflite").read_bytes() == b"older"
    with pytest.raises(VerificationError, match="output steps on average, above 0"):
        converter.run([*map(str, args), "--max_mean_steps=0"])


def test_an_open_size_is_asked_for(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = mobilenet.build(
        archs.MobileNetV1Config(width_multiplier=0.25, num_classes=10), (None, None, 3)
    )
    model.save(tmp_path / "model.keras")
    args = ["--model", tmp_path / "model.keras", "--output", tmp_path / "out"]
    with pytest.raises(UsageError, match=r"--image_size: expected a size, .*input is open"):
        converter.run([*map(str, args)])
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]
    table = converted(capfd, *args, "--image_size=48", "--verify_images=20")
    assert table["input"] == "float32 [1, 48, 48, 3]"
    assert table["output"] == "float32 [1, 10], logits"
    # Its random weights have one class for all images.
    assert table["same top-1 as the model"].startswith("not comparable: the model decides alike")


@pytest.mark.slow
def test_partitions_of_the_generic_target_are_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """V3-small with its ranges as the trainer leaves them, on the digits."""
    int8_model = int8_files.int8_family("mobilenet_v3_small", short=False)
    card = Card(input_shape=(64, 64, 3), dataset="digits", preprocessing=small_models.INCEPTION)
    saving.save(int8_model.plain, tmp_path / "model", card)
    int8_saving.save_ranges(tmp_path / "model", int8_model.ranges)
    args = ["--model", tmp_path / "model", "--output", tmp_path / "out", "--verify_images=8"]
    table = converted(capfd, *args, "--target=generic")
    assert table["delegate partitions"] == "20"
    assert "20 delegate partitions instead of 1 (outside: 19 HARD_SWISH)" in caplog.text
    content = tflite_model.read(tmp_path / "out/model.tflite")
    assert sum(op.name == "HARD_SWISH" for op in content.operators) == 19
    with pytest.raises(VerificationError, match="20 delegate partitions instead of 1"):
        converter.run([*map(str, args), "--target=generic", "--max_partitions=1"])


def keras3(folder: Path) -> str:
    import keras

    source = keras.Input((32, 32, 3))
    keras.Model(source, keras.ops.exp(source)).save(folder / "model.keras")
    return "Exp"


def wrapped(folder: Path) -> str:
    scheme.wrap(small_models.toy(), small_models.INCEPTION).save(folder / "model.h5")
    return "model.h5"


def not_finite(folder: Path) -> str:
    model = small_models.toy()
    model.get_layer("d").bias.assign(np.full(16, np.nan))
    model.save(folder / "model.keras")
    return r"weight d/bias:0: got 'NaN or infinity'"


@pytest.mark.parametrize("make", [keras3, wrapped, not_finite])
def test_models_that_cannot_be_converted_cost_one_line(
    tmp_path: Path, make: Callable[[Path], str]
) -> None:
    message = make(tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(UsageError, match=message) as caught:
        converter.run([f"--model={path}", f"--output={tmp_path / 'out'}", "--verify_images=4"])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_model_costs_one_line(tmp_path: Path) -> None:
    done = command_runs.start_command("converter", "--model", tmp_path / "none")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "there is nothing there" in done.stderr
    done = command_runs.run_command("converter")
    assert done.returncode == 2 and done.stderr.startswith("--model: expected a saved model")


def test_a_flatbuffer_is_no_model_to_convert(run: Path) -> None:
    with pytest.raises(UsageError, match="a model with layers or a graph; a flatbuffer has none"):
        converter.run([f"--model={run / 'export/model.tflite'}"])


def damaged(run: Path, tmp_path: Path, name: str) -> Path:
    folder = Path(shutil.copytree(run / "quantize", tmp_path / "model"))
    if name == "ranges cut":
        (folder / "ranges.npz").write_bytes((folder / "ranges.npz").read_bytes()[:300])
    elif name == "ranges of another model":
        np.savez(folder / "ranges.npz", Conv2d_99=np.array([-1, 1], np.float32))
    elif name == "ranges empty":
        with np.load(folder / "ranges.npz") as archive:
            np.savez(folder / "ranges.npz", **{key: archive[key] * 0 for key in archive.files})
    elif name == "card":
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps({**card, "input_shape": "big"}))
    else:
        (folder / "model.keras").write_bytes((folder / "model.keras").read_bytes()[:5000])
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "ranges cut",
        pytest.param("ranges of another model", marks=pytest.mark.slow),
        pytest.param("ranges empty", marks=pytest.mark.slow),
        "card",
        "model",
    ],
)
def test_the_damaged_file_of_a_folder_is_named(run: Path, tmp_path: Path, name: str) -> None:
    folder = damaged(run, tmp_path, name)
    with pytest.raises(UsageError) as caught:
        converter.run([f"--model={folder}", f"--output={tmp_path / 'out'}"])
    file = {"card": "card.json", "model": "model.keras"}.get(name, "ranges.npz")
    assert str(folder) in str(caught.value)
    assert file in str(caught.value) or name == "model"
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_fails_verification_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that returns another model's file."""
    from mobilenet.export import tflite_converter

    other = (run / "export/model.tflite").read_bytes()
    monkeypatch.setattr(tflite_converter, "float_flatbuffer", lambda *args: other)
    with pytest.raises(VerificationError, match="it was not written") as caught:
        converter.run([f"--model={run / 'train'}", f"--output={tmp_path / 'out'}"])
    assert caught.value.status == 3
    assert list(tmp_path.iterdir()) == []
