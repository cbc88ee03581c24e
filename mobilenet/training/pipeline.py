"""The stages train, prune, quantize and convert in one run folder; finished ones are skipped."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet import data, metrics
from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.configs import recipes, released_models, released_weights
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.base import Config
from mobilenet.configs.card import CARD, SOFTMAX, Card, checked_labels
from mobilenet.configs.own_model import OwnModel
from mobilenet.configs.run import FLOAT32, STAGES, Part, RunConfig
from mobilenet.configs.training import NO_CLASS_WEIGHTS, TrainConfig
from mobilenet.data import arrays
from mobilenet.errors import UsageError
from mobilenet.evaluation import scoring
from mobilenet.export import freeze, tflite_converter
from mobilenet.export import pipeline as export_pipeline
from mobilenet.export.source import model_figures
from mobilenet.export.verification import verify
from mobilenet.models import builder, layer_plan, saving
from mobilenet.models.graph import batch_norm_statistics, inference, rebuild
from mobilenet.runtime import interpreter
from mobilenet.training import (
    batch_augmentation,
    best_weights,
    class_weights,
    drop_path,
    engine,
    freezing,
    initial_weights,
    own_model,
    progress,
    stage_data,
    stage_recorder,
    strategy,
    tensorboard,
    trackers,
)
from mobilenet.training.compression import frozen_kernels_warning
from mobilenet.training.distillation import cached_outputs, teachers
from mobilenet.training.distillation.teacher_model import TeacherModel
from mobilenet.training.latency import measure_latency
from mobilenet.training.optimization.rate_finder import RateCurve, RateSearch
from mobilenet.training.resolve_config import steps_per_epoch
from mobilenet.training.resume import Checkpoints, Row
from mobilenet.training.run_data import RunData
from mobilenet.training.run_folder import RunFolder
from mobilenet.training.stage_report import MASK_CHANGES, StageReport, finished_before

log = logging.getLogger("mobilenet")
_NEAR_CHANCE = 1.5  # times the share of one class
_FORGOTTEN = 1e-3  # share of the initial statistics at which validation was seen to recover
_METHOD_OF: dict[str, Callable[[RunConfig], Config | None]] = {
    "train": lambda config: None,
    "prune": lambda config: config.pruning,
    "quantize": lambda config: config.quantization,
}


@dataclasses.dataclass(frozen=True)
class _StageResult:
    """What a stage produced.

    Attributes:
        plain: the model, of stock layers.
        held_out: its metrics on the test images.
        recorder: has seen these images.
        rows: one an epoch.
        notes: of its card.
        ranges: of activations, if it is quantized.
        float_layers: those that compute in float, if it is quantized.
        report: further entries of the run's report, by name.
        card_fields: further fields of its card.
    """

    plain: Any
    held_out: metrics.Metrics
    recorder: stage_recorder.TestImageRecorder
    rows: list[Row]
    notes: list[str]
    ranges: dict[str, npt.NDArray[np.float32]] | None
    float_layers: tuple[str, ...]
    report: Mapping[str, Any]
    card_fields: Mapping[str, Any]


class Pipeline:
    """Runs the stages of one run.

    Args:
        run: the open run folder.
        info: what the data set holds.
        stages: which to run now; all of the run's when `None`.
        progress_bar: show one on a terminal.
        devices: the strategy of the run; created here when left out.
    """

    def __init__(
        self,
        run: RunFolder,
        info: data.DatasetInfo,
        stages: Sequence[str] | None = None,
        progress_bar: bool = True,
        devices: tf.distribute.Strategy | None = None,
    ) -> None:
        self.stages = run.config.stages if stages is None else stages
        self.run, self.config, self.info = run, run.config, info
        self.preprocessing = self.config.preprocessing
        self.strategy = devices or strategy.create_strategy(self.config.distribution_strategy)
        self.worker = strategy.worker_of(self.strategy)
        self.progress_bar = progress_bar and self.worker.is_chief
        self.data = RunData(self.config, self.preprocessing)
        self._learned_ranges: Mapping[str, tuple[float, float]] = {}  # by fake quantization in TF1
        self.activation = self.config.activation or SOFTMAX
        self._teachers = teachers.Teachers(self.config, info)
        self._origin: str | None = None  # of the trained weights that a stage starts from
        trackers.check_installed(self.config.log_to)
        names = self.config.log_to if self.worker.is_chief else ()
        self._shown_config = tensorboard.flat(self.config.to_json())
        self._trackers = trackers.Trackers(names, run.path, self._shown_config)

    def execute(self) -> list[StageReport]:
        """Runs the stages that are not finished; returns the reports of all finished ones."""
        is_finished = False
        try:
            for part in self.config.parts(self.stages):
                if not self.run.is_done(part):
                    self._run_timed(part)
                elif report := self.run.finished(part):
                    log.info(finished_before(report))
            is_finished = True
        finally:
            self._trackers.end(is_finished)
        return self.run.reports

    def _run_timed(self, part: Part) -> None:
        """Runs a stage, and records its figures."""
        started = time.monotonic()
        tf_keras.utils.set_random_seed(self.config.seed)
        report = self._run(part)
        if report is not None:
            minutes = round((time.monotonic() - started) / 60, 2)
            report = dataclasses.replace(report, minutes=minutes)
            self.run.record(report)
            Checkpoints(self.run.checkpoints(part)).clear()
            log.info("%s: %s on the test images, %0.1f minutes", part, report.accuracy, minutes)
            self._trackers.log(part.name, len(report.history), report.known)
        strategy.wait_for_workers(self.strategy)
        if report is None:
            self.run.reload()

    def _run(self, part: Part) -> StageReport | None:
        """Runs a stage; on workers other than the chief only its training, without a report."""
        if part.stage != "convert":
            return self._train(part)
        return self._convert() if self.worker.is_chief else None

    def source(self, part: Part) -> Path | None:
        """The folder of the last finished stage, or round of one, before `part`; else that of the
        user's own model.
        """
        parts = self.config.parts(STAGES)
        earlier = parts[: parts.index(part)]
        folders = [self.run.folder(p) for p in reversed(earlier) if self.run.finished(p)]
        return folders[0] if folders else self._own_model

    @property
    def _own_model(self) -> Path | None:
        is_own = isinstance(self.config.model, OwnModel)
        return self.run.path / own_model.FOLDER if is_own else None

    def _start(self, part: Part) -> Any:
        """The model that a stage starts from."""
        before = self.source(part)
        self._origin = None
        if before is not None and (part.stage != "train" or before == self._own_model):
            self._origin = before.name
            model = saving.load(before).model
            precision = self._precision(part)
            if precision != FLOAT32:
                model = rebuild.with_precision(model, precision)
            if self._own_model is not None:  # of a MobileNet the config has a momentum that fits
                training = self.config.training(part)
                steps = training.epochs * self._steps(training)
                batch_norm_statistics.shorten_momentum(model, steps)
            return model
        from_scratch = part.stage == "train" or (
            part.stage == "quantize" and getattr(self.config.quantization, "quant_delay", 0) > 0
        )
        if not from_scratch and self.config.init_checkpoint is None:
            raise UsageError(
                "stages",
                part.stage,
                "a trained model in the run folder",
                f"run `stages=train,{part.stage}`, or give `init_checkpoint`",
            )
        config = self.config.model
        assert isinstance(config, MobileNetConfig)
        model = self._built(config)
        if self.config.init_checkpoint is not None:
            start = initial_weights.load_into(model, self.config.init_checkpoint, config)
            self._learned_ranges = start.ranges if part.stage == "quantize" else {}
            self._origin = None if start.new else self.config.init_checkpoint
            self._fill_statistics(model)
        return model

    def _fill_statistics(self, model: Any) -> None:
        """Gives folded batch norms statistics; without, training would start from another model."""
        count = batch_norm_statistics.FILL_IMAGES
        images = functools.partial(self.data.first_images, count)
        filled = batch_norm_statistics.fill_statistics(model, images)
        if filled:
            log.info(
                "re-estimated the statistics of %d folded batch norms on %d training images; "
                "outputs unchanged",
                len(filled),
                count,
            )

    def _built(self, config: MobileNetConfig) -> Any:
        shape = self.config.input_shape
        smallest = layer_plan.min_input_side(layer_plan.plan_rows(config))
        if min(shape[:2]) < smallest:
            expected = f"at least {smallest}, the product of the strides"
            raise UsageError(
                "image_size", self.config.image_size, expected, f"use {smallest} or more"
            )
        return builder.build(config, shape)

    def _check(self, plain: Any) -> None:
        """Checks the images of every split and the methods of all stages before training begins.

        Raises:
            UsageError: an image cannot be decoded, or a method cannot be applied to `plain`.
        """
        self.data.dataset("train", self.config.train.images_per_update, 0, self.config.data_service)
        for split in ("validation", "test"):
            self.data.dataset(split)
        for stage in self.stages:
            if stage not in _METHOD_OF:
                continue
            config = _METHOD_OF[stage](self.config)
            method = None if config is None else self._method(Part(stage), config)
            if method is not None:
                method.check(plain)
            if method is None or method.trains:
                recipe: TrainConfig = getattr(self.config, stage)
                freezing.check(plain, recipe)
                drop_path.of_stage(plain, recipe)
                best_weights.check_metric(recipe, self.activation)
                self._class_weights(recipe)

    def _log_own_accuracy(self, part: Part, start: Any) -> None:
        """Says how accurate the user's own model is; near chance, other classes or inputs than
        those of the data are likely.
        """
        if not isinstance(self.config.model, OwnModel):
            return
        name, held_out = self.config.model.name, self._score(start)
        accuracy = StageReport(part, **_scores(held_out)).accuracy
        log.info("%s: %s on the test images before the first stage", name, accuracy)
        chance = 100 / self.info.num_classes
        is_poor = held_out.top1 < _NEAR_CHANCE * chance and not self.info.multi_label
        if is_poor and part.stage != "train":
            log.warning(
                "%s is hardly better than chance (%0.2f %%): are its outputs the classes in the "
                "order of the data, and its inputs preprocessed as in training?",
                *(name, chance),
            )

    def _method(self, part: Part, method_config: Config) -> methods.Method:
        config = self.config.training(part)
        parts = self.config.parts([part.stage])
        return methods.create(
            method_config,
            methods.StageContext(
                config.epochs * self._steps(config),
                self.preprocessing,
                self.data.first_images,
                initial_ranges=self._learned_ranges,
                calibration_images=self.data.calibration_images,
                labeled_examples=self.data.first_examples,
                measure_latency=measure_latency,
                original_channels=self._original_channels,
                part=parts.index(part) + 1,
                parts=len(parts),
                seed=self.config.seed,
                activation=self.activation,
            ),
        )

    def _batch(self, config: TrainConfig) -> int:
        """Images a step, on all replicas together."""
        return config.images_per_update * int(self.strategy.num_replicas_in_sync)

    @functools.cached_property
    def _original_channels(self) -> Mapping[str, int]:
        """Output channels by layer of the model before any of them were pruned."""
        if isinstance(self.config.model, MobileNetConfig):
            return layer_plan.layer_channels(self.config.model)
        assert self._own_model is not None
        layers = saving.load(self._own_model).model.layers
        return {layer.name: layer.output_shape[-1] for layer in layers if layer.weights}

    def _steps(self, config: TrainConfig) -> int:
        return steps_per_epoch(self.info, self._batch(config))

    def find_rate(self, search: RateSearch) -> RateCurve:
        """Trains the first stage for some steps at rising rates; nothing is saved.

        Raises:
            UsageError: it does not train.
        """
        part = self.config.parts(self.stages)[0]
        expected = "a first stage that trains"
        if part.stage == "convert":
            raise UsageError("stages", part.stage, expected)
        start, method, teacher = self._prepare(part)
        if method is not None and not method.trains:
            raise UsageError("stages", part.stage, expected)
        with self.strategy.scope():
            job = self._job(part, self.config.training(part), teacher)
            model = start if method is None else method.apply(start)
            return engine.find_rate(model, method, job, search)

    def _prepare(self, part: Part) -> tuple[Any, methods.Method | None, TeacherModel | None]:
        """The model that a stage starts from, its method and its teacher."""
        method_config = _METHOD_OF[part.stage](self.config)
        precision = self._precision(part)
        if precision != self.config.mixed_precision:
            log.info("%s: computes in %s, not in %s", part, precision, self.config.mixed_precision)
        strategy.set_precision(precision)
        with self.strategy.scope():
            start = self._start(part)
            method = None if method_config is None else self._method(part, method_config)
            trains = method is None or method.trains
            # All rounds of pruning learn from the model that the first one started from.
            first = self.config.parts([part.stage])[0]
            unpruned = self._start(first) if trains and part != first else start
        teacher = self._teachers.of(part.stage, unpruned, self._origin) if trains else None
        return start, method, teacher

    def _train(self, part: Part) -> StageReport | None:
        """Runs a stage that produces a model: `apply`, training where needed, `finalize`."""
        start, method, teacher = self._prepare(part)
        trains = method is None or method.trains
        with self.strategy.scope():
            if not self.run.begun:
                self._check(start)
                self._log_own_accuracy(part, start)
                self.run.begin()
                log.info("recipe: %s", recipes.name_of(self.config))
                self._record_start(start)
            if trains:
                self._record_training_images()
            trained = None
            if trains:
                trained = self._result(*self._fit(part, start, method, teacher), method, teacher)
        strategy.set_precision(FLOAT32)
        if not self.worker.is_chief:
            if trained is not None:
                freeze.float32_copy(trained.plain)  # all workers read variables together
            return None
        if trained is None:  # such a method returns a float32 model, outside any strategy
            assert method is not None
            trained = self._result(method.apply(freeze.float32_copy(start)), [], method)
        architecture = builder.config_of(trained.plain) or builder.config_of(start)
        plain = freeze.float32_copy(trained.plain)
        card = self._card(part, trained)
        if architecture is not None:  # a thinned model has other channels
            card = card.replace(architecture=architecture.to_json())
        report = self._report(part, plain, trained)
        stages = (*card.stages, report.figures(trained.held_out.images))
        card = card.replace(stages=stages)
        int8_saving.save_stage(plain, self.run.folder(part), card, trained.ranges)
        self._record(part, trained.recorder, plain)
        return report

    def _fit(
        self,
        part: Part,
        start: Any,
        method: methods.Method | None,
        teacher: TeacherModel | None,
    ) -> tuple[Any, list[Row]]:
        """Trains, in the scope of the strategy."""
        config = self.config.training(part)
        self._explain_validation(part, config, self._steps(config))
        job = self._job(part, config, teacher)
        left_out = self.info.sizes["train"] % self._batch(config)
        log.info(
            "%s: %s images, %d steps an epoch, %d epochs%s%s",
            part,
            f"{self.info.sizes['train']:,}",
            job.steps_per_epoch,
            config.epochs,
            f"; {self._batch(config)} images a step, {config.batch_size} on each of "
            f"{self.strategy.num_replicas_in_sync} replicas"
            if self.strategy.num_replicas_in_sync > 1
            else "",
            f"; each leaves out {left_out} images" if left_out else "",
        )
        model = start if method is None else method.apply(start)
        if method is not None and (warning := frozen_kernels_warning(method, start)):
            log.warning("%s: %s", part, warning)
        explained = arrays.explain_errors(self.config.dataset, "train", "validation")
        with explained, strategy.ended_workers(self.strategy):
            return model, engine.fit(model, method, job)

    def _distilled(self, job: engine.Job, config: TrainConfig, model: TeacherModel) -> engine.Job:
        """The job with a teacher, whose outputs are computed before where no image is varied."""
        distillation = self.config.distillation
        teacher = model.teacher(distillation, self.preprocessing, self.config.channels)
        job = dataclasses.replace(job, teacher=teacher)
        is_varied = teacher.features is not None or config.augments_batches
        if not distillation.cache or is_varied or self.strategy.num_replicas_in_sync > 1:
            return job
        table = cached_outputs.compute(
            teacher.predict, self.data, self.info.sizes["train"], job.classes
        )
        if table is None:
            return job
        training = functools.partial(job.training, columns=table)
        teacher = dataclasses.replace(teacher, is_cached=True)
        return dataclasses.replace(job, training=training, teacher=teacher)

    def _explain_validation(self, part: Part, config: TrainConfig, steps_per_epoch: int) -> None:
        """Says why the first epochs of a model from scratch look as if it did not learn."""
        if self.config.init_checkpoint is not None or self.source(part) is not None:
            return
        assert isinstance(self.config.model, MobileNetConfig)
        decay = self.config.model.batch_norm_decay or 0.0
        steps = math.log(_FORGOTTEN) / math.log(decay) if 0 < decay < 1 else 0.0
        epochs = math.ceil(steps / steps_per_epoch)
        if min(epochs, config.epochs) > 1:
            log.info(
                "%s: validation stays near chance for up to %d epochs, until the moving statistics "
                "of batch norms have forgotten their initial values",
                part,
                epochs,
            )

    def _result(
        self,
        model: Any,
        rows: list[Row],
        method: methods.Method | None,
        teacher: TeacherModel | None = None,
    ) -> _StageResult:
        """Scores a stage's model and makes it plain, in the scope in which it was created."""
        recorder = self._recorder()
        held_out = self._score(model, recorder)
        notes = list(method.notes(model)) if method is not None else []
        if teacher is not None:
            notes.append(teacher.note(self.config.distillation))
        notes += [
            f"weights of epoch {row['epoch']} of {len(rows)}, the best on validation images"
            for row in rows
            if row.get("kept")
        ]
        ranges, floats = int8_saving.ranges_of(model), int8_saving.float_layers_of(model)
        plain = model if method is None else method.finalize(model)
        report = {} if method is None else method.report()
        fields = {} if method is None else method.card_fields()
        return _StageResult(plain, held_out, recorder, rows, notes, ranges, floats, report, fields)

    def _convert(self) -> StageReport:
        """Converts the newest model, verifies the file against it and measures it."""
        part = Part("convert")
        before = self.source(part)
        if before is None:
            raise UsageError(
                "stages",
                part.stage,
                "a trained model in the run folder",
                "run `stages=train,convert`",
            )
        images = self.data.held_out(limit=export_pipeline.VERIFY_IMAGES)
        if not self.run.begun:
            self.run.begin()
        exported = export_pipeline.export(before, self.run.folder(part), images)
        file = exported.file
        recorder = self._recorder()
        held_out = scoring.score_flatbuffer(
            file.classifier(), self.data.dataset("test"), self.preprocessing, on_batch=recorder
        )
        self._record(part, recorder)
        details = {
            "agreement": round(100 * file.verification.agreement, 3),
            "verification": file.verification.to_json(),
            "repaired": [dataclasses.asdict(repair) for repair in file.repairs],
        }
        counts: dict[str, Any] = dict(file.figures)
        size = _file_size(file.content)
        report = StageReport(part, **_scores(held_out), **counts, **size, details=details)
        exported.write_figures(report.figures(held_out.images))
        return report

    def _precision(self, part: Part) -> str:
        """The precision in which a stage computes."""
        config = _METHOD_OF[part.stage](self.config)
        kind = None if config is None else methods.type_of(config)
        needs_float32 = kind is not None and (kind.needs_float32 or not kind.trains)
        return FLOAT32 if needs_float32 else self.config.mixed_precision

    def _job(self, part: Part, config: TrainConfig, teacher: TeacherModel | None) -> engine.Job:
        batch, steps = self._batch(config), self._steps(config)

        def training(
            start: int,
            context: tf.distribute.InputContext | None = None,
            columns: npt.NDArray[np.float32] | None = None,
        ) -> tf.data.Dataset:
            service = self.config.data_service
            return self.data.dataset("train", batch, start, service, context, columns)

        bar = progress.Progress(part.name, config.epochs, steps, batch, self.progress_bar)
        callbacks = (bar, *self._loggers(part)) if self.worker.is_chief else (bar,)
        job = engine.Job(
            part.name,
            config,
            steps,
            training,
            self.data.dataset("validation"),
            self.config.model.num_classes or 0,
            self.run.checkpoints(part),
            callbacks,
            activation=self.activation,
            multi_label=self.info.multi_label,
            seed=self.config.seed,
            checkpoint_minutes=self.config.checkpoint_minutes,
            keep_checkpoints=self.config.keep_checkpoints,
            steps_per_execution=self.config.steps_per_execution,
            publish=self.run.publish,
            jit_compile=self.config.jit_compile,
            class_weights=self._class_weights(config),
        )
        return job if teacher is None else self._distilled(job, config, teacher)

    def _class_weights(self, config: TrainConfig) -> tuple[float, ...] | None:
        """Of a stage.

        Raises:
            UsageError: see `class_weights.weights_of`.
        """
        if config.class_weights == NO_CLASS_WEIGHTS:
            return None
        labels = self.data.training_labels()
        return class_weights.weights_of(config.class_weights, self.info.labels, labels)

    def _loggers(self, part: Part) -> Iterator[Any]:
        """The Keras callbacks that log a stage."""
        if "tensorboard" in self.config.log_to:
            yield tensorboard.Board(
                self.run.path / "tensorboard" / part.name,
                histogram_epochs=self.config.histogram_epochs,
                shows_sparsity=_METHOD_OF[part.stage](self.config) is not None,
                images=self._shown_pixels if part.stage == self.config.stages[0] else None,
                config=self._shown_config,
            )
        yield from self._trackers.callbacks(part.name)

    def _shown_pixels(self) -> npt.NDArray[np.uint8]:
        return self._training_images.pixels

    @functools.cached_property
    def _training_images(self) -> stage_data.TrainingImages:
        """The first training images as the model sees them, for TensorBoard and the report."""
        images, labels = self.data.first_examples(stage_recorder.SHOWN)
        first = self.config.training(self.config.parts(self.config.stages)[0])
        mixing = batch_augmentation.of_job(
            first, self.config.seed, self.config.model.num_classes or 0, labels.ndim == 2
        )
        if mixing is not None:
            images, labels = (value.numpy() for value in mixing.apply(images, labels, 0))
        pixels = stage_recorder.pixels_of(images, self.preprocessing)
        return stage_data.TrainingImages(pixels, labels)

    def _recorder(self) -> stage_recorder.TestImageRecorder:
        return stage_recorder.TestImageRecorder(self.preprocessing, self.activation)

    def _record(
        self,
        part: Part,
        recorder: stage_recorder.TestImageRecorder,
        plain: Any = None,
    ) -> None:
        """Writes what a report shows of a stage beyond its figures."""
        run = self.run.path
        with stage_data.optional(f"what {part} gave for the test images"):
            scored = recorder.result()
            names = self.data.test_names(scored.shown)
            stage_data.save_scored(run, part.name, dataclasses.replace(scored, names=names))
        if plain is not None:
            with stage_data.optional(f"the kernels of {part}"):
                stage_data.save_kernels(run, part.name, stage_recorder.kernels_of(plain))

    def _record_training_images(self) -> None:
        """Writes the picture of training images before the first training of a run begins."""
        run = self.run.path
        if stage_data.has_training_images(run) or not self.run.is_written:
            return
        with stage_data.optional("training images"):
            picture = stage_data.save_training_images(run, self._training_images)
            log.info("training images as the model sees them: %s", picture)

    def _record_start(self, start: Any) -> None:
        """Writes the kernels of trained weights that the first stage starts from."""
        if self._origin is not None and self.run.is_written:
            with stage_data.optional("the kernels before the first stage"):
                kernels = stage_recorder.kernels_of(start)
                stage_data.save_kernels(self.run.path, stage_data.START, kernels)

    def _score(self, model: Any, on_batch: scoring.OnBatch | None = None) -> metrics.Metrics:
        explained = arrays.explain_errors(self.config.dataset, "test")
        with explained, strategy.ended_workers(self.strategy):
            infer, batches = inference.compile_model(model), self.data.dataset("test")
            return scoring.score(infer, batches, activation=self.activation, on_batch=on_batch)

    def _card(self, part: Part, trained: _StageResult) -> Card:
        earlier = self._earlier(part)
        return Card(
            architecture=self._architecture,
            input_shape=self.config.input_shape,
            preprocessing=self.preprocessing,
            labels=checked_labels(self.info.labels, self.config.model.num_classes or 0),
            activation=self.activation,
            label_offset=self.config.dataset.label_offset,
            outputs="logits",
            dataset=self.config.dataset.name,
            stage=part.name,
            stages=earlier.stages,
            initial_weights=earlier.initial_weights,
            metrics=_scores(trained.held_out),
            history=tuple(trained.rows),
            keep_float=trained.float_layers,
            notes=(*self._own_notes, *trained.notes),
            **trained.card_fields,
        )

    def _earlier(self, part: Part) -> Card:
        """The card of the model that a stage started from; one without stages at the first."""
        before = self.source(part)
        if before is not None and before == self._own_model:
            return Card(initial_weights=self.config.model.name)
        if before is not None and part.stage != "train":
            return Card.from_file(before / CARD)
        checkpoint = self.config.init_checkpoint
        if checkpoint is None:
            return Card(initial_weights="random")
        if released_weights.find(checkpoint) is not None:
            return Card(initial_weights=checkpoint)
        release = released_models.of_path(checkpoint)
        name = Path(checkpoint).stem if release is None else release.name
        return Card(initial_weights=name)

    @property
    def _architecture(self) -> dict[str, Any]:
        is_ours = isinstance(self.config.model, MobileNetConfig)
        return self.config.model.to_json() if is_ours else {}

    @functools.cached_property
    def _own_notes(self) -> tuple[str, ...]:
        """What was assumed of the user's own model."""
        own = self._own_model
        return () if own is None else Card.from_file(own / CARD).notes

    def _report(self, part: Part, plain: Any, trained: _StageResult) -> StageReport:
        counts: dict[str, Any] = model_figures(plain)
        is_float = trained.ranges is None
        size = _file_size(tflite_converter.float_flatbuffer(plain)) if is_float else {}
        details = dict(trained.report)
        return StageReport(
            part,
            **_scores(trained.held_out),
            **counts,
            **size,
            history=tuple(trained.rows),
            mask_changes=tuple(tuple(row) for row in details.pop(MASK_CHANGES, ())),
            details=details,
        )


def _file_size(content: bytes) -> dict[str, Any]:
    """Size, size under gzip, and the time of one image on one thread."""
    seconds = interpreter.latency({"file": content})["file"]
    return {
        "bytes": len(content),
        "gzip_bytes": verify.gzip_size(content),
        "latency_ms": round(1000 * seconds, 4),
    }


def _scores(held_out: metrics.Metrics) -> dict[str, Any]:
    digits = {"top1": 4, "top5": 4, "loss": 6, "auc": 6, "f1": 6}
    figures = {name: value for name, value in held_out.to_json().items() if name in digits}
    return {name: round(value, digits[name]) for name, value in figures.items()}
