"""JSON from files that anyone may have written: bounded, finite and without duplicate keys.

Python's own reader accepts NaN, numbers of any length, repeated keys, lone surrogates and nesting
down to its recursion limit; each of these ends in a traceback in the code that uses the value.
"""

from __future__ import annotations

import collections
import json
import math
import os
from pathlib import Path
from typing import Any

from mobilenet.errors import UsageError

MAX_BYTES = 1 << 24
MAX_VALUES = 1 << 20  # values and keys; each costs about 50 to 100 bytes of memory
MAX_DEPTH = 64
_MAX_DIGITS = 20  # of a 64-bit integer with its sign
_STRUCTURE = b",:[{"


class InvalidJSON(ValueError):
    """The reason why a text is refused."""


def loads(text: str | bytes) -> Any:
    """Parses JSON.

    Args:
        text: UTF-8, with or without a byte order mark.

    Raises:
        InvalidJSON: it is no JSON, holds NaN, an infinity, a number that does not fit 64 bits, a
            lone surrogate or a key twice, is nested more than 64 levels deep, or is larger than
            16 MiB or a million values.
    """
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_BYTES:
        raise InvalidJSON(f"{len(data)} bytes, at most {MAX_BYTES} are read")
    if sum(map(data.count, (bytes([mark]) for mark in _STRUCTURE))) > MAX_VALUES:
        raise InvalidJSON(f"more than {MAX_VALUES} values")
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_no_constant,
            object_pairs_hook=_object,
        )
    except InvalidJSON:
        raise
    except RecursionError:
        raise InvalidJSON(f"nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise InvalidJSON(str(error)) from None
    _check_depth_and_text(value)
    return value


def read(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
        UsageError: the file is absent, cannot be read, or `loads` refuses it.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "not a regular file")  # opening a pipe would wait for its writer
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return loads(data)
    except FileNotFoundError:
        raise UsageError(str(path), None, "a JSON file; there is none") from None
    except OSError as error:
        raise UsageError(str(path), None, f"a file that can be read ({error.strerror})") from None
    except InvalidJSON as error:
        raise UsageError(str(path), None, f"a JSON file ({error})") from None


def read_object(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Reads a JSON file whose top level is an object.

    Args:
        path: the file.
        kind: what it describes, for the error, as in "a model card".

    Raises:
        UsageError: as for `read`, or the top level is something else.
    """
    value = read(path)
    if not isinstance(value, dict):
        raise UsageError(str(path), None, f"a JSON object that describes {kind}")
    return value


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise InvalidJSON(f"a number of {len(text)} digits")
    value = int(text)
    if not -(1 << 63) <= value < 1 << 63:
        raise InvalidJSON(f"{text} does not fit 64 bits")
    return value


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidJSON(f"{text[:20]} does not fit a 64-bit float")
    return value


def _no_constant(text: str) -> Any:
    raise InvalidJSON(f"{text} is not a number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        (repeated, _), *_ = collections.Counter(key for key, _ in pairs).most_common(1)
        raise InvalidJSON(f"the key {repeated[:40]!r} twice in one object")
    return value


def _check_depth_and_text(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                following += item
                following += item.values()
            elif isinstance(item, list):
                following += item
            elif isinstance(item, str) and not item.isascii():
                _check_text(item)
        if not following:
            return
        level = following
    raise InvalidJSON(f"nested more than {MAX_DEPTH} levels deep")


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidJSON("half of a surrogate pair in a text") from None
