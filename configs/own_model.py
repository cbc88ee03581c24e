"""A model of the user's own in the config of a run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mobilenet import files
from mobilenet.errors import UsageError

from .base import MAX_CLASSES, Config, checked
from .dataset import Preprocessing


@dataclasses.dataclass(frozen=True)
class OwnModel(Config):
    """A trained model that a run fine-tunes, prunes, quantizes and converts as it is.

    The fields from `sha256` on are filled in by the run.

    Attributes:
        name: that of its file without the suffix, or of the model in memory.
        path: of the file or folder; `None` for a model in memory.
        sha256: of the contents of the file, or of the layers and weights of a model in memory:
            what tells a run of this model from one of another.
        num_classes: its outputs.
        preprocessing: how pixels become its inputs.
    """

    name: str = "model"
    path: str | None = None
    sha256: str = ""
    num_classes: int | None = checked(None, least=1, most=MAX_CLASSES, integer=True)
    preprocessing: Preprocessing | None = None

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> OwnModel:
        """The model at a path.

        Raises:
            UsageError: it lies on object storage.
        """
        files.check_local(path, "model")
        text = os.path.expanduser(os.fspath(path))
        return cls(Path(text).stem or "model", text)


def check_settings(settings: Mapping[str, Any], name_of: Callable[[str], str]) -> None:
    """Refuses fields of an architecture, and initial weights, for a model that has its own.

    Args:
        settings: of a run, value by dotted path.
        name_of: the name of the parameter or flag for a path.

    Raises:
        UsageError: there is such a setting.
    """
    for path, value in settings.items():
        if path.startswith("model.") or path == "init_checkpoint":
            expected = "no such value with `model`, which has layers and weights of its own"
            raise UsageError(name_of(path), value, expected, "leave it out")
