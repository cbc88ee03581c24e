"""`python -m mobilenet.predict` as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_models
import tflite_files
from command_runs import run_command, start_command
from PIL import Image

from mobilenet import predict
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError
from mobilenet.files import write_json

pytest.importorskip("tensorflow", reason="TensorFlow's converter makes the files")

LABELS = tuple(f"class {index}" for index in range(small_models.TINY_V1_CLASSES))
CARD = Card(input_shape=(small_models.TINY_V1_SIZE, small_models.TINY_V1_SIZE, 3), labels=LABELS)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.tflite").write_bytes(tflite_files.flatbuffer("float"))
    write_json(folder / "card.json", CARD.to_json())
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    noise = np.random.default_rng(0)
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        patches = noise.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(patches.repeat(5, axis=0).repeat(6, axis=1)).save(path)
    return paths


def keras_shares(path: Path) -> np.ndarray:
    """Probabilities by Keras and TensorFlow's own decoding."""
    import tensorflow as tf

    image = tf.image.central_crop(tf.io.decode_png(path.read_bytes(), channels=3), 0.875)
    pixels = tf.image.resize(image, CARD.input_shape[:2])[None]
    return tf.nn.softmax(small_models.tiny_v1()(pixels / 127.5 - 1)).numpy()[0]


def parse(text: str) -> dict[str, dict[str, float]]:
    """Probability in percent by image and label, from what was printed."""
    actual = {}
    for block in text.strip().split("\n\n"):
        image, header, _, *rows = block.splitlines()
        assert header.split() == ["label", "probability"]
        actual[image] = {row.rsplit(maxsplit=2)[0].strip(): float(row.split()[-2]) for row in rows}
    return actual


def test_tables_of_a_flatbuffer(export: Path, photos: list[Path]) -> None:
    done = start_command("predict", "--model", export, *photos, "--top_k", 3)
    assert (done.returncode, done.stderr) == (0, "")
    tables = parse(done.stdout)
    assert list(tables) == [str(path) for path in photos]
    for path in photos:
        shares = keras_shares(path)
        best = np.argsort(-shares)[:3]
        assert list(tables[str(path)]) == [LABELS[i] for i in best]
        np.testing.assert_allclose(list(tables[str(path)].values()), 100 * shares[best], atol=0.02)


def test_keras_models_have_equal_outputs(export: Path, photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    small_models.tiny_v1().save(folder / "model.keras")
    write_json(folder / "card.json", CARD.to_json())
    done = start_command("predict", "--model", folder, photos[0])
    assert (done.returncode, done.stderr) == (0, "")
    by_file = parse(run_command("predict", "--model", export / "model.tflite", photos[0]).stdout)
    by_keras = parse(done.stdout)
    assert list(by_keras[str(photos[0])]) == list(by_file[str(photos[0])])
    assert by_keras[str(photos[0])] == pytest.approx(by_file[str(photos[0])], abs=0.02)


def test_bare_file_reports_what_it_assumes(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(tflite_files.flatbuffer("float"))
    done = run_command("predict", "--model", tmp_path / "a.tflite", photos[0])
    assert done.returncode == 0
    assert done.stderr.startswith("Note: no card.json") and done.stderr.count("\n") == 1


def test_no_tensorflow_for_a_flatbuffer(export: Path, photos: list[Path]) -> None:
    code = (
        "import sys, time; from mobilenet import predict;"
        f"predict.run(['--model', {str(export)!r}, {str(photos[0])!r}]);"
        "print(time.process_time(), *{'tensorflow', 'tf_keras', 'keras'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, *heavy = done.stdout.splitlines()[-1].split()
    assert heavy == []
    assert float(seconds) < 1  # CPU time, so that a busy machine does not matter


def bad(case: str, export: Path, photos: list[Path], folder: Path) -> list[object]:
    """Arguments of a command that cannot work."""
    broken = folder / "broken.png"
    broken.write_bytes(photos[0].read_bytes()[:50])
    text = folder / "text.tflite"
    text.write_text("not a model")
    return {
        "no model": [photos[0]],
        "no image": ["--model", export],
        "top_k 0": ["--model", export, photos[0], "--top_k", 0],
        "top_k text": ["--model", export, photos[0], "--top_k", "many"],
        "model missing": ["--model", folder / "none", photos[0]],
        "image missing": ["--model", export, photos[0], folder / "none.png"],
        "image corrupt": ["--model", export, photos[0], broken],
        "image a folder": ["--model", export, folder],
        "not a model": ["--model", text, photos[0]],
        "unknown flag": ["--modle", export, photos[0]],
        "too many pixels": ["--model", export, photos[0], "--max_pixels", 1919],
        "no pixels": ["--model", export, photos[0], "--max_pixels", 0],
    }[case]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no model", "--model"),
        ("no image", "IMAGE"),
        ("top_k 0", "--top_k"),
        ("top_k text", "--top_k"),
        ("model missing", "none"),
        ("image missing", "none.png"),
        ("image corrupt", "broken.png"),
        ("image a folder", "image file"),
        ("not a model", "text.tflite"),
        ("unknown flag", "--modle"),
        ("too many pixels", "48 x 40 pixels, more than 1,919 (max_pixels)"),
        ("no pixels", "--max_pixels"),
    ],
)
def test_bad_input_is_one_line(
    case: str, message: str, export: Path, photos: list[Path], tmp_path: Path
) -> None:
    done = run_command("predict", *bad(case, export, photos, tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_folder_without_a_model_is_refused(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="nothing"):
        predict.run(["--model", str(tmp_path / "nothing"), str(photos[0])])


def test_label_count_of_a_keras_model(photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    small_models.tiny_v1().save(folder / "model.keras")
    write_json(folder / "card.json", CARD.replace(labels=("a", "b")).to_json())
    with pytest.raises(UsageError, match="10 labels"):
        predict.run(["--model", str(folder), str(photos[0])])
