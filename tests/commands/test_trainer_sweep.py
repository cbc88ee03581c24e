"""`--sweep` of the trainer and `mobilenet.sweep`: the flags of runs, bad input, a real sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import TINY, report, start_command

import mobilenet
from mobilenet import trainer
from mobilenet.configs.archs import MobileNetV2Config
from mobilenet.configs.pruning import DnsPruning
from mobilenet.configs.sweep import Choices
from mobilenet.errors import UsageError
from mobilenet.sweeps import sweep
from mobilenet.sweeps.sweep import Request


class Caught(Exception):
    """Carries the request that would be executed."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def catch(request: Request) -> None:
        raise Caught(request)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "execute", catch)
    return tmp_path


def request_of(*words: str, text: str = "parameters: {train.lr: [1e-3, 1e-2]}") -> Request:
    Path("sweep.yaml").write_text(text)
    with pytest.raises(Caught) as caught:
        trainer.run(["--sweep=sweep.yaml", *words])
    request: Request = caught.value.args[0]
    return request


def test_runs_have_the_other_flags(here: Path) -> None:
    request = request_of(
        *("--sweep_jobs", "2", "--width_multiplier", "0.25", "--noexif", "--offline"),
        *("--override=train.epochs=3", "--override=prune.epochs=2", "--overwrite"),
    )
    assert sorted(request.words) == [
        *("--exif=false", "--offline=true", "--override=prune.epochs=2"),
        *("--override=train.epochs=3", "--width_multiplier=0.25"),
    ]
    assert (request.jobs, request.overwrite) == (2, True)
    assert request.folder == Path("runs/mobilenet_v1_digits_sweep")
    assert request.is_set == {
        *("train.epochs", "prune.epochs", "model.width_multiplier", "dataset.exif"),
    }
    run = request.config_of({"train.lr": 0.5, "pruning.final_sparsity": {"depthwise": 0.25}})
    assert (run.train.lr, run.train.epochs, run.model.width_multiplier) == (0.5, 3, 0.25)  # type: ignore[union-attr]
    assert run.pruning.final_sparsity == {"depthwise": 0.25}  # type: ignore[union-attr]


def test_a_model_of_ones_own_and_its_folder(here: Path) -> None:
    request = request_of("--model=my.keras", "--model_dir=out")
    assert (request.words, request.folder) == (("--model=my.keras",), Path("out"))
    assert request.config_of({"train.lr": 0.5}).model.name == "my"  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="sweep.yaml: --width_multiplier: got 0.5"):
        request.config_of({"model.width_multiplier": 0.5})


@pytest.mark.parametrize(
    ("words", "text", "parts"),
    [
        ("--sweep=none.yaml", "", ["--sweep: got 'none.yaml'", "there is none"]),
        ("", "- 1", ["sweep.yaml: ", "a mapping"]),
        ("--find_lr", "parameters: {train.lr: [1]}", ["--sweep", "no --find_lr"]),
        ("--lrr=1", "parameters: {train.lr: [1]}", ["--lrr: expected a flag"]),
        ("--sweep_jobs=0", "parameters: {train.lr: [1]}", ["--sweep_jobs: got 0", "at least 1"]),
        ("--lr=-1", "parameters: {train.lr: [1]}", ["--lr: got -1.0"]),
        ("--model_dir=gs://b/s", "parameters: {train.lr: [1]}", ["--model_dir", "this machine"]),
        ("--model_dir=. --noresume", "parameters: {train.lr: [1]}", ["--model_dir", "new folder"]),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: str, text: str, parts: list[str], here: Path
) -> None:
    (here / "sweep.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        trainer.run(["--sweep=sweep.yaml", *words.split()])
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    assert [path.name for path in here.iterdir()] == ["sweep.yaml"]


@pytest.mark.parametrize(
    ("words", "text", "line"),
    [
        (
            ["--lr=0.1"],
            "parameters: {train.lr: [1]}",
            "--lr: expected one value for all runs, or values as a parameter of the sweep",
        ),
        (
            ["--seed=1"],
            "{parameters: {train.lr: [1]}, seeds: [1]}",
            "--seed: got 1, expected no seed where the sweep has `seeds`",
        ),
    ],
)
def test_as_a_process_bad_input_is_one_line(
    words: list[str], text: str, line: str, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    done = start_command("trainer", "--sweep=sweep.yaml", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def python_request(**values: Any) -> Request:
    with pytest.raises(Caught) as caught:
        mobilenet.sweep("digits", {"parameters": {"train.lr": (1, 2)}}, **values)
    request: Request = caught.value.args[0]
    return request


def test_parameters_of_python_become_the_same_run(here: Path) -> None:
    request = python_request(
        model="mobilenet_v2",
        stages=("train", "convert"),
        epochs=3,
        image_size=(32, 64),
        dropout_rate=0.25,
        keep_best=True,
        jobs=2,
        **{"final_sparsity": {"depthwise": 0.5}, "train.best_metric": None, "offline": True},
    )
    assert request.config.parameters == {"train.lr": Choices((1.0, 2.0))}
    assert request.folder == Path("runs/mobilenet_v2_digits_sweep")
    parsed = trainer.COMMAND.parse(request.words)
    from mobilenet import cli

    assert cli.run_config(parsed) == request.run == request.config_of({})
    assert parsed.settings.keys() - request.is_set == {"dataset.name"}
    assert parsed.options["offline"] is True
    assert request.config_of({"train.lr": 2.0}).train.lr == 2.0


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"model": MobileNetV2Config()}, "model: got 'MobileNetV2Config', expected a name or a"),
        ({"pruning": DnsPruning()}, "pruning: got 'DnsPruning', expected a plain value"),
        ({"jobs": 0}, "jobs: got 0, expected a whole number at least 1"),
        ({"lrr": 1}, "lrr: expected a field of RunConfig"),
        ({"model_dir": "gs://b/s"}, "model_dir: got 'gs://b/s', expected a path of this machine"),
    ],
)
def test_bad_parameters_of_python_are_named(values: dict[str, Any], line: str, here: Path) -> None:
    with pytest.raises(UsageError) as caught:
        mobilenet.sweep("digits", {"parameters": {"train.lr": [1]}}, **values)
    assert str(caught.value).startswith(line)


@pytest.mark.slow
def test_a_sweep_on_digits(tmp_path: Path) -> None:
    """Two settings with two seeds through all stages; one of three settings cannot be trained."""
    (tmp_path / "sweep.yaml").write_text(
        "seeds: [0, 1]\nmetric: {name: convert/top1}\n"
        "parameters: {train.lr: [4e-3], train.batch_size: [32, 5000]}"
    )
    words = ("--sweep=sweep.yaml", *TINY, "--epochs=2", "--prune_epochs=1", "--quantize_epochs=1")
    done = start_command("trainer", *words, "--model_dir=s", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("--batch_size: got 5000, expected at most 1257") == 4
    content = json.loads((tmp_path / "s/results.json").read_text())
    best = content["trials"][0]
    folders = [tmp_path / "s" / run["folder"] for run in best["runs"]]
    values = [report(folder)["convert"]["top1"] for folder in folders]
    assert best["settings"] == {"train.lr": 0.004, "train.batch_size": 32}
    np.testing.assert_allclose(best["mean"], np.mean(values))
    np.testing.assert_allclose(best["std"], np.std(values, ddof=1), atol=1e-9)
    sizes = [(folder / "export/model.tflite").stat().st_size for folder in folders]
    assert [run["stages"][-1]["bytes"] for run in best["runs"]] == sizes
    assert (tmp_path / "s/report.html").is_file()
    again = start_command("trainer", *words, "--model_dir=s", cwd=tmp_path)
    assert "sweep of 4 runs (2 settings x 2 seeds), 2 finished before" in again.stdout
