"""The example image of a finished run is a held-out image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mobilenet.configs import dataset as datasets
from mobilenet.data.sources.example import example_image


def test_a_digit_of_the_test_split(tmp_path: Path) -> None:
    from mobilenet.data.sources import digits

    path = example_image(datasets.get("digits"), 8, tmp_path)
    assert path is not None
    cells = np.asarray(Image.open(path))[..., 0].astype(int)
    expected = load_digits().images[int(np.flatnonzero(digits.load().split == 2)[0])]
    assert np.abs(cells - expected * 255 / 16).max() <= 0.5


def test_a_file_of_the_held_out_folder(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / split / "cat" / f"{split}.png")
    config = datasets.get("image_folder").replace(data_dir=str(tmp_path))
    path = example_image(config, 32, tmp_path)
    assert path is not None
    assert path.name == "val.png"


@pytest.mark.parametrize("name", ["cifar10", "tfrecord"])
def test_other_sets_have_none(name: str, tmp_path: Path) -> None:
    assert example_image(datasets.get(name), 32, tmp_path) is None
    assert not list(tmp_path.iterdir())
