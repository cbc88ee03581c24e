"""A flatbuffer as objects that can be changed, and back."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np

from mobilenet.runtime import flatbuffer

_ALIGNMENT = 16  # schema.fbs: `data: [ubyte] (force_align: 16)`
_ROOM = 4096  # bytes: the builder grows where that is too little


def unpack(data: bytes) -> Any:
    """The `ModelT` of a file, as the generated schema has it."""
    return flatbuffer.schema().ModelT.InitFromPackedBuf(data, 0)


def pack(model: Any, size: int) -> bytes:
    """The file of a `ModelT`; `size` is about how many bytes it will have."""
    builder = _Aligned(size + _ROOM)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Aligned(flatbuffers.Builder):
    """Aligns byte vectors as the schema asks; the generated `Pack` does not, and kernels that read
    32-bit constants in place rely on it."""

    head: int

    def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802
        if x.dtype != np.uint8:
            return super().CreateNumpyVector(x)
        self.StartVector(1, x.size, _ALIGNMENT)
        end: int = self.head
        self.head = end - x.size
        self.Bytes[self.head : end] = x.tobytes()
        return self.EndVector()
