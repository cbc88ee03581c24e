"""Distillation: a stage also learns from the outputs of another model."""

from __future__ import annotations

import dataclasses

from mobilenet.errors import UsageError

from .base import MAX_SIDE, Config, flag
from .dataset import PREPROCESSING, choose_preprocessing

AUTO, NONE, START = "auto", "none", "start"


@dataclasses.dataclass(frozen=True)
class Distillation(Config):
    """Training towards the outputs of a teacher (Hinton et al., arXiv 1503.02531).

    The loss of an image is (1 - weight) * cross-entropy with its label + weight * temperature^2 *
    KL(softmax(teacher / temperature) || softmax(model / temperature)) + features * the distance of
    feature maps (Tung and Mori, arXiv 1907.09682).

    Attributes:
        teacher: `start` is the model that a stage began with, for stages that prune or quantize. A
            path, or the name of released weights, is a model of the same classes, for every stage
            that trains. `auto` becomes `start` or `none` once the data are known.
        weight: share of the teacher in the loss.
        temperature: divides the logits of both; higher ones give more weight to the wrong classes.
        preprocessing: how pixels become the inputs of a teacher that is a path, as
            `dataset.choose_preprocessing` takes it; `None` is what is stored with it or read from
            its first layers.
        image_size: side in pixels of the images that a teacher that is a path takes. `None` is its
            own size, and that of the run where its weights serve any size (TF1 checkpoints,
            timm's). The images are those of the run, resized.
        features: multiplies the distance of the feature maps; 0 compares logits alone.
        feature_layers: which maps are compared: strides, such as 16, or pairs of a layer of the
            model and one of the teacher with = between. Empty is the last map of both.
        cache: compute the logits of the teacher once for each training image where images are not
            varied and no feature maps are compared, instead of in each step.
    """

    teacher: str = flag(
        AUTO,
        "what stages learn from besides the labels: auto, none, start (the model that pruning or "
        "quantization began with), or a model: model folder, .keras, TF1 checkpoint, "
        "timm's .safetensors, or the name of released weights",
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
    image_size: int | None = flag(
        None,
        "side in pixels of the images of a teacher that is a model of its own, to which the run's "
        "are resized; by default its own size",
        "distill_image_size",
        least=1,
        most=MAX_SIDE,
        integer=True,
    )
    features: float = flag(
        0.0,
        "weight of the distance between feature maps of model and teacher; 0 compares logits alone",
        "distill_features",
        least=0,
    )
    feature_layers: tuple[str, ...] = flag(
        (),
        "which feature maps are compared: strides such as 16,32, or pairs of layers as "
        "model_layer=teacher_layer; by default the last ones",
        "distill_feature_layers",
    )
    cache: bool = flag(
        True,
        "compute the teacher's logits once for each image where images are not varied",
        "distill_cache",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_features()
        if self.preprocessing is not None:
            try:
                choose_preprocessing(self.preprocessing)
            except UsageError as error:
                path = f"distillation.{error.what}"
                raise UsageError(path, error.got, error.expected, error.remedy) from None

    def _check_features(self) -> None:
        for text in self.feature_layers:
            names = text.split("=")
            if not text.isdigit() and (len(names) != 2 or not all(names)):
                expected = "a stride, such as 16, or model_layer=teacher_layer"
                raise UsageError("distillation.feature_layers", text, expected)
        if self.feature_layers and not self.features:
            expected = "a weight above 0, as `feature_layers` are set"
            raise UsageError("distillation.features", self.features, expected, "try 1")
        if self.teacher != NONE:
            return
        if self.features:
            expected = "0, as there is no teacher"
            remedy = "give a `teacher`, such as start"
            raise UsageError("distillation.features", self.features, expected, remedy)

    @property
    def model(self) -> str | None:
        """The path of the teacher, where it is a model of its own."""
        return None if self.teacher in (AUTO, NONE, START) else self.teacher
