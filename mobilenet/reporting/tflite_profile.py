"""What a flatbuffer holds, operator by operator, without the model that it was made of."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from mobilenet.tflite import model as tflite_model
from mobilenet.tflite import tensors


@dataclasses.dataclass(frozen=True)
class Line:
    """One operator.

    Attributes:
        operator: its name, as in `CONV_2D`.
        shape, dtype: of what it makes.
        made_bytes: of what it makes.
        kernel: type and shape of the largest constant that it takes; empty without one.
        held_bytes: of all constants that it takes; shared ones count where they come first.
        weights: values of that largest constant.
        zeros: those that stand for 0; `None` where they cannot be read.
        distinct: how many different ones; `None` where they cannot be read.
    """

    operator: str
    shape: tuple[int, ...]
    dtype: str
    made_bytes: int
    kernel: str
    held_bytes: int
    weights: int
    zeros: int | None
    distinct: int | None


def lines(content: tflite_model.Flatbuffer) -> list[Line]:
    """The operators of the main graph, in the order of execution."""
    seen: set[int] = set()
    found = []
    for op in content.operators:
        made = content.tensors[op.outputs[0]]
        taken = [content.tensors[index] for index in op.inputs if index >= 0]
        constants = [tensor for tensor in taken if tensor.is_constant]
        new = [tensor for tensor in constants if tensor.index not in seen]
        seen.update(tensor.index for tensor in new)
        kernel = max(constants, key=lambda tensor: len(tensor.buffer), default=None)
        zeros, distinct = (None, None) if kernel is None else _values(kernel)
        found.append(
            Line(
                operator=op.name,
                shape=made.shape,
                dtype=made.dtype,
                made_bytes=(made.elements * tensors.item_bits(made.dtype) + 7) // 8,
                kernel="" if kernel is None else f"{kernel.dtype} {_sides(kernel.shape)}",
                held_bytes=sum(len(tensor.buffer) for tensor in new),
                weights=0 if kernel is None else kernel.elements,
                zeros=zeros,
                distinct=distinct,
            )
        )
    return found


def operators(content: tflite_model.Flatbuffer) -> str:
    """How often each operator stands in the file, the most frequent first."""
    counts = Counter(op.name for op in content.operators)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _values(tensor: tensors.Tensor) -> tuple[int | None, int | None]:
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
