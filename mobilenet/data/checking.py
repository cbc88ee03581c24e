"""Finds images that cannot be decoded, and names them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

from mobilenet.data.preprocessing import decode
from mobilenet.errors import UsageError, shorten

_LOG = logging.getLogger(__name__)


def decodes(encoded: tf.Tensor) -> bool:
    """Whether the bytes are a whole image."""
    try:
        decode(encoded)
    except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError):
        return False
    return True


def _file_decodes(path: str) -> bool:
    try:
        return decodes(tf.io.read_file(path))
    except tf.errors.OpError:
        return False


def corrupt_files(paths: Sequence[str]) -> list[str]:
    """Those of `paths` that cannot be read or decoded, in their order; uses all cores."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        whole = list(pool.map(_file_decodes, paths))
    return [path for path, ok in zip(paths, whole, strict=True) if not ok]


def corrupt_error(names: Sequence[str]) -> UsageError:
    """The error that names corrupt images."""
    return UsageError(
        shorten(names),
        None,
        "images that can be decoded" if len(names) > 1 else "an image that can be decoded",
        "repair or remove, or leave such images out with --skip_corrupt",
    )


def log_skipped(names: Iterable[str]) -> None:
    """Says once which images are left out."""
    names = list(names)
    _LOG.warning("left out %d corrupt images: %s", len(names), shorten(names))
