"""The number formats of a file, and what a file of each must contain."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from types import MappingProxyType

from mobilenet.errors import UsageError, one_of

EDGE_REMEDY = "pip install ai-edge-quantizer"
_EDGE_PACKAGE = "ai_edge_quantizer"


@dataclasses.dataclass(frozen=True)
class Format:
    """One number format.

    Attributes:
        contents: what the file holds, in words.
        io_types: the types that its input and output may have; the first by default.
        kernel: type in which the kernels of convolutions and dense layers are stored.
        depthwise: the same of depthwise convolutions.
        dequantized: there is a DEQUANTIZE between each stored kernel and its operator.
        mixed: other kernels may be float32, without a DEQUANTIZE.
        computed: type of the operators' outputs.
        calibrated: ranges are taken from images.
        package: the optional package that writes it; empty for none.
    """

    contents: str
    io_types: tuple[str, ...] = ("float32",)
    kernel: str = "int8"
    depthwise: str = "int8"
    dequantized: bool = False
    mixed: bool = False
    computed: str = "float32"
    calibrated: bool = False
    package: str = ""


INT8, FLOAT32 = "int8", "float32"
AS_TRAINED = (INT8, FLOAT32)  # with ranges and without
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        INT8: Format("int8", ("int8", "uint8", "float32"), computed="int8", calibrated=True),
        "dynamic_range": Format(
            "int8 kernels of wide convolutions and dense layers, the rest float32",
            depthwise="float32",
            mixed=True,
        ),
        "float16": Format(
            "float16 weights", kernel="float16", depthwise="float16", dequantized=True
        ),
        "int16x8": Format("int8 kernels, int16 between layers", computed="int16", calibrated=True),
        FLOAT32: Format("float32", kernel="float32", depthwise="float32"),
        "edge_dynamic": Format(
            "int8 kernels, depthwise too, the rest float32", package=_EDGE_PACKAGE
        ),
        "edge_weights": Format(
            "int8 kernels, dequantized before they are used",
            dequantized=True,
            package=_EDGE_PACKAGE,
        ),
        "edge_static": Format(
            "int8", ("int8",), computed="int8", calibrated=True, package=_EDGE_PACKAGE
        ),
        "edge_int4": Format(
            "int4 kernels where they lie on a 4-bit grid, the rest float32",
            kernel="int4",
            depthwise="float32",
            dequantized=True,
            mixed=True,
            package=_EDGE_PACKAGE,
        ),
    }
)
CALIBRATED = tuple(name for name, kind in FORMATS.items() if kind.calibrated)


def get(name: str) -> Format:
    """The format of that name.

    Raises:
        UsageError: there is none, or the package that writes it is not installed.
    """
    number_format = FORMATS[one_of("number_format", name, FORMATS)]
    package = number_format.package
    if package and importlib.util.find_spec(package) is None:
        raise UsageError("number_format", name, f"{package}, which is not installed", EDGE_REMEDY)
    return number_format
