"""`--pruning` and `--sparsity_pattern` through the trainer: every stage, as a process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_runs import CHAIN, TINY, report, run_command

from mobilenet.tflite import model as tflite_model

SHORT_RUN = (*TINY, "--epochs=2", "--prune_epochs=1", "--quantize_epochs=1")


def kernels(folder: Path) -> list[np.ndarray]:
    """Quantized values of the pointwise kernels of V1's file, `[outputs, 1, 1, inputs]`."""
    content = tflite_model.read(folder / "export" / "model.tflite")
    convs = [op for op in content.operators if op.name == "CONV_2D"]
    return [np.asarray(content.tensors[op.inputs[1]].data) for op in convs[1:-1]]


@pytest.mark.slow
def test_tfmots_wrapper_goes_through_every_stage_and_resumes(tmp_path: Path) -> None:
    args = (
        *SHORT_RUN,
        "--pruning=tfmot",
        "--final_sparsity=0.6",
        f"--model_dir={tmp_path / 'run'}",
    )
    first = run_command("trainer", *args, "--stages=train,prune")
    assert first.returncode == 0, first.stderr
    done = run_command("trainer", *args)
    assert done.returncode == 0, done.stderr
    assert "prune: finished before" in done.stdout
    assert tuple(report(tmp_path / "run")) == CHAIN
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["pruning"]["type"] == "TfmotPruning"
    assert min(np.mean(kernel == 0) for kernel in kernels(tmp_path / "run")) >= 0.59
    again = run_command("trainer", f"--config_file={tmp_path / 'run' / 'config.json'}", args[-1])
    assert again.returncode == 0, again.stderr
    assert "convert: finished before" in again.stdout
    other = run_command("trainer", *args, "--pruning=magnitude")
    assert other.returncode == 2
    assert "pruning.type is 'TfmotPruning', here 'MagnitudePruning'" in other.stderr


@pytest.mark.slow
def test_surgery_is_in_the_table_the_card_and_a_plot(tmp_path: Path) -> None:
    """Also where the run was finished before."""
    args = (*TINY, "--epochs=1", "--prune_epochs=1", "--stages=train,prune", "--pruning=dns")
    for _ in range(2):
        done = run_command("trainer", *args, "--pruning_frequency=4", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        run = tmp_path / "runs/mobilenet_v1_digits"
        changes = np.array(report(run)["prune"]["mask_changes"])
        assert changes[:, 0].tolist() == list(range(0, 37, 4))
        _, removed, regrown = changes.sum(0)
        rows = [line.split() for line in done.stdout.splitlines()]
        assert next(r for r in rows if r[:1] == ["prune"] and r[1] != "epoch")[-2:] == [
            f"{removed:,}",
            f"{regrown:,}",
        ]
        card = json.loads((run / "prune/card.json").read_text())
        lines = [line for line in card["notes"] if " removed, " in line]
        counts = [line.split("; ")[1].replace(",", "").split() for line in lines]
        assert sum(int(args[0]) for args in counts) == removed > 50_000
        assert f"{removed:,} removed" in (run / "plots/prune_mask_changes.svg").read_text()
        (run / "plots/prune_mask_changes.svg").unlink()
        (run / "report.html").unlink()


@pytest.mark.slow
def test_two_of_four_go_through_every_stage_into_the_file(tmp_path: Path) -> None:
    args = (*SHORT_RUN, "--sparsity_pattern=2:4", f"--model_dir={tmp_path / 'run'}")
    done = run_command("trainer", *args)
    assert done.returncode == 0, done.stderr
    pointwise = kernels(tmp_path / "run")
    assert len(pointwise) == 13
    for kernel in pointwise:
        assert (np.sum(kernel.reshape(-1, 4) == 0, axis=1) >= 2).all()


@pytest.mark.slow
def test_the_wrapper_refuses_mixed_precision_before_it_trains(tmp_path: Path) -> None:
    args = (*SHORT_RUN, "--pruning=tfmot", "--mixed_precision=mixed_bfloat16")
    done = run_command("trainer", *args, f"--model_dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "--pruning=magnitude works under mixed precision" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
