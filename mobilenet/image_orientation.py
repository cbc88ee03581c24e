"""The orientation of a photo: read from its EXIF data, and applied to its pixels.

A camera stores rows as its sensor has them and notes how it was held. The rules are few, so that
`mobilenet.data.orientation` can follow them in the graph: the first EXIF segment among the metadata
before the pixels (of WebP anywhere), and in it the tag 0x0112 as one 16-bit number. Whatever is
damaged or absent means upright, and is never an error.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

UPRIGHT, LAST = 1, 8  # orientations, as EXIF 2.32 numbers them
TRANSPOSED = 5  # from here on rows and columns change places
MIRRORED = (2, 3, 6, 7)  # left and right are swapped (after rows and columns)
UPSIDE_DOWN = (3, 4, 7, 8)  # top and bottom are swapped
TAG, SHORT = 0x0112, 3  # of the orientation; the type of a 16-bit number
ENTRY = 12  # bytes of an entry of a TIFF directory
MAX_EXIF = 1 << 16  # bytes that are looked at
MAX_SEGMENTS = 64  # that are looked at
EXIF = b"Exif\0\0"
LITTLE, BIG = b"II*\0", b"MM\0*"  # how TIFF data begin, by their order of bytes
JFIF = b"\xff\xd8\xff\xe0\x00\x10"  # how most JPEGs begin; the next segment starts at 20
TABLES = b"\xff\xdb"  # the quantization tables, which follow the metadata
WEBP_HAS_EXIF = 8  # a flag of an extended WebP


def read(content: bytes) -> int:
    """The orientation of an image file, 1 to 8; 1 where it states none.

    Args:
        content: the whole file, of any format.
    """
    try:
        return _from_tiff(_find_exif(content).removeprefix(EXIF)[:MAX_EXIF])
    except struct.error:  # a segment leads beyond the end
        return UPRIGHT


def is_bare_jpeg(content: bytes) -> bool:
    """Whether the first bytes of a file show that it is a JPEG without metadata."""
    return content[:6] == JFIF and content[20:22] == TABLES


def turn(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Turns pixels `[height, width, channels]`, as they are stored, upright."""
    if orientation >= TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    down = -1 if orientation in UPSIDE_DOWN else 1
    across = -1 if orientation in MIRRORED else 1
    return np.ascontiguousarray(pixels[::down, ::across])


def _find_exif(content: bytes) -> bytes:
    if content[:2] == b"\xff\xd8":
        return _jpeg_exif(content)
    if content[:4] == b"\x89PNG":
        return _png_exif(content)
    return _webp_exif(content) if content[8:12] == b"WEBP" else b""


def _jpeg_exif(content: bytes) -> bytes:
    position = 2
    for _ in range(MAX_SEGMENTS):
        start, marker, length = struct.unpack_from(">BBH", content, position)
        if start != 0xFF or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            break
        if marker == 0xE1 and content[position + 4 : position + 10] == EXIF:
            return content[position + 4 : position + 2 + length]
        position += 2 + length
    return b""


def _png_exif(content: bytes) -> bytes:
    position = 8
    for _ in range(MAX_SEGMENTS):
        length, name = struct.unpack_from(">I4s", content, position)
        if name in (b"IDAT", b"IEND"):
            break
        if name == b"eXIf":
            return content[position + 8 : position + 12 + length]  # with the checksum
        position += 12 + length
    return b""


def _webp_exif(content: bytes) -> bytes:
    if content[12:16] != b"VP8X" or not content[20] & WEBP_HAS_EXIF:
        return b""
    (size,) = struct.unpack_from("<I", content, 4)
    content, position = content[: 8 + size], 12
    for _ in range(MAX_SEGMENTS):
        name, length = struct.unpack_from("<4sI", content, position)
        if name == b"EXIF":
            return content[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    return b""


def _from_tiff(content: bytes) -> int:
    """The orientation in the first directory of TIFF data."""
    if content[:4] not in (LITTLE, BIG):
        return UPRIGHT
    order = "<" if content[:4] == LITTLE else ">"
    (directory,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, directory)
    for start in range(directory + 2, directory + 2 + ENTRY * count, ENTRY):
        if start + ENTRY > len(content):
            break
        tag, kind, values, value = struct.unpack_from(order + "HHIH", content, start)
        if (tag, kind, values) == (TAG, SHORT, 1) and UPRIGHT <= value <= LAST:
            return int(value)
    return UPRIGHT
