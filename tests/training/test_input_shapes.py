"""Runs of gray models and of inputs that are not square, from initial weights to the file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slim_checkpoints as slim
from PIL import Image

tf_keras = pytest.importorskip("tf_keras")
from mobilenet import api  # noqa: E402
from mobilenet.configs import archs  # noqa: E402
from mobilenet.data.sources import digits  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.loading import load_model  # noqa: E402
from mobilenet.models import builder  # noqa: E402
from mobilenet.predict import open_classifier  # noqa: E402
from mobilenet.runtime import classifier  # noqa: E402
from mobilenet.training import initial_weights  # noqa: E402
from mobilenet.training.training_run import TrainingRun  # noqa: E402

SETTINGS: dict[str, Any] = {
    "model": "mobilenet_v1",
    "width_multiplier": 0.1,
    "image_size": (32, 48),
    "channels": 1,
    "epochs": 1,
    "batch_size": 128,
}
CONFIG = archs.get("mobilenet_v1", width_multiplier=0.125, num_classes=5)


@pytest.fixture(scope="module")
def gray_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TF1 checkpoint of slim, of one channel."""
    prefix = tmp_path_factory.mktemp("gray") / "model.ckpt"
    return slim.write_checkpoint(prefix, slim.values(slim.Slim("mobilenet_v1", channels=1)))


@pytest.fixture(scope="module")
def run(gray_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    folder = tmp_path_factory.mktemp("shapes") / "run"
    stages = ("train", "convert")
    return api.train("digits", weights=gray_checkpoint, stages=stages, model_dir=folder, **SETTINGS)


def test_model_card_and_file_have_the_shape(run: TrainingRun) -> None:
    assert run.config.input_shape == (32, 48, 1)
    loaded = load_model(run.folder / "train")
    assert loaded.model.input_shape == (None, 32, 48, 1)
    assert loaded.card.input_shape == (32, 48, 1)
    assert classifier.Classifier(run.folder / "export").input_shape == (32, 48, 1)


def test_the_same_call_continues_the_run(run: TrainingRun, gray_checkpoint: Path) -> None:
    stages = ("train", "convert")
    folder = run.folder
    again = api.train(
        "digits", weights=gray_checkpoint, stages=stages, model_dir=folder, **SETTINGS
    )
    assert again.is_unchanged
    with pytest.raises(UsageError, match="there image_size is"):
        api.train("digits", stages=stages, model_dir=folder, **{**SETTINGS, "image_size": (48, 32)})


def test_model_and_file_evaluate_the_same_images(run: TrainingRun) -> None:
    """The top-1 of the report again, in numpy, on digits that are enlarged here."""
    data = digits.load()
    indices = data.indices("test")
    images = digits.enlarge(data.images[indices], (32, 48), channels=1)
    inputs = (images.astype(np.float32) - 127.5) / 127.5
    outputs = run.model().predict(inputs, verbose=0)
    top1 = 100 * np.mean(outputs.argmax(1) == data.labels[indices])
    assert run.report["train"].top1 == pytest.approx(top1, abs=0.3)
    assert api.evaluate(run.folder / "export", "digits").top1 == pytest.approx(top1, abs=0.6)
    assert api.evaluate(run.folder / "train", "digits").top1 == pytest.approx(top1, abs=0.3)


@pytest.mark.parametrize("stage", ["train", "export"])
def test_a_color_photo_is_read_as_luma(run: TrainingRun, stage: str, tmp_path: Path) -> None:
    """ITU-R 601 by Pillow's own conversion, then the whole image at 32 x 48."""
    draw = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    photo = Image.fromarray(draw)
    photo.save(tmp_path / "photo.png")
    gray = np.asarray(photo.convert("L"), np.float32)[None, :, :, None]
    outputs = np.asarray(run.model()((gray - 127.5) / 127.5))[0]
    expected = np.exp(outputs - outputs.max()) / np.exp(outputs - outputs.max()).sum()
    opened = open_classifier(str(run.folder / stage))
    found = dict(opened.top_k(tmp_path / "photo.png", 10))
    np.testing.assert_allclose([found[str(n)] for n in range(10)], expected, atol=0.03)


@pytest.mark.slow
def test_all_stages_take_the_shape(run: TrainingRun, gray_checkpoint: Path) -> None:
    stages = ("train", "prune", "quantize", "convert")
    done = api.train(
        "digits",
        weights=gray_checkpoint,
        stages=stages,
        model_dir=run.folder.parent / "all",
        prune_epochs=1,
        quantize_epochs=1,
        **SETTINGS,
    )
    assert [str(report.part) for report in done.report] == list(stages)
    assert done.file is not None
    assert done.report["convert"].top1 == pytest.approx(done.report["quantize"].top1, abs=2)


def test_another_size_than_the_weights_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    builder.build(CONFIG, (32, 32, 3)).save(tmp_path / "model.keras")
    with caplog.at_level(logging.INFO, "mobilenet"):
        for shape in ((32, 48, 3), (32, 32, 3)):
            initial_weights.build(CONFIG, shape, tmp_path / "model.keras")
    lines = [line for line in caplog.messages if "trained at" in line]
    assert [line.rpartition(": ")[2] for line in lines] == [
        "trained at 32 x 32 pixels, here 32 x 48"
    ]


def test_weights_of_other_channels_name_the_parameter(
    gray_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="^channels: got 3, expected 1, as the weights of .*ckpt"):
        color = {**SETTINGS, "channels": 3}
        api.train("digits", weights=gray_checkpoint, model_dir=tmp_path / "run", **color)
    assert not (tmp_path / "run").exists()
    builder.build(CONFIG, (32, 32, 1)).save(tmp_path / "model.keras")
    with pytest.raises(UsageError, match="^input_shape: got 3, expected 1, as the weights of"):
        initial_weights.build(CONFIG, (32, 32, 3), tmp_path / "model.keras")
