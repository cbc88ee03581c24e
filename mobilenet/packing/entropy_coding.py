"""Symbols to bytes and back at their zeroth-order entropy, by constriction's range coder.

What is read may be malformed on purpose: every length is checked against the bytes that are there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Symbols = npt.NDArray[Any]
_SINGLE, _STORED, _CODED = range(3)  # one symbol alone, as they are, through the coder
_WORD = np.dtype("<u4")  # what the coder writes
_VARINT_BYTES = 9  # 63 bits
_ORDERS = 16  # of the codes that a table of counts may have
_MOST_CODE = 16  # bytes of one: 127 bits and 15 at most


class Malformed(ValueError):
    """Bytes that the encoder cannot have written."""


class Reader:
    """Bytes, taken from the front; never more than there are.

    Args:
        data: all of them.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            Malformed: there are fewer.
        """
        left = len(self._data) - self._place
        if not 0 <= count <= left:
            raise Malformed(f"{count} bytes are wanted where {left} are left")
        self._place += count
        return self._data[self._place - count : self._place]

    def number(self, most: int) -> int:
        """The next variable-length number.

        Raises:
            Malformed: it is above `most`, or has no end.
        """
        value = 0
        for place in range(_VARINT_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                break
        else:
            raise Malformed("a number without an end")
        if value > most:
            raise Malformed(f"{value} where {most} is the most")
        return value

    def end(self) -> None:
        """Refuses bytes that nobody has asked for."""
        if self._place != len(self._data):
            raise Malformed(f"{len(self._data) - self._place} bytes too many")


def number(value: int) -> bytes:
    """A number from 0 to 2^63 - 1 in 1 to 9 bytes, seven bits each, the lowest first."""
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def encode(symbols: Symbols, alphabet: int) -> bytes:
    """One stream of symbols with the table of their counts, or as they are where that is shorter.

    Args:
        symbols: integers from 0 to `alphabet - 1`, one axis.
        alphabet: at most 65,536.
    """
    counts = np.bincount(symbols, minlength=1)
    used = np.flatnonzero(counts)
    if len(used) <= 1:
        return bytes([_SINGLE]) + number(int(used[0]) if len(used) else 0)
    stored = bytes([_STORED]) + symbols.astype(_kind(alphabet)).tobytes()
    ranks = np.zeros(len(counts), np.int32)
    ranks[used] = np.arange(len(used))
    words = _encoded(ranks[symbols], counts[used])
    table = number(len(counts)) + _table(counts.tolist())
    coded = bytes([_CODED]) + table + number(len(words)) + words.tobytes()
    return min(stored, coded, key=len)


def decode(reader: Reader, count: int, alphabet: int) -> Symbols:
    """The symbols of a stream that `encode` made.

    Args:
        reader: stands at the stream, and behind it afterwards.
        count: how many symbols there are; the caller answers for its size.
        alphabet: as for `encode`.

    Raises:
        Malformed: this cannot be such a stream.
    """
    form = reader.take(1)[0]
    if form == _SINGLE:
        return np.full(count, reader.number(alphabet - 1), _kind(alphabet))
    if form == _STORED:
        kind = _kind(alphabet)
        symbols: Symbols = np.frombuffer(reader.take(count * kind.itemsize), kind)
        if count and int(symbols.max()) >= alphabet:
            raise Malformed(f"a symbol that is not among {alphabet}")
        return symbols
    if form != _CODED:
        raise Malformed(f"a stream of form {form}")
    counts = np.array(_read_table(reader, reader.number(alphabet), count), np.int64)
    used = np.flatnonzero(counts)
    if len(used) < 2 or sum(counts.tolist()) != count:
        raise Malformed(f"a table that does not count {count} symbols")
    words = np.frombuffer(reader.take(reader.number(count) * _WORD.itemsize), _WORD)
    ranks = _decoded(words, counts[used], count)
    if not np.array_equal(np.bincount(ranks, minlength=len(used)), counts[used]):
        raise Malformed("symbols that are not those of their table")
    return used.astype(_kind(alphabet))[ranks]


def _table(counts: list[int]) -> bytes:
    """Counts as exponential Golomb codes: whose order, how many bytes, and the bits.

    Most symbols of most arrays are rare; a byte or two for each would be a fifth of a small file.
    """
    order = min(range(_ORDERS), key=lambda k: sum(2 * _reach(n, k) + k for n in counts))
    text = "".join(
        "0" * (_reach(n, order) - 1) + format((n >> order) + 1, "b") + _low(n, order)
        for n in counts
    )
    data = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
    return bytes([order]) + number(len(data)) + data


def _reach(count: int, order: int) -> int:
    return ((count >> order) + 1).bit_length()


def _low(count: int, order: int) -> str:
    return format(count & ((1 << order) - 1), f"0{order}b") if order else ""


def _read_table(reader: Reader, size: int, most: int) -> list[int]:
    """`size` counts, none of which is above `most`."""
    order = reader.take(1)[0]
    if order >= _ORDERS:
        raise Malformed(f"a table of order {order}")
    data = reader.take(reader.number(size * _MOST_CODE + 1))
    bits = format(int.from_bytes(b"\x01" + data, "big"), "b")[1:]
    counts, place = [], 0
    for _ in range(size):
        first = bits.find("1", place)
        end = 2 * first - place + 1
        if first < 0 or end + order > len(bits):
            raise Malformed("a table that ends too early")
        count = int(bits[first:end], 2) - 1
        place = end + order
        counts.append(count << order | int(bits[end:place] or "0", 2))
        if counts[-1] > most:
            raise Malformed(f"{counts[-1]} where {most} is the most")
    if "1" in bits[place:] or len(bits) - place >= 8:
        raise Malformed("a table that goes on behind its end")
    return counts


def entropy(counts: Symbols) -> float:
    """Zeroth-order entropy in bytes of as many symbols as `counts` says of each."""
    seen = counts[counts > 0].astype(np.float64)
    return float((seen * np.log2(seen.sum() / seen)).sum()) / 8 if len(seen) else 0.0


def _kind(alphabet: int) -> np.dtype[Any]:
    return np.dtype("u1" if alphabet <= 1 << 8 else "<u2")


def _encoded(ranks: Symbols, counts: Symbols) -> Symbols:
    from constriction import stream

    coder = stream.queue.RangeEncoder()
    coder.encode(ranks, _distribution(counts))
    words: Symbols = coder.get_compressed().astype(_WORD)
    return words


def _decoded(words: Symbols, counts: Symbols, count: int) -> Symbols:
    from constriction import stream

    coder = stream.queue.RangeDecoder(words.astype(np.uint32))
    try:
        ranks: Symbols = coder.decode(_distribution(counts), count)
    except (AssertionError, ValueError) as error:
        raise Malformed(f"no stream of the coder: {error}") from None
    return ranks


def _distribution(counts: Symbols) -> Any:
    from constriction import stream

    # Quotients of whole numbers are the same on every machine, so both sides round alike.
    return stream.model.Categorical(counts / float(counts.sum()), perfect=False)
