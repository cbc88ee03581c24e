"""A teacher's outputs that are computed once are those of each step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import mobilenet  # noqa: E402
from mobilenet.configs import recipes  # noqa: E402
from mobilenet.configs.dataset import DatasetConfig  # noqa: E402
from mobilenet.training.distillation import cached_outputs  # noqa: E402
from mobilenet.training.run_data import RunData  # noqa: E402

STILL = DatasetConfig("digits", flip=False, color=0.0, area_min=1.0)


def run_data(dataset: DatasetConfig) -> RunData:
    config = recipes.get("mobilenet_v1", "digits").replace(dataset=dataset, image_size=8)
    return RunData(config, config.preprocessing)


def means(images: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(images, axis=[1, 2])


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_batches_have_the_outputs_of_their_images(sampling: str) -> None:
    data = run_data(STILL.replace(sampling=sampling))
    table = cached_outputs.compute(means, data, 1257, 3)
    assert table is not None and table.any(axis=1).all()
    plain = data.dataset("train", 32, 50)  # in the second epoch
    cached = data.dataset("train", 32, 50, columns=table)
    for (images, labels), (same, targets) in zip(plain.take(3), cached.take(3), strict=True):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(targets[:, 0], labels)
        np.testing.assert_allclose(targets[:, 1:], means(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", [{"rotation": 10.0}, {"color": 0.5}, {"flip": True}])
def test_outputs_of_varied_images_are_not_cached(change: dict[str, float | bool]) -> None:
    assert cached_outputs.compute(means, run_data(STILL.replace(**change)), 1257, 3) is None


@pytest.mark.slow
def test_a_run_with_cached_outputs_is_that_without(tmp_path: Path) -> None:
    common = {"stages": ("train",), "width_multiplier": 0.25, "image_size": 32, "epochs": 1}
    still = {"rotation": 0.0, "shift": 0.0, "zoom": 0.0, "shear": 0.0}
    teacher = mobilenet.train("digits", model_dir=tmp_path / "teacher", **common)
    path = str(teacher.folder / "train")
    losses = []
    for cache in (True, False):
        run = mobilenet.train(
            STILL.replace(**still),
            model_dir=tmp_path / str(cache),
            distill=path,
            distill_cache=cache,
            **common,
        )
        losses.append(run.report["train"].history[0]["loss"])
        cached = "outputs of 1,257 images are computed once" in (run.folder / "log.txt").read_text()
        assert cached == cache
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
