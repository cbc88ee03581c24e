"""A conversion to TFLite: what the file is like, and which figures it must reach."""

from __future__ import annotations

import dataclasses

from mobilenet.configs import number_formats
from mobilenet.configs.base import MAX_BATCH, MAX_SIDE, Config, ImageSize, flag, sides
from mobilenet.configs.card import ACTIVATIONS, known_activation
from mobilenet.configs.number_formats import FLOAT32, FORMATS, INT8
from mobilenet.configs.quantization import TARGETS
from mobilenet.errors import UsageError

TFLITE, C_ARRAY, FROZEN_GRAPH, ONNX = FILE_FORMATS = ("tflite", "c_array", "frozen_graph", "onnx")
IO_TYPES = ("int8", "uint8", "float32")
OUTPUT_ACTIVATIONS = ("none", *ACTIVATIONS)
Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ConversionConfig(Config):
    """The choices of a conversion.

    Attributes:
        number_format: one of `number_formats.FORMATS`; `None` leaves the model as it was trained:
            int8 with ranges, else float32.
        io: type of the input and output; `None` is the first that the number format allows.
        batch: images a call.
        image_size: side of a square or `(height, width)`, required where the model leaves them
            open.
        output_activation: `none` gives logits; int8 probabilities resolve only 1/256. `softmax` for
            models with one class an image, `sigmoid` for those with one output or several labels.
        target: `xnnpack` writes int8 hard-swish out, which its delegate then takes whole, and lets
            the first convolution read pairs of pixels; `generic` keeps one HARD_SWISH each, for
            runtimes that have a kernel for it, and single pixels.
    """

    number_format: str | None = flag(
        None, f"{', '.join(FORMATS)}; int8 for a model with ranges, else float32, when left out"
    )
    io: str | None = flag(
        None,
        f"type of the input and output: {', '.join(IO_TYPES)}; by the number format when left out",
        choices=IO_TYPES,
    )
    batch: int = flag(1, "images a call", least=1, most=MAX_BATCH, integer=True)
    image_size: ImageSize | None = flag(
        None,
        "side, or height,width, of a model that leaves its size open",
        least=1,
        most=MAX_SIDE,
        integer=True,
    )
    output_activation: str = flag(
        "none",
        "none (logits), softmax or sigmoid (probabilities, 1/256 a step in int8)",
        choices=OUTPUT_ACTIVATIONS,
    )
    target: str = flag(
        "xnnpack",
        "xnnpack (hard-swish written out, stem on pairs of pixels) or generic (neither)",
        choices=TARGETS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None:
            sides(self.image_size)
        if self.number_format is not None:
            self._check_io(number_formats.get(self.number_format).io_types, "leave it out")

    @property
    def activation(self) -> str | None:
        """What the file ends with, `None` for logits."""
        return None if self.output_activation == "none" else self.output_activation

    def check_activation(self, activation: str | None, outputs: int) -> None:
        """Refuses an activation that is not the model's.

        Args:
            activation: of the model's card, `None` where it is not known.
            outputs: of the model.

        Raises:
            UsageError: names `output_activation`.
        """
        own = known_activation(activation, outputs)
        if self.activation is not None and own not in (None, self.activation):
            expected = f"none or {own}, which turns the model's logits into probabilities"
            raise UsageError("output_activation", self.activation, expected)

    def resolve(self, quantized: bool) -> ConversionConfig:
        """The config for a model, with its number format and type of input and output filled in.

        Args:
            quantized: the model has activation ranges.

        Raises:
            UsageError: the model cannot have the number format, or the format not the type.
        """
        name = self.number_format or (INT8 if quantized else FLOAT32)
        if quantized and name not in number_formats.AS_TRAINED:
            raise UsageError(
                "number_format",
                name,
                "a float model; this one has ranges and becomes int8 as it was trained",
                "leave it out, or give the folder of an earlier stage",
            )
        types = FORMATS[name].io_types
        self._check_io(types, f"`number_format={INT8}` quantizes the model")
        return self.replace(number_format=name, io=self.io or types[0])

    def _check_io(self, types: tuple[str, ...], remedy: str) -> None:
        if self.io not in (None, *types):
            name = self.number_format or FLOAT32
            expected = f"{' or '.join(types)}, the input and output type of {name}"
            raise UsageError("io", self.io, expected, remedy)

    def input_shape(self, model_shape: tuple[int | None, ...]) -> Shape:
        """`[height, width, channels]` of the file for a model whose input is `model_shape`.

        Raises:
            UsageError: the model leaves its size open and there is no `image_size`, or its size is
                another.
        """
        height, width, channels = model_shape
        size = None if self.image_size is None else sides(self.image_size)
        if channels is None:
            expected = "a fixed number of channels"
            raise UsageError("model", model_shape, expected, "build it for 3 channels")
        if size is None and (height is None or width is None):
            raise UsageError(
                "image_size",
                None,
                f"a size, as the model's input is open: {model_shape}",
                "as in `image_size=224`",
            )
        if size is None:
            return height or 0, width or 0, channels
        if height not in (None, size[0]) or width not in (None, size[1]):
            raise UsageError(
                "image_size",
                self.image_size,
                f"{height} x {width}, the size of the model",
                "leave it out, or build the model with that size",
            )
        return *size, channels


@dataclasses.dataclass(frozen=True)
class VerificationLimits(Config):
    """Figures that a file must reach; a figure that misses its limit is a fault.

    Attributes:
        min_agreement: smallest share of images with the same top-1 as the Keras model.
        min_clear_agreement: the same among images whose Keras margin exceeds two output steps.
        max_mean_steps: largest mean difference of a logit, in output steps; `None` for any.
        max_operator_steps: largest difference of a quantized value between an operator and its
            simulated layer, both fed the file's own input; `None` for any.
        max_partitions: largest number of delegate partitions; `None` only warns from the second on.
    """

    min_agreement: float = flag(
        0.0, "smallest share of images with the model's top-1", least=0, most=1
    )
    min_clear_agreement: float = flag(
        0.0, "the same where the model's margin exceeds two steps", least=0, most=1
    )
    max_mean_steps: float | None = flag(
        None, "largest mean difference of an output, in quantization steps", least=0
    )
    max_operator_steps: int | None = flag(
        1, "largest difference of one operator, in quantization steps", least=0
    )
    max_partitions: int | None = flag(
        None, "maximum delegate partitions; reported only if unset", least=1, integer=True
    )
