"""What the program knows about compression: how much by role, when, and with which ranges."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from mobilenet.errors import UsageError

from .base import Config, flag, number, one_of

ROLES = ("stem", "depthwise", "pointwise", "fused", "squeeze_excite", "classifier")


@dataclasses.dataclass(frozen=True)
class MagnitudePruning(Config):
    """Zeroes the smallest weights of each kernel, more and more of them, and lets the rest adapt.

    Attributes:
        final_sparsity: share of zeros by role, or by a regular expression that matches whole layer
            names; the last entry that matches a layer decides. Layers that nothing matches are
            left alone. The stem and the depthwise kernels hold few weights and lose accuracy
            first, so only pointwise is on.
        schedule: `polynomial` (Zhu and Gupta, arXiv 1710.01878) or `constant` from the first
            update on.
        begin: share of the stage's steps before the first update.
        end: share of the stage's steps at which the target stands; the rest is for recovery.
        frequency: steps between two updates; one is forced at the end step whatever the frequency.
        power: exponent of the polynomial; 3 as in the paper.
    """

    final_sparsity: dict[str, float] = flag(
        MappingProxyType({"pointwise": 0.5}),
        "share of zeros: one number for the pointwise kernels, or role=share,regex=share",
    )
    schedule: str = flag("polynomial", "polynomial or constant", "pruning_schedule")
    begin: float = flag(0.0, "share of the pruning stage before the first update", "pruning_begin")
    end: float = flag(0.6, "share of the pruning stage at which the target stands", "pruning_end")
    frequency: int = flag(8, "steps between two mask updates", "pruning_frequency")
    power: float = flag(3.0, "exponent of the polynomial schedule", "pruning_power")

    def __post_init__(self) -> None:
        object.__setattr__(self, "final_sparsity", dict(self.final_sparsity))
        for pattern, share in self.final_sparsity.items():
            number(
                f"--final_sparsity {pattern}",
                share,
                least=0,
                below=1,
                remedy="0.5 keeps half of the weights",
            )
        one_of("--pruning_schedule", self.schedule, ("polynomial", "constant"))
        number("--pruning_begin", self.begin, least=0, below=1)
        number("--pruning_end", self.end, above=0, most=1)
        number("--pruning_frequency", self.frequency, least=1, integer=True)
        number("--pruning_power", self.power, above=0)
        if self.end <= self.begin:
            raise UsageError(
                "--pruning_end", self.end, f"a share above --pruning_begin ({self.begin})"
            )


@dataclasses.dataclass(frozen=True)
class QuantizationAwareTraining(Config):
    """Trains with the arithmetic of the int8 file in the forward pass (Jacob et al., arXiv
    1712.05877).

    Attributes:
        calibration_images: training images that set the activation ranges before the first step; a
            net whose ranges start anywhere else answers nonsense for thousands of steps.
        range_decay: decay of the moving activation ranges, by step.
        freeze: share of the stage after which batch-norm statistics and activation ranges stand
            still.
    """

    calibration_images: int = flag(256, "training images that set the activation ranges")
    range_decay: float = flag(0.99, "decay of the moving activation ranges")
    freeze: float = flag(
        0.7, "share of the stage after which statistics and ranges stand still", "quantize_freeze"
    )

    def __post_init__(self) -> None:
        number("--calibration_images", self.calibration_images, least=1, integer=True)
        number("--range_decay", self.range_decay, least=0, below=1)
        number("--quantize_freeze", self.freeze, least=0, most=1)


PRUNING = MappingProxyType({"magnitude": MagnitudePruning})
QUANTIZATION = MappingProxyType({"qat": QuantizationAwareTraining})
