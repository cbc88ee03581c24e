"""What a run's config takes from its data and initial weights."""

from __future__ import annotations

from typing import Any

import pytest

from mobilenet import data
from mobilenet.configs import recipes
from mobilenet.training import resolve_config
from mobilenet.training.resolve_config import Explicit


@pytest.mark.parametrize(
    ("dataset", "images", "start", "momentum"),
    [
        ("digits", 1437, None, 0.981061),  # 24 epochs of 44 batches: 1 - 20 / 1056
        ("digits", 1437, "start.keras", 0.9),
        ("image_folder", 320, None, 0.966667),  # 60 epochs of 10 batches
        ("image_folder", 32_000, None, 0.99),
        ("image_folder", 32_000, "start.keras", 0.9),
        ("imagenet2012", 1_281_167, None, 0.9997),
        ("imagenet2012", 1_281_167, "start.keras", 0.9997),
    ],
)
def test_the_momentum_fits_initial_weights_and_steps_unless_it_is_set(
    dataset: str, images: int, start: Any, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = data.DatasetInfo(10, (), {"train": images}, ("train",))
    monkeypatch.setattr(data, "describe", lambda dataset: info)
    config = recipes.get("mobilenet_v1", dataset).replace(init_checkpoint=start)
    resolved = resolve_config.resolve(config)[0]
    assert resolved.model.batch_norm_decay == momentum
    assert resolve_config.resolve_as(config, resolved, Explicit()) == resolved
    own = config.replace(model=config.model.replace(batch_norm_decay=0.97))
    kept = resolve_config.resolve(own, Explicit(batch_norm_decay=True))[0]
    assert kept.model.batch_norm_decay == 0.97
