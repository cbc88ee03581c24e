"""The picture of training images: of what the model sees, and before it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import mobilenet  # noqa: E402
from mobilenet.configs.training import TrainConfig  # noqa: E402
from mobilenet.reporting import recorded_run, run_sections  # noqa: E402
from mobilenet.training import batch_augmentation, engine, stage_data  # noqa: E402

NAMES = ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (np.float32([0.3, 0.7, 0]), "dog 0.7, cat 0.3"),
        (np.float32([0, 1, 0]), "dog"),
        (np.float32([0.001, 0, 0.999]), "owl"),
        (np.float32([0, 0, 0]), "none"),
        (np.array(0.25, np.float32), "cat 0.75, dog 0.25"),
        (np.array(2), "owl"),
        (np.array([1, 0, 1]), "cat, owl"),
    ],
)
def test_mixed_images_have_the_shares_of_their_classes(label: np.ndarray, expected: str) -> None:
    assert run_sections._named(NAMES, label) == expected


def test_shares_are_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), np.uint8)
    images = stage_data.TrainingImages(pixels, np.float32([[0.25, 0.75], [1, 0]]))
    assert stage_data.save_training_images(tmp_path, images).suffix == ".png"
    again = stage_data.load_training_images(tmp_path)
    assert again is not None
    np.testing.assert_array_equal(again.pixels, pixels)
    np.testing.assert_array_equal(again.labels, images.labels)


def test_a_picture_of_the_mixed_images_is_there_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "fit", interrupted)
    still = {"rotation": 0.0, "shift": 0.0, "zoom": 0.0, "shear": 0.0}
    with pytest.raises(KeyboardInterrupt):
        mobilenet.train(
            "digits",
            model_dir=tmp_path / "run",
            stages=("train",),
            width_multiplier=0.25,
            image_size=32,
            mixup=0.4,
            **still,
        )
    log = (tmp_path / "run/log.txt").read_text()
    assert "training images as the model sees them: " in log
    assert (tmp_path / "run/report_data/augmented_images.png").is_file()
    run = recorded_run.read(tmp_path / "run")
    images = run.training_images
    assert images is not None and images.labels.shape == (len(images.pixels), 10)
    np.testing.assert_allclose(images.labels.sum(1), 1, atol=1e-3)
    shares = np.sort(images.labels, axis=1)[:, -2:]
    mixing = batch_augmentation.BatchAugmentation(TrainConfig(mixup=0.4), 0, 10)
    blank = tf.zeros([2, 4, 4, 1])
    _, labels = mixing.apply(blank, tf.constant([0, 1]), tf.constant(0, tf.int64))
    expected = np.sort(labels.numpy()[0])[-2:]
    different = shares[shares[:, 1] < 0.999]
    np.testing.assert_allclose(different, np.tile(expected, [len(different), 1]), atol=1e-3)
    assert run_sections.training_images(run) is not None
