"""Names of classes for a model that has none: from a text file, class folders or a list of images.

Only names are read here, no image is opened; TensorFlow is not needed.
"""

from __future__ import annotations

import os
from pathlib import Path

from mobilenet.configs.base import MAX_CLASSES
from mobilenet.data.sources import image_csv, image_folder
from mobilenet.errors import UsageError

_MAX_BYTES = 1 << 24  # a million names


def read_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads a text file with a name a line, in the order of the model's outputs.

    Raises:
        UsageError: names `labels`: there is no such file, or it has no names or is not text.
    """
    expected = "a text file with the name of a class in each line"
    file = Path(path)
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise UsageError("labels", str(path), f"{expected}, of at most {MAX_CLASSES:,} lines")
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError("labels", str(path), f"{expected} ({reason})") from None
    names = [" ".join(line.split()) for line in lines]
    while names and not names[-1]:
        names.pop()
    if not all(names) or not names:
        problem = "one is empty" if names else "it is empty"
        raise UsageError("labels", str(path), f"{expected}; {problem}")
    return tuple(names)


def find_names(data_dir: str | os.PathLike[str]) -> tuple[str, ...]:
    """The classes of a folder of class folders or of a list of images.

    Raises:
        UsageError: names `data_dir`: it is neither.
    """
    if Path(data_dir).is_dir():
        return image_folder.list_images(data_dir).labels
    return image_csv.read_list(data_dir).labels
