"""A flatbuffer under TensorFlow Lite Micro, the runtime of micro-controllers (the extra `[micro]`).

Its interpreter for this machine computes by the reference kernels, which a controller without
kernels of its own uses too: answers and memory are the controller's, the time is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.console import quiet
from mobilenet.errors import UsageError, shorten
from mobilenet.tflite.model import Flatbuffer

MODULE = "tflite_micro.python.tflite_micro.runtime"
_NAME = "TensorFlow Lite Micro"
# Of ours and of models like them. Others end the process where something is wrong with them.
_OPERATORS = (
    *("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEQUANTIZE"),
    *("FULLY_CONNECTED", "HARD_SWISH", "LOGISTIC", "MAX_POOL_2D", "MEAN", "MUL", "PAD", "QUANTIZE"),
    *("RELU", "RELU6", "RESHAPE", "SOFTMAX", "SUB"),
)
_TYPES = ("int8", "uint8", "int16", "int32", "int64", "float32")
_SPARE = 1 << 16  # bytes of an arena, beside what tensors and operators take
_EACH = 256  # bytes that the runtime keeps of a tensor or an operator
_TOLD = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
_PLACE = re.compile(r"^\S+\.(cc|h)(:\d+)? ")  # of its source, in front of what it says


@dataclasses.dataclass(frozen=True)
class Arena:
    """The memory that a file is run in, in bytes; weights stay where the file is.

    Attributes:
        total: of the whole, on a machine of 64 bits: pointers of a controller are half as long.
        activations: shared by the tensors that are computed.
        kept: what lasts from call to call.
    """

    total: int
    activations: int
    kept: int


class Interpreter:
    """One file in an arena of its own; of the calls of `interpreter.make` those of a classifier."""

    def __init__(self, content: Flatbuffer) -> None:
        """Takes the file and plans its memory.

        Raises:
            UsageError: an operator or type that this runtime has not, or the package is absent.
        """
        self._content = content
        kind = runtime().Interpreter
        _check(content)
        with _explained():
            self._own = kind.from_bytes(content.content, arena_size=_enough(content))

    def set_tensor(self, index: int, codes: npt.NDArray[np.generic]) -> None:
        """Fills the input that is tensor `index` of the graph."""
        self._own.set_input(codes, self._content.inputs.index(index))

    def invoke(self) -> None:
        """Runs the graph.

        Raises:
            UsageError: an operator that was taken, but cannot be computed.
        """
        with _explained():
            self._own.invoke()

    def get_tensor(self, index: int) -> Any:
        """The output that is tensor `index` of the graph."""
        return self._own.get_output(self._content.outputs.index(index))

    def arena(self) -> Arena:
        """What of the arena the runtime has taken."""
        with quiet() as said:
            self._own.print_allocations()
            found = {name: int(size) for name, size in _TOLD.findall(said())}
        return Arena(found["total"], found["head"], found["tail"])


def needs(content: Flatbuffer, runner: Any = None) -> tuple[str, str]:
    """What a program for a controller has to provide, in two lines for a person.

    Args:
        content: the file.
        runner: what runs it; an `Interpreter` in this process when `None`.

    Raises:
        UsageError: the runtime cannot run the file.
    """
    runner = Interpreter(content) if runner is None else runner
    calls = registered(content)
    for index in content.inputs:
        source = content.tensors[index]
        runner.set_tensor(index, np.zeros(source.shape, source.dtype))
    runner.invoke()
    arena = runner.arena()
    return (
        f"{_NAME}: {arena.total:,} bytes of arena ({arena.activations:,} for activations, "
        f"{arena.kept:,} for the whole time), {len(content.content):,} of flash",
        f"MicroMutableOpResolver<{len(calls)}>: {', '.join(calls)}",
    )


def registered(content: Flatbuffer) -> tuple[str, ...]:
    """The calls of `MicroMutableOpResolver` that make the operators of a file known."""
    names = sorted({op.name for op in content.operators})
    return tuple("Add" + "".join(map(_capital, name.split("_"))) for name in names)


def _capital(part: str) -> str:
    return part if part[0].isdigit() else part.capitalize()


def _check(content: Flatbuffer) -> None:
    """Refuses what would end the process, as the runtime takes much for granted."""
    others = sorted({op.name for op in content.operators}.difference(_OPERATORS))
    types = sorted({tensor.dtype for tensor in content.tensors}.difference(_TYPES))
    depthwise = [op for op in content.operators if op.name == "DEPTHWISE_CONV_2D"]
    if not content.inputs or not content.outputs:  # the runtime would never return
        raise _refusal("it has no inputs or no outputs")
    if content.subgraphs != 1:
        raise _refusal(f"it has {content.subgraphs} graphs")
    if others or types:
        raise _refusal(f"it has {shorten([*others, *types])}")
    if any(index < 0 for op in depthwise for index in op.inputs):
        raise _refusal("a DEPTHWISE_CONV_2D leaves its bias out")


def _refusal(reason: str) -> UsageError:
    expected = f"a file that it takes ({reason})"
    return UsageError(_NAME, None, expected, "an int8 file of our converter is one")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Around a call of the runtime: what it says when it gives up becomes the input's error."""
    with quiet() as said:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            lines = [*said().strip().splitlines(), str(error)]
            raise _refusal(_PLACE.sub("", lines[0])) from None


def _enough(content: Flatbuffer) -> int:
    """Bytes that a plan of these operators stays below: every tensor has a place of its own, and
    every channel of a convolution two numbers beside its bias."""
    biases = [t for t in content.tensors if t.is_constant and t.dtype in ("int32", "int64")]
    channels = sum(t.elements for t in biases)
    return (
        content.computed_bytes()
        + 16 * channels
        + _EACH * (len(content.tensors) + len(content.operators))
        + _SPARE
    )


def runtime() -> Any:
    """The runtime's module, imported."""
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        expected = f"an installed {_NAME} ({error})"
        raise UsageError("tflite-micro", None, expected, "pip install tflite-micro") from None
