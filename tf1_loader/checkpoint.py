"""A TF1 checkpoint, checked as it is read: names and shapes first, arrays on request."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet import archives
from mobilenet.errors import UsageError
from mobilenet.models import checkpoint_index
from mobilenet.tf1_loader import locate
from mobilenet.typing import Array

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_COPY = "copy or download it again"


class Checkpoint:
    """Names, shapes and arrays.

    Attributes:
        prefix: of the checkpoint, also in an archive, or the path of an `.npz` file.
        shapes: of every variable, by name.
    """

    def __init__(
        self, prefix: str, shapes: Mapping[str, tuple[int, ...]], get: Callable[[str], Array]
    ) -> None:
        self.prefix, self.shapes, self._get = prefix, shapes, get
        self._cache: dict[str, Array] = {}

    def read(self, name: str) -> Array:
        """One variable as float32; cached, so that damage is found before a model is built.

        Raises:
            UsageError: its bytes are cut short or changed, or are no finite numbers.
        """
        if name in self._cache:
            return self._cache[name]
        try:
            value = np.asarray(self._get(name))
            if value.dtype.kind not in "fV":  # V: bfloat16 to numpy
                raise ValueError(f"{value.dtype} instead of floats")
            floats = value.astype(np.float32)
        except Exception as error:  # whatever TensorFlow, numpy or zipfile makes of damage
            raise self._damaged(name, _reason(error)) from None
        if not np.isfinite(floats).all():
            raise UsageError(f"{self.prefix}: {name}", "NaN or infinity", "finite weights")
        self._cache[name] = floats
        return floats

    def _damaged(self, name: str, reason: str) -> UsageError:
        return UsageError(f"{self.prefix}: {name}", None, f"undamaged data ({reason})", _COPY)


@contextlib.contextmanager
def open_checkpoint(path: str | os.PathLike[str], use_average: bool = True) -> Iterator[Checkpoint]:
    """Opens the one checkpoint at `path` (see `locate.checkpoint_prefix`).

    Raises:
        UsageError: there is none, it is damaged, or it is not of TF1.
    """
    with locate.checkpoint_prefix(path, use_average) as prefix:
        shown = locate.display_name(path, prefix)
        source = _npz(prefix) if prefix.endswith(".npz") else open_bundle(prefix, shown)
        if OBJECT_GRAPH in source.shapes:
            raise UsageError(
                str(path),
                "an object checkpoint of TF2",
                "a TF1 checkpoint",
                "the trainer reads it as `init_checkpoint`",
            )
        yield source


def open_bundle(prefix: str, shown: str = "") -> Checkpoint:
    """Opens a checkpoint of TF1 or TF2 by its prefix.

    Args:
        prefix: of its files.
        shown: its name in messages, if its files are temporary.

    Raises:
        UsageError: it is damaged, or declares more than its files hold.
    """
    import tensorflow as tf

    shown = shown or prefix
    try:
        if Path(f"{prefix}.index").is_file():
            entries = checkpoint_index.read_index(prefix)
            reader = tf.train.load_checkpoint(prefix)
        else:
            reader = tf.train.load_checkpoint(prefix)
            entries = _old_entries(reader, prefix)
    except Exception as error:  # whatever protobuf and TensorFlow raise for a damaged index
        reason = _reason(error, prefix, shown)
        raise UsageError(shown, None, f"a whole checkpoint ({reason})", _COPY) from None

    def get(name: str) -> Array:
        dtype = entries[name].dtype
        if not dtype.is_floating:  # strings are not even read: their lengths are unchecked
            raise ValueError(f"{dtype.name} instead of floats")
        try:
            return np.asarray(reader.get_tensor(name))
        except Exception as error:  # whatever TensorFlow makes of damage
            raise ValueError(_reason(error, prefix, shown)) from None

    return Checkpoint(shown, {name: entry.shape for name, entry in entries.items()}, get)


def _old_entries(reader: Any, prefix: str) -> dict[str, checkpoint_index.Entry]:
    """The variables of a checkpoint in one file, as TensorFlow wrote it before 2016."""
    types = reader.get_variable_to_dtype_map()
    entries = {
        name: checkpoint_index.Entry(tuple(shape), types[name])
        for name, shape in reader.get_variable_to_shape_map().items()
    }
    total = sum(math.prod(entry.shape) * entry.dtype.size for entry in entries.values())
    if total > min(archives.MAX_RATIO * Path(prefix).stat().st_size, archives.MAX_TOTAL_BYTES):
        raise ValueError(f"variables of {total:,} bytes, more than the file holds")
    return entries


def _npz(path: str) -> Checkpoint:
    shapes = archives.npz_shapes(path, remedy=_COPY)
    return Checkpoint(path, shapes, np.load(path, allow_pickle=False).__getitem__)


def _reason(error: Exception, prefix: str = "", shown: str = "") -> str:
    """The text of an error, with `shown` for the path `prefix`."""
    text = " ".join((getattr(error, "message", None) or str(error)).split())
    text = text.replace(prefix, shown) if prefix else text
    return text[:120] if text else type(error).__name__
