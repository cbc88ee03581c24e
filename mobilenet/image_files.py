"""Which image files can be read: format, size and structure, decided before anything is decoded.

TensorFlow decodes in training and evaluation (`mobilenet.data`), Pillow in prediction
(`mobilenet.runtime`). Each of them tolerates damage that the other refuses. `check_content` refuses
what only one of them would read, so that a file is readable everywhere or nowhere;
`mobilenet.data.decoding` repeats in the graph the checks that are possible there. TensorFlow is not
needed.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from mobilenet.configs.dataset import MAX_PIXELS
from mobilenet.errors import UsageError, shorten

FORMATS = "JPEG, PNG, BMP, GIF and WebP"
MAX_BYTES = 2**31 - 1  # of a file: the most that TensorFlow decodes
# TensorFlow decodes no JPEG whose samples (pixels times stored channels) are this many; such a file
# is decoded at half its height and width (tensorflow/core/lib/jpeg/jpeg_mem.cc).
JPEG_SAMPLES = 2**29
GIF_TRAILER, GIF_IMAGE, GIF_EXTENSION = 0x3B, 0x2C, 0x21
BMP_HEADERS = (40, 52, 56, 64, 108, 124)  # bytes of the headers that Pillow knows, from version 3
BMP_MASKS = struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF)  # blue, green, red in this order of bytes
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither data nor a restart
_JPEG_EOI, _JPEG_DRI = 0xD9, 0xDD  # markers: end of the image, restart interval
_JPEG_TEM, _JPEG_FIRST = 0x01, 0xC0  # the only one below the first with a meaning that is legal
_SNIFFED = 16  # bytes that identify the format
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_ADAM7 = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)  # top, left, and steps down and across of each pass
_BLOCK = 1 << 20
_CONVERT = "convert it to JPEG or PNG"
_FOREIGN = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyp", "HEIC or another ISO media format"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG or another XML format"),
)


class ImageError(ValueError):
    """Why an image file is refused: a few words.

    Attributes:
        remedy: what can be done about it.
    """

    def __init__(self, reason: str, remedy: str = "repair or remove it") -> None:
        super().__init__(reason)
        self.remedy = remedy


def refused(names: Sequence[str], fault: ImageError | None, alternative: str = "") -> UsageError:
    """The error of image files that are refused.

    Args:
        names: of the files.
        fault: of the first one, where it is known.
        alternative: to the remedy of the fault.

    Examples:
        >>> str(refused(["a.jpg"], ImageError("cut off JPEG data")))
        'a.jpg: expected an image that can be decoded (cut off JPEG data); repair or remove it'
    """
    image = "images that can be decoded" if len(names) > 1 else "an image that can be decoded"
    first = f"{names[0]}: " if len(names) > 1 else ""
    clause = "" if fault is None else f" ({first}{fault})"
    remedies = ["repair or remove it" if fault is None else fault.remedy, alternative]
    return UsageError(shorten(names), None, image + clause, ", or ".join(filter(None, remedies)))


def image_format(head: bytes) -> str:
    """The format by the first 16 bytes of a file: JPEG, PNG, BMP, GIF or WebP.

    Raises:
        ImageError: another one.
    """
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:8] == _PNG:
        return "PNG"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:2] == b"BM":
        return "BMP"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    for start, magic, name in _FOREIGN:
        if head[start:].startswith(magic):
            raise ImageError(f"the format {name}; {FORMATS} are read", _CONVERT)
    if not head:
        raise ImageError("no bytes")
    raise ImageError(f"no image format that is known; {FORMATS} are read", _CONVERT)


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file; of another file no more than its first few are read.

    Raises:
        ImageError: its format is not one that is read, it is too large, or it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            image_format(file.read(_SNIFFED))
            _check_length(os.fstat(file.fileno()).st_size)
            file.seek(0)
            return file.read()
    except OSError as error:
        raise ImageError(f"{error.strerror}") from None


def check_content(content: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, bytes]:
    """Checks an image file as far as that is possible without decoding it.

    Args:
        content: the whole file.
        max_pixels: height times width, as the header says, may be at most this.

    Returns:
        Its format, and the bytes to decode: of PNG the chunks that make the pixels, of GIF the
        first frame, so that both decoders see the same.

    Raises:
        ImageError: the format is not one that is read, there are too many pixels, or the structure
            is damaged.
    """
    kind = image_format(content[:_SNIFFED])
    _check_length(len(content))
    try:
        return kind, _CHECKS[kind](content, max_pixels)
    except (IndexError, struct.error):  # the structure leads beyond the end of the file
        raise ImageError(f"cut off {kind} data") from None


def decode(
    content: bytes,
    max_pixels: int = MAX_PIXELS,
    mode: str | None = None,
    short_side: int | None = None,
) -> Image.Image:
    """Checks and decodes an image by Pillow.

    Args:
        content: the whole file.
        max_pixels: as for `check_content`.
        mode: `L` where only the luma of a JPEG is needed.
        short_side: decode a JPEG at the eighth, quarter or half of its sides at which the shorter
            one has at least so many pixels.

    Returns:
        The image in the mode in which the file stores it; a JPEG of at least `JPEG_SAMPLES` samples
        at half its height and width.

    Raises:
        ImageError: as for `check_content`, or the file cannot be decoded.
    """
    kind, content = check_content(content, max_pixels)
    try:
        # Not `Image.open`: its bound on pixels is a global of Pillow's, and lower than ours.
        image = _OPENERS[kind](io.BytesIO(content))
        if kind == "JPEG":
            _draft(image, mode, short_side)
        image.load()
    except Exception as error:  # of damaged files: OSError, SyntaxError, struct.error, MemoryError
        raise ImageError(f"damaged {kind} data: {error or type(error).__name__}") from None
    if kind == "GIF" and np.asarray(image).max() >= _gif_colors(content):
        raise ImageError("damaged GIF data: a color that its table lacks")
    return image


def _draft(image: Image.Image, mode: str | None, short_side: int | None) -> None:
    """Sets what libjpeg does on decoding: the luma alone, or smaller sides."""
    width, height = image.size
    halved = width * height * len(image.getbands()) >= JPEG_SAMPLES
    divisor = max(min(width, height) // short_side if short_side else 1, 2 if halved else 1)
    if divisor > 1 or mode is not None:
        image.draft(mode, (width // divisor, height // divisor))


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuses a size that no image has, or more pixels than `max_pixels`."""
    if width < 1 or height < 1:
        raise ImageError(f"{width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{width:,} x {height:,} pixels, more than {max_pixels:,} (max_pixels)",
            "make it smaller, or allow more by `max_pixels`",
        )


def _check_length(count: int) -> None:
    if count > MAX_BYTES:
        raise ImageError(f"{count:,} bytes, more than {MAX_BYTES:,}")


def _jpeg(content: bytes, max_pixels: int) -> bytes:
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(content)) as image:
            width, height = image.size
    except Exception as error:  # Pillow's readers of markers raise anything
        raise ImageError(f"damaged JPEG data: {error or type(error).__name__}") from None
    check_size(width, height, max_pixels)
    _jpeg_end(content)
    return content


def _jpeg_end(content: bytes) -> None:
    """Checks that the markers lead to that of the end: libjpeg in TensorFlow needs it."""
    position, restarts = 2, False
    while match := _JPEG_MARKER.search(content, position):
        position = match.end()
        marker = content[position - 1]
        if marker == _JPEG_EOI:
            return
        if marker == _JPEG_DRI:
            restarts = content[position + 2 : position + 4] != b"\0\0"
        # After damage libjpeg looks for the next restart and passes markers that have no meaning.
        if marker >= _JPEG_FIRST or not (restarts or marker == _JPEG_TEM):
            position += int.from_bytes(content[position : position + 2], "big")
    raise ImageError("cut off JPEG data")


def _png(content: bytes, max_pixels: int) -> bytes:
    """Header, palette and pixels of a PNG, all verified; other chunks cannot change the pixels."""
    needed = list(_png_chunks(content))
    names = [name for name, _, _ in needed]
    if names[0] != b"IHDR" or names[-1] != b"IEND" or names.count(b"IHDR") > 1:
        raise ImageError("damaged PNG data: IHDR or IEND is not in its position")
    pixels = names.count(b"IDAT")
    if names.count(b"PLTE") > 1 or names[-1 - pixels : -1] != [b"IDAT"] * pixels or not pixels:
        raise ImageError("damaged PNG data: PLTE or IDAT is not in its position")
    width, height, depth, color, *methods = struct.unpack(">IIBBBBB", needed[0][1])
    if color not in _PNG_CHANNELS or methods[:2] != [0, 0] or methods[2] > 1:
        raise ImageError("damaged PNG data: IHDR has an unknown color type or method")
    if color == 3 and b"PLTE" not in names:
        raise ImageError("damaged PNG data: no palette")
    check_size(width, height, max_pixels)
    passes = _ADAM7 if methods[2] else ((0, 0, 1, 1),)
    bits = depth * _PNG_CHANNELS[color]
    _inflate(
        (payload for name, payload, _ in needed if name == b"IDAT"),
        sum(_png_bytes(width, height, bits, *steps) for steps in passes),
    )
    return _PNG + b"".join(raw for _, _, raw in needed)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, payload and whole of each critical chunk, up to the end marker."""
    position, name = len(_PNG), b""
    view = memoryview(content)
    while name != b"IEND":
        length, name = struct.unpack(">I4s", view[position : position + 8])
        raw = view[position : position + 12 + length]
        if len(raw) != 12 + length:
            raise ImageError("cut off PNG data")
        if not name.isalpha():
            raise ImageError("damaged PNG data: a chunk without a name")
        position += len(raw)
        if name[0] & 0x20:  # a small letter: not needed for the pixels
            continue
        if name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise ImageError("damaged PNG data: an unknown chunk")
        if zlib.crc32(raw[4:-4]) != int.from_bytes(raw[-4:], "big"):
            raise ImageError("damaged PNG data: a checksum is wrong")
        yield name, bytes(raw[8:-4]), bytes(raw)


def _png_bytes(
    width: int, height: int, bits: int, top: int, left: int, down: int, across: int
) -> int:
    """Bytes of a pass: a byte of filter and the packed pixels of each row."""
    rows, columns = -(-(height - top) // down), -(-(width - left) // across)
    return max(rows, 0) * (1 + (columns * bits + 7) // 8) if columns > 0 else 0


def _inflate(pieces: Iterator[bytes], size: int) -> None:
    """Checks that the pixels of a PNG are all there, a block at a time, so that memory is bounded.

    More than the header announces is no damage to either decoder.
    """
    stream = zlib.decompressobj()
    missing = size
    try:
        for piece in pieces:
            while piece and missing and not stream.eof:
                missing -= len(stream.decompress(piece, min(missing, _BLOCK)))
                piece = stream.unconsumed_tail
    except zlib.error:
        raise ImageError("damaged PNG data: its compression is broken") from None
    if missing:
        raise ImageError("damaged PNG data: fewer pixels than its header says")


def _bmp(content: bytes, max_pixels: int) -> bytes:
    """A BMP without compression: 24 bits, 32 with the usual masks, or 8 of grey."""
    start, header, width, height = struct.unpack_from("<IIii", content, 10)
    bits, compression = struct.unpack_from("<HI", content, 28)
    check_size(width, abs(height), max_pixels)
    usual = compression == 0 or (compression == 3 and bits == 32 and content[54:66] == BMP_MASKS)
    if header not in BMP_HEADERS or bits not in (8, 24, 32) or not usual:
        reason = f"a BMP of {bits} bits or with compression; 24 or 32 bits are read"
        raise ImageError(reason, _CONVERT)
    if bits == 8 and not _bmp_gray(content, header, start):
        raise ImageError("a BMP of 8 bits with colors; 24 or 32 bits are read", _CONVERT)
    row = (bits // 8 * width + 3) // 4 * 4
    if start < 14 + header or len(content) != start + row * abs(height):
        raise ImageError("damaged BMP data: more or fewer bytes than its header says")
    return content


def _bmp_gray(content: bytes, header: int, start: int) -> bool:
    """Whether the table of 256 colors before the pixels is that of the grays."""
    table = np.frombuffer(content[14 + header : start], np.uint8)
    (count,) = struct.unpack_from("<I", content, 46)
    if count not in (0, 256) or table.size != 1024:
        return False
    return bool((table.reshape(256, 4)[:, :3] == np.arange(256)[:, None]).all())


def _gif(content: bytes, max_pixels: int) -> bytes:
    """The screen and the first frame of a GIF, without the extensions between them."""
    width, height = struct.unpack_from("<HH", content, 6)
    check_size(width, height, max_pixels)
    frame = start = 13 + 3 * _gif_table(content[10])
    while content[frame] == GIF_EXTENSION:
        frame = _gif_end(content, frame + 2)
    if content[frame] != GIF_IMAGE:
        raise ImageError("damaged GIF data: no image")
    if content[frame + 1 : frame + 9] != bytes(4) + content[6:10]:
        raise ImageError("a GIF whose first image does not cover its screen", _CONVERT)
    table = _gif_table(content[frame + 9])
    if not table and start == 13:
        raise ImageError("damaged GIF data: no color table")
    end = _gif_end(content, frame + 11 + 3 * table)
    return content[:start] + content[frame:end] + bytes([GIF_TRAILER])


def _gif_table(flags: int) -> int:
    """Colors of the table that flags announce."""
    return 2 << (flags & 7) if flags & 0x80 else 0


def _gif_end(content: bytes, position: int) -> int:
    """Where the blocks that start at a position end."""
    while content[position]:
        position += 1 + content[position]
    return position + 1


def _gif_colors(content: bytes) -> int:
    """Colors of the table that the frame of a checked GIF uses."""
    common = _gif_table(content[10])
    return _gif_table(content[13 + 3 * common + 9]) or common


def _webp(content: bytes, max_pixels: int) -> bytes:
    """A WebP of one image, up to the end that its header states."""
    (size,) = struct.unpack_from("<I", content, 4)
    if size + 8 > len(content):
        raise ImageError("cut off WebP data")
    kind, count = struct.unpack_from("<4sI", content, 12)
    if kind != b"VP8X" and not 0 <= size - 12 - count <= 1:  # an odd count is followed by a zero
        raise ImageError("damaged WebP data: it is longer or shorter than its header says")
    if kind == b"VP8X":
        flags, sides = content[20], content[24:30]
        width, height = (1 + int.from_bytes(sides[n : n + 3], "little") for n in (0, 3))
        if flags & 2:
            raise ImageError("an animated WebP", _CONVERT)
    elif kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", content, 21)
        width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
    check_size(width, height, max_pixels)
    return content[: size + 8]


_CHECKS: dict[str, Callable[[bytes, int], bytes]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "BMP": _bmp,
    "GIF": _gif,
    "WebP": _webp,
}
_OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}
