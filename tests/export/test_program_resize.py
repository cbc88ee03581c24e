"""The Python program of an export folder crops and resizes as the runtime does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilenet.configs.card import Card, TensorType
from mobilenet.configs.dataset import CROPS, INTERPOLATIONS, Preprocessing
from mobilenet.export import programs
from mobilenet.runtime import images


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop", CROPS)
def test_bands_of_a_photo(
    crop: str, interpolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = np.mgrid[0:61, 0:83]
    waves = [128 + 120 * np.sin(rows / a + columns / b) for a, b in ((7, 11), (13, 5), (9, 17))]
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(tmp_path / "photo.jpg")
    how = Preprocessing("timm", crop=crop, crop_fraction=0.9, interpolation=interpolation)
    kind = TensorType()
    card = Card(input_shape=(32, 32, 3), preprocessing=how, input=kind, output=kind)
    lines = programs.python(card).splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith("bands = "))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(line for line in lines[: end + 1] if "ai_edge_litert" not in line), names)
    bands = np.stack([np.asarray(band) for band in names["bands"]], axis=-1)
    expected = images.preprocess(images.decode(tmp_path / "photo.jpg"), how, 32)
    assert bands.shape == expected.shape
    assert np.abs(bands - expected).max() <= (1 if interpolation != "bilinear" else 0.01)
