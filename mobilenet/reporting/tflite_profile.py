"""A flatbuffer operator by operator, without the model that it was converted from."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from mobilenet import text_tables
from mobilenet.reporting import tables
from mobilenet.runtime import isolation
from mobilenet.runtime import micro as micro_runtime
from mobilenet.tflite import model as tflite_model
from mobilenet.tflite import tensors


@dataclasses.dataclass(frozen=True)
class OperatorProfile:
    """One operator.

    Attributes:
        operator: its name, as in `CONV_2D`.
        shape, dtype: of its output.
        output_bytes: of its output.
        kernel: type and shape of its largest constant; empty without one.
        constant_bytes: of all its constants; shared ones count at their first use.
        weights: number of values of the largest constant.
        zeros: number of those that represent 0; `None` if they cannot be read.
        distinct: number of different values; `None` if they cannot be read.
    """

    operator: str
    shape: tuple[int, ...]
    dtype: str
    output_bytes: int
    kernel: str
    constant_bytes: int
    weights: int
    zeros: int | None
    distinct: int | None


@dataclasses.dataclass(frozen=True)
class FileProfile:
    """A flatbuffer, operator by operator; `str()` shows a table as wide as the terminal at most.

    Attributes:
        operators: of the main graph, in the order of execution.
        bytes: of the file.
        summary: the number of operators of each kind.
        seconds: of one image on one thread of this machine; `None` if it was not measured.
        requirements: what a program for a microcontroller has to provide, if that was asked for.
    """

    operators: tuple[OperatorProfile, ...]
    bytes: int
    summary: str
    seconds: float | None = None
    requirements: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [text_tables.table(*tables.of_file(self.operators)), ""]
        lines += text_tables.wrap(f"{self.bytes:,} bytes; {self.summary}")
        if self.seconds is not None:
            lines.append(f"{text_tables.milliseconds(1000 * self.seconds)} ms on one thread")
        if self.requirements:
            lines += ["", *self.requirements]
        return "\n".join(lines)


def profile(
    content: tflite_model.Flatbuffer,
    latency: bool = True,
    micro: bool = False,
    isolated: bool = False,
    name: str = "flatbuffer",
) -> FileProfile:
    """Reads a file and measures it on this machine.

    Args:
        content: the file.
        latency: measure its time.
        micro: find out what a microcontroller needs to run it.
        isolated: it runs in a process of its own, see `isolation`.
        name: of the file in errors.

    Raises:
        UsageError: the runtime cannot run the file.
    """
    requirements: tuple[str, ...] = ()
    if micro:
        runner = isolation.open_interpreter(content, isolated, name, "micro")
        requirements = micro_runtime.describe_requirements(content, runner)
    return FileProfile(
        operators=tuple(operators(content)),
        bytes=len(content.content),
        summary=operator_summary(content),
        seconds=isolation.latency(content, isolated, name) if latency else None,
        requirements=requirements,
    )


def operators(content: tflite_model.Flatbuffer) -> list[OperatorProfile]:
    """The operators of the main graph, in the order of execution."""
    seen: set[int] = set()
    profiles = []
    for op in content.operators:
        output = content.tensors[op.outputs[0]]
        taken = [content.tensors[index] for index in op.inputs if index >= 0]
        constants = [tensor for tensor in taken if tensor.is_constant]
        new = [tensor for tensor in constants if tensor.index not in seen]
        seen.update(tensor.index for tensor in new)
        kernel = max(constants, key=lambda tensor: len(tensor.buffer), default=None)
        zeros, distinct = (None, None) if kernel is None else count_values(kernel)
        profiles.append(
            OperatorProfile(
                operator=op.name,
                shape=output.shape,
                dtype=output.dtype,
                output_bytes=(output.elements * tensors.item_bits(output.dtype) + 7) // 8,
                kernel="" if kernel is None else f"{kernel.dtype} {_sides(kernel.shape)}",
                constant_bytes=sum(len(tensor.buffer) for tensor in new),
                weights=0 if kernel is None else kernel.elements,
                zeros=zeros,
                distinct=distinct,
            )
        )
    return profiles


def operator_summary(content: tflite_model.Flatbuffer) -> str:
    """The number of operators of each kind, the most frequent first."""
    counts = Counter(op.name for op in content.operators)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def count_values(tensor: tensors.Tensor) -> tuple[int | None, int | None]:
    """How many values of a constant represent 0, and how many different ones it has.

    Both are `None` where its values cannot be read.
    """
    data = tensor.data
    if data is None:
        return None, None
    zero = np.zeros(1, np.int64) if not len(tensor.zero_points) else tensor.zero_points
    if len(zero) > 1:
        sides = [1] * data.ndim
        sides[tensor.quantized_dimension] = -1
        zero = zero.reshape(sides)
    return int(np.count_nonzero(data == zero)), len(np.unique(data))


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"
