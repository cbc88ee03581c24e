"""A tar archive, gzip-compressed or not, read forward in bounded steps.

`tarfile` reads extended headers of any declared size at once, follows sizes that lead backward, and
inflates whatever a header declares; here each of these ends in an error.
"""

from __future__ import annotations

import contextlib
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from mobilenet.archives import UNCHECKED_BYTES

MAX_RATIO = 10.0  # uncompressed to compressed bytes; archives of trained weights reach 2
_STEP_BYTES, _INPUT_BYTES = 1 << 20, 1 << 14
_GZIP_MAGIC, _GZIP_FORMAT = b"\x1f\x8b", 16 + zlib.MAX_WBITS


@contextlib.contextmanager
def open_archive(archive: Path) -> Iterator[tarfile.TarFile]:
    """Opens an archive, to iterate over its members and extract each in its turn.

    Raises:
        tarfile.TarError, zlib.error, EOFError: it is damaged, or inflates by more than
            `MAX_RATIO`; other exceptions of `tarfile` are possible for a damaged header.
    """
    with archive.open("rb") as raw:
        most = max(UNCHECKED_BYTES, MAX_RATIO * archive.stat().st_size)
        with tarfile.TarFile(fileobj=cast(BinaryIO, _Forward(raw, int(most)))) as tar:
            yield tar


def is_archive(path: Path) -> bool:
    """Whether a file begins as a tar archive does."""
    if not path.is_file():
        return False
    try:
        with open_archive(path):
            return True
    except OSError:
        raise
    except Exception:  # whatever tarfile and zlib raise for another file
        return False


class _Forward:
    """What `tarfile` needs of a file, without a step back.

    Args:
        raw: the archive; a second gzip stream in it is ignored.
        most: bytes that may be read from it, uncompressed.
    """

    def __init__(self, raw: BinaryIO, most: int) -> None:
        self._raw, self._most, self._position = raw, most, 0
        self._gzip = zlib.decompressobj(_GZIP_FORMAT) if raw.read(2) == _GZIP_MAGIC else None
        raw.seek(0)

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _STEP_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        data = self._raw.read(size) if self._gzip is None else self._inflated(size)
        self._position += len(data)
        if self._position > self._most:
            raise tarfile.ReadError(f"it inflates to more than {self._most:,} bytes")
        return data

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("a member of negative size")
        while self._position < position:
            if not self.read(min(_STEP_BYTES, position - self._position)):
                return

    def _inflated(self, size: int) -> bytes:
        assert self._gzip is not None
        data = bytearray()
        while len(data) < size and not self._gzip.eof:
            chunk = self._gzip.unconsumed_tail or self._raw.read(_INPUT_BYTES)
            part = self._gzip.decompress(chunk, size - len(data))
            if not chunk and not part:
                raise EOFError("it ends early")
            data += part
        return bytes(data)
