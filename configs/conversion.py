"""What a flatbuffer is to look like: numbers, ends, batch, size, head and its runtime."""

from __future__ import annotations

import dataclasses

from mobilenet.configs import number_formats
from mobilenet.configs.base import MAX_BATCH, MAX_SIDE, number
from mobilenet.configs.quantization import TARGETS
from mobilenet.errors import UsageError, one_of

IO = ("int8", "uint8", "float32")
ACTIVATIONS = ("none", "softmax")
Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ConversionConfig:
    """The choices of a conversion; the names are those of the converter's flags.

    Attributes:
        quantization: number format that a float model is given, one of `formats.FORMATS`; `None`
            leaves it as it was trained: int8 with ranges, else float32.
        io: type of both ends; `None` is int8 for a quantized model and float32 for a float one.
        batch: images a call.
        image_size: height and width, wanted where the model leaves them open.
        output_activation: `none` gives logits; int8 softmax resolves only 1/256.
        target: `xnnpack` writes int8 hard-swish out, which its delegate then takes whole, and lets
            the first convolution read pairs of pixels; `generic` keeps one HARD_SWISH each, for
            runtimes that have a kernel for it, and single pixels.
    """

    quantization: str | None = None
    io: str | None = None
    batch: int = 1
    image_size: int | None = None
    output_activation: str = "none"
    target: str = "xnnpack"

    def __post_init__(self) -> None:
        if self.io is not None:
            one_of("--io", self.io, IO)
        wanted = self.format
        if wanted is not None and self.io not in (None, *wanted.ends):
            ends = f"{' or '.join(wanted.ends)}, the ends of a file of {self.quantization}"
            raise UsageError("--io", self.io, ends, "leave it out")
        number("--batch", self.batch, least=1, most=MAX_BATCH, integer=True)
        if self.image_size is not None:
            number("--image_size", self.image_size, least=1, most=MAX_SIDE, integer=True)
        one_of("--output_activation", self.output_activation, ACTIVATIONS)
        one_of("--target", self.target, TARGETS)

    @property
    def format(self) -> number_formats.Format | None:
        """The number format that a float model is given."""
        return None if self.quantization is None else number_formats.get(self.quantization)

    @property
    def softmax(self) -> bool:
        """A softmax stands at the end of the file."""
        return self.output_activation == "softmax"

    def io_type(self, quantized: bool) -> str:
        """The type of the file's input and output.

        Raises:
            UsageError: codes are asked of a float model, or a number format of a quantized one.
        """
        if self.format is not None:
            if quantized:
                raise UsageError(
                    "--quantization",
                    self.quantization,
                    "a float model; this one has ranges and becomes int8 as it was trained",
                    "leave it out, or give the folder of an earlier stage",
                )
            return self.io or self.format.ends[0]
        if not quantized and self.io not in (None, "float32"):
            raise UsageError(
                "--io",
                self.io,
                "float32, the ends of a float model",
                "quantize the model first: --stages quantize of the trainer",
            )
        return self.io or ("int8" if quantized else "float32")

    def input_shape(self, own: tuple[int | None, ...]) -> Shape:
        """`[height, width, channels]` of the file for a model that takes `own`.

        Raises:
            UsageError: the size is open and none was asked for, or another than the model's was.
        """
        height, width, channels = own
        size = self.image_size
        if channels is None:
            raise UsageError("model", own, "a fixed number of channels", "build it for 3 channels")
        if size is None and (height is None or width is None):
            raise UsageError(
                "--image_size",
                None,
                f"a size, as the model's input is open: {own}",
                "as in --image_size 224",
            )
        if size is not None and any(side not in (None, size) for side in (height, width)):
            raise UsageError(
                "--image_size",
                size,
                f"{height} x {width}, the size of the model",
                "leave it out, or build the model with that size",
            )
        return height or size or 0, width or size or 0, channels


@dataclasses.dataclass(frozen=True)
class VerificationLimits:
    """Figures that a file must reach; a figure that misses its limit is a fault.

    Attributes:
        min_agreement: smallest share of images with the same top-1 as the Keras model.
        min_clear_agreement: the same among images whose Keras margin exceeds two output steps.
        max_mean_steps: largest mean difference of a logit, in output steps; `None` for any.
        max_operator_steps: largest difference of a quantized value between an operator and its
            simulated layer, both fed the file's own input; `None` for any.
        max_partitions: largest number of delegate partitions; `None` only warns from the second on.
    """

    min_agreement: float = 0.0
    min_clear_agreement: float = 0.0
    max_mean_steps: float | None = None
    max_operator_steps: int | None = 1
    max_partitions: int | None = None
