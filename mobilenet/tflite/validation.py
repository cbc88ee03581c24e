"""Checks of what the interpreter takes for granted: order of operators, shapes, index arrays of
sparse tensors.

A flipped bit in a size or a stride makes the runtime claim gigabytes, divide by zero or read
another tensor's memory; these checks find it by arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.tflite.buffer_reader import MalformedFlatbufferError, Table
from mobilenet.tflite.tensors import Operator, Tensor

# Elements of all computed tensors together; a MobileNet at 224 px has some 10 million.
_MAX_COMPUTED = 2**30
_SAME_SHAPE = (
    "DENSIFY", "QUANTIZE", "DEQUANTIZE", "CAST", "RELU", "RELU6", "RELU_N1_TO_1", "LOGISTIC",
    "HARD_SWISH", "SOFTMAX", "TANH",
)  # fmt: skip
_SAME_COUNT = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
_ELEMENTWISE = ("ADD", "SUB", "MUL", "DIV", "MINIMUM", "MAXIMUM")
_REDUCING = ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN")
_WINDOWED = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D")
_OPERANDS = {  # least and most; a kernel reads the least without looking how many there are
    **dict.fromkeys((*_SAME_SHAPE, "AVERAGE_POOL_2D", "MAX_POOL_2D", "SQUEEZE"), (1, 1)),
    **dict.fromkeys((*_ELEMENTWISE, *_REDUCING, "PAD", "MIRROR_PAD", "EXPAND_DIMS"), (2, 2)),
    **dict.fromkeys(("BATCH_MATMUL", "TRANSPOSE"), (2, 2)),
    # Without a bias the kernel refuses a CONV_2D and crashes on a DEPTHWISE_CONV_2D.
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), (3, 3)),
    "FULLY_CONNECTED": (2, 3),
    "PADV2": (3, 3),
    "RESHAPE": (1, 2),
}


def check_operands(operator: Operator, kind: int, kinds: Mapping[int, str]) -> None:
    """Checks that an operator has as many tensors as it reads, and options of its own kind.

    Args:
        operator: the operator.
        kind: number of the kind of its options, 0 for none.
        kinds: the schema's names of the kinds (`Conv2DOptions`).
    """
    least, most = _OPERANDS.get(operator.name, (0, len(operator.inputs)))
    if not least <= len(operator.inputs) <= most or not operator.outputs:
        counts = f"{len(operator.inputs)} inputs and {len(operator.outputs)} outputs"
        raise MalformedFlatbufferError(f"{operator.name} with {counts}")
    own = operator.name.replace("_", "").lower() + "options"
    if kind and kinds.get(kind, "").lower() != own and own in map(str.lower, kinds.values()):
        raise MalformedFlatbufferError(
            f"{operator.name} with {kinds.get(kind, f'options of kind {kind}')}"
        )


def check_indices(
    indices: npt.NDArray[Any], count: int, what: str, least: int = 0
) -> tuple[int, ...]:
    if indices.size and (indices.min() < least or indices.max() >= count):
        wrong = next(int(i) for i in indices if not least <= i < count)
        raise MalformedFlatbufferError(f"{what} {wrong} of {count}")
    return tuple(indices.tolist())


def check_order(
    operators: Sequence[Operator],
    tensors: Sequence[Tensor],
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> None:
    """Checks that every tensor is computed before it is used, and once; the interpreter does
    not.
    """
    known = {tensor.index for tensor in tensors if tensor.is_constant or tensor.is_variable}
    if known.intersection(inputs):
        raise MalformedFlatbufferError("an input that is a constant")
    empty = {tensor.index for tensor in tensors if tensor.elements == 0}
    known = known | set(inputs) | empty
    for number, operator in enumerate(operators):
        for index in operator.inputs:
            if index >= 0 and index not in known:
                raise MalformedFlatbufferError(
                    f"operator {number} ({operator.name}) reads tensor {index}, "
                    "which is not yet computed"
                )
        for index in operator.outputs:
            if index in known - empty:
                raise MalformedFlatbufferError(
                    f"operator {number} ({operator.name}) computes tensor {index} again"
                )
            known.add(index)
    for index in outputs:
        if index not in known:
            raise MalformedFlatbufferError(f"output tensor {index} is never computed")


def check_shapes(operators: Sequence[Operator], tensors: Sequence[Tensor]) -> None:
    """Checks that the stored shapes are those that the operators will compute, and not absurd.

    Covers the operators of convolutional models; others are limited by the bound on the sum.
    Tensors with an open axis other than the batch are not looked at.
    """
    computed = sum(tensor.elements for tensor in tensors if not tensor.is_constant)
    if computed > _MAX_COMPUTED:
        raise MalformedFlatbufferError(f"tensors of {computed} elements together")
    for number, operator in enumerate(operators):
        if not operator.inputs or operator.inputs[0] < 0 or not operator.outputs:
            continue
        source, target = tensors[operator.inputs[0]], tensors[operator.outputs[0]]
        if -1 in source.signature[1:] or -1 in target.signature[1:]:
            continue
        if operator.name in _SAME_COUNT and source.elements != target.elements:
            raise MalformedFlatbufferError(
                f"operator {number} ({operator.name}) changes the number of elements"
            )
        expected = _expected_shape(operator, source, target, tensors)
        if expected is not None and expected != target.shape:
            shapes = f"{list(expected)} of {list(source.shape)}, not {list(target.shape)}"
            raise MalformedFlatbufferError(f"operator {number} ({operator.name}) computes {shapes}")


def _padded_shape(operator: Operator, source: Tensor, amounts: npt.NDArray[Any]) -> tuple[int, ...]:
    if amounts.shape != (len(source.shape), 2) or amounts.min(initial=0) < 0:
        raise MalformedFlatbufferError(f"{operator.name} by {amounts.tolist()}")
    return tuple(
        size + int(sum(pair)) for size, pair in zip(source.shape, amounts.tolist(), strict=True)
    )


def _reduced_shape(
    operator: Operator, source: Tensor, target: Tensor, over: npt.NDArray[Any]
) -> tuple[int, ...]:
    rank = len(source.shape)
    reduced = check_indices(over.reshape(-1), rank, f"{operator.name} over axis", least=-rank)
    axes = {axis % rank for axis in reduced}
    keeps_axes = len(target.shape) == rank
    sizes = [1 if axis in axes else size for axis, size in enumerate(source.shape)]
    return tuple(size for axis, size in enumerate(sizes) if keeps_axes or axis not in axes)


def _expected_shape(
    operator: Operator, source: Tensor, target: Tensor, tensors: Sequence[Tensor]
) -> tuple[int, ...] | None:
    """The shape of the output; `None` for operators that are not covered."""
    if operator.name in _SAME_SHAPE:
        return source.shape
    second = (
        tensors[operator.inputs[1]]
        if len(operator.inputs) > 1 and operator.inputs[1] >= 0
        else None
    )
    if operator.name in ("PAD", "PADV2", "MIRROR_PAD") and second is not None:
        return None if second.data is None else _padded_shape(operator, source, second.data)
    if operator.name in _WINDOWED:
        return _windowed_shape(operator, source, second)
    if operator.name in _REDUCING and second is not None and second.data is not None:
        return _reduced_shape(operator, source, target, second.data)
    if operator.name in _ELEMENTWISE and second is not None:
        try:
            return np.broadcast_shapes(source.shape, second.shape)
        except ValueError:
            raise MalformedFlatbufferError(
                f"{operator.name} of {list(source.shape)} and {list(second.shape)}"
            ) from None
    if operator.name == "FULLY_CONNECTED" and second is not None and target.shape:
        if len(second.shape) != 2 or 0 in second.shape or source.elements % second.shape[1]:
            raise MalformedFlatbufferError(
                f"FULLY_CONNECTED of {list(source.shape)} by {list(second.shape)}"
            )
        rows = source.elements // second.shape[1]
        if target.elements != rows * second.shape[0] or target.shape[-1] != second.shape[0]:
            return rows, second.shape[0]
    return None


def _windowed_shape(operator: Operator, source: Tensor, kernel: Tensor | None) -> tuple[int, ...]:
    options = operator.options
    if not options or len(source.shape) != 4 or min(options["stride_h"], options["stride_w"]) < 1:
        raise MalformedFlatbufferError(f"{operator.name} without a shape, padding or strides")
    channels = source.shape[3]
    if "filter_h" in options:
        filters = options["filter_h"], options["filter_w"]
        dilations = 1, 1
    elif kernel is None or len(kernel.shape) != 4:
        raise MalformedFlatbufferError(f"{operator.name} without a kernel")
    else:
        filters = kernel.shape[1], kernel.shape[2]
        dilations = options["dilation_h"], options["dilation_w"]
        channels = kernel.shape[0 if operator.name == "CONV_2D" else 3]
    if min(*filters, *dilations) < 1:
        raise MalformedFlatbufferError(
            f"{operator.name} with a window of {filters}, dilated by {dilations}"
        )
    strides = options["stride_h"], options["stride_w"]
    extent = (
        [0, 0]
        if options["padding"] == 0
        else [(k - 1) * d for k, d in zip(filters, dilations, strict=True)]
    )
    height, width = (-(-(source.shape[1 + i] - extent[i]) // strides[i]) for i in (0, 1))
    return source.shape[0], height, width, channels


def check_sparsity(table: Table, tensor: Tensor, bits: int) -> None:
    """Checks that a sparse tensor's index arrays match its stored values, all inside its shape."""
    what = f"tensor {tensor.index} (sparse)"
    rank = len(tensor.shape)
    blocks = check_indices(table.array(1, "<i4", what), rank, f"{what} with block axis")
    axes = check_indices(table.array(0, "<i4", what), rank + len(blocks), f"{what} with axis")
    levels = table.tables(2, what)
    if sorted(axes) != list(range(rank + len(blocks))) or len(levels) != len(axes):
        raise MalformedFlatbufferError(f"{what} with {len(levels)} levels of {len(axes)} axes")
    blocked = sorted(
        ((axis, level) for axis, level in zip(axes, levels, strict=True) if axis >= rank),
        key=lambda pair: pair[0],
    )
    sizes = list(tensor.shape) + [level.number(1, "i") for _, level in blocked]
    for block, axis in enumerate(blocks):
        size = sizes[rank + block]
        if size < 1 or sizes[axis] % size:
            raise MalformedFlatbufferError(
                f"{what} with blocks of {size} on an axis of {sizes[axis]}"
            )
        sizes[axis] //= size
    positions = 1
    for axis, level in zip(axes, levels, strict=True):
        if level.number(0, "b") == 0:
            if level.number(1, "i") != sizes[axis]:
                raise MalformedFlatbufferError(
                    f"{what} with a level of {level.number(1, 'i')}, not {sizes[axis]}"
                )
            positions *= sizes[axis]
            continue
        segments, indices = (_index_vector(level, slot, what) for slot in (2, 4))
        rising = (
            len(segments) == positions + 1
            and segments[0] == 0
            and bool(np.all(np.diff(segments) >= 0))
        )
        if not rising or segments[-1] != len(indices):
            raise MalformedFlatbufferError(f"{what} with segments that do not fit")
        check_indices(indices, sizes[axis], f"{what} with index")
        positions = len(indices)
    if positions * bits != 8 * len(tensor.buffer):
        raise MalformedFlatbufferError(
            f"{what} of {positions} elements in a buffer of {len(tensor.buffer)} bytes"
        )


def _index_vector(level: Table, slot: int, what: str) -> npt.NDArray[np.int64]:
    kinds = {1: "<i4", 2: "<u2", 3: "u1"}
    kind = level.number(slot, "B")
    part = level.table(slot + 1, what)
    if kind not in kinds or part is None:
        raise MalformedFlatbufferError(f"{what} without its indices")
    return part.array(0, kinds[kind], what).astype(np.int64)
