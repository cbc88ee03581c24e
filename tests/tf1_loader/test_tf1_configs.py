"""Loading into a given config, other class counts, and the error when the two do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slim_checkpoints as slim
from slim_checkpoints import PIXELS, Slim

from mobilenet import tf1_loader
from mobilenet.configs import archs
from mobilenet.errors import UsageError

pytest.importorskip("tensorflow")

LOADERS = {
    "mobilenet_v1": tf1_loader.load_mobilenet_v1,
    "mobilenet_v2": tf1_loader.load_mobilenet_v2,
    "mobilenet_v3_small": tf1_loader.load_mobilenet_v3_small,
    "mobilenet_v3_large": tf1_loader.load_mobilenet_v3_large,
    "mobilenet_v3_small_minimalistic": tf1_loader.load_mobilenet_v3_small,
    "mobilenet_v3_large_minimalistic": tf1_loader.load_mobilenet_v3_large,
    "mobilenet_edgetpu": tf1_loader.load_mobilenet_edgetpu,
}
LOGITS = "Logits/Conv2d_1c_1x1"

Written = Callable[..., tuple[Slim, slim.Values, Path]]


def config_of(model: Slim, **fields: Any) -> Any:
    mode = (
        {} if model.family == "mobilenet_v1" else {"finegrain_classification_mode": model.finegrain}
    )
    settings = {"width_multiplier": model.width, "num_classes": model.classes, **mode, **fields}
    return archs.get(model.family, **settings)


def refused(path: Path, config: Any = None, loader: Any = None, **options: Any) -> str:
    """The one line that loading this ends with."""
    with pytest.raises(UsageError) as caught:
        if loader is None:
            tf1_loader.load_tf1_checkpoint(path, **{"input_shape": PIXELS, **options})
        else:
            loader(path, config, input_shape=PIXELS)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 1500
    return line


@pytest.mark.parametrize(
    "family",
    ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_edgetpu"],
)
def test_each_loader_takes_a_config_and_leaves_it_as_it_is(family: str, written: Written) -> None:
    spec, raw, path = written(family)
    config = config_of(spec)
    before = dataclasses.replace(config)
    model = LOADERS[family](checkpoint_path=path, config=config, input_shape=PIXELS)
    slim.same(model, slim.by_weight_name(spec, raw))
    assert config == before
    assert model.input_shape == (None, *PIXELS)


@pytest.mark.parametrize("family", ["mobilenet_v1", "mobilenet_v3_large_minimalistic"])
def test_without_a_config_a_loader_finds_it(family: str, written: Written) -> None:
    model, raw, path = written(family)
    slim.same(LOADERS[family](path, input_shape=PIXELS), slim.by_weight_name(model, raw))


def test_the_loader_of_all_v3_goes_by_the_config(written: Written) -> None:
    spec, raw, path = written("mobilenet_v3_small_minimalistic")
    model = tf1_loader.load_mobilenet_v3(path, config_of(spec), input_shape=PIXELS)
    slim.same(model, slim.by_weight_name(spec, raw))
    assert "mobilenet_v2" in refused(
        path, archs.MobileNetV2Config(), tf1_loader.load_mobilenet_v3
    ).lower().replace("mobilenetv2", "mobilenet_v2")


def test_building_twice_narrows_once(written: Written) -> None:
    spec, _, path = written("mobilenet_v2", width=0.35, finegrain=True)
    shared = archs.MobileNetV2Config(width_multiplier=0.35, num_classes=spec.classes)
    models = [
        tf1_loader.load_mobilenet_v2(path, config, input_shape=PIXELS)
        for config in (shared, shared)
    ]
    expected = sum(int(np.prod(shape)) for shape in slim.shapes(spec).values())
    assert [model.count_params() for model in models] == [expected] * 2
    for model in models:  # the seed's loader narrowed the stem twice, to 8
        assert model.get_layer("Conv").kernel.shape == (3, 3, 3, 16)


def test_edgetpus_block_13_adds_nothing(written: Written) -> None:
    _, _, path = written("mobilenet_edgetpu")
    names = {layer.name for layer in slim.loaded(path).model.layers}
    assert "expanded_conv_13_add" not in names
    assert {"expanded_conv_12_add", "expanded_conv_14_add", "expanded_conv_2_add"} <= names


def test_a_stem_of_one_channel_sets_the_input(written: Written) -> None:
    model, raw, path = written("mobilenet_v3_small_minimalistic", channels=1)
    loaded = slim.loaded(path, input_shape=None)
    assert loaded.model.input_shape == (None, 224, 224, 1)
    slim.same(loaded.model, slim.by_weight_name(model, raw))
    assert "1 input channel" in loaded.report.description
    assert "channel" in refused(path, input_shape=(32, 32, 3))


def test_1001_classes_become_1000_without_the_background(written: Written) -> None:
    model, raw, path = written("mobilenet_v3_small_minimalistic", classes=1001)
    expected = slim.by_weight_name(model, raw)
    unchanged = slim.loaded(path)
    assert (unchanged.config.num_classes, unchanged.report.notes) == (1001, ())
    slim.same(unchanged.model, expected)
    loaded = slim.loaded(path, num_classes=1000)
    assert loaded.config.num_classes == 1000
    expected["Logits/kernel"] = expected["Logits/kernel"][..., 1:]
    expected["Logits/bias"] = expected["Logits/bias"][1:]
    slim.same(loaded.model, expected)
    assert any("background" in note for note in loaded.report.notes)
    assert set(loaded.report.loaded.values()) == set(raw)
    slim.same(
        tf1_loader.load_mobilenet_v3_small(
            path, config_of(model, num_classes=1000), input_shape=PIXELS
        ),
        expected,
    )


def test_no_classes_leave_the_logits_out(written: Written) -> None:
    model, raw, path = written("mobilenet_v3_small_minimalistic", classes=1001)
    logits = {f"MobilenetV3/{LOGITS}/weights", f"MobilenetV3/{LOGITS}/biases"}
    loaded = slim.loaded(path, num_classes=0)
    headless = {name: array for name, array in raw.items() if name not in logits}
    slim.same(
        loaded.model, {slim.weight_name(model, name): array for name, array in headless.items()}
    )
    assert set(loaded.report.left_aside["logits"]) == logits
    assert set(loaded.report.loaded.values()) == set(headless)


@pytest.mark.parametrize(
    ("classes", "requested"),
    [
        (1001, 1002),
        (1000, 1001),
        pytest.param(1001, 17, marks=pytest.mark.slow),
        pytest.param(5, 4, marks=pytest.mark.slow),
    ],
)
def test_other_class_counts_are_refused(classes: int, requested: int, written: Written) -> None:
    _, _, path = written("mobilenet_v3_small_minimalistic", classes=classes)
    line = refused(path, num_classes=requested)
    assert "num_classes" in line
    assert str(classes) in line
    assert str(requested) in line


# Family, changes of the config, and what the message must contain: what is off, how much, and why.
WRONG = [
    ("mobilenet_v1", {"width_multiplier": 0.25}, ("another shape", "/weights", "width", "0.1")),
    ("mobilenet_v2", {"width_multiplier": 0.35}, ("another shape", "width", "0.1")),
    ("mobilenet_v2", {"finegrain_classification_mode": True}, ("Conv_1/weights", "finegrain")),
    ("mobilenet_v3_small_minimalistic", {"finegrain_classification_mode": True}, ("Conv_2/w",)),
    ("mobilenet_v3_small_minimalistic", {"num_classes": 7}, ("num_classes", "7", "5")),
    ("mobilenet_edgetpu", {"width_multiplier": 1.0}, ("weights", "width", "0.1")),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "fragments"), WRONG, ids=lambda v: str(v)[:40])
def test_a_wrong_config_is_refused_with_its_cause(
    family: str, changes: dict[str, Any], fragments: tuple[str, ...], written: Written
) -> None:
    model, _, path = written(family)
    line = refused(path, config_of(model, **changes), LOADERS[family])
    for part in fragments:
        assert part in line


def off(model: Slim, other: Slim) -> tuple[int, int, int]:
    """How many variables a model of `other` lacks, leaves over or has in another shape."""
    have, want = slim.shapes(model), slim.shapes(other)
    differ = [name for name in have.keys() & want.keys() if have[name] != want[name]]
    return len(want.keys() - have.keys()), len(have.keys() - want.keys()), len(differ)


def test_all_that_is_off_is_counted(written: Written) -> None:
    model, _, path = written("mobilenet_v2")
    wider = dataclasses.replace(model, width=0.35)
    assert off(model, wider)[:2] == (0, 0)
    line = refused(path, config_of(wider), LOADERS["mobilenet_v2"])
    assert str(off(model, wider)[2]) in line
    for a, b in (("", "_minimalistic"), ("_minimalistic", "")):
        model, _, path = written("mobilenet_v3_small" + a)
        other = dataclasses.replace(model, family="mobilenet_v3_small" + b)
        line = refused(path, config_of(other), LOADERS[other.family])
        missing, left_over, _ = off(model, other)
        assert str(missing or left_over) in line
        assert "squeeze_excite" in line
        assert "minimalistic" in line.lower()
        assert ("missing" if missing else "left over") in line


@pytest.mark.parametrize(
    ("family", "loader"),
    [
        ("mobilenet_v1", "mobilenet_v2"),
        ("mobilenet_v2", "mobilenet_v3_large"),
        ("mobilenet_v3_small", "mobilenet_v3_large"),
        ("mobilenet_v3_large", "mobilenet_v3_small"),
        ("mobilenet_edgetpu", "mobilenet_v2"),
        ("mobilenet_v3_small", "mobilenet_edgetpu"),
    ],
)
def test_another_family_is_refused_and_named(family: str, loader: str, written: Written) -> None:
    model, _, path = written(family)
    assert family in refused(path, None, LOADERS[loader])
    refused(path, config_of(model), LOADERS[loader])  # the config is of another class
    refused(path, config_of(Slim(loader)), LOADERS[loader])


# A change of what was written, and what the message must contain.
SCOPE = "MobilenetV3/expanded_conv_3/project"
DAMAGE: dict[str, tuple[dict[str, tuple[int, ...] | None], tuple[str, ...]]] = {
    "one missing": ({f"{SCOPE}/weights": None}, ("missing", f"{SCOPE}/weights", "not the whole")),
    "BN missing": ({f"{SCOPE}/BatchNorm/gamma": None}, ("missing", "BatchNorm/gamma")),
    "one left over": ({"MobilenetV3/Conv_3/weights": (1, 1, 8, 8)}, ("left over", "Conv_3/wei")),
    "foreign": ({"other/thing": (3,)}, ("left over", "other/thing", "something else")),
    "another shape": ({f"{SCOPE}/weights": (1, 1, 40, 8)}, ("shape", f"{SCOPE}/weights", "40")),
    "two of both": (
        {"a/b": (3,), f"{SCOPE}/weights": None, f"{SCOPE}/BatchNorm/beta": (9,)},
        ("left over", "a/b", "missing", f"{SCOPE}/weights", "shape", f"{SCOPE}/BatchNorm/beta"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_may_be_missing_left_over_or_of_another_shape(
    damage: str, written: Written, tmp_path: Path
) -> None:
    _, raw, _ = written("mobilenet_v3_small_minimalistic")
    changes, fragments = DAMAGE[damage]
    changed = {name: array for name, array in raw.items() if name not in changes}
    for name, shape in changes.items():
        if shape is not None:
            changed[name] = np.zeros(shape, np.float32)
    line = refused(slim.write_npz(tmp_path / "damaged.npz", changed))
    for part in fragments:
        assert part in line


def test_many_that_are_off_are_shortened_with_a_count(written: Written, tmp_path: Path) -> None:
    _, raw, _ = written("mobilenet_v3_small_minimalistic")
    extra = {f"stranger_{index:02}": np.zeros(2, np.float32) for index in range(60)}
    line = refused(slim.write_npz(tmp_path / "strangers.npz", raw | extra))
    assert "60" in line
    assert 1 <= line.count("stranger_") < 20


@pytest.mark.slow  # the command's own test writes the same files
def test_keras_checkpoints_are_written_and_read(written: Written, tmp_path: Path) -> None:
    import tensorflow as tf
    import tf_keras

    spec, raw, path = written("mobilenet_v3_small_minimalistic")
    model = slim.loaded(path).model
    expected = slim.by_weight_name(spec, raw)
    saved = tf1_loader.save_keras_checkpoint(model, tmp_path / "model.keras", "keras")
    slim.same(tf_keras.models.load_model(saved, compile=False), expected)
    saved = tf1_loader.save_keras_checkpoint(model, tmp_path / "model", "tf")
    slim.same(tf_keras.models.load_model(saved, compile=False), expected)
    prefix = tf1_loader.save_keras_checkpoint(model, tmp_path / "ckpt" / "model")
    fresh = tf_keras.models.clone_model(model)
    assert not np.array_equal(fresh.get_layer("Conv").kernel, expected["Conv/kernel"])
    tf.train.Checkpoint(model=fresh).restore(str(prefix)).assert_existing_objects_matched()
    slim.same(fresh, expected)


@pytest.mark.parametrize(
    ("name", "form"), [("model", "keras"), ("model.h5", "h5"), ("model", "onnx")]
)
def test_other_forms_are_refused(name: str, form: str, written: Written, tmp_path: Path) -> None:
    model = slim.loaded(written("mobilenet_v3_small_minimalistic")[2]).model
    with pytest.raises(UsageError):
        tf1_loader.save_keras_checkpoint(model, tmp_path / name, form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["ckpt", "tf", "keras"])
def test_a_folder_of_other_things_is_left_alone(
    form: str, written: Written, tmp_path: Path
) -> None:
    model = slim.loaded(written("mobilenet_v3_small_minimalistic")[2]).model
    (tmp_path / "model.keras").mkdir()
    (tmp_path / "model.keras/one.txt").write_text("dear")
    with pytest.raises(UsageError, match="save_path"):
        tf1_loader.save_keras_checkpoint(model, tmp_path / "model.keras", form)
    assert (tmp_path / "model.keras/one.txt").read_text() == "dear"
