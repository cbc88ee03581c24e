"""Distillation: a stage also learns from the outputs of another model."""

from __future__ import annotations

import dataclasses

from mobilenet.errors import UsageError

from .base import Config, flag
from .dataset import PREPROCESSING, choose_preprocessing

AUTO, NONE, START = "auto", "none", "start"


@dataclasses.dataclass(frozen=True)
class Distillation(Config):
    """Training towards the outputs of a teacher (Hinton et al., arXiv 1503.02531).

    The loss of an image is (1 - weight) * cross-entropy with its label + weight * temperature^2 *
    KL(softmax(teacher / temperature) || softmax(model / temperature)).

    Attributes:
        teacher: `start` is the model that a stage began with, for stages that prune or quantize. A
            path is a model of the same classes and input, for every stage that trains. `auto`
            becomes `start` or `none` once the data are known.
        weight: share of the teacher in the loss.
        temperature: divides the logits of both; higher ones give more weight to the wrong classes.
        preprocessing: how pixels become the inputs of a teacher that is a path, as
            `dataset.choose_preprocessing` takes it; `None` is what is stored with it or read from
            its first layers.
    """

    teacher: str = flag(
        AUTO,
        "what stages learn from besides the labels: auto, none, start (the model that pruning or "
        "quantization began with), or a model: model folder, .keras, TF1 checkpoint, "
        "timm's .safetensors",
        "distill",
        path=True,
    )
    weight: float = flag(
        0.9, "share of the teacher in the loss, 0 to 1", "distill_weight", least=0, most=1
    )
    temperature: float = flag(
        2.0,
        "divides the logits of model and teacher, as in the paper",
        "distill_temperature",
        above=0,
    )
    preprocessing: str | None = flag(
        None,
        "how pixels become the inputs of a teacher that is a model of its own: "
        + ", ".join(PREPROCESSING)
        + ", or "
        "mean,std; by default as stored with it or read from its first layers",
        "distill_preprocessing",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preprocessing is not None:
            try:
                choose_preprocessing(self.preprocessing)
            except UsageError as error:
                path = f"distillation.{error.what}"
                raise UsageError(path, error.got, error.expected, error.remedy) from None

    @property
    def model(self) -> str | None:
        """The path of the teacher, where it is a model of its own."""
        return None if self.teacher in (AUTO, NONE, START) else self.teacher
