"""What a run folder holds, read without TensorFlow; the run may be unfinished."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mobilenet import files, strict_json
from mobilenet.configs import archs, recipes
from mobilenet.configs.base import flat
from mobilenet.configs.card import CARD, Card, class_numbers
from mobilenet.configs.own_model import OwnModel
from mobilenet.configs.run import Part, RunConfig
from mobilenet.errors import UsageError
from mobilenet.training import run_folder, stage_data
from mobilenet.training.stage_data import Kernel, ScoredImages, TrainingImages
from mobilenet.training.stage_report import StageReport


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field of a config that differs.

    Attributes:
        field: its dotted path.
        values: as JSON shows them; the first is the default, or that of the first run.
    """

    field: str
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class RecordedRun:
    """A run as its folder describes it.

    Attributes:
        folder: of the run.
        location: the folder as its user named it; of a run on object storage the address there.
        config: of the run.
        stages: the reports of finished stages, in their order.
        unfinished: rows, one an epoch, of a stage that has begun, by its part.
        environment: versions, processor, command and date of the last process; may be empty.
    """

    folder: Path
    location: str
    config: RunConfig
    stages: tuple[StageReport, ...]
    unfinished: Mapping[Part, Sequence[Mapping[str, float]]]
    environment: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the folder."""
        path = (
            self.location.rstrip("/") if files.is_remote(self.location) else self.folder.resolve()
        )
        return PurePosixPath(path).name or self.location

    @property
    def model_name(self) -> str:
        """As `--model_name` takes it; that of a model of the user's own."""
        model = self.config.model
        if isinstance(model, OwnModel):
            return model.name
        kinds = {kind: name for name, kind in archs.ALL.items()}
        return kinds.get(type(model), type(model).__name__)

    @property
    def last(self) -> StageReport | None:
        """The last finished stage."""
        return self.stages[-1] if self.stages else None

    @property
    def histories(self) -> dict[Part, Sequence[Mapping[str, float]]]:
        """Rows, one an epoch, of each part that trains, in their order."""
        finished = {stage.part: stage.history for stage in self.stages if stage.history}
        every = {**self.unfinished, **finished}
        return {part: every[part] for part in sorted(every, key=lambda part: part.order)}

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; their numbers if no stage is finished."""
        for stage in reversed(self.stages):
            path = run_folder.folder_of(self.folder, stage.part) / CARD
            if path.is_file() and (labels := Card.from_file(path).labels):
                return tuple(labels)
        return class_numbers(self.config.model.num_classes or 1)

    @functools.cached_property
    def scored(self) -> tuple[Part, ScoredImages] | None:
        """The test images as the last stage that was recorded scored them."""
        for stage in reversed(self.stages):
            scored = stage_data.load_scored(self.folder, stage.part.name)
            if scored is not None:
                return stage.part, scored
        return None

    @functools.cached_property
    def training_images(self) -> TrainingImages | None:
        """Training images as the model sees them."""
        return stage_data.load_training_images(self.folder)

    @functools.cached_property
    def kernels(self) -> dict[str, list[Kernel]]:
        """Kernels by stage, in the order of stages, `start` before them."""
        start = stage_data.load_kernels(self.folder, stage_data.START)
        by_stage = {stage_data.START: start} | {
            stage.part.name: stage_data.load_kernels(self.folder, stage.part.name)
            for stage in self.stages
        }
        return {name: kernels for name, kernels in by_stage.items() if kernels}

    def differences(self) -> list[Difference]:
        """Fields that differ from the recipe of model and data, the first of two values.

        Of another method than the recipe's they are those that differ from its own defaults.
        """
        default = recipes.of(self.config)
        chosen = {
            name: type(own)()
            for name in ("pruning", "quantization")
            if type(own := getattr(self.config, name)) is not type(getattr(default, name))
        }
        types = [
            Difference(f"{name}.type", (type(getattr(default, name)).__name__, type(own).__name__))
            for name, own in chosen.items()
        ]
        return [*types, *differences([default.replace(**chosen), self.config])]


def read(path: str | os.PathLike[str], location: str = "") -> RecordedRun:
    """Reads a run folder.

    Args:
        path: of the folder.
        location: see `RecordedRun`.

    Raises:
        UsageError: it is none, or a file of it is damaged.
    """
    files.check_local(path, "runs")
    folder = Path(path)
    config = run_folder.stored_config(folder) if folder.is_dir() else None
    if config is None:
        raise UsageError("runs", str(path), f"the folder of a run, with {run_folder.CONFIG}")
    stages = run_folder.read_reports(folder)
    environment = folder / run_folder.ENVIRONMENT
    return RecordedRun(
        folder,
        location or str(folder),
        config,
        tuple(stages),
        run_folder.unfinished_histories(folder),
        strict_json.read_object(environment, "the environment of a run")
        if environment.is_file()
        else {},
    )


def differences(configs: Sequence[RunConfig]) -> list[Difference]:
    """Fields of which configs have different values."""
    every = [flat(config.to_json()) for config in configs]
    names = dict.fromkeys(name for values in every for name in values)
    return [
        Difference(name, tuple(_shown(values.get(name)) for values in every))
        for name in names
        if any(values.get(name) != every[0].get(name) for values in every)
    ]


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)
