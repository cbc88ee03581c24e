"""A flatbuffer under TensorFlow Lite Micro, the runtime of microcontrollers (the extra `[micro]`).

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
from mobilenet.tflite.kernels import KERNEL_OPERATORS
from mobilenet.tflite.model import Flatbuffer

MODULE = "tflite_micro.python.tflite_micro.runtime"
_NAME = "TensorFlow Lite Micro"
# Of ours and of models like them. Others end the process where something is wrong with them.
_OPERATORS = (
    *("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEQUANTIZE"),
    *("FULLY_CONNECTED", "HARD_SWISH", "LOGISTIC", "MAX_POOL_2D", "MEAN", "MUL", "PAD", "QUANTIZE"),
    *("RELU", "RELU6", "RESHAPE", "SOFTMAX", "SUB"),
)
# All that it has kernels for, by their names in a file (micro_mutable_op_resolver.h).
OPERATORS = frozenset(
    (
        *("ABS", "ADD", "ADD_N", "ARG_MAX", "ARG_MIN", "ASSIGN_VARIABLE", "AVERAGE_POOL_2D"),
        *("BATCH_MATMUL", "BATCH_TO_SPACE_ND", "BROADCAST_ARGS", "BROADCAST_TO", "CALL_ONCE"),
        *("CAST", "CEIL", "CONCATENATION", "CONV_2D", "COS", "CUMSUM", "DEPTHWISE_CONV_2D"),
        *("DEPTH_TO_SPACE", "DEQUANTIZE", "DIV", "DYNAMIC_UPDATE_SLICE", "ELU"),
        *("EMBEDDING_LOOKUP", "EQUAL", "EXP", "EXPAND_DIMS", "FILL", "FLOOR", "FLOOR_DIV"),
        *("FLOOR_MOD", "FULLY_CONNECTED", "GATHER", "GATHER_ND", "GREATER", "GREATER_EQUAL"),
        *("HARD_SWISH", "IF", "L2_NORMALIZATION", "L2_POOL_2D", "LEAKY_RELU", "LESS"),
        *("LESS_EQUAL", "LOG", "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR", "LOGISTIC"),
        *("LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NEG"),
        *("NOT_EQUAL", "PACK", "PAD", "PADV2", "PRELU", "QUANTIZE", "READ_VARIABLE"),
        *("REDUCE_ALL", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RESHAPE"),
        *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "ROUND", "RSQRT"),
        *("SELECT_V2", "SHAPE", "SIN", "SLICE", "SOFTMAX", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH"),
        *("SPLIT", "SPLIT_V", "SQRT", "SQUARE", "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE"),
        *("SUB", "SUM", "SVDF", "TANH", "TRANSPOSE", "TRANSPOSE_CONV"),
        *("UNIDIRECTIONAL_SEQUENCE_LSTM", "UNPACK", "VAR_HANDLE", "WHILE", "ZEROS_LIKE"),
    )
)
_CALLS = {  # of the resolver, where they are not formed as the others
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
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
    calls = resolver_calls(content)
    arena = measure_arena(content, runner)
    return (
        f"{_NAME}: {arena.total:,} bytes of arena ({arena.activations:,} for activations, "
        f"{arena.persistent:,} for the whole time), {len(content.content):,} of flash",
        f"MicroMutableOpResolver<{len(calls)}>: {', '.join(calls)}",
    )


def measure_arena(content: Flatbuffer, runner: Any = None) -> Arena:
    """Runs a file on zeros, and returns what the runtime has allocated for it.

    Args:
        content: the file.
        runner: what runs it; an `Interpreter` in this process when `None`.

    Raises:
        UsageError: the runtime cannot run the file, or is not installed.
    """
    runner = Interpreter(content) if runner is None else runner
    for index in content.inputs:
        source = content.tensors[index]
        runner.set_tensor(index, np.zeros(source.shape, source.dtype))
    runner.invoke()
    arena: Arena = runner.arena()
    return arena


def can_measure(content: Flatbuffer) -> bool:
    """Whether the runtime is installed and takes the operators of a file in this process."""
    try:
        load_runtime()
    except UsageError:
        return False
    return {op.name for op in content.operators} <= set(_OPERATORS)


def estimate_arena(content: Flatbuffer) -> int:
    """An estimate of the arena in bytes, from the file alone.

    The computed tensors that live at the same time, at the operator where they are most, and an
    upper bound on what is allocated for the whole time.
    """
    first, last = dict.fromkeys(content.inputs, 0), dict.fromkeys(content.inputs, 0)
    for step, operator in enumerate(content.operators):
        first |= {index: step for index in operator.outputs if index not in first}
        last |= dict.fromkeys([*operator.inputs, *operator.outputs], step)
    last |= dict.fromkeys(content.outputs, len(content.operators))
    alive = [0] * (len(content.operators) + 1)
    for index, start in first.items():
        for step in range(start, last.get(index, start) + 1):
            alive[step] += content.tensors[index].computed_bytes
    return max(alive) + _persistent_bound(content)


def unsupported(content: Flatbuffer) -> list[str]:
    """What a file has that the runtime lacks: operators, types, and kernels of mixed types."""
    names = sorted({op.name for op in content.operators} - OPERATORS)
    names += sorted({tensor.dtype for tensor in content.tensors}.difference(_TYPES))
    for operator in content.operators:
        dtypes = [content.tensors[index].dtype for index in operator.inputs[:2] if index >= 0]
        if operator.name in KERNEL_OPERATORS and dtypes == ["float32", "int8"]:
            return [*names, f"{operator.name} of float32 with an int8 kernel"]
    return names


def resolver_calls(content: Flatbuffer) -> tuple[str, ...]:
    """The calls of `MicroMutableOpResolver` that make the operators of a file known."""
    names = sorted({op.name for op in content.operators})
    return tuple(
        _CALLS.get(name, "Add" + "".join(map(_capital, name.split("_")))) for name in names
    )


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
    return content.computed_bytes() + _persistent_bound(content) + _SPARE


def _persistent_bound(content: Flatbuffer) -> int:
    """An upper bound on what is allocated for the whole time, in bytes."""
    biases = [t for t in content.tensors if t.is_constant and t.dtype in ("int32", "int64")]
    channels = sum(t.elements for t in biases)
    return 16 * channels + _STRUCTURE * (len(content.tensors) + len(content.operators))


def load_runtime() -> Any:
    """The runtime's module, imported."""
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        expected = f"an installed {_NAME} ({error})"
        raise UsageError("tflite-micro", None, expected, "pip install tflite-micro") from None
