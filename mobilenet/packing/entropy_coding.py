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
_MAX_CODE = 16  # bytes of one: 127 bits and 15 at most


class MalformedPackError(ValueError):
    """Bytes that the encoder cannot have written."""


class ByteReader:
    """Bytes, taken from the front; never more than there are.

    Args:
        data: all of them.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            MalformedPackError: there are fewer.
        """
        left = len(self._data) - self._position
        if not 0 <= count <= left:
            raise MalformedPackError(f"{count} bytes are expected where {left} are left")
        self._position += count
        return self._data[self._position - count : self._position]

    def read_number(self, limit: int) -> int:
        """The next variable-length number.

        Raises:
            MalformedPackError: it is above `limit`, or has no end.
        """
        value = 0
        for index in range(_VARINT_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                break
        else:
            raise MalformedPackError("a number without an end")
        if value > limit:
            raise MalformedPackError(f"{value} where {limit} is the most")
        return value

    def check_end(self) -> None:
        """Refuses bytes that are left over."""
        if self._position != len(self._data):
            raise MalformedPackError(f"{len(self._data) - self._position} bytes too many")


def encode_number(value: int) -> bytes:
    """A number from 0 to 2^63 - 1 in 1 to 9 bytes, seven bits each, the lowest first."""
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def encode(symbols: Symbols, alphabet: int) -> bytes:
    """One stream of symbols with the table of their counts, or or unchanged where that is shorter.

    Args:
        symbols: integers from 0 to `alphabet - 1`, one axis.
        alphabet: at most 65,536.
    """
    counts = np.bincount(symbols, minlength=1)
    used = np.flatnonzero(counts)
    if len(used) <= 1:
        return bytes([_SINGLE]) + encode_number(int(used[0]) if len(used) else 0)
    stored = bytes([_STORED]) + symbols.astype(_kind(alphabet)).tobytes()
    ranks = np.zeros(len(counts), np.int32)
    ranks[used] = np.arange(len(used))
    words = _encoded(ranks[symbols], counts[used])
    table = encode_number(len(counts)) + _table(counts.tolist())
    coded = bytes([_CODED]) + table + encode_number(len(words)) + words.tobytes()
    return min(stored, coded, key=len)


def decode(reader: ByteReader, count: int, alphabet: int) -> Symbols:
    """The symbols of a stream that `encode` wrote.

    Args:
        reader: at the start of the stream; at its end afterwards.
        count: how many symbols there are; the caller has checked its size.
        alphabet: as for `encode`.

    Raises:
        MalformedPackError: this cannot be such a stream.
    """
    form = reader.take(1)[0]
    if form == _SINGLE:
        return np.full(count, reader.read_number(alphabet - 1), _kind(alphabet))
    if form == _STORED:
        kind = _kind(alphabet)
        symbols: Symbols = np.frombuffer(reader.take(count * kind.itemsize), kind)
        if count and int(symbols.max()) >= alphabet:
            raise MalformedPackError(f"a symbol that is not among {alphabet}")
        return symbols
    if form != _CODED:
        raise MalformedPackError(f"a stream of form {form}")
    counts = np.array(_read_table(reader, reader.read_number(alphabet), count), np.int64)
    used = np.flatnonzero(counts)
    if len(used) < 2 or sum(counts.tolist()) != count:
        raise MalformedPackError(f"a table that does not count {count} symbols")
    words = np.frombuffer(reader.take(reader.read_number(count) * _WORD.itemsize), _WORD)
    ranks = _decoded(words, counts[used], count)
    if not np.array_equal(np.bincount(ranks, minlength=len(used)), counts[used]):
        raise MalformedPackError("symbols that are not those of their table")
    return used.astype(_kind(alphabet))[ranks]


def _table(counts: list[int]) -> bytes:
    """Counts as exponential Golomb codes: whose order, how many bytes, and the bits.

    Most symbols of most arrays are rare; a byte or two for each would be a fifth of a small file.
    """
    order = min(range(_ORDERS), key=lambda k: sum(2 * _bit_length(n, k) + k for n in counts))
    text = "".join(
        "0" * (_bit_length(n, order) - 1) + format((n >> order) + 1, "b") + _low_bits(n, order)
        for n in counts
    )
    data = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
    return bytes([order]) + encode_number(len(data)) + data


def _bit_length(count: int, order: int) -> int:
    return ((count >> order) + 1).bit_length()


def _low_bits(count: int, order: int) -> str:
    return format(count & ((1 << order) - 1), f"0{order}b") if order else ""


def _read_table(reader: ByteReader, size: int, limit: int) -> list[int]:
    """`size` counts, none of which is above `limit`."""
    order = reader.take(1)[0]
    if order >= _ORDERS:
        raise MalformedPackError(f"a table of order {order}")
    data = reader.take(reader.read_number(size * _MAX_CODE + 1))
    bits = format(int.from_bytes(b"\x01" + data, "big"), "b")[1:]
    counts, position = [], 0
    for _ in range(size):
        first = bits.find("1", position)
        end = 2 * first - position + 1
        if first < 0 or end + order > len(bits):
            raise MalformedPackError("a table that ends too early")
        count = int(bits[first:end], 2) - 1
        position = end + order
        counts.append(count << order | int(bits[end:position] or "0", 2))
        if counts[-1] > limit:
            raise MalformedPackError(f"{counts[-1]} where {limit} is the most")
    if "1" in bits[position:] or len(bits) - position >= 8:
        raise MalformedPackError("a table that goes on after its end")
    return counts


def entropy(counts: Symbols) -> float:
    """Zeroth-order entropy in bytes of symbols with these counts."""
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
        raise MalformedPackError(f"no stream of the coder: {error}") from None
    return ranks


def _distribution(counts: Symbols) -> Any:
    from constriction import stream

    # Quotients of whole numbers are the same on every machine, so both sides round alike.
    return stream.model.Categorical(counts / float(counts.sum()), perfect=False)
