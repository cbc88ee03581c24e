"""A flatbuffer under TensorFlow Lite Micro, the runtime of micro-controllers (the extra `[micro]`).

Its interpreter for this machine computes by the reference kernels, which a controller without
kernels of its own uses too: answers and memory are the controller's, the time is not.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.runtime import parts
from mobilenet.runtime.flatbuffer import Flatbuffer
from mobilenet.runtime.interpreter import quiet

_MODULE = "tflite_micro.python.tflite_micro.runtime"
_SPARE = 1 << 16  # bytes of an arena, beside what tensors and operators take
_EACH = 256  # bytes that the runtime keeps of a tensor or an operator, at most
_TOLD = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")


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

    def __init__(self, content: Flatbuffer, keep_tensors: bool = False) -> None:
        """Takes the file and plans its memory.

        Args:
            content: the file.
            keep_tensors: inner tensors can be read after an invocation; no two share memory then.

        Raises:
            UsageError: an operator or type that this runtime has not, or the extra is absent.
        """
        self._content = content
        runtime = _runtime()
        ways = runtime.InterpreterConfig
        way = ways.kPreserveAllTensors if keep_tensors else ways.kAllocationRecording
        with quiet() as said:
            try:
                self._own = runtime.Interpreter.from_bytes(
                    content.content, arena_size=_enough(content), intrepreter_config=way
                )
            except (RuntimeError, ValueError) as error:
                lines = [*said().strip().splitlines(), str(error)]
                expected = f"a file that TensorFlow Lite Micro takes ({lines[0]})"
                remedy = "an int8 file of our converter is one"
                raise UsageError("flatbuffer", None, expected, remedy) from None

    def set_tensor(self, index: int, codes: npt.NDArray[np.generic]) -> None:
        """Fills the input that is tensor `index` of the graph."""
        self._own.set_input(codes, self._content.inputs.index(index))

    def invoke(self) -> None:
        """Runs the graph."""
        self._own.invoke()

    def get_tensor(self, index: int) -> Any:
        """Tensor `index` of the graph: an output, or with `keep_tensors` any that is computed."""
        if index in self._content.outputs:
            return self._own.get_output(self._content.outputs.index(index))
        return self._own.GetTensor(index, 0)["tensor_data"]

    def arena(self) -> Arena:
        """What of the arena the runtime has taken."""
        with quiet() as said:
            self._own.print_allocations()
            found = {name: int(size) for name, size in _TOLD.findall(said())}
        return Arena(found["total"], found["head"], found["tail"])


def needs(content: Flatbuffer) -> tuple[str, str]:
    """What a program for a controller has to provide, in two lines for a person."""
    arena, calls = Interpreter(content).arena(), registered(content)
    return (
        f"TensorFlow Lite Micro: {arena.total:,} bytes of arena ({arena.activations:,} for "
        f"activations, {arena.kept:,} for the whole time), {len(content.content):,} of flash",
        f"MicroMutableOpResolver<{len(calls)}>: {', '.join(calls)}",
    )


def registered(content: Flatbuffer) -> tuple[str, ...]:
    """The calls of `MicroMutableOpResolver` that make the operators of a file known, by name."""
    names = sorted({op.name for op in content.operators})
    return tuple("Add" + "".join(map(_capital, name.split("_"))) for name in names)


def _capital(part: str) -> str:
    return part if part[0].isdigit() else part.capitalize()


def _enough(content: Flatbuffer) -> int:
    """Bytes that no plan of the runtime exceeds: every tensor has a place of its own, and every
    channel of a convolution two numbers beside its bias."""
    computed = [t for t in content.tensors if not t.is_constant]
    biases = [t for t in content.tensors if t.is_constant and t.dtype in ("int32", "int64")]
    places = sum(t.elements * parts.item_bits(t.dtype) // 8 for t in computed)
    channels = sum(t.elements for t in biases)
    return places + 16 * channels + _EACH * (len(content.tensors) + len(content.operators)) + _SPARE


def _runtime() -> Any:
    try:
        return importlib.import_module(_MODULE)
    except ImportError:
        expected = "an installed TensorFlow Lite Micro"
        raise UsageError("tflite-micro", None, expected, "pip install tflite-micro") from None
