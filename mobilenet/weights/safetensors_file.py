"""safetensors files from unknown sources: the header is checked before the library parses it.

The library refuses headers and offsets that do not fit the file. Here sizes, numbers and types are
bounded first, and names that occur twice are refused, of which the library takes one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet import strict_json
from mobilenet.errors import UsageError
from mobilenet.typing import Array, Float32Array

SUFFIX = ".safetensors"
PICKLES = (".pth", ".pt", ".bin", ".pkl")  # of PyTorch
MAX_BYTES = 1 << 30  # the largest model of ours has 0.13 GiB in float32
MAX_HEADER_BYTES = 8 << 20  # that of the largest has 0.2 MiB
MAX_TENSORS = 20_000
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_INTEGER = "I64"  # of counters
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

Shapes = dict[str, tuple[int, ...]]


def read_shapes(path: str | os.PathLike[str]) -> Shapes:
    """The shapes of the tensors of a file, by name; reads the header alone.

    Raises:
        UsageError: it is no such file, larger than 1 GiB, damaged, or has more than 20,000 tensors,
            a name twice, or numbers of another type than float or 64-bit integers.
    """
    path = Path(path)
    _check_suffix(path)
    if not path.is_file():
        raise UsageError(str(path), None, "a .safetensors file; there is none")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes, at most {MAX_BYTES} are read")
        with path.open("rb") as file:
            header = _header(file.read(_LENGTH.size), file, size)
            shapes = _shapes(header)
            _check_end(header, size - file.tell())
            return shapes
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Float32Array]:
    """The tensors of floating-point numbers of a file, as float32, by name.

    Raises:
        UsageError: see `read_shapes`; or offsets overlap or leave gaps, or a number is not finite.
    """
    import safetensors

    parse: Callable[[bytes], Any] = safetensors.deserialize
    shapes = read_shapes(path)
    try:
        content = Path(path).read_bytes()
        tensors = dict(parse(content))
        if tensors.keys() != shapes.keys():
            raise ValueError("it changed while it was read")
        return {
            name: _values(name, tensor)
            for name, tensor in tensors.items()
            if tensor["dtype"] != _INTEGER
        }
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _damaged(Path(path), error) from None


def pickle_refused(path: Path) -> UsageError:
    """The error for a file of PyTorch's own format."""
    return UsageError(
        str(path),
        None,
        f"a {SUFFIX} file; a {path.suffix} file is a pickle, which can run code when it is read",
        "write one by safetensors.torch.save_file(model.state_dict(), path)",
    )


def _check_suffix(path: Path) -> None:
    if path.suffix in PICKLES:
        raise pickle_refused(path)
    if path.suffix != SUFFIX:
        raise UsageError(str(path), None, f"a {SUFFIX} file")


def _header(start: bytes, file: Any, size: int) -> dict[str, Any]:
    """The parsed header.

    Raises:
        ValueError: it is damaged or too large.
    """
    if len(start) < _LENGTH.size:
        raise ValueError(f"{size} bytes, too few for a header")
    (length,) = _LENGTH.unpack(start)
    if length > min(MAX_HEADER_BYTES, size - _LENGTH.size):
        most = f"{size} bytes of file, and at most {MAX_HEADER_BYTES}"
        raise ValueError(f"a header of {length} bytes does not fit {most}")
    header = strict_json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def _shapes(header: Mapping[str, Any]) -> Shapes:
    tensors = {name: value for name, value in header.items() if name != _METADATA}
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors, at most {MAX_TENSORS} are read")
    return {name: _shape(name, value) for name, value in tensors.items()}


def _check_end(header: Mapping[str, Any], size: int) -> None:
    """Checks that all tensors are there, before any is needed; the library checks the rest.

    Args:
        header: of the file.
        size: bytes after it.
    """
    ends = [header[name].get("data_offsets") for name in header if name != _METADATA]
    known = [pair[1] for pair in ends if isinstance(pair, list) and len(pair) == 2]
    last = max((end for end in known if isinstance(end, int)), default=0)
    if last != size:
        raise ValueError(f"its tensors end after {last} bytes, {size} are there")


def _shape(name: str, value: Any) -> tuple[int, ...]:
    kind, shape = (value.get(k) for k in ("dtype", "shape")) if isinstance(value, dict) else ("", 0)
    if not isinstance(kind, str) or kind not in (*_FLOATS, _INTEGER):
        known = ", ".join((*_FLOATS, _INTEGER))
        raise ValueError(f"tensor {name[:100]!r} has the type {str(kind)[:20]!r}, not {known}")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"tensor {name[:100]!r} has no shape")
    return tuple(shape)


def _values(name: str, tensor: Mapping[str, Any]) -> Float32Array:
    raw: Array = np.frombuffer(tensor["data"], _FLOATS[tensor["dtype"]])
    if tensor["dtype"] == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        values: Float32Array = raw.astype(np.float32).reshape(tensor["shape"])
    if not np.isfinite(values).all():
        raise ValueError(f"tensor {name[:100]!r} has values that are not finite")
    return values


def _damaged(path: Path, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:200]
    return UsageError(
        str(path), None, f"a whole {SUFFIX} file ({reason})", "download or save it again"
    )
