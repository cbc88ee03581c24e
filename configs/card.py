"""A saved model's card: its architecture, preprocessing, labels and metrics; stored with every
model and flatbuffer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from mobilenet.errors import UsageError

from .archs import MobileNetConfig
from .base import MAX_SIDE, Config, check_number, checked
from .dataset import Preprocessing

CARD = "card.json"  # its name in the folder of a model or file
README = "README.md"  # the model card of an export folder
FORMAT = 1
OUTPUTS = ("logits", "probabilities", "features")
SOFTMAX, SIGMOID = "softmax", "sigmoid"
ACTIVATIONS = (SOFTMAX, SIGMOID)
SCALING, CROP = "scaling", "crop"  # what may be assumed of a preprocessing
_LICENSE = re.compile(r"([a-z0-9]+([.+-][a-z0-9]+)*)?")
_IO_TYPES = ("float32", "float16", "int8", "uint8", "int16")


@dataclasses.dataclass(frozen=True)
class TensorType(Config):
    """The type of a flatbuffer's input or output: `real = scale * (quantized - zero_point)`; scale
    0 means float.
    """

    dtype: str = checked("float32", choices=_IO_TYPES)
    scale: float = checked(0.0, least=0)
    zero_point: int = checked(0, least=-128, most=255, integer=True)


@dataclasses.dataclass(frozen=True)
class CalibrationSummary(Config):
    """The images that post-training quantization saw.

    Attributes:
        images: their number; every second one is held out to accept or reject each step.
        input_low, input_high: the least and the largest value of the preprocessed images.
        source: the data set, or the path of the images.
    """

    images: int = checked(0, least=0, integer=True)
    input_low: float = checked(0.0)
    input_high: float = checked(0.0)
    source: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("input_high", self.input_high, least=self.input_low)


@dataclasses.dataclass(frozen=True)
class QuantizationStep(Config):
    """One step of post-training quantization, as it was tried.

    Attributes:
        name: of the step, as in `configs.quantization.PTQ_STEPS`.
        accepted: the model has it; a step that does not help is reverted.
        agreement: share, in 0..1, of the held-out calibration images on which the quantized model
            has the float model's top-1 (of a sigmoid all its labels) after the step; `None` for a
            step that is exact and so not compared.
        signal_to_noise_db: median over those images of the outputs' signal-to-noise ratio, in dB;
            `None` as above, and where the float model's outputs are all zero.
        seconds: the step took, with its comparison.
        detail: what it changed, human-readable.
    """

    name: str
    accepted: bool
    agreement: float | None = checked(None, least=0, most=1)
    signal_to_noise_db: float | None = checked(None)
    seconds: float = checked(0.0, least=0)
    detail: str = ""

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.detail}"]
        if self.agreement is not None:
            ratio = self.signal_to_noise_db
            noise = "" if ratio is None else f", {ratio:.1f} dB"
            parts.append(f"agreement {self.agreement:.1%}{noise}")
        if not self.accepted:
            parts.append("rejected: no improvement")
        return "; ".join(parts)


@dataclasses.dataclass(frozen=True)
class StageFigures(Config):
    """What a stage of a run reached, for the model card of what leaves the run.

    Attributes:
        name: of the stage, such as `train` or `prune_2`.
        metrics: as those of a card.
        images: test images that they were measured on.
        params, macs, nonzero_weights: of its model; MACs of one image.
        bytes: of its file; `None` for a quantized model that is not converted yet.
    """

    name: str
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    images: int = checked(0, least=0, integer=True)
    params: int | None = checked(None, least=0, integer=True)
    macs: int | None = checked(None, least=0, integer=True)
    nonzero_weights: int | None = checked(None, least=0, integer=True)
    bytes: int | None = checked(None, least=0, integer=True)


@dataclasses.dataclass(frozen=True)
class Card(Config):
    """What a reader of a saved model needs and cannot see in its weights.

    Attributes:
        architecture: the model's config as JSON (`MobileNetConfig.to_json`); empty for a model of
            another origin.
        input_shape: `[height, width, channels]`.
        preprocessing: how an image becomes the input. For an int8 file the mean is a whole number,
            such as 128 for inputs in [-1, 1], so that the quantized value of a pixel is exactly
            the pixel minus 128.
        labels: class names by index.
        label_offset: label in the data minus class index (see `DatasetConfig`).
        outputs: `logits`, `probabilities` or `features`.
        activation: what turns logits into probabilities: `softmax` (one class an image) or
            `sigmoid` (each label by itself; one output is that of the second of two classes).
            `None` where it is not known, see `activation_of`.
        dataset: the data set it was trained on.
        stage: the stage that wrote it (`train`, `prune`, `quantize`, `convert`; `tf1`).
        stages: the stages of the run that it went through, in order, its own last.
        initial_weights: what the first stage started from: `random`, or the name of the released
            model, of the file or of the user's own model; empty where it is not known.
        license: of the weights, by its identifier on the Hugging Face Hub (`apache-2.0`, `mit`);
            empty where none was chosen.
        published: what was published of the released model whose weights it holds, in a line.
        metrics: held-out figures, `top1` and `top5` in percent, `loss`.
        history: one dictionary an epoch.
        input, output: types of a flatbuffer's input and output; `None` for a Keras model.
        keep_float: layers that an int8 file of it computes in float.
        calibration: the images of post-training quantization; `None` for other models.
        quantization_steps: the steps of post-training quantization, in order.
        notes: human-readable, one line each (how it was pruned, what was repaired).
        assumed: what of the preprocessing is neither stored with the model, nor read from its first
            layers, nor given: `scaling` (mean and deviation), `crop`.
    """

    architecture: dict[str, Any] = dataclasses.field(default_factory=dict)
    input_shape: tuple[int, int, int] = (224, 224, 3)
    preprocessing: Preprocessing = Preprocessing()
    labels: tuple[str, ...] = ()
    label_offset: int = checked(0, least=0, integer=True)
    outputs: str = checked("logits", choices=OUTPUTS)
    activation: str | None = checked(None, choices=ACTIVATIONS)
    dataset: str = ""
    stage: str = ""
    stages: tuple[StageFigures, ...] = ()
    initial_weights: str = ""
    license: str = ""
    published: str = ""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()
    input: TensorType | None = None
    output: TensorType | None = None
    keep_float: tuple[str, ...] = ()
    calibration: CalibrationSummary | None = None
    quantization_steps: tuple[QuantizationStep, ...] = ()
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = checked((), choices=(SCALING, CROP))
    format: int = checked(FORMAT, least=1, most=FORMAT, integer=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _LICENSE.fullmatch(self.license):
            expected = "an identifier of the Hugging Face Hub, such as apache-2.0 or mit"
            raise UsageError("license", self.license, expected)
        if len(self.input_shape) != 3:
            raise UsageError("input_shape", list(self.input_shape), "[height, width, channels]")
        for side in self.input_shape:
            if side is not None:  # an open size, which only a Keras model has
                check_number("input_shape", side, least=1, most=MAX_SIDE, integer=True)
        channels = self.input_shape[2]
        for name, values in (("mean", self.preprocessing.mean), ("std", self.preprocessing.std)):
            if len(values) not in (1, channels):
                raise UsageError(
                    f"preprocessing {name}",
                    list(values),
                    f"one value, or one for each of {channels}",
                )

    def replace(self, **changes: Any) -> Card:
        """As `Config.replace`; nothing is assumed of a preprocessing that is given."""
        if "preprocessing" in changes:
            changes.setdefault("assumed", ())
        return super().replace(**changes)

    @property
    def is_derived(self) -> bool:
        """Whether the card was not stored with a model, but holds what can be seen in it."""
        return not (self.architecture or self.labels or self.dataset or self.stage)

    @property
    def decided(self) -> str:
        """What a file and its model agree on: the best class, or of a sigmoid the labels."""
        return "labels" if self.activation == SIGMOID else "top-1"

    @property
    def title(self) -> str:
        """The kind of model, such as `MobileNetV2`."""
        return str(self.architecture.get("type", "model")).removesuffix("Config")

    @property
    def file_stage(self) -> StageFigures | None:
        """The figures that were measured on the converted file itself, if they were."""
        is_measured = bool(self.stages) and self.stages[-1].name == "convert"
        return self.stages[-1] if is_measured else None

    def model_config(self) -> MobileNetConfig | None:
        """The config in `architecture`; `None` without one, or if a later version wrote it."""
        try:
            return MobileNetConfig.from_json(self.architecture) if self.architecture else None
        except UsageError:
            return None


def activation_of(activation: str | None, outputs: int) -> str:
    """What turns the logits of a model into probabilities, assumed where it is not known.

    Args:
        activation: of the card.
        outputs: how many the model has; one alone can only be that of a sigmoid.
    """
    return known_activation(activation, outputs) or SOFTMAX


def known_activation(activation: str | None, outputs: int) -> str | None:
    """As `activation_of`, but `None` where softmax is assumed."""
    return SIGMOID if outputs == 1 else activation


def class_count(outputs: int) -> int:
    """Classes of a model: as many as it has outputs, and two of one output (a sigmoid's)."""
    return 2 if outputs == 1 else outputs


def class_numbers(outputs: int) -> tuple[str, ...]:
    """Names of classes that have none: their numbers."""
    return tuple(str(index) for index in range(class_count(outputs)))


def checked_labels(labels: Sequence[str], outputs: int) -> tuple[str, ...]:
    """Names of the classes of a model.

    Args:
        labels: as many as the model has outputs. Of one output the names of both classes, or that
            of the second alone.
        outputs: of the model.

    Raises:
        UsageError: they are no names, or not as many.
    """
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise UsageError("labels", labels, "a list of class names")
    if outputs == len(labels) == 1:
        return f"not {labels[0]}", labels[0]
    if len(labels) != class_count(outputs):
        expected = f"{outputs} names, one for each output of the model"
        if outputs == 1:
            expected = "the names of both classes of the model, the one of output 0 first"
        raise UsageError("labels", f"{len(labels)} names", expected)
    return tuple(labels)
