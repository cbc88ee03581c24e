"""Presets of augmentation: what they set, what stays, and how `auto` chooses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from mobilenet.configs import augmentation, recipes
from mobilenet.configs.run import RunConfig
from mobilenet.errors import UsageError
from mobilenet.training import resolve_config, run_parameters

pytest.importorskip("PIL")
from data_sets import write_class_folders  # noqa: E402


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_class_folders(folder, train=16, val=4)
    return folder


def resolved(photos: Path, **values: Any) -> RunConfig:
    values = {"batch_size": 8, **values}
    config = run_parameters.request(photos, "mobilenet_v1", None, ("train",), values).config
    return resolve_config.resolve(config)[0]


def test_a_preset_sets_the_images_and_the_batches_of_training(photos: Path) -> None:
    config = resolved(photos, augmentation="strong")
    images, train = config.dataset, config.train
    assert (images.area_min, images.rand_augment, images.rand_augment_magnitude) == (0.08, 2, 8)
    assert (images.color, images.flip) == (0, True)
    assert (train.mixup, train.cutmix, train.random_erasing) == (0.1, 1.0, 0.25)
    assert config.prune.mixup == config.quantize.cutmix == 0
    config = resolved(photos, augmentation="none")
    assert (config.dataset.area_min, config.dataset.flip, config.dataset.color) == (1, False, 0)
    plain = resolved(photos)
    light = resolved(photos, augmentation="light")
    assert light.replace(augmentation=None) == plain  # the default of photos


def test_what_is_set_stays(photos: Path) -> None:
    config = resolved(photos, augmentation="strong", cutmix=0.5, rand_augment=1, lr=0.5)
    assert (config.train.cutmix, config.train.mixup, config.train.lr) == (0.5, 0.1, 0.5)
    assert (config.dataset.rand_augment, config.dataset.area_min) == (1, 0.08)
    modern = resolved(photos, augmentation="light", recipe="modern")
    assert (modern.dataset.rand_augment, modern.dataset.area_min) == (0, 0.25)


@pytest.mark.parametrize(
    ("images", "expected"),
    [(1, "light"), (4_999, "light"), (5_000, "medium"), (99_999, "medium"), (1_281_167, "strong")],
)
def test_auto_chooses_by_the_number_of_images(images: int, expected: str) -> None:
    assert augmentation.by_size(images) == expected


def test_auto_is_a_line_of_the_log(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mobilenet")
    config = resolved(photos, augmentation="auto")
    assert config.augmentation == "auto" and config.dataset.area_min == 0.25
    assert any(m.startswith("augmentation: light, for ") for m in caplog.messages)


def test_a_run_goes_on_with_the_values_that_it_has(photos: Path) -> None:
    values = {"augmentation": "auto", "batch_size": 8, "flip": False}
    request = run_parameters.request(photos, "mobilenet_v1", None, ("train",), values)
    stored = resolve_config.resolve(request.config)[0]
    again = resolve_config.resolve_as(request.config, stored, request.explicit)
    assert again == stored
    other = request.config.replace(augmentation="strong")
    assert resolve_config.resolve_as(other, stored, request.explicit) != stored


def test_contradictions_are_one_line(photos: Path) -> None:
    with pytest.raises(
        UsageError, match="augmentation: got 'light', expected no preset for digits"
    ):
        resolve_config.resolve(recipes.get("mobilenet_v1", "digits").replace(augmentation="light"))
    with pytest.raises(UsageError, match="class_weights"):
        resolved(photos, augmentation="strong", class_weights="balanced")
    with pytest.raises(UsageError, match="augmentation: got 'much', expected one of none, light"):
        resolved(photos, augmentation="much")
