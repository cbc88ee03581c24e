"""Models that end in a sigmoid: one output for two classes, and several labels an image."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from PIL import Image
from small_models import L

import mobilenet
from mobilenet import predict
from mobilenet.configs.conversion import ConversionConfig
from mobilenet.errors import UsageError
from mobilenet.runtime import Classifier

SIDE = 16
# Mean pixels of 1, 2/3 and -1 times 3 channels; in percent after a sigmoid.
WHITE = {"0": 95.26, "1": 88.08, "2": 4.74}
STEP = 0.4  # percent: of int8 logits, or of probabilities of 1/256


@functools.cache
def model(units: int, activation: str | None = "sigmoid") -> Any:
    layers = [
        L.Input((SIDE, SIDE, 3)),
        L.GlobalAveragePooling2D(),
        L.Dense(units, activation=activation, name="scores"),
    ]
    built = tf_keras.Sequential(layers)
    weights = [1.0] if units == 1 else [1.0, 2 / 3, -1.0]
    built.layers[-1].set_weights([np.array([weights] * 3), np.zeros(units)])
    return built


@functools.cache
def images() -> np.ndarray:
    noise = np.random.default_rng(0)
    gray = noise.uniform(-1, 1, (32, 1, 1, 3)) + noise.uniform(-0.4, 0.4, (32, SIDE, SIDE, 3))
    gray[:2] = np.array([1.0, -1.0])[:, None, None, None]
    gray[:2, 0, 0] = 0  # not one color
    return np.clip(gray, -1, 1).astype(np.float32)


@functools.cache
def converted(units: int, activation: str = "none") -> Any:
    quantized = mobilenet.quantize(model(units), images())
    config = ConversionConfig(output_activation=activation)
    return mobilenet.convert(quantized, images=images(), config=config)


def plain_image(value: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), value, np.uint8)


def percents(rows: Any) -> dict[str, float]:
    return {label: 100 * share for label, share in rows}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photos")
    for name, value in (("white", 255), ("black", 0)):
        Image.fromarray(plain_image(value)).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in ("white", "black")}


def predicted(capsys: pytest.CaptureFixture[str], *args: object) -> list[list[str]]:
    predict.run([str(arg) for arg in args])
    return re.findall(r"^ *(\S.*?) +(\d+\.\d+) %$", capsys.readouterr().out, re.MULTILINE)


def test_the_command_shows_both_classes_of_one_output(
    photos: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model(1).save(tmp_path / "model.keras")
    path = f"--model={tmp_path / 'model.keras'}"
    assert predicted(capsys, path, photos["white"]) == [("1", "95.26"), ("0", "4.74")]
    assert predicted(capsys, path, photos["black"]) == [("0", "95.26"), ("1", "4.74")]
    (tmp_path / "labels.txt").write_text("dark\nlight\n")
    named = predicted(capsys, path, photos["white"], f"--labels={tmp_path / 'labels.txt'}")
    assert named == [("light", "95.26"), ("dark", "4.74")]
    for name in ("cats", "dogs"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for image in ("a.png", "b.png"):
            (tmp_path / "data" / name / image).write_bytes(photos["white"].read_bytes())
    named = predicted(capsys, path, photos["white"], f"--data_dir={tmp_path / 'data'}")
    assert named == [("dogs", "95.26"), ("cats", "4.74")]
    with pytest.raises(UsageError, match=r"--labels: got '3 names', expected the names of both"):
        (tmp_path / "labels.txt").write_text("a\nb\nc\n")
        predicted(capsys, path, photos["white"], f"--labels={tmp_path / 'labels.txt'}")


def test_numbers_instead_of_names_are_noted(
    photos: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model(3).save(tmp_path / "model.keras")
    predict.run([f"--model={tmp_path / 'model.keras'}", str(photos["white"])])
    captured = capsys.readouterr()
    assert "--labels FILE or --data_dir" in captured.err and captured.err.count("\n") == 1
    rows = re.findall(r"^ *(\S.*?) +(\d+\.\d+) %$", captured.out, re.MULTILINE)
    assert {label: float(share) for label, share in rows} == WHITE


@pytest.mark.parametrize("activation", ["none", "sigmoid"])
@pytest.mark.parametrize("units", [1, 3])
def test_an_int8_file_has_the_probabilities_of_its_model(
    units: int, activation: str, tmp_path: Path
) -> None:
    file = converted(units, activation)
    outputs = "logits" if activation == "none" else "probabilities"
    assert (file.card.outputs, file.card.activation) == (outputs, "sigmoid")
    assert ("LOGISTIC" in file.verification.operators) == (activation == "sigmoid")
    expected = WHITE if units == 3 else {"1": WHITE["0"], "0": 100 - WHITE["0"]}
    file.save(tmp_path / "alone.tflite")
    file.save(tmp_path / "folder")
    for opened in (
        file.classifier(),
        Classifier(tmp_path / "folder"),
        Classifier(tmp_path / "alone.tflite"),
    ):
        rows = percents(opened.top_k(plain_image(255)))
        assert rows == pytest.approx(expected, abs=STEP)
        assert list(rows) == sorted(rows, key=lambda label: -rows[label])
    black = percents(file.classifier().top_k(plain_image(0)))
    assert black["0"] == pytest.approx(95.26 if units == 1 else 4.74, abs=STEP)
    verification = mobilenet.verify(file, mobilenet.quantize(model(units), images()), images())
    assert verification.ok and verification.agreement == 1


def test_float_files_leave_the_sigmoid_out_or_have_it() -> None:
    logits = mobilenet.convert(model(3), number_format="float32", images=images())
    config = ConversionConfig(number_format="float32", output_activation="sigmoid")
    shares = mobilenet.convert(model(3), images=images(), config=config)
    values = [3.0, 2.0, -3.0]
    np.testing.assert_allclose(logits.classifier().logits(plain_image(255)[None])[0], values, 1e-5)
    sigmoid = 1 / (1 + np.exp(-np.array(values)))
    np.testing.assert_allclose(shares.classifier().logits(plain_image(255)[None])[0], sigmoid, 1e-5)
    with pytest.raises(UsageError, match=r"output_activation: got 'softmax', expected none or sig"):
        config = config.replace(output_activation="softmax")
        mobilenet.convert(model(3), images=images(), config=config)


def test_logits_of_unknown_meaning_become_what_is_asked_for() -> None:
    config = ConversionConfig(number_format="float32", output_activation="sigmoid")
    file = mobilenet.convert(model(3, None), images=images(), config=config)
    assert percents(file.classifier().top_k(plain_image(255))) == pytest.approx(WHITE, abs=0.01)
    one = mobilenet.convert(model(1, None), number_format="float32", images=images())
    rows = percents(one.classifier().top_k(plain_image(255)))
    assert rows == pytest.approx({"1": 95.26, "0": 4.74}, abs=0.01)


def test_agreement_counts_the_labels() -> None:
    """Argmax alone would call a file of one output, or of labels that are wrong, the same."""
    other = tf_keras.models.clone_model(model(1))
    other.set_weights([-weights for weights in model(1).get_weights()])
    data = mobilenet.convert(other, number_format="float32", images=images()).content
    with pytest.raises(mobilenet.VerificationError, match="agreement"):
        mobilenet.verify(data, model(1), images())


@pytest.mark.parametrize("units", [1, 3])
def test_the_program_of_the_readme_prints_probabilities(
    units: int, photos: dict[str, Path], tmp_path: Path
) -> None:
    folder = converted(units).save(tmp_path / "export").parent
    readme = (folder / "README.md").read_text()
    assert "logits of a sigmoid" in readme and "same labels as the Keras model" in readme
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (folder / "photo.jpg").write_bytes(photos["white"].read_bytes())
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, check=True
    )
    rows = re.findall(r"([\d.]+)% (\w+)", done.stdout)
    expected = WHITE if units == 3 else {"1": WHITE["0"], "0": 100 - WHITE["0"]}
    assert {label: float(share) for share, label in rows} == pytest.approx(expected, abs=STEP)


def test_evaluate_gives_auc_and_f1_of_each_label() -> None:
    """White has labels 0 and 1, black label 2; one image lacks label 1."""
    data = np.stack([plain_image(255)] * 3 + [plain_image(0)] * 2)
    labels = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]])
    pixels = (data / 127.5 - 1).astype(np.float32)
    for opened, given in ((model(3), pixels), (converted(3), data)):
        found = mobilenet.evaluate(opened, (given, labels), labels=["sky", "sea", "night"])
        assert list(found.labels) == ["sky", "sea", "night"]
        assert [row.positives for row in found.labels.values()] == [3, 2, 2]
        # Of label 1: two of two positives tie with one of three negatives; precision 2/3.
        assert [row.auc for row in found.labels.values()] == pytest.approx([1, 5 / 6, 1])
        assert [row.f1 for row in found.labels.values()] == pytest.approx([1, 0.8, 1])
        assert found.top1 == pytest.approx(100 * 14 / 15)
        chances = 1 / (1 + np.exp(-np.array([3.0, 2.0, -3.0])))
        chances = np.where([[True]] * 3 + [[False]] * 2, chances, 1 - chances)
        loss = -np.log(np.where(labels == 1, chances, 1 - chances)).mean()
        assert found.loss == pytest.approx(loss, abs=0.01)
        text = str(found)
        assert "sea" in text and "AUC" in text and max(map(len, text.splitlines())) <= 80
    with pytest.raises(UsageError, match="0 or 1 for each label"):
        mobilenet.evaluate(model(3), (pixels, 2 * labels))


def test_evaluate_gives_accuracy_auc_and_f1_of_one_output() -> None:
    data = np.stack([plain_image(255)] * 3 + [plain_image(0)] * 2)
    found = mobilenet.evaluate(converted(1), (data, [1, 1, 0, 0, 0]), labels=["dark", "light"])
    assert found.top1 == pytest.approx(80) and list(found.labels) == ["light"]
    assert (found.auc, found.f1) == (pytest.approx(5 / 6), pytest.approx(0.8))
    assert "accuracy %" in str(found)
