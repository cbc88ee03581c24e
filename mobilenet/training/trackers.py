"""Weights & Biases and MLflow: the metrics of a run in an experiment tracker.

Keras' own callback of Weights & Biases is one of Keras 3, and takes no models of tf_keras. A run
folder is one run of the tracker, also when it is continued.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import tf_keras

from mobilenet import files, strict_json
from mobilenet.errors import UsageError

log = logging.getLogger("mobilenet")
IDS = "trackers.json"
_PROJECT = "mobilenet"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another

Values = Mapping[str, str | float | int | bool]


class Tracker(Protocol):
    """An open run of an experiment tracker.

    Attributes:
        identifier: by which the tracker finds the run again.
    """

    identifier: str

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Adds metrics after an epoch of their stage."""

    def end(self, is_finished: bool) -> None:
        """Ends the run; `is_finished` is false where it failed or was interrupted."""


class WandB:
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps it in the run folder."""

    def __init__(self, folder: Path, config: Values, identifier: str | None) -> None:
        import wandb

        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or _PROJECT,
                name=folder.name,
                dir=str(folder),
                config=dict(config),
                id=identifier,
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            remedy = "`wandb login`, or WANDB_MODE=offline"
            raise UsageError("log_to", "wandb", f"a run that starts ({reason})", remedy) from None
        self.identifier: str = self.run.id
        self._stages: set[str] = set()

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for stage in {name.partition("/")[0] for name in values} - self._stages:
            self._stages.add(stage)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")
        epochs = {f"{name.partition('/')[0]}/epoch": epoch for name in values}
        self.run.log({**values, **epochs})

    def end(self, is_finished: bool) -> None:
        self.run.finish(exit_code=0 if is_finished else 1)


class MLflow:
    """A run of MLflow, where `MLFLOW_TRACKING_URI` says; by default in `mlruns/` of the run."""

    def __init__(self, folder: Path, config: Values, identifier: str | None) -> None:
        import mlflow

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").resolve().as_uri()
        try:
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            if identifier is None:
                identifier = self._create(folder, config)
            else:
                self.client.update_run(identifier, status="RUNNING")
        except mlflow.MlflowException as error:
            reason = " ".join(str(error).split())
            expected = f"a run that starts at {uri} ({reason})"
            raise UsageError("log_to", "mlflow", expected, "set MLFLOW_TRACKING_URI") from None
        self.identifier: str = identifier

    def _create(self, folder: Path, config: Values) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        identifier: str = self.client.create_run(experiment, run_name=folder.name).info.run_id
        for key, value in config.items():
            self.client.log_param(identifier, key, value)
        return identifier

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.identifier, name, value, step=epoch)

    def end(self, is_finished: bool) -> None:
        self.client.set_terminated(self.identifier, "FINISHED" if is_finished else "FAILED")


_CLASSES: dict[str, type[WandB] | type[MLflow]] = {"wandb": WandB, "mlflow": MLflow}
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}


def check_installed(names: Iterable[str]) -> None:
    """Raises early what opening would raise.

    Raises:
        UsageError: the package of a tracker is not installed.
    """
    for name in names:
        if name in _CLASSES and importlib.util.find_spec(name) is None:
            remedy = f"pip install {_PACKAGES[name]}"
            raise UsageError("log_to", name, f"the package {name}, which is not installed", remedy)


class Trackers:
    """The trackers of a run, opened with its first stage.

    Args:
        names: some of `wandb`, `mlflow`; others are left out.
        folder: of the run.
        config: of the run.
    """

    def __init__(self, names: Iterable[str], folder: Path, config: Values) -> None:
        self.names = [name for name in names if name in _CLASSES]
        self.folder, self.config = folder, config
        self.opened: list[Tracker] = []

    def callbacks(self, stage: str) -> tuple[Any, ...]:
        """Keras callbacks that log the epochs of a stage."""
        if self.names and not self.opened:
            self._open()
        return tuple(_EpochLog(tracker, stage) for tracker in self.opened)

    def _open(self) -> None:
        path = self.folder / IDS
        known: dict[str, str] = {}
        if path.exists():
            known = strict_json.read_object(path, "the runs of experiment trackers")
        for name in self.names:
            self.opened.append(_CLASSES[name](self.folder, self.config, known.get(name)))
            known[name] = self.opened[-1].identifier
            files.write_json(path, known)

    def log(self, stage: str, epochs: int, figures: Mapping[str, Any]) -> None:
        """Logs the figures of a finished stage."""
        values = {f"{stage}/{name}": value for name, value in figures.items() if value is not None}
        for tracker in self.opened:
            tracker.log(values, epochs)

    def end(self, is_finished: bool) -> None:
        """Ends the runs; what the trackers still have to send is sent."""
        while self.opened:
            self.opened.pop().end(is_finished)


class _EpochLog(tf_keras.callbacks.Callback):
    """Logs each epoch of a stage."""

    def __init__(self, tracker: Tracker, stage: str) -> None:
        super().__init__()
        self.tracker, self.stage = tracker, stage

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {f"{self.stage}/{name}": v for name, v in (logs or {}).items() if name != "epoch"}
        self.tracker.log(values, epoch + 1)
