"""Several labels an image, and one output for two classes, from a list to a verified int8 file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_runs import TINY, report, run_command
from PIL import Image

LABELS = ("red", "green", "blue")
QUICK = (*TINY, "--batch_size=16", "--color=0", "--area_min=1", "--distill=none")
STEADY = ("--batch_norm_decay=0.6", "--ma_decay_rate=0", "--warmup_epochs=0", "--lr=0.01")


def write_list(folder: Path, count: int = 96) -> tuple[Path, np.ndarray]:
    """Images whose three thirds are bright where they have the label, and a list of them."""
    noise = np.random.default_rng(0)
    vectors = noise.integers(0, 2, (count, 3))
    lines = [",".join(("file", *LABELS, "split"))]
    for number, vector in enumerate(vectors):
        pixels = noise.integers(0, 60, (32, 32, 3))
        pixels += 180 * vector
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
        split = "val" if number % 4 == 0 else "train"
        lines.append(f"{number:02d}.png,{','.join(map(str, vector))},{split}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv", vectors[::4]


@pytest.fixture(scope="module")
def labels_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    folder = tmp_path_factory.mktemp("labels")
    path, _ = write_list(folder)
    data = (f"--data_dir={path}", "--dataset_name=image_list", f"--model_dir={folder / 'run'}")
    stages = "--stages=train,quantize,convert"
    epochs = ("--epochs=10", "--quantize_epochs=2")
    done = run_command("trainer", *QUICK, *STEADY, *data, stages, *epochs)
    assert done.returncode == 0, done.stderr
    return folder / "run", path, done.stdout


def test_several_labels_train_and_become_an_int8_file(labels_run: tuple[Path, Path, str]) -> None:
    run, _, out = labels_run
    assert "accuracy %" in out and "AUC" in out and "top-1" not in out
    stages = report(run)
    assert {"auc", "f1"} <= set(stages["train"]) and stages["convert"]["auc"] > 0.8  # chance is 0.5
    assert "val_auc" in stages["train"]["history"][0]
    card = json.loads((run / "export" / "card.json").read_text())
    assert (card["labels"], card["activation"]) == (list(LABELS), "sigmoid")
    assert card["outputs"] == "logits" and card["output"]["dtype"] == "int8"
    config = json.loads((run / "config.json").read_text())
    assert config["activation"] == "sigmoid" and config["model"]["num_classes"] == 3


def test_the_file_agrees_with_the_list_label_by_label(
    labels_run: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run, path, _ = labels_run
    data = (f"--data_dir={path}", "--dataset_name=image_list")
    outputs = []
    for model in (run / "export", run / "quantize"):
        done = run_command("evaluator", f"--model={model}", *data)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if "/" not in line]  # paths are longer
        assert max(map(len, lines)) <= 80
        rows = re.findall(r"^ *(red|green|blue) +(\d+) +([\d.]+) +([\d.]+)$", done.stdout, re.M)
        outputs.append({name: [float(x) for x in cells] for name, *cells in rows})
    vectors = write_expected(path)
    for figures in outputs:
        assert list(figures) == list(LABELS)
        assert [figures[name][0] for name in LABELS] == vectors.sum(axis=0).tolist()
    for name in LABELS:
        assert outputs[0][name] == pytest.approx(outputs[1][name], abs=0.05)


def write_expected(path: Path) -> np.ndarray:
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return np.array([[int(cell) for cell in row[1:4]] for row in rows if row[4] == "val"])


def test_two_class_folders_train_one_output(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    for name, level in (("dark", 0), ("light", 180)):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for number in range(40):
            pixels = noise.integers(level, level + 60, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    data = (f"--data_dir={tmp_path / 'data'}", "--dataset_name=image_folder")
    args = (*STEADY, "--activation=sigmoid", "--stages=train,convert", "--epochs=5")
    done = run_command("trainer", *QUICK, *data, *args, f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "run" / "export" / "card.json").read_text())
    assert (card["labels"], card["activation"]) == (["dark", "light"], "sigmoid")
    assert 0.5 < card["metrics"]["auc"] <= 1 and 0 <= card["metrics"]["f1"] <= 1
    photo = tmp_path / "data" / "light" / "0.png"
    shown = run_command("predict", f"--model={tmp_path / 'run' / 'export'}", str(photo))
    shares = {name: float(x) for name, x in re.findall(r"(light|dark) +([\d.]+) %", shown.stdout)}
    assert list(shares) == sorted(shares, key=lambda name: -shares[name])
    assert sum(shares.values()) == pytest.approx(100, abs=0.02)


def test_a_softmax_for_several_labels_is_refused(tmp_path: Path) -> None:
    path, _ = write_list(tmp_path, 40)
    args = (f"--data_dir={path}", "--dataset_name=image_list", "--activation=softmax")
    done = run_command("trainer", *QUICK, *args, f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "--activation: got 'softmax', expected sigmoid" in done.stderr
