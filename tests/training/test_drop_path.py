"""Stochastic depth: a numpy reference on fixed draws, rates, stages, and interrupted runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402
from command_runs import SHORT, report, run_command  # noqa: E402
from short_training import CONFIG, STEPS, Signal, make_job, stage_context  # noqa: E402
from small_models import CLASSES, inputs, randomize_batch_norm, toy, two_layer_model  # noqa: E402

from mobilenet.compression import method as methods  # noqa: E402
from mobilenet.configs import archs  # noqa: E402
from mobilenet.configs.distillation import Distillation  # noqa: E402
from mobilenet.configs.pruning import ChannelPruning, DnsPruning, MagnitudePruning  # noqa: E402
from mobilenet.configs.quantization import QuantizationAwareTraining  # noqa: E402
from mobilenet.configs.run import RunConfig  # noqa: E402
from mobilenet.configs.training import TrainConfig  # noqa: E402
from mobilenet.configs.weight_sharing import CodebookQuantization  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.models.builder import build  # noqa: E402
from mobilenet.models.layer_plan import plan_rows  # noqa: E402
from mobilenet.training import engine, random_state  # noqa: E402
from mobilenet.training.drop_path import DropPath  # noqa: E402

L = tf_keras.layers
SEED, STEP, RATE = 3, 5, 0.5
RATES = (RATE / 3, 2 * RATE / 3, RATE)


def residual_model() -> Any:
    """Three residual sums, in both orders of their inputs, and a sum that is none."""
    tf_keras.utils.set_random_seed(1)
    source = L.Input((6, 6, 2))
    x = L.Add(name="plain")([L.Conv2D(2, 1, name="left")(source), L.Conv2D(2, 1)(source)])
    for number in range(3):
        branch = L.Conv2D(2, 1, name=f"branch_{number}")(x)
        x = L.Add()([branch, x] if number == 1 else [x, branch])
    return tf_keras.Model(source, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(x)))


def passes(model: Any, images: Any, steps: range) -> list[Any]:
    """The outputs of some training steps."""
    drop, step = DropPath(model, RATE), tf.Variable(0, dtype=tf.int64)
    outputs = []
    with random_state.drawn_by_step(model, SEED, lambda: step, drop.layers):
        forward = tf.function(lambda: drop(images, training=True))
        for number in steps:
            step.assign(number)
            outputs.append(forward().numpy())
    return outputs


def test_the_forward_pass_is_that_of_numpy() -> None:
    model, rng = residual_model(), np.random.default_rng(0)
    images = rng.normal(size=(16, 6, 6, 2)).astype(np.float32)
    [outputs] = passes(model, images, range(STEP, STEP + 1))
    first = [layer for layer in model.layers if isinstance(layer, L.Conv2D)][:2]
    x = sum(images @ (w := layer.get_weights())[0][0, 0] + w[1] for layer in first)
    dropped = 0
    for number, rate in enumerate(RATES):
        key = tf.constant([SEED, 0x44524F50 + number], tf.int64)
        key = tf.random.fold_in(tf.random.fold_in(key, tf.constant(STEP, tf.int64)), 0)
        stays = tf.random.stateless_uniform([16, 1, 1, 1], key).numpy() >= rate
        kernel, bias = model.get_layer(f"branch_{number}").get_weights()
        x = x + (x @ kernel[0, 0] + bias) * stays / (1 - rate)
        dropped += np.count_nonzero(~stays)
    assert 0 < dropped < 48
    kernel, bias = model.layers[-1].get_weights()
    np.testing.assert_allclose(outputs, x.mean((1, 2)) @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_it_is_right_on_average_and_off_in_inference() -> None:
    model = residual_model()
    images = np.ones((256, 6, 6, 2), np.float32)
    plain = model(images, training=False).numpy()
    mean = np.mean(passes(model, images, range(40)), axis=(0, 1))
    np.testing.assert_allclose(mean, plain[0], atol=0.05)
    assert np.std(passes(model, images, range(1))[0], axis=0).max() > 0.05
    same = DropPath(model, RATE)(images, training=False)
    np.testing.assert_allclose(same, plain, rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mobilenet_v3_large", "mobilenet_edgetpu_v2_xs", "mobilenet_v4_conv_small")
        ),
    ],
)
def test_the_rate_grows_with_each_residual_block(name: str) -> None:
    config = archs.get(name, num_classes=4)
    rows = [row for row in plan_rows(config) if row.residual]
    model = build(config, (32, 32, 3))
    layers = DropPath(model, 0.2).layers
    assert [layer.name for layer in layers] == [f"drop_{row.name}_add" for row in rows]
    expected = [0.2 * (number + 1) / len(rows) for number in range(len(rows))]
    np.testing.assert_allclose([layer.rate for layer in layers], expected)
    assert all(layer.noise_shape == (None, 1, 1, 1) for layer in layers)
    assert sum(isinstance(layer, L.Dropout) for layer in model.layers) == 1  # the classifier's


@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.4, "accumulation_steps": 2, "batch_size": 4},
        pytest.param({}, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_with_the_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    config = CONFIG.replace(epochs=2, drop_path_rate=RATE, **settings)

    def fit(name: str, *callbacks: Any) -> list[Any]:
        job = make_job(tmp_path / name, config, *callbacks)
        model = residual_model()
        engine.fit(model, None, dataclasses.replace(job, seed=SEED))
        return list(model.get_weights())

    whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("killed", Signal(STEPS + 2))
    for one, other in zip(fit("killed"), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_parts_of_an_accumulated_batch_draw_different_numbers(tmp_path: Path) -> None:
    """Two equal halves of a batch: one draw for both would make their mean that of one half."""
    images = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype(np.float32)
    half = images, np.arange(4, dtype=np.int32)
    twice = tuple(np.concatenate([values, values]) for values in half)

    def fit(name: str, parts: int, batch: Any) -> list[Any]:
        config = CONFIG.replace(
            epochs=1,
            optimizer_name="sgd",
            batch_size=4,
            accumulation_steps=parts,
            drop_path_rate=RATE,
        )
        data = tf.data.Dataset.from_tensors(batch)
        job = dataclasses.replace(
            make_job(tmp_path / name, config),
            steps_per_epoch=1,
            training=lambda step: data.repeat(),
            validation=data,
        )
        model = residual_model()
        engine.fit(model, None, job)
        return list(model.get_weights())

    pairs = zip(fit("one", 1, half), fit("two", 2, twice), strict=True)
    assert not all(np.allclose(*pair, rtol=1e-6) for pair in pairs)


METHODS = {
    "magnitude": MagnitudePruning({"pointwise": 0.5}, frequency=2),
    "channel": ChannelPruning(round_to=1, frequency=2, reconstruct=0),
    "dns": DnsPruning(frequency=2, probabilities=(1.0,), boundaries=()),
    "qat": QuantizationAwareTraining(calibration_images=8),
    "codebook": CodebookQuantization(depthwise=5, pointwise=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_it_and_its_model_has_no_layer_of_it(
    name: str, tmp_path: Path
) -> None:
    start = randomize_batch_norm(toy())
    batch = tf.data.Dataset.from_tensors((inputs(8, seed=5), np.arange(8, dtype=np.int32) % 4))

    def finished(rate: float) -> Any:
        method = methods.create(METHODS[name], stage_context(4))
        job = dataclasses.replace(
            make_job(tmp_path / str(rate), CONFIG.replace(epochs=1, drop_path_rate=rate)),
            steps_per_epoch=4,
            training=lambda step: batch.repeat(),
            validation=batch,
        )
        model = method.apply(start)
        engine.fit(model, method, job)
        return method.finalize(model)

    plain, dropped = finished(0.0), finished(0.9)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in dropped.layers]
    pairs = zip(plain.get_weights(), dropped.get_weights(), strict=True)
    assert any(one.shape != other.shape or np.any(one != other) for one, other in pairs)


@pytest.mark.slow
def test_all_stages_on_digits(tmp_path: Path) -> None:
    """The file has the operators and the size of one of a run without."""
    runs = {}
    for rate in (0.0, 0.3):
        rates = [f"--override={stage}.drop_path_rate={rate}" for stage in ("prune", "quantize")]
        args = [*SHORT, "--model_name=mobilenet_v2", f"--drop_path_rate={rate}", *rates]
        done = run_command("trainer", *args, f"--model_dir={tmp_path / str(rate)}")
        assert done.returncode == 0, done.stderr[-2000:]
        runs[rate] = report(tmp_path / str(rate))
    for stage in ("train", "convert"):
        for figure in ("macs", "parameters", "bytes"):
            one, other = (runs[rate][stage].get(figure) for rate in runs)
            assert one == other, (stage, figure)
    assert runs[0.3]["convert"]["verification"]["float_tensors"] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "drop_path_rate: got 0.2, expected 0 for a MobileNetV1, which has no residual sum"),
        (
            {"model": archs.get("mobilenet_v2"), "distillation": Distillation(features=1.0)},
            "drop_path_rate: got 0.2, expected 0 with `distillation.features`, which compares",
        ),
    ],
)
@pytest.mark.parametrize("stage", ["train", "prune", "quantize"])
def test_what_it_cannot_go_with_is_one_line(
    stage: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        RunConfig(**fields, **{stage: TrainConfig(drop_path_rate=0.2)})
    assert str(error.value).startswith(message)


def test_models_without_residual_sums_and_other_rates_are_refused() -> None:
    with pytest.raises(UsageError, match="^drop_path_rate: got 0.2, .* which has no residual sum"):
        DropPath(two_layer_model(), 0.2)
    with pytest.raises(UsageError, match="^drop_path_rate: got 1, expected a number at least 0"):
        TrainConfig(drop_path_rate=1)
