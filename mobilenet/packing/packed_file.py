"""A packed model in memory, until it is written."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from mobilenet import files
from mobilenet.errors import UsageError
from mobilenet.packing import container


@dataclasses.dataclass(frozen=True)
class PackedFile:
    """A model as one small file; `mobilenet.unpack` gives it back bit by bit.

    Attributes:
        content: the bytes of the file.
        weights: the number of its weights.
        weight_bytes: of the weights as they are.
    """

    content: bytes = dataclasses.field(repr=False)
    weights: int
    weight_bytes: int

    @property
    def ratio(self) -> float:
        """Bytes of the weights for each byte of the file."""
        return self.weight_bytes / len(self.content)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Writes the file, whole or not at all.

        Args:
            path: the file, of any name; `load_model` recognizes it by its first bytes.
            overwrite: replace an earlier packed model; a file of another kind is never replaced.

        Returns:
            The path.

        Raises:
            UsageError: there is a file that may not be replaced, or it cannot be written.
        """
        check_target(path, "path", overwrite)
        files.write_bytes(path, self.content)
        return Path(path)


def check_target(
    path: str | os.PathLike[str], parameter: str = "path", overwrite: bool = False
) -> None:
    """Refuses, before any work is done, a path that a packed model cannot be written to.

    Args:
        path: of the file.
        parameter: its name in errors.
        overwrite: whether an earlier packed model may be replaced.

    Raises:
        UsageError: see `PackedFile.save`.
    """
    files.check_file_target(path, parameter, overwrite=overwrite)
    if Path(path).is_file() and not container.is_packed_file(path):
        expected = "a new file or an earlier packed model"
        raise UsageError(parameter, str(path), expected, "choose another name")
