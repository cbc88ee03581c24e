"""The chain: train, prune, quantize, convert in one run folder; what is done is not run again."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet import data, metrics
from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.base import Config
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import PREPROCESSING
from mobilenet.configs.run import STAGES, RunConfig, TrainConfig, stage_of
from mobilenet.data import arrays
from mobilenet.errors import UsageError
from mobilenet.evaluation import scoring
from mobilenet.export import freeze, tflite_converter
from mobilenet.export import pipeline as export_pipeline
from mobilenet.export.verification import verify
from mobilenet.models import builder, saving
from mobilenet.models.graph import batch_norm_statistics
from mobilenet.runtime import interpreter
from mobilenet.runtime.classifier import Classifier
from mobilenet.training import distillation, engine, initial_weights, progress, strategy
from mobilenet.training.resolve_config import steps_per_epoch
from mobilenet.training.resume import Checkpoints, Row
from mobilenet.training.run_data import Supply
from mobilenet.training.run_folder import Entry, RunFolder

log = logging.getLogger("mobilenet")
_LEAST_ROUND = 0.01  # seconds of one model; shorter ones show the machine more than the model
_METHOD_OF: dict[str, Callable[[RunConfig], Config | None]] = {
    "train": lambda config: None,
    "prune": lambda config: config.pruning,
    "quantize": lambda config: config.quantization,
}


@dataclasses.dataclass(frozen=True)
class _Finished:
    """What a stage made: the plain model, its figures; ranges and layers in float of an int8
    one.
    """

    plain: Any
    held_out: metrics.Metrics
    rows: list[Row]
    notes: list[str]
    ranges: dict[str, npt.NDArray[np.float32]] | None
    floats: tuple[str, ...]
    figures: Mapping[str, Any]


class Chain:
    """Runs the stages of one run.

    Args:
        run: the open run folder.
        info: what the data set holds.
        stages: which to run now; all of the run's when `None`.
    """

    def __init__(
        self, run: RunFolder, info: data.DatasetInfo, stages: Sequence[str] | None = None
    ) -> None:
        self.stages = run.config.stages if stages is None else stages
        self.run, self.config, self.info = run, run.config, info
        self.preprocessing = PREPROCESSING[self.config.dataset.preprocessing]
        self.strategy = strategy.make(self.config.distribution_strategy)
        self.supply = Supply(self.config, self.preprocessing)
        self._learnt: Mapping[str, tuple[float, float]] = {}  # by a quantized training of TF1
        self._teachers = distillation.Teachers(self.config, info)
        self._origin: str | None = None  # whose trained weights a stage begins with

    def execute(self) -> list[Entry]:
        """Runs what is not finished; returns the entries of all finished stages."""
        for name in self.config.parts(self.stages):
            entry = self.run.finished(name)
            if entry is None and name != stage_of(name) and self.run.finished(stage_of(name)):
                continue  # its folder was removed when the stage had ended
            if entry is not None:
                log.info("%s: finished before, top-1 %0.2f %%", name, entry["top1"])
                continue
            started = time.monotonic()
            tf_keras.utils.set_random_seed(self.config.seed)
            entry = self._convert() if name == "convert" else self._trained(name)
            entry["minutes"] = round((time.monotonic() - started) / 60, 2)
            self.run.record(entry)
            self.run.write_metrics(name, entry.get("history", []))
            self._clear(name)
            log.info(
                "%s: top-1 %0.2f %% on the held-out images, %0.1f minutes",
                name,
                entry["top1"],
                entry["minutes"],
            )
        return self.run.entries

    def _clear(self, name: str) -> None:
        """The resume state of a finished stage has served."""
        Checkpoints(self.run.checkpoints(name)).clear()

    def source(self, name: str) -> Path | None:
        """The folder of the nearest finished stage, or part of one, in front of `name`."""
        every = self.config.parts(STAGES)
        earlier = every[: every.index(name)]
        return next((self.run.stage(s) for s in reversed(earlier) if self.run.finished(s)), None)

    def _start(self, name: str) -> Any:
        """The model that a stage begins with."""
        before = self.source(name)
        self._origin = None
        if before is not None and name != "train":
            self._origin = before.name
            model = saving.load(before).model
            if self.config.mixed_precision == "float32":
                return model
            mixed = self._built(builder.config_of(model))  # a saved model keeps its own precision
            mixed.set_weights(model.get_weights())
            return mixed
        from_scratch = name == "train" or (
            name == "quantize" and getattr(self.config.quantization, "quant_delay", 0) > 0
        )
        if not from_scratch and self.config.init_checkpoint is None:
            raise UsageError(
                "--stages",
                stage_of(name),
                "a trained model in the run folder",
                f"run --stages train,{stage_of(name)}, or give --init_checkpoint",
            )
        model = self._built()
        if self.config.init_checkpoint is not None:
            start = initial_weights.load_into(model, self.config.init_checkpoint, self.config.model)
            self._learnt = start.ranges if name == "quantize" else {}
            self._origin = None if start.new else self.config.init_checkpoint
            self._fill_statistics(model)
        return model

    def _fill_statistics(self, model: Any) -> None:
        """Gives folded batch norms statistics; without, training would start from another model."""
        count = batch_norm_statistics.FILL_IMAGES
        images = functools.partial(self.supply.first_images, count)
        filled = batch_norm_statistics.fill_statistics(model, images)
        if filled:
            log.info(
                "re-estimated the statistics of %d folded batch norms on %d training images; "
                "outputs unchanged",
                len(filled),
                count,
            )

    def _built(self, config: MobileNetConfig | None = None) -> Any:
        size = self.config.image_size
        try:
            return builder.build(config or self.config.model, (size, size, 3))
        except UsageError as error:
            if error.what != "input_shape":
                raise
            raise UsageError("--image_size", size, error.expected, error.remedy) from None

    def _check(self, plain: Any) -> None:
        """What would fail later than it must: the images of every split, the methods of all stages.

        Raises:
            UsageError: an image cannot be decoded, or a method cannot be applied to `plain`.
        """
        self.supply.dataset("train", self.config.train.batch_size, 0)
        for split in ("validation", "test"):
            self.supply.dataset(split)
        for name in self.stages:
            wanted = _METHOD_OF[name](self.config) if name in _METHOD_OF else None
            if wanted is not None:
                self._method(name, wanted).check(plain)

    def _method(self, name: str, wanted: Config) -> methods.Method:
        config = self.config.recipe(name)
        parts = self.config.parts([stage_of(name)])
        return methods.create(
            wanted,
            methods.StageContext(
                config.epochs * self._steps(config),
                self.preprocessing,
                self.supply.first_images,
                initial_ranges=self._learnt,
                calibration_images=self.supply.calibration_images,
                labeled_examples=self.supply.first_examples,
                measure_latency=latency,
                original_config=self.config.model,
                part=parts.index(name) + 1,
                parts=len(parts),
                seed=self.config.seed,
            ),
        )

    def _steps(self, config: TrainConfig) -> int:
        return steps_per_epoch(self.info, config.batch_size * self.strategy.num_replicas_in_sync)

    def _trained(self, name: str) -> Entry:
        """A stage that makes a model: verbs of its method around one fit, where it trains."""
        wanted = _METHOD_OF[stage_of(name)](self.config)
        strategy.set_precision(self.config.mixed_precision)
        with self.strategy.scope():
            start = self._start(name)
            method = self._method(name, wanted) if wanted is not None else None
            trains = method is None or method.trains
            first = self.config.parts([stage_of(name)])[0]
            begun = self._start(first) if trains and name != first else start
        guide = self._teachers.of(stage_of(name), begun, self._origin) if trains else None
        with self.strategy.scope():
            if not self.run.begun:
                self._check(start)
                self.run.begin()
            trained = None
            if trains:
                trained = self._finished(*self._fit(name, start, method, guide), method, guide)
        strategy.set_precision("float32")
        if trained is None:  # such a method makes a float32 model of its own, outside any strategy
            assert method is not None
            trained = self._finished(method.apply(freeze.float32_copy(start)), [], method)
        architecture = builder.config_of(trained.plain) or builder.config_of(start)
        plain = freeze.float32_copy(trained.plain)
        card = self._card(name, trained)
        if architecture is not None:  # a model that was thinned has channels of its own
            card = card.replace(architecture=architecture.to_json())
        int8_saving.save_stage(plain, self.run.stage(name), card, trained.ranges)
        return self._entry(name, plain, trained)

    def _fit(
        self,
        name: str,
        start: Any,
        method: methods.Method | None,
        guide: distillation.TeacherModel | None,
    ) -> tuple[Any, list[Row]]:
        """Trains, in the scope of the strategy."""
        config = self.config.recipe(name)
        job = self._job(name, config)
        if guide is not None:
            teacher = guide.teacher(self.config.distillation, self.preprocessing)
            job = dataclasses.replace(job, teacher=teacher)
        log.info(
            "%s: %s images, %d steps an epoch, %d epochs",
            name,
            f"{self.info.sizes['train']:,}",
            job.steps_per_epoch,
            config.epochs,
        )
        model = start if method is None else method.apply(start)
        with arrays.explained(self.config.dataset, "train", "validation"):
            return model, engine.fit(model, method, job)

    def _finished(
        self,
        model: Any,
        rows: list[Row],
        method: methods.Method | None,
        guide: distillation.TeacherModel | None = None,
    ) -> _Finished:
        """Scores a stage's model and makes it plain, in the scope that it was made in."""
        held_out = self._score(model)
        notes = list(method.notes(model)) if method is not None else []
        if guide is not None:
            notes.append(guide.note(self.config.distillation))
        notes += [
            f"weights of epoch {row['epoch']} of {len(rows)}, the best on validation images"
            for row in rows
            if row.get("kept")
        ]
        ranges, floats = int8_saving.ranges_of(model), int8_saving.kept_float(model)
        plain = model if method is None else method.finalize(model)
        figures = {} if method is None else method.report()
        return _Finished(plain, held_out, rows, notes, ranges, floats, figures)

    def _convert(self) -> Entry:
        """The flatbuffer of the newest model, verified against it on held-out images and
        measured.
        """
        before = self.source("convert")
        if before is None:
            raise UsageError(
                "--stages",
                "convert",
                "a trained model in the run folder",
                "run --stages train,convert",
            )
        images = self.supply.held_out(limit=export_pipeline.VERIFY_IMAGES)
        made = export_pipeline.export(before, self.run.stage("convert"), images)
        file = Classifier(made.path)
        held_out = scoring.score_flatbuffer(file, self.supply.dataset("test"), self.preprocessing)
        made.keep_metrics(_scores(held_out))
        return {
            "stage": "convert",
            **_scores(held_out),
            **made.figures,
            **self._file_figures(made.path.read_bytes()),
            "agreement": round(100 * made.verification.agreement, 3),
            "verification": made.verification.to_json(),
            "repaired": [dataclasses.asdict(repair) for repair in made.repairs],
        }

    def _job(self, name: str, config: TrainConfig) -> engine.Job:
        batch = config.batch_size * self.strategy.num_replicas_in_sync
        steps = self._steps(config)

        def training(start: int) -> tf.data.Dataset:
            return self.supply.dataset("train", batch, start)

        watchers = (
            progress.Progress(name, config.epochs, steps),
            progress.Board(self.run.path / "tensorboard" / name),
        )
        return engine.Job(
            name,
            config,
            steps,
            training,
            self.supply.dataset("validation"),
            self.info.num_classes,
            self.run.checkpoints(name),
            watchers,
        )

    def _score(self, model: Any) -> metrics.Metrics:
        with arrays.explained(self.config.dataset, "test"):
            return scoring.score(scoring.inference(model), self.supply.dataset("test"))

    def _card(self, name: str, made: _Finished) -> Card:
        size = self.config.image_size
        return Card(
            architecture=self.config.model.to_json(),
            input_shape=(size, size, 3),
            preprocessing=self.preprocessing,
            labels=self.info.labels,
            label_offset=self.config.dataset.label_offset,
            outputs="logits",
            dataset=self.config.dataset.name,
            stage=name,
            metrics=_scores(made.held_out),
            history=tuple(made.rows),
            keep_float=made.floats,
            notes=tuple(made.notes),
        )

    def _entry(self, name: str, plain: Any, made: _Finished) -> Entry:
        figures = export_pipeline.model_figures(plain)
        is_float = made.ranges is None
        file = self._file_figures(tflite_converter.float_flatbuffer(plain)) if is_float else {}
        scores = _scores(made.held_out)
        own = {**made.figures, "history": made.rows}
        return {"stage": name, **scores, **figures, **file, **own}

    def _file_figures(self, content: bytes) -> dict[str, Any]:
        """Size, size under gzip, and the time of one image on one thread."""
        seconds = interpreter.latency({"file": content})["file"]
        return {
            "bytes": len(content),
            "gzip_bytes": verify.gzip_size(content),
            "latency_ms": round(1000 * seconds, 4),
        }


def _scores(held_out: metrics.Metrics) -> dict[str, float]:
    return {
        "top1": round(held_out.top1, 4),
        "top5": round(held_out.top5, 4),
        "loss": round(held_out.loss, 6),
    }


def latency(whole: Any) -> Callable[[Any], tuple[float, float]]:
    """Times the float files of models beside that of `whole`, see
    `StageContext.measure_latency`.
    """
    data = tflite_converter.float_flatbuffer(whole)
    once = interpreter.latency({"whole": data}, rounds=3)["whole"]
    invokes = math.ceil(min(max(_LEAST_ROUND / once, 4), 200))

    def beside(model: Any) -> tuple[float, float]:
        files = {"whole": data, "net": tflite_converter.float_flatbuffer(model)}
        found = interpreter.latency(files, invokes=invokes)
        return found["net"], found["whole"]

    return beside
