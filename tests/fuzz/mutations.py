"""Damage to bytes and to JSON values: noise, and one odd value in an otherwise sound document."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

Change = Callable[[random.Random, bytes], bytes]

_SIZES = (1, 2, 4, 8)  # bytes of an integer
_EXTREMES = (0, 1, -1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
_EXTREMES += (2**62, 2**63 - 1, 2**63, 2**64 - 1)
DEEP = "\0deep\0"  # stands for nested lists until a document is text: `json.dumps` would recurse
_DEPTHS = (50, 990, 20_000, 200_000)
_LONG = 1 << 20
_ODD: tuple[Callable[[], Any], ...] = (
    *(lambda value=value: value for value in (None, True, False, 0, 1, -1, 0.5, 2**31, 2**63)),
    *(lambda value=value: value for value in (1e308, -1e308, 5e-324, math.nan, math.inf)),
    *(lambda value=value: value for value in ("", "x", "0", "\ud800", "\0", "../..", "/dev/zero")),
    *(lambda value=value: value for value in ("a\nb", "\x1b[2J", "\u202e", "None", "nan")),
    lambda: 10**400,
    lambda: -(10**400),
    lambda: "x" * _LONG,
    list,
    dict,
    lambda: [[]],
    lambda: [None] * 3,
    lambda: list(range(2000)),
    lambda: {"": None},
    lambda: {"type": "Config"},
    lambda: {"type": []},
    lambda: DEEP,
)


def noise(rng: random.Random, data: bytes) -> bytes:
    """Between one and three kinds of damage."""
    for change in rng.choices(BYTE_CHANGES, k=rng.choice((1, 1, 1, 2, 3))):
        data = change(rng, data)
    return data


def _position(rng: random.Random, data: bytes) -> int:
    """An index; headers are hit more often than their share."""
    return rng.randrange(min(len(data), 64) if rng.random() < 0.3 else len(data))


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 4, 16))):
        changed[_position(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: _position(rng, data)]


def _extend(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\0", b"\xff", data[:50], rng.randbytes(20))) * rng.choice((1, 99))


def _splice(rng: random.Random, data: bytes) -> bytes:
    """A span from elsewhere overwrites one."""
    size = min(len(data), rng.choice((4, 16, 64, 256)))
    source, target = (rng.randrange(len(data) - size + 1) for _ in range(2))
    return data[:target] + data[source : source + size] + data[target + size :]


def _blank(rng: random.Random, data: bytes) -> bytes:
    start, size = _position(rng, data), rng.choice((4, 16, 64, 1024))
    span = data[start : start + size]
    return data[:start] + rng.choice((b"\0", b"\xff")) * len(span) + data[start + len(span) :]


def _remove(rng: random.Random, data: bytes) -> bytes:
    start = _position(rng, data)
    return data[:start] + data[start + rng.choice((1, 4, 64)) :]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start = _position(rng, data)
    span = data[start : start + rng.choice((1, 8, 64))]
    return data[:start] + span * rng.choice((2, 3, 200)) + data[start:]


def _integer(rng: random.Random, data: bytes) -> bytes:
    """An extreme integer where there may have been a count, a size or an offset."""
    size = min(rng.choice(_SIZES), len(data))
    start = rng.randrange(len(data) - size + 1)
    if rng.random() < 0.7:
        start -= start % size
    value = rng.choice(_EXTREMES) % 256**size
    order: Any = rng.choice(("little", "big"))
    return data[:start] + value.to_bytes(size, order) + data[start + size :]


BYTE_CHANGES: tuple[Change, ...] = tuple(
    lambda rng, data, change=change: change(rng, data) if data else b"\0"  # type: ignore[misc]
    for change in (_flip, _truncate, _extend, _splice, _blank, _remove, _repeat, _integer)
)


def odd(rng: random.Random) -> Any:
    """A JSON value that no field expects."""
    return rng.choice(_ODD)()


def odd_json(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value in which one part is odd: absent, of another type, extreme."""
    value = copy.deepcopy(value)
    positions = list(_positions(value))
    if not positions or rng.random() < 0.03:
        return odd(rng)
    holder, key = rng.choice(positions)
    change = rng.choice((_replace, _replace, _replace, _nudge, _nudge, _drop, _add, _exchange))
    change(rng, holder, key, positions)
    return value


Position = tuple[Any, Any]


def _positions(value: Any) -> Iterator[Position]:
    """Every list or dictionary with each of its keys."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    for key in keys:
        yield value, key
        yield from _positions(value[key])


def _replace(rng: random.Random, holder: Any, key: Any, positions: list[Position]) -> None:
    holder[key] = odd(rng)


def _nudge(rng: random.Random, holder: Any, key: Any, positions: list[Position]) -> None:
    """A value that looks like the one before."""
    before = holder[key]
    if isinstance(before, bool) or before is None:
        holder[key] = not before
    elif isinstance(before, (int, float)):
        holder[key] = rng.choice((-before, before + 1, before * 1000, before / 3, str(before)))
    elif isinstance(before, str):
        holder[key] = rng.choice(
            (before + "x", before[:-1], before.upper(), [before], f" {before}")
        )
    elif isinstance(before, list):
        holder[key] = rng.choice((before[1:], before * 2, before * 500, dict(enumerate(before))))
    else:
        holder[key] = rng.choice((list(before), list(before.values()), [before]))


def _drop(rng: random.Random, holder: Any, key: Any, positions: list[Position]) -> None:
    del holder[key]


def _add(rng: random.Random, holder: Any, key: Any, positions: list[Position]) -> None:
    if isinstance(holder, list):
        holder.insert(key, odd(rng))
    else:
        holder[rng.choice(("x", "", "type", "__class__", "name", f"{key}_"))] = odd(rng)


def _exchange(rng: random.Random, holder: Any, key: Any, positions: list[Position]) -> None:
    """Another part of the document in its position."""
    other, there = rng.choice(positions)
    holder[key] = copy.deepcopy(other[there])


def json_text(rng: random.Random, value: Any) -> str:
    """The text of a JSON value, `DEEP` written out, now and then with a key twice."""
    text = json.dumps(value, indent=rng.choice((None, 2)))
    depth = rng.choice(_DEPTHS)
    nested = rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth))
    text = text.replace(json.dumps(DEEP), nested)
    if rng.random() < 0.05:
        start = text.find('"', rng.randrange(len(text)))
        end = text.find('":', start)
        if 0 <= start < end and "," not in text[start:end]:
            text = text[:start] + text[start : end + 2] + " null, " + text[start:]
    return text


def damaged_json(rng: random.Random, data: bytes) -> bytes:
    """A JSON document with one odd part; one time in five, noise in its text."""
    if rng.random() < 0.2:
        return noise(rng, data)
    return json_text(rng, odd_json(rng, json.loads(data))).encode("utf-8", "surrogatepass")
