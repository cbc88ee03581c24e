"""All stages on the real digits, by one process; then what is in its folder."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import CHAIN, EPOCHS, LEARNED, FinishedRun, report

from mobilenet import trainer
from mobilenet.tflite import model as tflite_model

pytest.importorskip("tensorflow")

FILES = [
    "config.json",
    "environment.json",
    "example.png",
    "export/README.md",
    "export/card.json",
    "export/labels.txt",
    "export/model.tflite",
    "log.txt",
    "metrics.csv",
    "prune/card.json",
    "prune/model.keras",
    "quantize/card.json",
    "quantize/model.keras",
    "quantize/ranges.npz",
    "report.html",
    "report.json",
    "train/card.json",
    "train/model.keras",
]


@pytest.fixture(scope="module")
def run(finished_run: FinishedRun) -> Path:
    return finished_run[0]


@pytest.fixture(scope="module")
def printed(finished_run: FinishedRun) -> str:
    return finished_run[1].stdout


def test_nothing_is_printed_on_stderr(finished_run: FinishedRun) -> None:
    assert finished_run[1].stderr == ""


def test_an_epoch_is_a_line_and_a_stage_ends_with_its_accuracy(printed: str) -> None:
    lines = printed.splitlines()
    for stage, epochs in EPOCHS.items():
        assert sum(line.startswith(f"{stage:<8} epoch ") for line in lines) == epochs
    for stage in CHAIN:
        assert any(
            re.match(rf"{stage}: top-1 \d+\.\d\d % on the test images", line) for line in lines
        )
    assert not re.search(r"\x1b|\r", printed)


def test_the_closing_table_agrees_with_the_report(run: Path, printed: str) -> None:
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line[:1].islower()}
    assert "stage      top-1 %   top-5 %    params      MACs   non-zero     bytes" in printed
    for name, entry in report(run).items():
        cells = rows[name][1:]
        assert cells[0] == f"{entry['top1']:.2f}"
        counts = [entry[key] for key in ("params", "macs", "nonzero_weights")]
        assert cells[2:5] == [f"{value:,}" for value in counts]
    assert rows["convert"][6] == f"{(run / 'export/model.tflite').stat().st_size:,}"


def test_the_folder_contains_the_expected_complete_files(run: Path) -> None:
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    events = {name for name in files if name.startswith("tensorboard/")}
    assert {Path(name).parts[1] for name in events} == {"train", "prune", "quantize"}
    shown = {name for name in files if name.startswith(("plots/", "report_data/"))}
    assert {"plots/top1.svg", "plots/sparsity.svg", "plots/confusion_matrix.svg"} <= shown
    assert sorted(files - events - shown - {".lock"}) == FILES
    assert not list((run / "checkpoints").iterdir())  # the resume state of finished stages


def test_tensorboard_has_curves_sparsity_images_and_the_config(run: Path) -> None:
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def tags(part: str) -> tuple[dict[str, Any], Any]:
        events = EventAccumulator(str(run / "tensorboard" / part), {"tensors": 0}).Reload()
        return events.Tags(), events

    train, events = tags("train/train")
    assert {"training images"} <= set(train["tensors"]) and train["graph"]
    assert events.PluginTagToContent("hparams")
    rows = report(run)["train"]["history"]
    for part, prefix in (("train/train", ""), ("train/validation", "val_")):
        shown = tags(part)[1]
        for name in ("loss", "top1"):
            values = [tf.make_ndarray(e.tensor_proto) for e in shown.Tensors(f"epoch_{name}")]
            np.testing.assert_allclose(values, [row[prefix + name] for row in rows], rtol=1e-5)
    assert "epoch_learning_rate" in train["tensors"]
    pruned, events = tags("prune/train")
    assert {"epoch_sparsity", "epoch_target_sparsity"} <= set(pruned["tensors"])
    names = [name for name in pruned["tensors"] if name.startswith("sparsity/")]
    assert "sparsity/Conv2d_13_pointwise" in names and "training images" not in pruned["tensors"]
    last = {name: float(tf.make_ndarray(events.Tensors(name)[-1].tensor_proto)) for name in names}
    assert 0.5 <= last["sparsity/Conv2d_13_pointwise"] < 0.9 and last["sparsity/Conv2d_0"] < 0.5


def test_the_report_contains_every_metric(run: Path) -> None:
    entries = report(run)
    assert list(entries) == list(CHAIN)
    for name, entry in entries.items():
        assert 0 < entry["top1"] <= entry["top5"] <= 100
        assert entry["params"] == 221_114  # 3 x 3 x 3 x 8 + ... counted by keras.applications
        assert 0 < entry["nonzero_weights"] <= entry["params"]
        assert entry["macs"] > 0
        if name != "quantize":
            assert 0 < entry["gzip_bytes"] < entry["bytes"]
            assert entry["latency_ms"] > 0
    assert entries["convert"]["bytes"] < 0.5 * entries["train"]["bytes"]
    assert entries["prune"]["nonzero_weights"] < 0.6 * entries["train"]["nonzero_weights"]
    assert entries["train"]["top1"] > 75  # it has learnt
    assert abs(entries["convert"]["top1"] - entries["quantize"]["top1"]) <= 2


def test_metrics_csv_has_a_line_an_epoch(run: Path) -> None:
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == [s for s, n in EPOCHS.items() for _ in range(n)]
    numbers = [epoch for n in EPOCHS.values() for epoch in range(1, n + 1)]
    assert [int(row["epoch"]) for row in rows] == numbers
    history = json.loads((run / "prune/card.json").read_text())["history"]
    pruned = [float(row["val_top1"]) for row in rows if row["stage"] == "prune"]
    assert pruned == [h["val_top1"] for h in history]


def test_environment_names_what_the_run_ran_on(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["tensorflow"].startswith("2.")
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["cores"] >= 1
    assert "--model_dir=run" in environment["command"]


def test_half_of_the_pointwise_weights_are_zero_in_the_file_itself(run: Path) -> None:
    """Counted in the flatbuffer's own tensors: kernels 1x1 of CONV_2D, but for the head's."""
    content = tflite_model.read(run / "export/model.tflite")
    kernels = [content.tensors[op.inputs[1]] for op in content.operators if op.name == "CONV_2D"]
    pointwise = [k for k in kernels if tuple(k.shape[1:3]) == (1, 1) and k.shape[0] != 10]
    assert len(pointwise) == 13
    zeros = sum(int((k.data == 0).sum()) for k in pointwise)
    assert zeros >= 0.5 * sum(k.elements for k in pointwise)
    for kernel in pointwise:
        assert (kernel.data == 0).mean() >= 0.5 - 1 / kernel.elements


def test_the_file_is_int8_from_input_to_output(run: Path) -> None:
    content = tflite_model.read(run / "export/model.tflite")
    kinds = {tensor.dtype for tensor in content.tensors}
    assert "float32" not in kinds
    assert "int8" in kinds
    (source,), (target,) = content.inputs, content.outputs
    assert content.tensors[source].dtype == content.tensors[target].dtype == "int8"
    assert tuple(content.tensors[source].shape) == (1, 32, 32, 3)
    assert content.tensors[source].scales[0] == pytest.approx(1 / 127.5)
    assert not any(op.name in ("QUANTIZE", "DEQUANTIZE") for op in content.operators)


def test_the_three_next_steps_run_as_they_are_printed(
    run: Path, printed: str, tmp_path: Path
) -> None:
    steps = [line.strip() for line in printed.split("Next:\n")[1].splitlines() if line]
    assert len(steps) == 3
    (tmp_path / "run").symlink_to(run)
    outputs = []
    for step in steps:
        args = shlex.split(step)
        assert args[0] == "python"
        done = subprocess.run(
            [sys.executable, *args[1:]], capture_output=True, text=True, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, "")
        outputs.append(done.stdout)
    assert f" {report(run)['convert']['top1']:.2f} " in outputs[0]
    assert "example.png" in outputs[1]
    assert outputs[2].startswith("[('")


def test_a_config_replays_to_the_same_config(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    args = [f"--config_file={run / 'config.json'}", f"--model_dir={again}"]
    trainer.run([*args, "--override", "stages=train", "--override=train.epochs=0"])
    assert capfd.readouterr().err == ""
    old = json.loads((run / "config.json").read_text())
    new = json.loads((again / "config.json").read_text())
    assert (new.pop("stages"), new["train"].pop("epochs")) == (["train"], 0)
    assert (old.pop("stages"), old["train"].pop("epochs")) == (list(CHAIN), EPOCHS["train"])
    assert new == old


def test_the_same_command_reports_that_the_run_is_finished(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("model.*")}
    trainer.run([*LEARNED, f"--model_dir={tmp_path / 'run'}"])
    out, err = capfd.readouterr()
    assert err == ""
    for stage in CHAIN:
        assert f"{stage}: finished before, top-1" in out
    assert "epoch" not in out
    assert {p: p.stat().st_mtime_ns for p in before} == before
    labels = (tmp_path / "run/export/labels.txt").read_text().split()
    assert labels == [str(n) for n in range(10)]
    assert np.load(tmp_path / "run/quantize/ranges.npz").files
