"""`python -m mobilenet.evaluator`: one figure for a model, its flatbuffers and its simulation."""

from __future__ import annotations

import csv
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from command_runs import FinishedRun, report, start_command
from PIL import Image

from mobilenet import evaluator
from mobilenet.data.sources import digits
from mobilenet.errors import UsageError

tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")


@pytest.fixture(scope="module")
def run(finished_run: FinishedRun) -> Path:
    return finished_run[0]


def metrics_of(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[float, float, float, int]:
    """top-1, top-5, loss, images, as printed."""
    capfd.readouterr()
    evaluator.run([*map(str, args)])
    out, err = capfd.readouterr()
    assert err == ""
    top1, top5, loss, images, _ = out.strip().splitlines()[-1].split()
    return float(top1), float(top5), float(loss), int(images.replace(",", ""))


@pytest.mark.parametrize("stage", ["train", "convert"])
def test_it_gives_what_the_run_reports(
    run: Path, stage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    entry = report(run)[stage]
    top1, top5, loss, images = metrics_of(
        capfd, "--model", run / stage.replace("convert", "export")
    )
    assert images == 360
    assert top1 == pytest.approx(entry["top1"], abs=0.006)
    assert top5 == pytest.approx(entry["top5"], abs=0.006)
    assert loss == pytest.approx(entry["loss"], abs=2e-4)


@pytest.fixture(scope="module")
def float_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pruned model, converted by TensorFlow's own converter."""
    model = tf_keras.models.load_model(run / "prune/model.keras", compile=False)
    export = tmp_path_factory.mktemp("float")
    traced = tf.function(model).get_concrete_function(tf.TensorSpec((1, 32, 32, 3)))
    data = tf.lite.TFLiteConverter.from_concrete_functions([traced], model).convert()
    (export / "model.tflite").write_bytes(data)
    shutil.copy(run / "prune/card.json", export)
    return export


def test_a_model_and_its_float_file_have_the_same_metrics(
    run: Path, float_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keras, file = (metrics_of(capfd, "--model", path) for path in (run / "prune", float_file))
    assert keras[0] == file[0]
    assert keras[1] == file[1]
    assert keras[2] == pytest.approx(file[2], abs=2e-4)
    assert keras[3] == file[3] == 360


def test_metrics_are_those_of_plain_keras(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tf_keras.models.load_model(run / "train/model.keras", compile=False)
    data = digits.load()
    chosen = data.indices("validation")
    pixels = digits.enlarge(data.images[chosen], (32, 32)).astype(np.float32)
    logits = model.predict(pixels / 127.5 - 1, verbose=0)
    expected = 100 * (logits.argmax(axis=1) == data.labels[chosen]).mean()
    result = metrics_of(capfd, "--model", run / "train", "--split=validation", "--batch_size=50")
    assert result[0] == pytest.approx(expected, abs=0.006)
    assert result[3] == len(chosen)


def test_a_quantized_folder_is_evaluated_as_its_int8_model(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = metrics_of(capfd, "--model", run / "quantize")
    assert folder[0] == pytest.approx(report(run)["quantize"]["top1"], abs=0.006)
    file = metrics_of(capfd, "--model", run / "export")
    plain = metrics_of(capfd, "--model", run / "quantize/model.keras", "--dataset_name=digits")
    assert folder[0] == pytest.approx(file[0], abs=1.0)
    assert folder[2] == pytest.approx(file[2], abs=0.01)
    assert abs(plain[2] - folder[2]) > 1e-4  # the lone float model is another model


@pytest.mark.parametrize("stage", ["prune", "export"])
def test_the_output_folder_has_what_the_table_shows(
    run: Path, stage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a model and of its int8 file; a second evaluation replaces the first."""
    args = ["--model", run / stage, "--output", tmp_path / "new/figures"]
    for words in ([], ["--limit=50"]):
        top1, _, _, images = metrics_of(capfd, *args, *words)
    with open(tmp_path / "new/figures/predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == images == 50
    assert top1 == pytest.approx(100 * np.mean([r["label"] == r["prediction"] for r in rows]))
    data = digits.load()
    labels = data.labels[data.indices("test")]
    assert all(labels[int(row["path"])] == int(row["label"]) for row in rows)
    with pytest.raises(UsageError, match="^--output: .*new folder or one that holds an evaluation"):
        evaluator.run(["--model", str(run / stage), "--output", str(run)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Test digits as class folders of PNG files."""
    data = digits.load()
    for index in data.indices("test")[:120]:
        folder = tmp_path / "photos/val" / str(data.labels[index])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = digits.enlarge(data.images[index : index + 1], (32, 32))[0]
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_class_folders_are_read_equally_with_and_without_tensorflow(
    run: Path, float_file: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["--dataset_name=image_folder", f"--data_dir={photos}"]
    plain = metrics_of(capfd, "--model", float_file, *args)
    keras = metrics_of(capfd, "--model", run / "prune", *args)
    assert plain[3] == keras[3] == 120
    assert abs(plain[0] - keras[0]) <= 100 / 120 + 1e-6  # one image


def test_a_file_is_scored_without_tensorflow_and_soon(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ImportError('this test has no TensorFlow')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    started = time.monotonic()
    done = start_command("evaluator", "--model", run / "export", PYTHONPATH=path)
    seconds = time.monotonic() - started
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf" {report(run)['convert']['top1']:.2f} ", done.stdout)
    assert seconds < 10  # under 1 s on an idle machine


def test_a_file_without_a_card_of_a_model_with_probabilities(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tf_keras.models.load_model(run / "train/model.keras", compile=False)
    shares = tf_keras.Model(model.input, tf_keras.layers.Softmax()(model.output))
    shares.save(tmp_path / "shares.keras")
    result = metrics_of(capfd, "--model", tmp_path / "shares.keras", "--dataset_name=digits")
    expected = metrics_of(capfd, "--model", run / "train")
    assert result[:2] == expected[:2]
    assert result[2] == pytest.approx(expected[2], abs=2e-4)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--split=tset"], ["--split: got 'tset'", "did you mean test?"]),
        (["--batch_size=0"], ["--batch_size: got 0", "at least 1"]),
        (["--threads=0"], ["threads: got 0", "at least 1"]),
        (["--limit=0"], ["limit: got 0", "at least 1"]),
        (["--dataset_name=image_folder"], ["--data_dir", "a folder of class folders"]),
        (["--dataset_name=image_folder", "--data_dir=nowhere"], ["'nowhere'", "that exists"]),
        (["--modle=x"], ["--modle", "did you mean --model"]),
    ],
)
def test_invalid_flags(run: Path, args: list[str], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        evaluator.run([f"--model={run / 'export'}", *args])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("folder", ["export", "train"])
def test_data_of_other_classes(run: Path, photos: Path, folder: str) -> None:
    shutil.rmtree(photos / "val/3")
    (photos / "val/4").rename(photos / "val/four")
    with pytest.raises(UsageError, match="classes"):
        evaluator.run(
            [f"--model={run / folder}", "--dataset_name=image_folder", f"--data_dir={photos}"]
        )


@pytest.mark.parametrize("folder", ["export", "train"])
def test_a_corrupt_image_is_named_or_counted(
    run: Path, photos: Path, folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = next((photos / "val/5").glob("*.png"))
    bad.write_bytes(bad.read_bytes()[:60])
    args = [f"--model={run / folder}", "--dataset_name=image_folder", f"--data_dir={photos}"]
    with pytest.raises(UsageError, match=f"{bad.name}.*can be decoded"):
        evaluator.run(args)
    evaluator.run([*args, "--skip_corrupt"])
    out = capfd.readouterr().out
    assert " 119 " in out
    assert out.count("left out") == 1
    assert bad.name in out
