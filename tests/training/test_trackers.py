"""Experiment trackers: a run folder is one run of a tracker, with the figures of every epoch."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mobilenet.errors import UsageError
from mobilenet.training import tensorboard, trackers


class FakeRun:
    """What `wandb.init` returns, as far as it is used."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.id = settings, settings["id"] or "new"
        self.logged: list[dict[str, float]] = []
        self.exit_code: int | None = None

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("train/*", "train/epoch")

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    runs: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        runs.append(FakeRun(settings))
        return runs[-1]

    fake = types.SimpleNamespace(init=init, Settings=dict, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    return runs


def test_a_continued_run_is_the_same_run_of_the_tracker(
    tmp_path: Path, wandb_runs: list[FakeRun]
) -> None:
    config = tensorboard.flat({"lr": 0.1, "model": {"alpha": None, "stages": ["a", "b"]}})
    assert config == {"lr": 0.1, "model.stages": "a,b"}
    for is_finished in (False, True):
        opened = trackers.Trackers(["tensorboard", "wandb"], tmp_path, config)
        assert not opened.opened  # before a stage runs
        (callback,) = opened.callbacks("train")
        callback.on_epoch_end(2, {"epoch": 3, "loss": 0.5, "val_top1": 40.0})
        opened.log("train", 3, {"top1": 41.0, "auc": None})
        opened.end(is_finished)
    first, second = wandb_runs
    assert first.settings["id"] is None and second.settings["id"] == "new"
    assert first.settings["config"] == config and first.settings["name"] == tmp_path.name
    assert first.exit_code == 1 and second.exit_code == 0
    epoch, finished = first.logged
    assert epoch == {"train/loss": 0.5, "train/val_top1": 40.0, "train/epoch": 3}
    assert finished == {"train/top1": 41.0, "train/epoch": 3}
    assert json.loads((tmp_path / trackers.IDS).read_text()) == {"wandb": "new"}


def test_a_tracker_that_cannot_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**settings: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    fake = types.SimpleNamespace(init=init, Settings=dict, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no API key configured.*wandb login") as caught:
        trackers.Trackers(["wandb"], tmp_path, {}).callbacks("train")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install mlflow-skinny"):
        trackers.check_installed(["tensorboard", "mlflow"])
    trackers.check_installed(["tensorboard"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_trackers_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for is_finished in (False, True):
        opened = trackers.Trackers(["wandb", "mlflow"], tmp_path, {"lr": 0.1})
        for callback in opened.callbacks("train"):
            callback.on_epoch_end(int(is_finished), {"epoch": 1, "loss": 0.5})
        opened.end(is_finished)
    ids = json.loads((tmp_path / trackers.IDS).read_text())
    folders = list((tmp_path / "wandb").glob(f"offline-run-*-{ids['wandb']}"))
    assert folders
    client = mlflow.MlflowClient((tmp_path / "mlruns").resolve().as_uri())
    run = client.get_run(ids["mlflow"])
    assert run.info.status == "FINISHED" and run.data.params == {"lr": "0.1"}
    history = client.get_metric_history(ids["mlflow"], "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.5)]
