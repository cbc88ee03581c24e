"""One held-out image as a file, for a person who wants to see a model answer."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mobilenet import files
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data.sources import digits, image_folder

NAME = "example.png"


def example(config: DatasetConfig, size: int, folder: Path) -> Path | None:
    """The path of an image of the test split.

    A digit is written to `folder`; class folders have files of their own; other sets give `None`.

    Args:
        config: the data set.
        size: side of the digit, in pixels.
        folder: where a digit is written.
    """
    if config.name == "digits":
        held_out = digits.load()
        path = folder / NAME
        picture = Image.fromarray(held_out.image(int(held_out.indices("test")[0]), size))
        with files.replacing(path) as temporary:
            picture.save(temporary)
        return path
    if config.name == "image_folder" and config.data_dir is not None:
        return image_folder.find(config.data_dir).splits["test"][0][0]
    return None
