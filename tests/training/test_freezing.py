"""Frozen layers do not move by a bit; the classifier can be trained first, then all layers."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402
from short_training import (  # noqa: E402
    CONFIG,
    STEPS,
    Recorder,
    Signal,
    batches,
    make_job,
)
from small_models import CLASSES, INCEPTION, dropout_model, two_layer_model  # noqa: E402

from mobilenet.compression import method as methods  # noqa: E402
from mobilenet.configs.archs import MobileNetV1Config  # noqa: E402
from mobilenet.configs.pruning import ChannelPruning, DnsPruning, MagnitudePruning  # noqa: E402
from mobilenet.configs.quantization import QuantizationAwareTraining  # noqa: E402
from mobilenet.configs.run import RunConfig  # noqa: E402
from mobilenet.configs.training import TrainConfig  # noqa: E402
from mobilenet.configs.weight_sharing import (  # noqa: E402
    CodebookQuantization,
    LinearQuantization,
    TfmotClustering,
)
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.training import engine  # noqa: E402
from mobilenet.training.freezing import Freezing  # noqa: E402

HEAD_FIRST = CONFIG.replace(head_epochs=2, warmup_epochs=0.5)


def moved(model: Any, before: dict[str, list[np.ndarray]]) -> set[str]:
    """The layers of which any weight, statistics too, has another bit than before."""
    return {
        name
        for name, values in before.items()
        if any(map(np.any, map(np.not_equal, model.get_layer(name).get_weights(), values)))
    }


def weights(model: Any) -> dict[str, list[np.ndarray]]:
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def with_decay() -> Any:
    """`two_layer_model`, with an L2 and a name for each layer."""
    tf_keras.utils.set_random_seed(1)
    layers = tf_keras.layers
    source = layers.Input((6, 6, 2))
    decay = tf_keras.regularizers.L2(0.1)
    x = layers.Conv2D(4, 3, strides=2, name="Conv", kernel_regularizer=decay)(source)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8, name="Norm")(x))
    x = layers.Conv2D(4, 1, name="Second", kernel_regularizer=decay)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8, name="SecondNorm")(x))
    return tf_keras.Model(source, layers.Dense(CLASSES, name="Head")(layers.Flatten()(x)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"Conv", "Norm", "Second", "SecondNorm", "Head"}),
        ({"freeze": "backbone"}, {"Head"}),
        ({"freeze": "stride_2"}, {"Head"}),
        ({"freeze": "Norm"}, {"Second", "SecondNorm", "Head"}),
        ({"freeze": "Conv"}, {"Norm", "Second", "SecondNorm", "Head"}),
        ({"freeze_batch_norm": True}, {"Conv", "Second", "Head"}),
        ({"head_epochs": 4}, {"Head"}),
    ],
)
def test_layers_that_are_frozen_do_not_move_by_a_bit(
    settings: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    model = with_decay()
    before = weights(model)
    config = CONFIG.replace(
        optimizer_name="adamw", decoupled_weight_decay=0.1, keep_best=True, **settings
    )
    rows = engine.fit(model, None, make_job(tmp_path, config))
    assert len(rows) == 4
    assert moved(model, before) == expected
    assert all(layer.trainable for layer in model.layers)


@pytest.mark.parametrize("config", [QuantizationAwareTraining(), MagnitudePruning()])
def test_under_a_method_the_optimizer_moves_what_is_left(config: Any, tmp_path: Path) -> None:
    """Under tfmot's wrappers too; what the method itself sets, zeros and ranges, it still sets."""
    images = np.concatenate([x for x, _ in batches(0).take(4).as_numpy_iterator()])
    model = with_decay()
    context = methods.StageContext(20, INCEPTION, lambda count: images[:count])
    method = methods.create(config, context)
    trained = method.apply(model)
    before = [w.numpy() for w in trained.weights]
    job = make_job(tmp_path, CONFIG.replace(freeze="Norm", ma_decay_rate=0.0))
    engine.fit(trained, method, job)
    pairs = zip(trained.weights, before, strict=True)
    changed = {w.name for w, old in pairs if np.any((w.numpy() != old) & (w.numpy() != 0))}
    trainable = {w.name for w in trained.trainable_weights}
    first = {name for name in trainable if name.split("/")[-2].endswith(("Conv", "Norm"))}
    first -= {name for name in trainable if "Second" in name}
    assert len(first) == 4 and len(trainable - first) == 6
    assert changed & trainable == trainable - first


@pytest.mark.parametrize(
    "config",
    [
        DnsPruning(frequency=2, probabilities=(1.0,), boundaries=()),
        pytest.param(
            ChannelPruning(round_to=1, frequency=2, reconstruct=0), marks=pytest.mark.slow
        ),
        pytest.param(CodebookQuantization(depthwise=3, pointwise=2), marks=pytest.mark.slow),
        pytest.param(LinearQuantization(depthwise=5, pointwise=4), marks=pytest.mark.slow),
        pytest.param(TfmotClustering(depthwise=3, pointwise=2), marks=pytest.mark.slow),
    ],
)
def test_a_method_leaves_frozen_layers_but_for_what_it_sets(config: Any, tmp_path: Path) -> None:
    """Pruning sets zeros, weight sharing the values that it begins with; no layer is trained."""
    images = np.concatenate([x for x, _ in batches(0).take(4).as_numpy_iterator()])

    def finished(name: str, rate: float) -> Any:
        context = methods.StageContext(20, INCEPTION, lambda count: images[:count])
        method = methods.create(config, context)
        model = method.apply(with_decay())
        recipe = CONFIG.replace(freeze="Norm", ma_decay_rate=0.0, lr=rate)
        engine.fit(model, method, make_job(tmp_path / name, recipe))
        return method.finalize(model)

    hardly, much = finished("hardly", 1e-12), finished("much", 0.02)
    for name in ("Conv", "Norm"):
        pairs = zip(*(m.get_layer(name).get_weights() for m in (hardly, much)), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs), name
    assert moved(much, weights(hardly)) >= {"Second", "SecondNorm", "Head"} - (
        {"Second"} if isinstance(config, TfmotClustering) else set()
    )


TWO_REPLICAS = """
import pathlib, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from short_training import CONFIG, make_job
from test_freezing import moved, weights, with_decay
from mobilenet.training import engine

with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    for name, settings in (("freeze", {"freeze": "Norm"}), ("head", {"head_epochs": 1})):
        model = with_decay()
        before = weights(model)
        job = make_job(pathlib.Path(sys.argv[1]) / name, CONFIG.replace(epochs=2, **settings))
        engine.fit(model, None, job)
        print(name, *sorted(moved(model, before)))
"""


@pytest.mark.slow
def test_frozen_layers_stay_on_two_replicas(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS, tmp_path], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == [
        "freeze Head Second SecondNorm",
        "head Conv Head Norm Second SecondNorm",
    ]


def test_the_head_first_is_two_trainings_of_which_the_second_starts_anew(tmp_path: Path) -> None:
    config = HEAD_FIRST.replace(ma_decay_rate=0.0)
    model, recorder = two_layer_model(), Recorder()
    rows = engine.fit(model, None, make_job(tmp_path / "one", config, recorder))
    assert [row["lr"] for row in rows[:2]] == pytest.approx([config.lr] * 2)
    both = two_layer_model()
    first = config.replace(
        epochs=2,
        head_epochs=0,
        freeze="backbone",
        learning_scheduler_name="constant",
        warmup_epochs=0,
    )
    engine.fit(both, None, make_job(tmp_path / "first", first))
    middle = both.get_weights()
    second = dataclasses.replace(
        make_job(tmp_path / "second", config.replace(epochs=2, head_epochs=0)),
        training=lambda step: batches(step + 2 * STEPS),
    )
    engine.fit(both, None, second)
    for own, expected in zip(recorder.weights[2 * STEPS - 1], middle, strict=True):
        np.testing.assert_array_equal(own, expected)
    for own, expected in zip(model.get_weights(), both.get_weights(), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)  # rates are rounded


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    return fit(tmp_path_factory.mktemp("whole"))


def fit(folder: Path, *callbacks: Any) -> tuple[list[Any], list[Any]]:
    model = dropout_model()
    rows = engine.fit(model, None, make_job(folder, HEAD_FIRST, *callbacks))
    return model.get_weights(), [{**row, "seconds": 0} for row in rows]


@pytest.mark.parametrize("step", [3, 2 * STEPS, 2 * STEPS + 1, 3 * STEPS])
def test_a_run_that_continues_ends_with_the_same_bits(
    step: int, tmp_path: Path, whole: Any
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Signal(step))
    values, rows = fit(tmp_path)
    assert rows == whole[1]
    for own, expected in zip(values, whole[0], strict=True):
        np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "Dense"}, "freeze: got 'Dense', expected backbone, stride_8, or one of"),
        ({"freeze": "stride_16"}, "freeze: got 'stride_16', expected a stride of this model: st"),
        ({"freeze": "Head"}, "freeze: got 'Head', expected layers after which others are train"),
    ],
)
def test_a_model_without_such_a_layer_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Freezing(with_decay(), CONFIG.replace(**settings), STEPS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "stride_x"}, "freeze: got 'stride_x', expected stride_ and a number"),
        ({"head_epochs": 31}, "head_epochs: got 31, expected at most 30, the epochs of"),
        ({"head_epochs": 1, "freeze": "backbone"}, "head_epochs: got 1, expected 0 where the"),
        ({"early_stopping": -1}, "early_stopping: got -1, expected a whole number at least 0"),
        ({"best_metric": "auc"}, "best_metric: got 'auc', expected a stage that ends with its"),
        ({"best_metric": "mse", "keep_best": True}, "best_metric: got 'mse', expected one of"),
    ],
)
def test_contradictions_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(**settings)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "settings", [{"freeze": "backbone"}, {"head_epochs": 1}, {"freeze_batch_norm": True}]
)
def test_layers_of_a_new_model_are_not_frozen(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected a model that starts from weights"):
        RunConfig(MobileNetV1Config(), train=TrainConfig(**settings))
    RunConfig(MobileNetV1Config(), train=TrainConfig(**settings), init_checkpoint="imagenet")
