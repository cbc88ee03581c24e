"""TF1 checkpoints into our models, strictly: every weight is filled and every variable used, or
nothing is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.configs import released_models
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.models.builder import IMAGENET_SHAPE, build
from mobilenet.tf1_loader import (
    architecture_detection,
    checkpoint,
    fake_quant_ranges,
    variable_matching,
    variable_names,
)

TF1_SLOPE = 0.16667  # research/slim/models/mobilenet/mobilenet_v3.py, the gate's literal
_IMAGENET = 1000
_BACKGROUND = "the background class (output 0) was dropped: output k is now class k of 1000"


@dataclasses.dataclass(frozen=True)
class Report:
    """The variables of a checkpoint and their use; each is in `loaded` or `left_aside`.

    Attributes:
        path: as passed to the loader.
        prefix: of the checkpoint that was read.
        description: of the model in it, in a sentence.
        loaded: variable by weight, `<layer>/<kernel, bias, gamma, ...>`.
        averaged: how many of these are moving averages.
        left_aside: names that the model does not need, by reason: `raw` and `average` (the other
            one was taken), `slot`, `step`, `loss`, `quantization`, `training state`, `logits`.
        new: layers that keep their initial weights; only the head can be among them.
        ranges: low and high by quantizer, of a checkpoint trained with fake quantization: a
            layer's name for its output, `<layer>/kernel` for its (folded) kernel.
        unnamed_ranges: low and high by scope, where our quantizer is not known.
        release: the released model that the file's name stands for, if the architecture agrees.
        notes: for the user.
    """

    path: str
    prefix: str
    description: str
    loaded: Mapping[str, str]
    averaged: int
    left_aside: Mapping[str, tuple[str, ...]]
    new: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    unnamed_ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    release: released_models.Release | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model from a checkpoint."""

    model: Any
    config: MobileNetConfig
    report: Report

    @property
    def card(self) -> Card:
        """The card to store with the model."""
        release = self.report.release
        return Card(
            architecture=self.config.to_json(),
            input_shape=tuple(self.model.input_shape[1:]),
            preprocessing=Preprocessing(),
            label_offset=1 if self.report.notes else 0,
            outputs="probabilities" if self.config.num_classes else "features",
            stage="tf1",
            published="" if release is None else str(release),
            notes=(self.report.description, *self.report.notes),
        )


def load_tf1_checkpoint(
    path: str | os.PathLike[str],
    use_ema: bool = True,
    input_shape: Sequence[int | None] | None = None,
    classifier_activation: str | None = "softmax",
    *,
    num_classes: int | None = None,
    hard_sigmoid_slope: float = TF1_SLOPE,
) -> Loaded:
    """A TF1 checkpoint of a V1, V2, V3 or EdgeTPU as a tf_keras model, found from names and shapes.

    Args:
        path: a prefix, `.index` file, folder, `.npz` of slim names, or an archive as Google
            publishes it.
        use_ema: take the moving average of each variable that has one (1.5 to 2 % more accurate by
            research/slim/models/mobilenet/mobilenet_example.ipynb); of a V3 archive, its `ema/`.
        input_shape: `[height, width, channels]`, or height and width with the stem's channels;
            when `None`, the size is that of the released model that the file's name stands for
            (`mobilenet_v1_0.25_128`), else 224.
        classifier_activation: `softmax`, `sigmoid`, or `None` for logits.
        num_classes: 1000 drops the background class of 1001; 0 leaves the logits out; `None` keeps
            what there is.
        hard_sigmoid_slope: of V3's squeeze-excite gates. The checkpoints were trained with the
            literal 0.16667; 1/6, as keras.applications has it, moves logits by up to 0.004.

    Raises:
        UsageError: no such checkpoint, a damaged one, or of another model.

    Examples:
        load_tf1_checkpoint("mobilenet_v1_0.25_128.ckpt").model.predict(images)
    """
    with _open_transfer(path, use_ema) as transfer:
        detected = transfer.detected
        classes = detected.config.num_classes if num_classes is None else num_classes
        config = detected.config.for_loaded_weights().replace(
            num_classes=classes,
            classifier_activation=classifier_activation,
            hard_sigmoid_slope=hard_sigmoid_slope,
        )
        model = build(config, transfer.shape(input_shape))
        return Loaded(model, config, transfer.fill(model, config))


def load_family(
    path: str | os.PathLike[str],
    config: MobileNetConfig | None,
    kinds: tuple[type[MobileNetConfig], ...],
    input_shape: Sequence[int | None] | None,
    use_ema: bool,
) -> Any:
    """The model of a checkpoint that must be of one of `kinds`; see `load_tf1_checkpoint`.

    A gate's slope that the config leaves at its default is TF1's, so that outputs are the same.
    """
    expected = " or ".join(kind.__name__ for kind in kinds)
    if config is not None and not isinstance(config, kinds):
        raise UsageError("config", type(config).__name__, expected)
    with _open_transfer(path, use_ema, exactly=config is None) as transfer:
        detected = transfer.detected
        if not isinstance(detected.config, kinds):
            raise UsageError(
                str(path),
                detected.name,
                f"a checkpoint of {expected}",
                f"use load_{detected.name.removesuffix('_minimalistic')}",
            )
        config = (detected.config if config is None else config).for_loaded_weights()
        if config.hard_sigmoid_slope == MobileNetConfig.hard_sigmoid_slope:
            config = config.replace(hard_sigmoid_slope=TF1_SLOPE)
        model = build(config, transfer.shape(input_shape))
        transfer.fill(model, config)
        return model


def load_into(
    model: Any, config: MobileNetConfig, path: str | os.PathLike[str], use_ema: bool = True
) -> Report:
    """Fills a model to start training from; its head stays new where the class counts differ.

    Args:
        model: what `build(config)` made.
        config: its config.
        path, use_ema: as in `load_tf1_checkpoint`.

    Raises:
        UsageError: a damaged checkpoint, or one that does not fit; `model` is then as it was.
    """
    with _open_transfer(path, use_ema, exactly=False) as transfer:
        if architecture_detection.scopes_of(
            transfer.detected.config
        ) is not architecture_detection.scopes_of(config):
            raise UsageError(
                str(path),
                str(transfer.detected),
                f"a checkpoint of {type(config).__name__}",
                f"give `model_name={transfer.detected.name}`",
            )
        stored, channels = transfer.detected.channels, model.input_shape[-1]
        if channels != stored:
            raise UsageError("channels", channels, f"{stored}, as the weights of {path} take")
        return dataclasses.replace(transfer, new_head=True).fill(model, config)


@dataclasses.dataclass(frozen=True)
class _Transfer:
    """The transfer of a checkpoint's variables to a model."""

    source: checkpoint.Checkpoint
    variables: variable_names.ClassifiedVariables
    detected: architecture_detection.Detected
    path: Path
    use_ema: bool
    new_head: bool = False

    def fill(self, model: Any, config: MobileNetConfig) -> Report:
        """Checks that all fits, then reads everything, then sets the weights of `model`."""
        chosen = self.variables.select(self.use_ema)
        drop, keep_head = self._head(config)
        start = f"{self.detected.prefix}{variable_matching.HEAD}/"
        logits = [] if keep_head else [name for name in chosen if name.startswith(start)]
        shapes = {n: self.source.shapes[chosen[n]] for n in chosen if n not in logits}
        assignments = variable_matching.match_variables(
            model, config, shapes, self.detected, str(self.path), head=keep_head, drop_first=drop
        )
        values = [self._read(assignment, chosen[assignment.variable]) for assignment in assignments]
        read = fake_quant_ranges.read_ranges(
            self.source,
            self.variables.ranges,
            architecture_detection.scopes_of(config),
            self.detected.prefix,
            model,
        )
        for assignment, value in zip(assignments, values, strict=True):
            assignment.target.assign(value)
        loaded = {assignment.weight: chosen[assignment.variable] for assignment in assignments}
        head_is_new = not keep_head and bool(config.num_classes)
        return Report(
            path=str(self.path),
            prefix=self.source.prefix,
            description=self._sentence(),
            loaded=loaded,
            averaged=sum(name.endswith(variable_names.AVERAGE) for name in loaded.values()),
            left_aside=self._left_aside(chosen, logits),
            new=(variable_matching.HEAD,) if head_is_new else (),
            ranges=read[0],
            unnamed_ranges=read[1],
            release=self.release,
            notes=(_BACKGROUND,) if drop else (),
        )

    @property
    def release(self) -> released_models.Release | None:
        """The released model that the file is named after, if its architecture agrees."""
        release, detected = released_models.of_path(self.path), self.detected
        if release is None or release.model_name != detected.name:
            return None
        return release if release.width == detected.config.width_multiplier else None

    def shape(self, requested: Sequence[int | None] | None) -> tuple[int | None, ...]:
        """The input shape of the model to build: as requested, or from the file's name and the
        stem.
        """
        channels = self.detected.channels
        if requested is None:
            side = self.release.image_size if self.release is not None else IMAGENET_SHAPE[0]
            return (side, side, channels)
        shape = tuple(requested)
        if len(shape) == 2:
            return (*shape, channels)
        if len(shape) == 3 and shape[2] != channels:
            raise UsageError("input_shape", shape, f"{channels} channels, as the stem has")
        return shape

    def _head(self, config: MobileNetConfig) -> tuple[bool, bool]:
        """Whether the first class is dropped, and whether the head is taken at all."""
        classes, stored = config.num_classes or 0, self.detected.config.num_classes or 0
        drop = (classes, stored) == (_IMAGENET, _IMAGENET + 1)
        return drop, drop or classes == stored or bool(classes and not self.new_head)

    def _read(self, assignment: variable_matching.Assignment, name: str) -> npt.NDArray[np.float32]:
        value = self.source.read(name)
        value = value[..., 1:] if assignment.drop_first else value
        return value.reshape(tuple(assignment.target.shape))

    def _left_aside(
        self, chosen: Mapping[str, str], logits: Sequence[str]
    ) -> dict[str, tuple[str, ...]]:
        aside = dict(self.variables.left_aside)
        candidates = (
            {**self.variables.raw, **self.variables.averages}
            if not self.use_ema
            else self.variables.raw
        )
        unused = tuple(sorted({*candidates.values()} - {*chosen.values()}))
        if unused:
            aside["raw" if self.use_ema else "average"] = unused
        if logits:
            aside["logits"] = tuple(sorted(chosen[name] for name in logits))
        return aside

    def _sentence(self) -> str:
        averages = len(self.variables.averages)
        taken = "taken" if self.use_ema else "not taken"
        more = [f"{averages} moving averages ({taken})"] if averages else []
        more += ["trained with fake quantization"] if self.variables.ranges else []
        return ", ".join([str(self.detected), *more])


@contextlib.contextmanager
def _open_transfer(
    path: str | os.PathLike[str], use_ema: bool, exactly: bool = True
) -> Iterator[_Transfer]:
    with checkpoint.open_checkpoint(path, use_ema) as source:
        variables = variable_names.classify_variables(source.shapes)
        shapes = {base: source.shapes[name] for base, name in variables.select(True).items()}
        detected = architecture_detection.detect(shapes, str(path), exactly)
        for name in variables.select(use_ema).values():
            source.read(name)  # damage is reported before a model is built, which takes seconds
        yield _Transfer(source, variables, detected, Path(path), use_ema)
