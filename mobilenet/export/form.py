"""What a flatbuffer is to look like: ends, batch, size, head and the runtime that it is for."""

from __future__ import annotations

import dataclasses

from mobilenet.configs.base import number
from mobilenet.configs.compression import TARGETS
from mobilenet.errors import UsageError, one_of

IO = ("int8", "uint8", "float32")
ACTIVATIONS = ("none", "softmax")
Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Form:
    """The choices of a conversion; the names are those of the converter's flags.

    Attributes:
        io: type of both ends; `None` is int8 for a quantized net and float32 for a float one.
        batch: images a call.
        image_size: height and width, wanted where the net leaves them open.
        output_activation: `none` gives logits; int8 softmax resolves only 1/256.
        target: `xnnpack` writes int8 hard-swish out, which its delegate then takes whole, and lets
            the first convolution read pairs of pixels; `generic` keeps one HARD_SWISH each, for
            runtimes that have a kernel for it, and single pixels.
    """

    io: str | None = None
    batch: int = 1
    image_size: int | None = None
    output_activation: str = "none"
    target: str = "xnnpack"

    def __post_init__(self) -> None:
        if self.io is not None:
            one_of("--io", self.io, IO)
        number("--batch", self.batch, least=1, integer=True)
        if self.image_size is not None:
            number("--image_size", self.image_size, least=1, integer=True)
        one_of("--output_activation", self.output_activation, ACTIVATIONS)
        one_of("--target", self.target, TARGETS)

    @property
    def softmax(self) -> bool:
        """A softmax stands at the end of the file."""
        return self.output_activation == "softmax"

    def ends(self, quantized: bool) -> str:
        """The type of both ends.

        Raises:
            UsageError: codes are asked of a float net.
        """
        if not quantized and self.io not in (None, "float32"):
            raise UsageError(
                "--io",
                self.io,
                "float32, the ends of a float net",
                "quantize the net first: --stages quantize of the trainer",
            )
        return self.io or ("int8" if quantized else "float32")

    def shape(self, own: tuple[int | None, ...]) -> Shape:
        """`[height, width, channels]` of the file for a net that takes `own`.

        Raises:
            UsageError: the size is open and none was asked for, or another than the net's was.
        """
        height, width, channels = own
        size = self.image_size
        if channels is None:
            raise UsageError("model", own, "a fixed number of channels", "build it for 3 channels")
        if size is None and (height is None or width is None):
            raise UsageError(
                "--image_size",
                None,
                f"a size, as the net's input is open: {own}",
                "as in --image_size 224",
            )
        if size is not None and any(side not in (None, size) for side in (height, width)):
            raise UsageError(
                "--image_size",
                size,
                f"{height} x {width}, the size of the net",
                "leave it out, or build the net with that size",
            )
        return height or size or 0, width or size or 0, channels


DEFAULT = Form()
