"""A file as C++ source for TensorFlow Lite Micro: its bytes as an array, the operators that its
resolver needs, and the memory that it takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mobilenet.configs.card import Card, TensorType
from mobilenet.configs.conversion import C_ARRAY
from mobilenet.errors import UsageError, shorten
from mobilenet.export import programs
from mobilenet.runtime import micro
from mobilenet.tflite import model as tflite_model

HEADER, DATA, RESOLVER = ("model_data.h", "model_data.cc", "op_resolver.h")
_ROW = 16  # bytes in a row of the array
_SPARE = 256  # bytes for the alignment of an arena that starts anywhere
_ROUNDED_TO = 1024
_ARRAY, _LENGTH = "g_model_data", "g_model_data_len"


@dataclasses.dataclass(frozen=True)
class ArenaSize:
    """Memory for the tensors of a file.

    Attributes:
        bytes: its size, with a reserve for alignment.
        is_measured: with TensorFlow Lite Micro on this machine; otherwise estimated from the file.
    """

    bytes: int
    is_measured: bool

    def __str__(self) -> str:
        origin = "measured on a 64-bit machine" if self.is_measured else "estimated, not measured"
        return f"{self.bytes:,} bytes, {origin}"


def arena_size(content: tflite_model.Flatbuffer) -> ArenaSize:
    """The memory that a program has to provide, without scratch memory of a vendor's kernels.

    Raises:
        UsageError: the runtime cannot run the file.
    """
    is_measured = micro.can_measure(content)
    arena = micro.measure_arena(content).total if is_measured else micro.estimate_arena(content)
    rounded = -(-(arena + _SPARE) // _ROUNDED_TO) * _ROUNDED_TO
    return ArenaSize(rounded, is_measured)


def check_operators(content: tflite_model.Flatbuffer) -> None:
    """Refuses a file that TensorFlow Lite Micro has no kernels for.

    Raises:
        UsageError: names `format` and what is lacking.
    """
    lacking = micro.unsupported(content)
    if lacking:
        expected = f"a file of what TensorFlow Lite Micro has; it lacks {shorten(lacking)}"
        remedy = "`number_format=int8` makes one of most models"
        raise UsageError("format", C_ARRAY, expected, remedy)


@dataclasses.dataclass(frozen=True)
class Sources:
    """The sources of a file.

    Attributes:
        texts: by file name.
        arena: memory for the tensors.
        calls: of the resolver, one an operator.
    """

    texts: Mapping[str, str]
    arena: ArenaSize
    calls: tuple[str, ...]

    def summary(self) -> list[tuple[str, str]]:
        """Rows of a table: what, value."""
        return [
            ("C++ sources", ", ".join(self.texts)),
            ("arena", str(self.arena)),
            ("resolver", f"MicroMutableOpResolver<{len(self.calls)}>: {', '.join(self.calls)}"),
        ]


def write_sources(data: bytes, card: Card) -> Sources:
    """The sources of a file for TensorFlow Lite Micro.

    Args:
        data: the file.
        card: of the file.

    Raises:
        UsageError: see `check_operators` and `arena_size`.
    """
    content = tflite_model.read(data)
    check_operators(content)
    arena, calls = arena_size(content), micro.resolver_calls(content)
    classes = content.tensors[content.outputs[0]].shape[-1]
    texts = {
        HEADER: _header(len(data), classes, card, arena),
        DATA: _data(data),
        RESOLVER: _resolver(calls),
    }
    return Sources(texts, arena, calls)


def _header(length: int, classes: int, card: Card, arena: ArenaSize) -> str:
    height, width, channels = card.input_shape
    return f"""// {" ".join(card.title.split())}, written by mobilenet.converter.
#ifndef MODEL_DATA_H_
#define MODEL_DATA_H_

extern const unsigned char {_ARRAY}[];  // a .tflite file, aligned to 16 bytes
constexpr unsigned int {_LENGTH} = {length};

// Memory for tensors with the reference kernels: {arena}.
constexpr unsigned int kTensorArenaSize = {arena.bytes};

constexpr int kInputHeight = {height}, kInputWidth = {width}, kInputChannels = {channels};
constexpr int kOutputCount = {classes};  // {card.outputs}
{_scales("kInput", card.input)}{_scales("kOutput", card.output)}
#endif  // MODEL_DATA_H_
"""


def _scales(name: str, tensor: TensorType | None) -> str:
    lines = [] if tensor is None else programs.cpp_constants(name, tensor)
    return "".join(f"{line}\n" for line in lines)


def _data(content: bytes) -> str:
    starts = range(0, len(content), _ROW)
    rows = [f"0x{content[i : i + _ROW].hex(',').replace(',', ',0x')}," for i in starts]
    lines = "\n".join(rows)
    return f"""#include "{HEADER}"

alignas(16) const unsigned char {_ARRAY}[{_LENGTH}] = {{
{lines}
}};
"""


def _resolver(calls: tuple[str, ...]) -> str:
    added = "\n".join(f"  if (resolver.{c}() != kTfLiteOk) return kTfLiteError;" for c in calls)
    return f"""#ifndef OP_RESOLVER_H_
#define OP_RESOLVER_H_

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

using ModelOpResolver = tflite::MicroMutableOpResolver<{len(calls)}>;

// Adds the operators of the model.
inline TfLiteStatus AddModelOperators(ModelOpResolver& resolver) {{
{added}
  return kTfLiteOk;
}}

#endif  // OP_RESOLVER_H_
"""
