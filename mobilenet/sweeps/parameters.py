"""A sweep from the parameters of `mobilenet.sweep`, as flags of the trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import files
from mobilenet.configs import archs
from mobilenet.configs.base import Config, check_number
from mobilenet.configs.own_model import OwnModel
from mobilenet.configs.parameters import settings_of, text_of
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError
from mobilenet.sweeps import sweep, sweep_file
from mobilenet.sweeps.search import Settings
from mobilenet.training import run_parameters


def request(
    data: Any,
    swept: object,
    model: Any,
    weights: str | os.PathLike[str] | None,
    stages: Sequence[str],
    values: Mapping[str, Any],
    model_dir: str | os.PathLike[str] | None = None,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    offline: bool = False,
) -> sweep.Request:
    """The sweep that the parameters of `mobilenet.sweep` ask for.

    Args:
        data, model, weights, stages, model_dir, jobs, overwrite, offline: see there.
        swept: its parameter `sweep`.
        values: of its further parameters.

    Raises:
        UsageError: a value is not legal, or no text that a process can be started with.
    """
    config = sweep_file.read(swept)
    check_number("jobs", jobs, least=1, integer=True)
    for name, value in (("data", data), ("model", model)):
        if not isinstance(value, (str, os.PathLike)):
            expected = "a name or a path, as runs are processes of their own"
            raise UsageError(name, type(value).__name__, expected)
    common = run_parameters.request(data, model, weights, stages, values)
    settings = settings_of(RunConfig, {"stages": stages, **values})
    for path, value in settings.items():
        if isinstance(value, Config):
            expected = "a plain value, as runs are processes of their own"
            raise UsageError(path, type(value).__name__, expected, "set its fields by their paths")
    words = [f"--override={path}={text_of(value)}" for path, value in settings.items()]

    def config_of(settings: Settings) -> RunConfig:
        varied = {**values, **settings}
        every = varied.pop("stages", stages)
        return run_parameters.request(data, model, weights, every, varied).config

    folder = f"{common.folder}_sweep" if model_dir is None else os.fspath(model_dir)
    files.check_local(folder, "model_dir", "choose a folder of this machine for a sweep")
    return sweep.Request(
        config,
        common.config,
        frozenset(settings),
        (*_words_of(common.config, weights, offline), *words),
        config_of,
        Path(folder).expanduser(),
        jobs,
        overwrite,
    )


def _words_of(
    config: RunConfig, weights: str | os.PathLike[str] | None, offline: bool
) -> tuple[str, ...]:
    """Model, data and weights as flags."""
    names = {kind: name for name, kind in archs.ALL.items()}
    words = [f"--dataset_name={config.dataset.name}"]
    if isinstance(config.model, OwnModel):
        words.insert(0, f"--model={config.model.path}")
    else:
        words.insert(0, f"--model_name={names[type(config.model)]}")
    if config.dataset.data_dir is not None:
        words.append(f"--data_dir={config.dataset.data_dir}")
    if weights is not None:
        words.append(f"--init_checkpoint={config.init_checkpoint}")
    return (*words, *(["--offline"] if offline else []))
