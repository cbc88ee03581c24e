"""Quantization methods: int8 with or without training, and weight sharing."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from mobilenet.configs.weight_sharing import (
    CodebookQuantization,
    LinearQuantization,
    TfmotClustering,
)
from mobilenet.errors import UsageError

from .base import Config, flag

TARGETS = ("xnnpack", "generic")  # runtimes that an int8 file is made for
RANGE_RULES = ("maximum", "percentile", "mse")
PTQ_STEPS = ("gates", "equalize", "hard_swish", *RANGE_RULES, "clip", "bias", "tune", "repair")


@dataclasses.dataclass(frozen=True)
class QuantizationAwareTraining(Config):
    """Trains with the arithmetic of the int8 file in the forward pass (Jacob et al., arXiv
    1712.05877).

    Attributes:
        calibration_images: training images that set the activation ranges before the first step; a
            model whose ranges start anywhere else is useless for thousands of steps.
        range_decay: decay of the moving activation ranges, by step.
        freeze: share of the stage after which batch-norm statistics and activation ranges are
            frozen.
        quant_delay: steps that train in float first, while ranges are observed. The recipe for
            training from scratch (tensorflow/models research/slim/models/mobilenet_v1_train.py has
            250,000 at batch 64); 0 for a model that is trained already.
    """

    calibration_images: int = flag(
        256, "training images that set the activation ranges", least=1, integer=True
    )
    range_decay: float = flag(0.99, "decay of the moving activation ranges", least=0, below=1)
    freeze: float = flag(
        0.7,
        "share of the stage after which statistics and ranges are frozen",
        "quantize_freeze",
        least=0,
        most=1,
    )
    quant_delay: int = flag(
        0,
        "steps of the quantize stage in float before fake quantization; needed from scratch",
        least=0,
        integer=True,
    )


@dataclasses.dataclass(frozen=True)
class PostTraining(Config):
    """int8 without training: a float model is fitted to the scheme on images without labels.

    One half of the images fits, the other half decides: a step that does not help there is
    reverted.

    Attributes:
        calibration_images: of the training split, as an evaluation sees them.
        steps: which remedies, in the order of `PTQ_STEPS`. `auto` chooses by the model: with
            hard-swish or unbounded ReLU `equalize,hard_swish,percentile,clip,bias,tune,repair`,
            with ReLU6 alone, whose ranges are harmless, `maximum,bias,repair`. `gates,auto` puts
            `gates` first, which makes the file slower and so is never chosen.
        tuning_epochs, tuning_rate: passes over the images, and the rate at their beginning.
        keep_float: layers with a kernel that compute in float in the int8 file, as a last resort.
    """

    calibration_images: int = flag(
        200, "training images that set the activation ranges", least=1, integer=True
    )
    steps: tuple[str, ...] = flag(
        ("auto",),
        "remedies of post-training int8: auto, gates,auto or some of " + ",".join(PTQ_STEPS),
        "ptq_steps",
        choices=(*PTQ_STEPS, "auto"),
    )
    tuning_epochs: int = flag(
        10, "passes over the images that tune offsets, gains and ranges", least=1, integer=True
    )
    tuning_rate: float = flag(1e-3, "rate of that tuning", above=0)
    keep_float: tuple[str, ...] = flag((), "layers in float in the int8 file: names or patterns")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps not in (("auto",), ("gates", "auto")):
            self._check_steps()

    def _check_steps(self) -> None:
        rules = [step for step in self.steps if step in RANGE_RULES]
        in_order = sorted(set(self.steps) - {"auto"}, key=PTQ_STEPS.index)
        if list(self.steps) != in_order or len(rules) != 1:
            raise UsageError(
                "steps",
                ",".join(self.steps),
                f"steps in the order {','.join(PTQ_STEPS)}, one of {', '.join(RANGE_RULES)}",
            )


QUANTIZATION = MappingProxyType(
    {
        "qat": QuantizationAwareTraining,
        "ptq": PostTraining,
        "linear": LinearQuantization,
        "codebook": CodebookQuantization,
        "cluster": TfmotClustering,
    }
)
