"""An example image of a data set, as a file that `predict` takes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mobilenet import files
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data.sources import digits, image_folder


def example_image(config: DatasetConfig, size: int, folder: Path) -> Path | None:
    """The path of one image of the test split, as an example for `predict`.

    Args:
        config: the data set; of class folders it is one of their files.
        size: height and width of a digit, in pixels.
        folder: a digit is written to `example.png` in it.

    Returns:
        The path; `None` for data sets of other kinds.
    """
    if config.name == "digits":
        embedded = digits.load()
        path = folder / "example.png"
        image = Image.fromarray(embedded.image(int(embedded.indices("test")[0]), size))
        with files.replacing(path) as temporary:
            image.save(temporary)
        return path
    if config.name == "image_folder" and config.data_dir is not None:
        return image_folder.list_images(config.data_dir).splits["test"][0][0]
    return None
