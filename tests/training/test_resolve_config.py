"""What a run's config takes from its data and initial weights."""

from __future__ import annotations

from typing import Any

import pytest

from mobilenet import data
from mobilenet.configs import recipes
from mobilenet.errors import UsageError
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


@pytest.mark.parametrize(
    ("classes", "empty", "message"),
    [
        (1, (), r"^data_dir: got 'one class \(0\)', expected at least 2 classes"),
        (4, ("0",), r"no training image of 1 classes \(0\)'.*start at 1, `label_offset=1` makes"),
        (4, ("2", "3"), r"no training image of 2 classes \(2, 3\)', expected images of every"),
    ],
)
def test_classes_without_images_and_one_class_are_refused(
    classes: int, empty: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tuple(map(str, range(classes)))
    info = data.DatasetInfo(classes, labels, {"train": 320}, ("train",), empty=empty)
    monkeypatch.setattr(data, "describe", lambda dataset: info)
    with pytest.raises(UsageError, match=message):
        resolve_config.resolve(recipes.get("mobilenet_v1", "image_list"))


def test_the_config_of_a_run_with_one_output_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    info = data.DatasetInfo(2, ("a", "b"), {"train": 320}, ("train",))
    monkeypatch.setattr(data, "describe", lambda dataset: info)
    config = recipes.get("mobilenet_v1", "image_folder").replace(activation="sigmoid")
    done = resolve_config.resolve(config)[0]
    assert done.model.num_classes == 1
    again = resolve_config.resolve(done, Explicit(num_classes=True, batch_norm_decay=True))[0]
    assert again.model == done.model
    softmax = done.replace(activation=None)
    with pytest.raises(UsageError, match="^num_classes: got 1, expected 2, the classes of"):
        resolve_config.resolve(softmax, Explicit(num_classes=True))


def test_what_is_left_out_and_assumed_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared = {"validation": "no own images", "test": "no own images"}
    info = data.DatasetInfo(
        2, ("a", "b"), {"train": 320}, ("train",), notes=("3 files are left out",), assumed=shared
    )
    monkeypatch.setattr(data, "describe", lambda dataset: info)
    with caplog.at_level("INFO", "mobilenet"):
        resolve_config.resolve(recipes.get("mobilenet_v1", "image_folder"))
    assert caplog.messages == ["3 files are left out", "no own images"]
