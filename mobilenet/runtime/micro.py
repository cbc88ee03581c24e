"""A flatbuffer under TensorFlow Lite Micro, the runtime of micro-controllers (the extra `[micro]`).

Its interpreter for this machine computes by the reference kernels, which a controller without
kernels of its own uses too: outputs and memory are the controller's, the time is not.
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
_SPARE = 1 << 16  # bytes of an arena, in addition to tensors and operators
_STRUCTURE = 256  # bytes that the runtime allocates for a tensor or an operator
_ALLOCATION = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
_SOURCE_LOCATION = re.compile(r"^\S+\.(cc|h)(:\d+)? ")  # in its sources, before the message


@dataclasses.dataclass(frozen=True)
class Arena:
    """The memory of a running file, in bytes; weights stay in the file.

    Attributes:
        total: all of it, on a 64-bit machine; pointers of a controller are half as long.
        activations: shared by the computed tensors.
        persistent: allocated from call to call.
    """

    total: int
    activations: int
    persistent: int


class Interpreter:
    """One file in an arena of its own, with the methods of a TFLite interpreter that a
    classifier uses.
    """

    def __init__(self, content: Flatbuffer) -> None:
        """Takes the file and plans its memory.

        Raises:
            UsageError: an operator or type that this runtime lacks, or the package is absent.
        """
        self._content = content
        kind = load_runtime().Interpreter
        _check(content)
        with _explained():
            self._own = kind.from_bytes(content.content, arena_size=_arena_bound(content))

    def set_tensor(self, index: int, values: npt.NDArray[np.generic]) -> None:
        """Fills the input that is tensor `index` of the graph."""
        self._own.set_input(values, self._content.inputs.index(index))

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
        """What the runtime has allocated of the arena."""
        with quiet() as messages:
            self._own.print_allocations()
            sizes = {name: int(size) for name, size in _ALLOCATION.findall(messages())}
        return Arena(sizes["total"], sizes["head"], sizes["tail"])


def describe_requirements(content: Flatbuffer, runner: Any = None) -> tuple[str, str]:
    """What a program for a controller has to provide, in two lines of text.

    Args:
        content: the file.
        runner: what runs it; an `Interpreter` in this process when `None`.

    Raises:
        UsageError: the runtime cannot run the file.
    """
    runner = Interpreter(content) if runner is None else runner
    calls = resolver_calls(content)
    for index in content.inputs:
        source = content.tensors[index]
        runner.set_tensor(index, np.zeros(source.shape, source.dtype))
    runner.invoke()
    arena = runner.arena()
    return (
        f"{_NAME}: {arena.total:,} bytes of arena ({arena.activations:,} for activations, "
        f"{arena.persistent:,} for the whole time), {len(content.content):,} of flash",
        f"MicroMutableOpResolver<{len(calls)}>: {', '.join(calls)}",
    )


def resolver_calls(content: Flatbuffer) -> tuple[str, ...]:
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
    """Turns the messages of a runtime that fails into a `UsageError` about the file."""
    with quiet() as messages:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            lines = [*messages().strip().splitlines(), str(error)]
            raise _refusal(_SOURCE_LOCATION.sub("", lines[0])) from None


def _arena_bound(content: Flatbuffer) -> int:
    """An upper bound on the arena: every tensor has memory of its own, and every channel of a
    convolution two numbers in addition to its bias."""
    biases = [t for t in content.tensors if t.is_constant and t.dtype in ("int32", "int64")]
    channels = sum(t.elements for t in biases)
    return (
        content.computed_bytes()
        + 16 * channels
        + _STRUCTURE * (len(content.tensors) + len(content.operators))
        + _SPARE
    )


def load_runtime() -> Any:
    """The runtime's module, imported."""
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        expected = f"an installed {_NAME} ({error})"
        raise UsageError("tflite-micro", None, expected, "pip install tflite-micro") from None
