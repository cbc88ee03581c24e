"""`python -m mobilenet.predict` as a process."""

from __future__ import annotations

import csv
import io
import json
import shutil
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
    (folder / "empty").mkdir()
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
        "image corrupt": ["--model", export, broken],
        "no image in a folder": ["--model", export, folder / "empty"],
        "no image of a pattern": ["--model", export, folder / "*.jpg"],
        "unknown format": ["--model", export, photos[0], "--format=xml"],
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
        ("no image in a folder", "empty: expected a folder with images"),
        ("no image of a pattern", "*.jpg: expected a pattern that matches images"),
        ("unknown format", "--format"),
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


@pytest.fixture
def many(photos: list[Path], tmp_path: Path) -> Path:
    """A folder with four images, one of them broken, and what is none."""
    folder = tmp_path / "many"
    (folder / "inner").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("a.png", "c, d.PNG", "inner/e.png", ".hidden/f.png", ".g.png", "notes.txt"):
        shutil.copy(photos[len(name) % 2], folder / name)
    (folder / "b.png").write_bytes(photos[0].read_bytes()[:50])
    return folder


def test_a_broken_image_among_many_is_a_line_and_the_others_go_on(export: Path, many: Path) -> None:
    done = run_command("predict", "--model", export, many, "--format=csv", "--top_k=2")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "b.png: expected an image" in done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["path"] for row in rows] == [
        str(many / name) for name in ("a.png", "c, d.PNG", "inner/e.png")
    ]
    for row in rows:
        shares = keras_shares(Path(row["path"]))
        best = np.argsort(-shares)[:2]
        assert [row["prediction"], row["prediction_2"]] == [LABELS[i] for i in best]
        found = [float(row["probability"]), float(row["probability_2"])]
        np.testing.assert_allclose(found, shares[best], atol=2e-4)


def test_patterns_and_paths_on_stdin_give_the_same_lines(
    export: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("predict", "--model", export, "--format=jsonl")
    (many / "b.png").unlink()
    by_pattern = run_command(*args, many / "**/*.[pP][nN][gG]")
    names = [many / "a.png", many / "c, d.PNG", many / "inner"]
    text = "".join(f"{name}\r\n\n" for name in names)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    by_stdin = run_command(*args, "-")
    assert (by_stdin.returncode, by_stdin.stderr) == (0, "")
    assert by_pattern.stdout == by_stdin.stdout
    values = [json.loads(line) for line in by_stdin.stdout.splitlines()]
    assert [value["path"] for value in values] == [*map(str, names[:2]), str(many / "inner/e.png")]
    assert all(value["probability"] == value["top"][0]["probability"] for value in values)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"nowhere.png\n")))
    done = run_command(*args, "-")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    done = run_command(*args, "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_closed_pipe_and_a_broken_stdin_end_quietly(export: Path, photos: list[Path]) -> None:
    """`predict photos | head -1`, a closed standard input, and one that cannot be read."""
    words = [sys.executable, "-m", "mobilenet.predict", f"--model={export}", "--format=csv"]
    first, second = (str(photo) for photo in photos)
    script = f'"$@" {first} $(yes {second} | head -300) | head -2; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("path,prediction") and lines[1].startswith(first)
    assert lines[2] == "141"
    script = '"$@" - <&-; echo $?; "$@" - 0>/dev/null'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "0\n")
    assert done.stderr.startswith("-: expected paths on standard input")
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
