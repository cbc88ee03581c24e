"""Finds images that cannot be decoded, and names them."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

from mobilenet import image_files
from mobilenet.data.decoding import decode
from mobilenet.errors import UsageError, shorten
from mobilenet.image_files import ImageError

# What TensorFlow raises on bad data; the second where its message repeats bytes that are no UTF-8.
ERRORS = (tf.errors.OpError, UnicodeDecodeError)
_LOG = logging.getLogger(__name__)


def find_fault(encoded: bytes, max_pixels: int) -> ImageError | None:
    """Why an image cannot be decoded; `None` where it can.

    Both decoders are asked, so that what is read in training is read in prediction: TensorFlow,
    and for GIF, whose damage TensorFlow overlooks, Pillow.
    """
    try:
        kind, _ = image_files.check_content(encoded, max_pixels)
        if kind == "GIF":
            image_files.decode(encoded, max_pixels)
        _decoder(max_pixels)(encoded)
    except ImageError as error:
        return error
    except ERRORS:
        return ImageError(f"damaged {kind} data")
    return None


@functools.cache
def _decoder(max_pixels: int) -> Callable[[bytes], tf.Tensor]:
    """`decode` as a graph: operator by operator it takes several times as long."""
    traced: Callable[[bytes], tf.Tensor] = tf.function(
        lambda encoded: decode(encoded, max_pixels=max_pixels, exif=False),
        input_signature=[tf.TensorSpec([], tf.string)],
    )
    return traced


def _file_fault(path: str, max_pixels: int) -> ImageError | None:
    try:
        return find_fault(image_files.read(path), max_pixels)
    except ImageError as error:
        return error


def corrupt_files(paths: Sequence[str], max_pixels: int) -> dict[str, ImageError]:
    """Those of `paths` that cannot be read or decoded, in their order, and why; uses all cores."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        faults = list(pool.map(lambda path: _file_fault(path, max_pixels), paths))
    return {path: fault for path, fault in zip(paths, faults, strict=True) if fault is not None}


def corrupt_error(names: Sequence[str], fault: ImageError | None = None) -> UsageError:
    """The error that names corrupt images; `fault` is that of the first."""
    return image_files.refused(names, fault, "leave such images out with `skip_corrupt`")


def log_skipped(names: Iterable[str]) -> None:
    """Says once which images are left out."""
    names = list(names)
    _LOG.warning("left out %d corrupt images: %s", len(names), shorten(names))
