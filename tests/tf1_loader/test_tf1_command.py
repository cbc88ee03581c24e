"""`python -m mobilenet.tf1_loader` writes a model in three forms and verifies them equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slim_checkpoints as slim
from command_runs import start_command
from slim_checkpoints import PIXELS, Slim

pytest.importorskip("tensorflow")

Converted = tuple[Path, str, slim.Values]


def done(folder: Path, *args: object) -> str:
    """What the command prints; it succeeds and reports nothing on stderr."""
    ended = start_command("tf1_loader", *args, cwd=folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_the_released_models_are_listed(tmp_path: Path) -> None:
    listed = done(tmp_path, "--list")
    for args in (
        "mobilenet_v1_0.25_128.tgz",
        "mobilenet_v2_1.4_224.tgz",
        "v3-large_224_1.0_float.tgz",
        "edgetpu",
    ):
        assert args in listed


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A quantized model of 1001 classes in an archive, converted into one of 1000, in a process."""
    folder = tmp_path_factory.mktemp("tf1_converted")
    model = Slim("mobilenet_v1", classes=1001)
    raw = slim.values(model)
    source = slim.write_checkpoint(
        folder / "in/model.ckpt", raw | slim.ranges(model)[0] | slim.STEP
    )
    slim.write_archive(folder / "model.tgz", slim.parts(source, "./"))
    args = ("-i", "model.tgz", "-o", "out", "--num_classes", 1000, "--image_size", 32)
    printed = done(folder, *args)
    expected = slim.by_weight_name(model, raw)
    for name in ("Logits/kernel", "Logits/bias"):
        expected[name] = expected[name][..., 1:]
    return folder / "out", printed, expected


def test_a_good_checkpoint_is_written_in_three_forms_and_verified(
    converted: Converted,
) -> None:
    import tensorflow as tf
    import tf_keras

    out, printed, expected = converted
    last = printed.rstrip().splitlines()[-1]
    assert last.startswith("verified")
    assert "equal" in last
    names = {path.name for path in out.iterdir()}
    assert names == {"model.keras", "card.json", "saved_model", "checkpoint", "ranges.json"}
    model = tf_keras.models.load_model(out / "model.keras", compile=False)
    slim.same(model, expected)
    assert model.input_shape == (None, *PIXELS)
    saved = tf_keras.models.load_model(out / "saved_model", compile=False)
    slim.same(saved, expected)
    fresh = tf_keras.models.clone_model(model)
    latest = tf.train.latest_checkpoint(str(out / "checkpoint"))
    assert Path(latest).name == "ckpt-1"
    tf.train.Checkpoint(model=fresh).restore(latest).assert_existing_objects_matched()
    slim.same(fresh, expected)


def test_the_report_is_printed_and_stored(converted: Converted) -> None:
    out, printed, _ = converted
    assert "mobilenet_v1 of width 0.1" in printed
    card = json.loads((out / "card.json").read_text())
    assert card["label_offset"] == 1  # the data's label 1 is class 0 now
    assert card["input_shape"] == [32, 32, 3]
    assert card["architecture"]["num_classes"] == 1000
    ranges: dict[str, Any] = json.loads((out / "ranges.json").read_text())
    expected = slim.ranges(Slim("mobilenet_v1", classes=1001))[1]
    assert set(ranges) == set(expected)
    assert list(ranges["Conv2d_0/kernel"]) == pytest.approx(expected["Conv2d_0/kernel"])


@pytest.mark.slow
def test_long_flags_raw_values_and_overwriting(tmp_path: Path) -> None:
    import tf_keras

    raw = slim.values(Slim("mobilenet_v3_small_minimalistic"))
    source = slim.write_npz(tmp_path / "model.npz", raw | slim.averages(raw))
    args = ("--checkpoint", source, "--output", "out", "--image_size=64")
    for more in ((), ("--nouse_ema", "--overwrite", "--hard_sigmoid_slope", "0.2")):
        done(tmp_path, *args, *more)
        model = tf_keras.models.load_model(tmp_path / "out/model.keras", compile=False)
        kernel = slim.weights(model)["Conv/kernel"]
        assert np.array_equal(kernel, raw["MobilenetV3/Conv/weights"]) == bool(more)
    ended = start_command("tf1_loader", *args, cwd=tmp_path)
    assert ended.returncode == 2
    assert "--overwrite" in ended.stderr
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["architecture"]["hard_sigmoid_slope"] == 0.2
