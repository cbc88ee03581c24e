"""Several labels an image, and one output for two classes, from a list to a verified int8 file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_runs import TINY, report, run_command
from PIL import Image

from mobilenet.configs import recipes
from mobilenet.runtime.classifier import Classifier

LABELS = ("red", "green", "blue")
ROWS = 4  # of the 14 of V1: enough for colors, and built in a quarter of the time
QUICK = (*TINY, "--batch_size=8", "--color=0", "--area_min=1", "--distill=none")
STEADY = ("--batch_norm_decay=0.6", "--ma_decay_rate=0", "--warmup_epochs=0", "--lr=0.01")


def train(folder: Path, dataset: str, classes: int, *args: str) -> str:
    """Trains a short V1 into `folder / "run"` with the flags; returns stdout."""
    config = recipes.get("mobilenet_v1", dataset)
    model = config.model.replace(blocks=config.model.blocks[:ROWS], num_classes=classes)
    (folder / "config.json").write_text(json.dumps(config.replace(model=model).to_json()))
    start = (f"--config_file={folder / 'config.json'}", f"--model_dir={folder / 'run'}")
    done = run_command("trainer", *start, *QUICK, *STEADY, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_list(folder: Path, count: int = 144) -> tuple[Path, np.ndarray]:
    """Images whose three thirds are bright where they have the label, and a list of them."""
    noise = np.random.default_rng(0)
    vectors = noise.integers(0, 2, (count, 3))
    lines = [",".join(("file", *LABELS, "split"))]
    for number, vector in enumerate(vectors):
        pixels = noise.integers(0, 60, (32, 32, 3))
        pixels += 180 * vector
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
        split = "val" if number % 4 == 0 else "train"
        lines.append(f"{number:03d}.png,{','.join(map(str, vector))},{split}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv", vectors[::4]


@pytest.fixture(scope="module")
def labels_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, str]:
    """Run folder, labels of the validation images, and output."""
    folder = tmp_path_factory.mktemp("labels")
    path, vectors = write_list(folder)
    stages = ("--stages=train,quantize,convert", "--epochs=5", "--quantization=ptq")
    out = train(folder, "image_list", len(LABELS), f"--data_dir={path}", *stages)
    return folder / "run", vectors, out


def test_several_labels_train_and_become_an_int8_file(
    labels_run: tuple[Path, np.ndarray, str],
) -> None:
    run, _, out = labels_run
    assert "accuracy" in out and "AUC" in out and "top-1" not in out
    stages = report(run)
    for stage in ("train", "quantize", "convert"):  # a threshold on each color is enough
        assert stages[stage]["auc"] > 0.99 and stages[stage]["f1"] > 0.95
    assert stages["train"]["history"][-1]["val_auc"] == pytest.approx(stages["train"]["auc"])
    card = json.loads((run / "export" / "card.json").read_text())
    assert (card["labels"], card["activation"]) == (list(LABELS), "sigmoid")
    assert card["outputs"] == "logits" and card["output"]["dtype"] == "int8"
    assert card["quantization_steps"][-1]["agreement"] > 0.9
    config = json.loads((run / "config.json").read_text())
    assert config["activation"] == "sigmoid" and config["model"]["num_classes"] == 3


def test_the_evaluator_scores_a_file_label_by_label(
    labels_run: tuple[Path, np.ndarray, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUC is the share of pairs in the right order, F1 is computed from its definition."""
    monkeypatch.setenv("COLUMNS", "80")
    run, vectors, _ = labels_run
    export, path = run / "export", run.parent / "list.csv"
    data = (f"--data_dir={path}", "--dataset_name=image_list")
    done = run_command("evaluator", f"--model={export}", *data)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "/" not in line]  # paths are longer
    assert max(map(len, lines)) <= 80
    number = r" +([\d.]+)"
    columns = f"^ *(red|green|blue)(?: +[\\d.]+){{2}}{number * 3} +[\\d.]+$"  # F1, images, AUC
    rows = re.findall(columns, done.stdout, re.M)
    assert [name for name, *_ in rows] == list(LABELS)
    photos = [run.parent / f"{4 * number:03d}.png" for number in range(len(vectors))]
    pixels = np.stack([np.asarray(Image.open(photo)) for photo in photos])
    logits = Classifier(export).logits(pixels)
    for index, (_, f1_shown, count, auc) in enumerate(rows):
        truth, scores = vectors[:, index] == 1, logits[:, index]
        assert int(count) == truth.sum()
        above = scores[truth][:, None] - scores[~truth]
        right = (scores > 0) == truth
        f1 = 2 * (right & truth).sum() / (2 * (right & truth).sum() + (~right).sum())
        expected = [((above > 0) + (above == 0) / 2).mean(), f1]
        assert [float(auc), float(f1_shown)] == pytest.approx(expected, abs=6e-5)


def test_two_class_folders_train_one_output(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    for name, level in (("dark", 0), ("light", 180)):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for number in range(40):
            pixels = noise.integers(level, level + 60, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    flags = ("--activation=sigmoid", "--stages=train", "--epochs=3")
    train(tmp_path, "image_folder", 2, f"--data_dir={tmp_path / 'data'}", *flags)
    card = json.loads((tmp_path / "run" / "train" / "card.json").read_text())
    assert (card["labels"], card["activation"]) == (["dark", "light"], "sigmoid")
    assert (card["metrics"]["auc"], card["metrics"]["f1"]) == (1, 1)
    for name, other in (("light", "dark"), ("dark", "light")):
        photo = tmp_path / "data" / name / "0.png"
        shown = run_command("predict", f"--model={tmp_path / 'run' / 'train'}", str(photo))
        rows = re.findall(r"(light|dark) +([\d.]+) %", shown.stdout)
        assert [label for label, _ in rows] == [name, other]
        assert float(rows[0][1]) > 60
        assert sum(float(share) for _, share in rows) == pytest.approx(100, abs=0.02)


def test_a_softmax_for_several_labels_is_refused(tmp_path: Path) -> None:
    path, _ = write_list(tmp_path, 40)
    args = (f"--data_dir={path}", "--dataset_name=image_list", "--activation=softmax")
    done = run_command("trainer", *QUICK, *args, f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "--activation: got 'softmax', expected sigmoid" in done.stderr
