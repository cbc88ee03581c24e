"""Images in memory whose range cannot be, or hardly is, that of a model's inputs."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from mobilenet.configs.dataset import PREPROCESSING
from mobilenet.data.in_memory import check_range
from mobilenet.errors import UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3)).astype(np.float32)
PIXELS[0, 0, 0], PIXELS[1, 0, 0] = 0, 255
AS = {"raw": PIXELS, "unit": PIXELS / 255, "inception": PIXELS / 127.5 - 1}
IMAGENET = PREPROCESSING["imagenet"]
AS["imagenet"] = (PIXELS - np.float32(IMAGENET.mean)) / np.float32(IMAGENET.std)
REFUSED = {
    *(("raw", name) for name in ("unit", "inception", "imagenet")),
    *(("unit", name) for name in ("raw", "inception", "imagenet")),
    *(("inception", name) for name in ("raw", "imagenet")),
    ("imagenet", "raw"),
}


@pytest.mark.parametrize("images", AS)
@pytest.mark.parametrize("model", AS)
def test_images_of_another_preprocessing_are_refused_or_warned_of(
    model: str, images: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mobilenet")
    if (model, images) in REFUSED:
        with pytest.raises(UsageError, match=r"^images: got 'values from .*, expected values"):
            check_range(AS[images], PREPROCESSING[model])
        return
    check_range(AS[images], PREPROCESSING[model])
    lines = [line for line in caplog.messages if "scaled to another range?" in line]
    assert len(lines) == (model != images)


@pytest.mark.parametrize(
    ("images", "model"),
    [
        (np.zeros((1, 6, 6, 3)), "raw"),
        (np.ones((1, 6, 6, 3)), "raw"),  # a photo that is nearly black
        (np.full((1, 6, 6, 3), 255.0), "raw"),
        (np.ones((1, 6, 6, 3)), "inception"),
        (np.stack([np.zeros((6, 6, 3)), np.ones((6, 6, 3))]), "inception"),  # two gray values
    ],
)
def test_a_few_extreme_images_are_taken(
    images: np.ndarray, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_range(images.astype(np.float32), PREPROCESSING[model])
    assert caplog.messages == []
