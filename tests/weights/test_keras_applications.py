"""Weight files of keras.applications load into our models and give the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet.configs import archs
from mobilenet.errors import UsageError

tf_keras = pytest.importorskip("tf_keras")

from mobilenet.models.builder import build  # noqa: E402
from mobilenet.weights.keras_applications import load_weights  # noqa: E402

SIDE = 64
FAST = [
    ("mobilenet_v1", 0.25),
    ("mobilenet_v2", 0.35),
    ("mobilenet_v3_small", 0.75),
    ("mobilenet_v3_large", 0.75),
    ("mobilenet_v3_small_minimalistic", 1.0),
    ("mobilenet_v3_large_minimalistic", 1.0),
]
SLOW = [
    *(("mobilenet_v1", width) for width in (0.5, 0.75, 1.0)),
    *(("mobilenet_v2", width) for width in (0.5, 0.75, 1.0, 1.3, 1.4)),
    ("mobilenet_v3_small", 1.0),
    ("mobilenet_v3_large", 1.0),
]


def peer(name: str, width: float, **options: Any) -> Any:
    """The model of keras.applications with random weights and statistics."""
    kinds = {
        "mobilenet_v1": "MobileNet",
        "mobilenet_v2": "MobileNetV2",
        "mobilenet_v3_small": "MobileNetV3Small",
        "mobilenet_v3_large": "MobileNetV3Large",
    }
    base = name.removesuffix("_minimalistic")
    if "v3" in name:
        options |= {"minimalistic": base != name, "include_preprocessing": False}
    defaults = {"classes": 7, "classifier_activation": None}
    model = getattr(tf_keras.applications, kinds[base])(
        weights=None, alpha=width, input_shape=(SIDE, SIDE, 3), **(defaults | options)
    )
    randomise(model)
    return model


def randomise(model: Any) -> None:
    """Statistics and shifts that are neither 0 nor 1, signals that neither die nor explode."""
    random = np.random.default_rng(3)
    for layer in model.layers:
        if not layer.weights:
            continue
        values = []
        for weight in layer.weights:
            kind, shape = weight.name.split("/")[-1], weight.shape
            if "kernel" in kind:
                fan_in = np.prod(shape[:2]) * (1 if "depthwise" in kind else np.prod(shape[2:-1]))
                values.append(random.normal(0, np.sqrt(2 / fan_in), shape))
            elif "gamma" in kind or "variance" in kind:
                values.append(random.uniform(0.5, 1.5, shape))
            else:
                values.append(random.normal(0, 0.2, shape))
        layer.set_weights(values)
        last = layer
    kernel, *bias = last.get_weights()
    if len(bias) == 1:  # the classifier: logits of about 1, so that a tolerance means something
        last.set_weights([kernel / model(images(), training=False).numpy().std(), *bias])


def images() -> Any:
    return np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)


def check_equal(name: str, width: float, folder: Path) -> None:
    theirs = peer(name, width)
    theirs.save_weights(folder / "x.h5")
    config = archs.get(name, width_multiplier=width, num_classes=7, classifier_activation=None)
    ours = build(config, (SIDE, SIDE, 3))
    report = load_weights(ours, folder / "x.h5", config)
    assert report.matched == "names" and not report.new and not report.unused
    assert len(report.loaded) == sum(bool(layer.weights) for layer in theirs.layers)
    expected = theirs(images(), training=False).numpy()
    assert np.ptp(expected, axis=0).max() > 0.01, (
        "the model's outputs must differ between the images"
    )
    np.testing.assert_allclose(ours(images(), training=False).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "width"), FAST)
def test_outputs_equal_those_of_keras_applications(name: str, width: float, tmp_path: Path) -> None:
    check_equal(name, width, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), SLOW)
def test_outputs_equal_at_the_other_published_widths(
    name: str, width: float, tmp_path: Path
) -> None:
    check_equal(name, width, tmp_path)


def test_another_number_of_classes_gives_a_new_head(tmp_path: Path) -> None:
    peer("mobilenet_v2", 0.35).save_weights(tmp_path / "x.h5")
    config = archs.get("mobilenet_v2", width_multiplier=0.35, num_classes=3)
    model = build(config, (32, 32, 3))
    before = model.get_layer("Logits").get_weights()[0]
    report = load_weights(model, tmp_path / "x.h5", config)
    assert report.new == ("Logits",)
    assert "Conv_1" in report.loaded
    np.testing.assert_array_equal(model.get_layer("Logits").get_weights()[0], before)


def test_a_file_without_its_top(tmp_path: Path) -> None:
    theirs = peer("mobilenet_v3_small", 0.75, include_top=False)
    theirs.save_weights(tmp_path / "x.h5")
    config = archs.get("mobilenet_v3_small", width_multiplier=0.75)
    report = load_weights(build(config, (32, 32, 3)), tmp_path / "x.h5", config)
    assert report.new == ("Conv_2", "Logits")

    theirs = peer("mobilenet_v1", 0.25, include_top=False, pooling="avg")
    theirs.save_weights(tmp_path / "y.h5")
    config = archs.get("mobilenet_v1", width_multiplier=0.25, num_classes=0)
    model = build(config, (SIDE, SIDE, 3))
    assert load_weights(model, tmp_path / "y.h5", config).new == ()
    np.testing.assert_allclose(model(images()).numpy(), theirs(images()).numpy(), atol=1e-5)


def test_the_head_of_the_file_is_unused_by_a_model_of_features(tmp_path: Path) -> None:
    peer("mobilenet_v1", 0.25).save_weights(tmp_path / "x.h5")
    config = archs.get("mobilenet_v1", width_multiplier=0.25, num_classes=0)
    assert load_weights(build(config, (32, 32, 3)), tmp_path / "x.h5", config).unused == ("Logits",)


def test_foreign_names_match_by_order(tmp_path: Path) -> None:
    theirs = peer("mobilenet_v1", 0.25)
    renamed = tf_keras.models.clone_model(
        theirs,
        clone_function=lambda layer: type(layer).from_config(
            layer.get_config() | {"name": f"old_{layer.name}"}
        ),
    )
    renamed.set_weights(theirs.get_weights())
    renamed.save_weights(tmp_path / "x.h5")
    config = archs.get(
        "mobilenet_v1", width_multiplier=0.25, num_classes=7, classifier_activation=None
    )
    model = build(config, (SIDE, SIDE, 3))
    assert load_weights(model, tmp_path / "x.h5", config).matched == "order"
    np.testing.assert_allclose(model(images()).numpy(), theirs(images()).numpy(), atol=1e-5)


def test_a_misfit_names_all_and_the_likely_cause(tmp_path: Path) -> None:
    peer("mobilenet_v1", 0.25).save_weights(tmp_path / "x.h5")
    config = archs.get("mobilenet_v1", width_multiplier=0.5, num_classes=7)
    model = build(config, (32, 32, 3))
    before = model.get_weights()
    with pytest.raises(
        UsageError, match=r"55 of 55 layers .*fits MobileNetV1Config\(width_multiplier=0.25\)"
    ):
        load_weights(model, tmp_path / "x.h5", config)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)

    config = archs.get("mobilenet_v2", width_multiplier=0.35)
    with pytest.raises(UsageError, match="missing in the file.*fits MobileNetV1Config"):
        load_weights(build(config, (32, 32, 3)), tmp_path / "x.h5", config)


def test_one_missing_layer_is_an_error(tmp_path: Path) -> None:
    import h5py

    peer("mobilenet_v1", 0.25).save_weights(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        names = [
            name
            for name in file.attrs["layer_names"]
            if name not in ("conv_dw_4_bn", b"conv_dw_4_bn")
        ]
        assert len(names) == len(file.attrs["layer_names"]) - 1
        file.attrs["layer_names"] = names
    config = archs.get("mobilenet_v1", width_multiplier=0.25, num_classes=7)
    with pytest.raises(
        UsageError, match="1 of 55 layers do not: Conv2d_4_depthwise_batch_norm: missing"
    ):
        load_weights(build(config, (32, 32, 3)), tmp_path / "x.h5", config)


def test_not_such_a_file(tmp_path: Path) -> None:
    config = archs.get("mobilenet_v1", width_multiplier=0.25)
    model = build(config, (32, 32, 3))
    with pytest.raises(UsageError, match="there is none"):
        load_weights(model, tmp_path / "none.h5", config)
    (tmp_path / "text.h5").write_text("not an archive")
    with pytest.raises(UsageError, match="a whole .h5 file"):
        load_weights(model, tmp_path / "text.h5", config)
    peer("mobilenet_v1", 0.25).save_weights(tmp_path / "x.h5")
    with pytest.raises(UsageError, match="no EdgeTPU"):
        load_weights(model, tmp_path / "x.h5", archs.get("mobilenet_edgetpu"))


@pytest.mark.parametrize(
    ("name", "width"),
    [("mobilenet_v1", 0.25), ("mobilenet_v2", 0.35), ("mobilenet_v3_small", 0.75)],
)
def test_numbered_layers_give_the_same_outputs(name: str, width: float, tmp_path: Path) -> None:
    """Of keras.applications, whose classifier is a dense layer in V2, and of our own model."""
    theirs = peer(name, width)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    config = archs.get(name, width_multiplier=width, num_classes=7, classifier_activation=None)
    ours = build(config, (SIDE, SIDE, 3))
    assert load_weights(ours, tmp_path / "theirs.weights.h5", config).new == ()
    expected = theirs(images(), training=False).numpy()
    np.testing.assert_allclose(ours(images(), training=False).numpy(), expected, atol=1e-5)
    ours.save_weights(tmp_path / "ours.weights.h5")
    again = build(config.replace(num_classes=3), (SIDE, SIDE, 3))
    report = load_weights(again, tmp_path / "ours.weights.h5", config.replace(num_classes=3))
    assert report.new == ("Logits",)
    for mine, other in zip(again.weights[:-2], ours.weights[:-2], strict=True):
        np.testing.assert_array_equal(mine, other)


def test_numbered_layers_of_keras_3_in_a_model_with_a_head(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    base = keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, include_top=False)
    inputs = keras.layers.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    hidden = keras.layers.Dense(5)(pooled)
    keras.Model(inputs, keras.layers.Dense(3)(hidden)).save_weights(tmp_path / "x.weights.h5")
    config = archs.get("mobilenet_v2", width_multiplier=0.35, num_classes=3)
    model = build(config, (32, 32, 3))
    report = load_weights(model, tmp_path / "x.weights.h5", config)
    assert (report.new, report.unused) == (("Logits",), ("dense", "dense_1"))
    kernel = base.get_layer("block_3_depthwise").get_weights()[0]
    ours = model.get_layer("expanded_conv_3_depthwise").get_weights()[0]
    np.testing.assert_array_equal(ours, kernel)


def test_numbered_layers_of_another_model_are_refused(tmp_path: Path) -> None:
    tf_keras.Sequential(
        [tf_keras.layers.Input((32, 32, 3)), tf_keras.layers.Conv2D(4, 3)]
    ).save_weights(tmp_path / "x.weights.h5")
    config = archs.get("mobilenet_v1", width_multiplier=0.25)
    with pytest.raises(UsageError, match="of 55 layers do not: Conv2d_0: file .*as .keras"):
        load_weights(build(config, (32, 32, 3)), tmp_path / "x.weights.h5", config)
