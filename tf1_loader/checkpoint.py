"""A TF1 checkpoint, read with suspicion: names and shapes first, an array when it is asked for."""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.errors import UsageError
from mobilenet.tf1_loader import places

Array = npt.NDArray[Any]
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_COPY = "copy or download it again"


class Checkpoint:
    """Names, shapes and arrays.

    Attributes:
        prefix: what is read: a checkpoint's prefix or an `.npz` file.
        shapes: of every variable, by name.
    """

    def __init__(
        self, prefix: str, shapes: Mapping[str, tuple[int, ...]], get: Callable[[str], Array]
    ) -> None:
        self.prefix, self.shapes, self._get = prefix, shapes, get
        self._kept: dict[str, Array] = {}

    def read(self, name: str) -> Array:
        """One variable as float32; kept, so that damage can be looked for before a net is built.

        Raises:
            UsageError: its bytes are cut short or changed, or are no finite numbers.
        """
        if name in self._kept:
            return self._kept[name]
        try:
            value = np.asarray(self._get(name))
        except Exception as error:  # whatever TensorFlow, numpy or zipfile makes of damage
            raise self._damaged(name, _reason(error)) from None
        if value.dtype.kind not in "fV":  # V: bfloat16 to numpy
            raise self._damaged(name, f"{value.dtype} in place of floats")
        floats = value.astype(np.float32)
        if not np.isfinite(floats).all():
            raise UsageError(f"{self.prefix}: {name}", "NaN or infinity", "finite weights")
        self._kept[name] = floats
        return floats

    def _damaged(self, name: str, reason: str) -> UsageError:
        return UsageError(f"{self.prefix}: {name}", None, f"undamaged data ({reason})", _COPY)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], use_average: bool = True) -> Iterator[Checkpoint]:
    """Opens the one checkpoint at `path` (see `places.found`).

    Raises:
        UsageError: there is none, it is damaged, or it is not of TF1.
    """
    with places.found(path, use_average) as prefix:
        source = _npz(prefix) if prefix.endswith(".npz") else bundle(prefix)
        if OBJECT_GRAPH in source.shapes:
            raise UsageError(
                str(path),
                "an object checkpoint of TF2",
                "a TF1 checkpoint",
                "the trainer's --init_checkpoint reads it",
            )
        yield source


def bundle(prefix: str) -> Checkpoint:
    """Opens a checkpoint of TF1 or TF2 by its prefix."""
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {name: tuple(s) for name, s in reader.get_variable_to_shape_map().items()}
    except (tf.errors.OpError, ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise UsageError(prefix, None, f"a whole checkpoint ({_reason(error)})", _COPY) from None
    return Checkpoint(prefix, shapes, reader.get_tensor)


def _npz(path: str) -> Checkpoint:
    try:
        archive = np.load(path, allow_pickle=False)
        shapes = {name: _npy_shape(archive.zip, name) for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(path, None, f"a whole .npz file ({_reason(error)})", _COPY) from None
    return Checkpoint(path, shapes, archive.__getitem__)


def _npy_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape in the header of one array of an `.npz`; its data stay unread."""
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)[0]
        return np.lib.format.read_array_header_2_0(file)[0]


def _reason(error: Exception) -> str:
    text = " ".join((getattr(error, "message", None) or str(error)).split())
    return text[:120] if text else type(error).__name__
