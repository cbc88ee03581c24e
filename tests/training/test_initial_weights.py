"""Weights to start from: every form of a checkpoint gives the same model, a new head is reported,
and folded batch norms compute the same in both modes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import slim_checkpoints as slim  # noqa: E402
import tf_keras  # noqa: E402
from small_models import own_model, tutorial_model  # noqa: E402

from mobilenet.configs import archs  # noqa: E402
from mobilenet.configs.card import Card  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.models import builder, saving  # noqa: E402
from mobilenet.models.graph import batch_norm_statistics  # noqa: E402
from mobilenet.tf1_loader import loading as tf1_loading  # noqa: E402
from mobilenet.training import initial_weights  # noqa: E402

CONFIG = archs.get("mobilenet_v1", width_multiplier=0.125, num_classes=5)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> Any:
    """A model whose every weight is its own."""
    model = builder.build(CONFIG, (32, 32, 3))
    draw = np.random.default_rng(1)
    model.set_weights([draw.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


def keras_file(model: Any, folder: Path) -> Path:
    model.save(folder / "model.keras")
    return folder / "model.keras"


def model_folder(model: Any, folder: Path) -> Path:
    return saving.save(model, folder / "model", Card(input_shape=(32, 32, 3)))


def checkpoint_of_model(model: Any, folder: Path) -> Path:
    return Path(tf.train.Checkpoint(model=model).save(str(folder / "model")))


def checkpoint_with_optimizer(model: Any, folder: Path) -> Path:
    optimizer = tf_keras.optimizers.SGD(momentum=0.9)
    optimizer.build(model.trainable_variables)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(model=model, optimizer=optimizer), str(folder / "manager"), 1
    )
    manager.save()
    return folder / "manager"


def saved_weights(model: Any, folder: Path) -> Path:
    model.save_weights(str(folder / "weights"), save_format="tf")
    return folder / "weights"


FORMS = (keras_file, model_folder, checkpoint_of_model, checkpoint_with_optimizer, saved_weights)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_weights(
    form: Callable[[Any, Path], Path], trained: Any, tmp_path: Path
) -> None:
    model = builder.build(CONFIG, (32, 32, 3))
    start = initial_weights.load_into(model, str(form(trained, tmp_path)), CONFIG)
    assert not start.new
    assert len(start.loaded) == sum(bool(layer.weights) for layer in trained.layers)
    for ours, theirs in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("form", [keras_file, checkpoint_of_model])
def test_a_head_of_other_classes_is_new(
    form: Callable[[Any, Path], Path], trained: Any, tmp_path: Path
) -> None:
    config = CONFIG.replace(num_classes=3)
    model = builder.build(config, (32, 32, 3))
    head = model.get_layer("Logits").get_weights()
    start = initial_weights.load_into(model, str(form(trained, tmp_path)), config)
    assert list(start.new) == ["Logits"]
    for ours, before in zip(model.get_layer("Logits").get_weights(), head, strict=True):
        np.testing.assert_array_equal(ours, before)
    assert model.get_layer("Conv2d_0").get_weights()[0].min() >= 0.5


@pytest.mark.parametrize("form", [keras_file, checkpoint_of_model])
def test_another_model_is_refused_and_nothing_is_set(
    form: Callable[[Any, Path], Path], trained: Any, tmp_path: Path
) -> None:
    config = CONFIG.replace(width_multiplier=0.25)
    model = builder.build(config, (32, 32, 3))
    before = model.get_weights()
    with pytest.raises(UsageError, match="width_multiplier"):
        initial_weights.load_into(model, str(form(trained, tmp_path)), config)
    for ours, original in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, original)


def test_a_tf1_checkpoint_is_loaded_with_the_momentum_of_fine_tuning(tmp_path: Path) -> None:
    values = slim.values(slim.Slim("mobilenet_v1"))
    path = slim.write_checkpoint(tmp_path / "model.ckpt", values)
    loaded = tf1_loading.load_tf1_checkpoint(path, input_shape=(32, 32))
    norms = [layer for layer in loaded.model.layers if hasattr(layer, "momentum")]
    assert {layer.momentum for layer in norms} == {0.9}


def test_tf1_of_another_family_names_the_flag(tmp_path: Path) -> None:
    values = slim.values(slim.Slim("mobilenet_v2", classes=5))
    path = slim.write_checkpoint(tmp_path / "model.ckpt", values)
    model = builder.build(CONFIG, (32, 32, 3))
    with pytest.raises(UsageError, match="`model_name=mobilenet_v2"):
        initial_weights.load_into(model, str(path), CONFIG)


def folded(model: Any) -> None:
    """Gain 1, mean 0, one variance: what is left where the statistics went into the kernel."""
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            _, beta, mean, variance = layer.get_weights()
            layer.set_weights(
                [np.ones_like(beta), beta, np.zeros_like(mean), np.full_like(variance, 0.999)]
            )


def test_folded_batch_norms_compute_the_same_in_training() -> None:
    model = builder.build(CONFIG.replace(dropout_keep_prob=1.0), (32, 32, 3))
    draw = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            layer.beta.assign(draw.normal(0.5, 0.5, size))
        elif layer.weights:
            layer.set_weights([3 * w for w in layer.get_weights()])
    folded(model)
    outputs, original = model(IMAGES, training=False).numpy(), model.get_weights()
    assert np.abs(outputs - model(IMAGES, training=True).numpy()).max() > 0.01  # the fault
    model.set_weights(original)  # that moved the statistics
    filled = batch_norm_statistics.fill_statistics(model, lambda: IMAGES)
    assert len(filled) == 27
    np.testing.assert_allclose(model(IMAGES, training=False).numpy(), outputs, atol=1e-5)
    np.testing.assert_allclose(model(IMAGES, training=True).numpy(), outputs, atol=1e-3)


def test_batch_norms_with_statistics_are_left_alone(trained: Any) -> None:
    before = trained.get_weights()
    assert (
        batch_norm_statistics.fill_statistics(trained, lambda: pytest.fail("images are not needed"))
        == []
    )
    for ours, original in zip(trained.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, original)


def of_keras_applications(nested: bool) -> Any:
    """MobileNet 0.25 of keras.applications with a head of its own, every weight its own."""
    layers = tf_keras.layers
    base = tf_keras.applications.MobileNet(
        (32, 32, 3), alpha=0.25, include_top=False, weights=None, pooling="avg"
    )
    inputs = layers.Input((32, 32, 3)) if nested else base.input
    features = base(inputs, training=False) if nested else base.output
    outputs = layers.Dense(3, name="mine")(layers.Dropout(0.2)(features))
    model = tf_keras.Model(inputs, outputs)
    draw = np.random.default_rng(1)
    model.set_weights([draw.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "name", ["model.keras", "model.h5", pytest.param("saved", marks=pytest.mark.slow)]
)
def test_a_model_of_keras_applications_gives_all_but_its_own_head(
    nested: bool, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = of_keras_applications(nested)
    theirs.save(tmp_path / name, **({} if "." in name else {"save_format": "tf"}))
    config = archs.get("mobilenet_v1", width_multiplier=0.25, num_classes=3)
    model = builder.build(config, (32, 32, 3))
    head = model.get_layer("Logits").get_weights()[0]
    with caplog.at_level("INFO", "mobilenet"):
        start = initial_weights.load_into(model, str(tmp_path / name), config)
    assert list(start.new) == ["Logits"]
    assert any(line.endswith("its own head: mine") for line in caplog.messages)
    np.testing.assert_array_equal(model.get_layer("Logits").get_weights()[0], head)
    base = next((x for x in theirs.layers if isinstance(x, tf_keras.Model)), theirs)
    for ours, name in (
        ("Conv2d_0", "conv1"),
        ("Conv2d_3_depthwise", "conv_dw_3"),
        ("Conv2d_13_pointwise_batch_norm", "conv_pw_13_bn"),
    ):
        expected = base.get_layer(name).get_weights()
        for one, other in zip(model.get_layer(ours).get_weights(), expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["mine.keras", "mine.h5"])
def test_a_model_of_other_layers_is_for_runs_on_itself(name: str, tmp_path: Path) -> None:
    tutorial_model().save(tmp_path / name)
    model = builder.build(CONFIG, (32, 32, 3))
    match = f"MobileNet; the layers of this model are conv2d.*`model=.*{name}` takes the model"
    with pytest.raises(UsageError, match=match) as caught:
        initial_weights.load_into(model, str(tmp_path / name), CONFIG)
    assert caught.value.what == "init_checkpoint"
    with pytest.raises(UsageError, match="weights: .*mobilenet.load_model returns the model"):
        initial_weights.build(CONFIG, 32, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "width", "body"),
    [("mobilenet_v2", 0.35, "nested_v2"), ("mobilenet_v3_small", 0.75, "MobileNetV3Small")],
)
def test_a_model_with_a_head_gives_the_body_of_v2_and_v3(
    name: str, width: float, body: str, tmp_path: Path
) -> None:
    if body == "nested_v2":
        theirs = own_model(body)
    else:
        layers = tf_keras.layers
        base = tf_keras.applications.MobileNetV3Small(
            (32, 32, 3), width, weights=None, include_top=False
        )
        pooled = layers.GlobalAveragePooling2D()(base.output)
        theirs = tf_keras.Model(base.input, layers.Dense(3, name="mine")(pooled))
    theirs.save(tmp_path / "model.keras")
    config = archs.get(name, width_multiplier=width, num_classes=4)
    start = initial_weights.load_into(
        builder.build(config, (32, 32, 3)), str(tmp_path / "model.keras"), config
    )
    assert set(start.new) <= {"Conv_2", "Logits"} and "Logits" in start.new


def test_a_layer_inside_the_body_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    theirs = of_keras_applications(nested=False)
    inner, stem = theirs.get_layer("conv_pw_6_relu").output, theirs.get_layer("conv_pw_6_relu")
    body = tf_keras.Model(theirs.input, stem.output)
    after = tf_keras.Model(inner, theirs.output)
    more = tf_keras.layers.Conv2D(128, 1, name="more")(body.output)
    tf_keras.Model(body.input, after(more)).save(tmp_path / "model.keras")
    config = archs.get("mobilenet_v1", width_multiplier=0.25, num_classes=3)
    with pytest.raises(UsageError, match="1 of 55 layers do not: more: left over"):
        initial_weights.load_into(
            builder.build(config, (32, 32, 3)), str(tmp_path / "model.keras"), config
        )
