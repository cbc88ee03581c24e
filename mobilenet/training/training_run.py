"""A run of the stages in a folder, and its result: what the trainer command and `mobilenet.train`
call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet import console, files
from mobilenet.configs import archs
from mobilenet.configs.own_model import OwnModel
from mobilenet.configs.run import Part, RunConfig
from mobilenet.errors import UsageError, one_of
from mobilenet.training import model_identity, resolve_config, run_folder, workers
from mobilenet.training.stage_report import RunReport, finished_before

if TYPE_CHECKING:
    import tensorflow as tf

    from mobilenet.evaluation.result import Evaluation
    from mobilenet.models.saving import LoadedModel
    from mobilenet.training.optimization.rate_finder import RateCurve, RateSearch
    from mobilenet.training.pipeline import Pipeline
    from mobilenet.training.working_copy import WorkingCopy
    from mobilenet.typing import KerasModel

log = logging.getLogger("mobilenet")


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A finished run; `str()` shows its stages as a table.

    Attributes:
        folder: of the run: models and reports of the stages, config, log. Of a run on object
            storage a local copy, which is removed with this object.
        config: of the run, as in its `config.json`.
        report: what each finished stage reached.
        is_unchanged: all stages were finished before; nothing was computed.
        storage: the run on object storage, if it lies there.
    """

    folder: Path
    config: RunConfig
    report: RunReport
    is_unchanged: bool = dataclasses.field(default=False, compare=False)
    storage: WorkingCopy | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def location(self) -> str:
        """The run folder as it was given: a path, or an address with `://`."""
        return str(self.folder) if self.storage is None else self.storage.address

    def publish(self) -> None:
        """Copies to object storage what was added to `folder`, if the run lies there."""
        if self.storage is not None:
            self.storage.publish()

    @property
    def file(self) -> Path | None:
        """The path of the verified int8 (or float) `.tflite` file; `None` without `convert`."""
        from mobilenet.runtime import classifier

        path = self._path("convert") / classifier.MODEL
        return path if path.is_file() else None

    def model(self, stage: str | None = None) -> KerasModel:
        """Loads the model of a stage; that of `quantize` with its quantizers.

        Args:
            stage: train, prune or quantize; the last one that is finished when left out.

        Raises:
            UsageError: the stage is not finished.
        """
        finished = [r.part.stage for r in self.report if r.part.is_last]
        models = [name for name in finished if name != "convert"]
        name = models[-1] if stage is None else one_of("stage", stage, models)
        from mobilenet.loading import load_model

        model: KerasModel = load_model(self._path(name)).model
        return model

    def evaluate(self, data: Any = None, split: str = "test") -> Evaluation:
        """Top-1, top-5 and loss of the file, or of the last model if there is none.

        Args:
            data: as `mobilenet.evaluate` takes it; the data of the run when left out.
            split: train, validation or test.

        Raises:
            UsageError: see `mobilenet.evaluate`.
        """
        from mobilenet.evaluation import pipeline
        from mobilenet.runtime.classifier import Classifier

        file = self.file
        data = self.config.dataset if data is None else data
        options = pipeline.Options(split)
        if file is not None:
            return pipeline.evaluate(Classifier(file), data, options, name=str(file))
        from mobilenet.loading import load_model

        path = self._path(self.report.stages[-1].part.stage)
        return pipeline.evaluate(load_model(path), data, options, name=str(path))

    def _path(self, stage: str) -> Path:
        return run_folder.folder_of(self.folder, Part(stage))

    def __str__(self) -> str:
        return str(self.report)


def default_folder(config: RunConfig) -> Path:
    """`runs/MODEL_DATASET`."""
    if isinstance(config.model, OwnModel):
        return Path(f"runs/{config.model.name}_{config.dataset.name}")
    kind = type(config.model)
    name = next((name for name, known in archs.ALL.items() if known is kind), kind.__name__)
    return Path(f"runs/{name}_{config.dataset.name}")


def execute(
    config: RunConfig,
    folder: str | os.PathLike[str],
    explicit: resolve_config.Explicit,
    overwrite: bool = False,
    loaded: LoadedModel | None = None,
    offline: bool = False,
) -> TrainingRun:
    """Runs the stages of a config that are not finished in a folder.

    Where all are, it returns at once, without TensorFlow. Progress goes to the log "mobilenet".

    Args:
        config: of the run, before `resolve_config.resolve`.
        folder: of the run, new or that of a run with the same config. Text with `://` is on object
            storage.
        explicit: which fields were set by the user.
        overwrite: replace the run in the folder.
        loaded: the model, where the config is of one in memory.
        offline: use released weights that are in the cache alone.

    Raises:
        UsageError: the folder is of another run, or the config cannot be executed.
    """
    worker = workers.this_worker(config.distribution_strategy)
    call = _Call(config, explicit, worker, overwrite, loaded, offline)
    if not files.is_remote(folder):
        return _execute(call, Path(folder))
    with console.starting_tensorflow():
        from mobilenet.training import working_copy
    with working_copy.opened(str(folder), worker.is_chief) as copy:
        done = _execute(call, copy.path, copy)
    return dataclasses.replace(done, storage=copy)


@dataclasses.dataclass(frozen=True)
class _Call:
    """The arguments of `execute`, with the worker that this process is."""

    config: RunConfig
    explicit: resolve_config.Explicit
    worker: workers.Worker
    overwrite: bool = False
    loaded: LoadedModel | None = None
    offline: bool = False

    def identified(self, path: Path, stored: RunConfig | None) -> _Call:
        """With the identity of a model of the user's own in its config."""
        own = self.loaded and self.loaded.model
        config = model_identity.identified(self.config, path, stored, own)
        return dataclasses.replace(self, config=config)


def _execute(call: _Call, path: Path, storage: WorkingCopy | None = None) -> TrainingRun:
    """As `execute`, in a folder of this machine."""
    stored = None if call.overwrite else run_folder.stored_config(path)
    call = call.identified(path, stored)
    finished = None if stored is None else _finished(path, call, stored)
    if finished is not None:
        return finished
    with _pipeline(call, path, stored, storage) as stages:
        reports = stages.execute()
        return TrainingRun(path, stages.config, RunReport(tuple(reports)))


def find_rate(
    config: RunConfig,
    explicit: resolve_config.Explicit,
    search: RateSearch,
    loaded: LoadedModel | None = None,
    offline: bool = False,
) -> RateCurve:
    """Trains the first stage of a config for some steps at rising rates, and leaves nothing.

    Args:
        config, explicit, loaded, offline: as in `execute`.
        search: which rates.

    Raises:
        UsageError: the config cannot be executed, or its first stage does not train.
    """
    if config.distribution_strategy != "none":
        got = config.distribution_strategy
        raise UsageError("distribution_strategy", got, "none, to search a learning rate")
    config = config.replace(stages=config.stages[:1], log_to=())
    worker = workers.this_worker(config.distribution_strategy)
    call = _Call(config, explicit, worker, loaded=loaded, offline=offline)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with _pipeline(call.identified(path, None), path, None) as stages:
            return stages.find_rate(search)


@contextlib.contextmanager
def _pipeline(
    call: _Call, path: Path, stored: RunConfig | None, storage: WorkingCopy | None = None
) -> Iterator[Pipeline]:
    """The stages of a config in its open run folder, of which `stored` is the config."""
    config = call.config
    with console.starting_tensorflow():
        from mobilenet.training import own_model, pipeline, random_state, strategy
    if config.deterministic:
        random_state.enable_determinism(config.seed)
    devices = strategy.create_strategy(config.distribution_strategy)  # before any operation
    start: own_model.Start | None = None
    if isinstance(config.model, OwnModel):
        model = own_model.read(config.model, None if stored is None else path, call.loaded)
        resolved, info, start = own_model.resolve(config, model, call.explicit)
    else:
        resolved, info = resolve_config.resolve(config, call.explicit, stored)
        _fetch_weights(resolved, path, stored, call.offline)
    _fetch_teacher(resolved, call.offline)
    is_shown = log.isEnabledFor(logging.INFO)  # before the run folder has a log of its own
    with (
        strategy.ended_workers(devices),
        _opened(path, resolved, call.overwrite, devices, storage) as opened,
        strategy.precision("float32"),
    ):
        if start is not None and (call.worker.is_chief or storage is not None):  # in each copy
            start.save(opened.path)
        strategy.wait_for_workers(devices)  # until the chief has opened the folder
        yield pipeline.Pipeline(opened, info, resolved.stages, is_shown, devices)


def _fetch_weights(
    config: RunConfig, folder: Path, stored: RunConfig | None, offline: bool
) -> None:
    """Fetches released weights before anything is written, unless a stage of the run is finished:
    the next one starts from that.
    """
    if config.init_checkpoint is None or (stored and run_folder.read_reports(folder)):
        return
    from mobilenet.weights import pretrained

    pretrained.local_path(config.init_checkpoint, offline)


def _fetch_teacher(config: RunConfig, offline: bool) -> None:
    """Fetches a teacher that is the name of released weights before anything is written."""
    teacher = config.distillation.model
    if teacher is None or config.stages == ("convert",):
        return
    from mobilenet.weights import pretrained

    pretrained.local_path(teacher, offline)


@contextlib.contextmanager
def _opened(
    path: Path,
    config: RunConfig,
    overwrite: bool,
    devices: tf.distribute.Strategy,
    storage: WorkingCopy | None,
) -> Iterator[run_folder.RunFolder]:
    """The run folder, which the chief opens once all other workers have read what is there."""
    from mobilenet.training import strategy

    if strategy.worker_of(devices).is_chief:
        strategy.wait_for_workers(devices)
        with run_folder.opened(path, config, overwrite, storage) as opened:
            yield opened
    else:
        joined = run_folder.joined(path, config, overwrite, storage)
        strategy.wait_for_workers(devices)
        yield joined


def _finished(folder: Path, call: _Call, stored: RunConfig) -> TrainingRun | None:
    """The run in a folder, if it has nothing left to do; TensorFlow is not needed to find out.

    Raises:
        UsageError: the folder holds a run of another config.
    """
    resolved = resolve_config.resolve_as(call.config, stored, call.explicit)
    reports = run_folder.finished_reports(folder, resolved, call.worker.is_chief)
    if not reports:
        return None
    for report in reports:
        if report.part.stage in call.config.stages:
            log.info("%s", finished_before(report))
    return TrainingRun(folder, stored, RunReport(tuple(reports)), is_unchanged=True)
