"""One fit for every stage: averages, resume, bad losses, verbs; on models of two layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402
from short_training import CONFIG, STEPS, Recorder, batches, make_job, stage_context  # noqa: E402
from small_models import CLASSES, two_layer_model  # noqa: E402

from mobilenet.compression.method import Method, StageContext, create  # noqa: E402
from mobilenet.configs.dataset import PREPROCESSING  # noqa: E402
from mobilenet.configs.pruning import MagnitudePruning  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.evaluation import scoring  # noqa: E402
from mobilenet.models.graph import inference  # noqa: E402
from mobilenet.training import engine, strategy  # noqa: E402
from mobilenet.training.optimization.ema import Average  # noqa: E402


def test_the_average_follows_the_formula_and_the_model_ends_with_it(tmp_path: Path) -> None:
    """decay = min(d, (1 + t) / (10 + t)), as tf.train.ExponentialMovingAverage has it."""
    model, watch = two_layer_model(), Recorder()
    shadows = [w.numpy().astype(np.float64) for w in model.weights]
    config = CONFIG.replace(ma_decay_rate=0.6)
    engine.fit(model, None, make_job(tmp_path, config, watch))
    decays = []
    for t, weights in enumerate(watch.weights, 1):
        decays.append(min(0.6, (1 + t) / (10 + t)))
        shadows = [s - (1 - decays[-1]) * (s - w) for s, w in zip(shadows, weights, strict=True)]
    assert len(decays) == 4 * STEPS
    assert decays[0] < 0.6 == decays[-1]  # both parts of the rule were at work
    for weight, shadow in zip(model.weights, shadows, strict=True):
        np.testing.assert_allclose(weight.numpy(), shadow, rtol=1e-4, atol=1e-6)
    assert any(
        not np.allclose(a, b) for a, b in zip(model.get_weights(), watch.weights[-1], strict=True)
    )


def test_validation_is_that_of_the_averaged_weights(tmp_path: Path) -> None:
    model, watch = two_layer_model(), Recorder()
    rows = engine.fit(model, None, make_job(tmp_path, CONFIG, watch))
    held_out = batches(100).take(2).as_numpy_iterator()
    images, labels = (np.concatenate(part) for part in zip(*held_out, strict=True))
    logits = model.predict(images, verbose=0).astype(np.float64)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    assert rows[-1]["val_loss"] == pytest.approx(losses.mean(), abs=1e-4)
    assert rows[-1]["val_top1"] == pytest.approx(
        100 * (logits.argmax(1) == labels).mean(), abs=1e-2
    )


def test_swapped_gives_the_averages_and_then_the_own_weights_back() -> None:
    model = two_layer_model()
    average = Average(model, 0.9)
    old = model.get_weights()
    moved = [w + 1 for w in old]
    model.set_weights(moved)
    with pytest.raises(ZeroDivisionError), average.swapped():
        for inside, expected in zip(model.get_weights(), old, strict=True):
            np.testing.assert_array_equal(inside, expected)
        raise ZeroDivisionError
    for after, expected in zip(model.get_weights(), moved, strict=True):
        np.testing.assert_array_equal(after, expected)


def test_the_average_of_a_pruned_weight_is_zero() -> None:
    model = two_layer_model()
    average = Average(model, 0.9)
    kernel = model.get_layer("Conv").kernel
    pruned = np.zeros(kernel.shape, bool)
    pruned[0] = True
    kernel.assign(np.where(pruned, 0, kernel.numpy() + 1))
    average.update(tf.constant(50, tf.int64))
    average.assign()
    assert (kernel.numpy() == 0)[pruned].all()
    assert (kernel.numpy() != 0)[~pruned].all()


def test_no_decay_keeps_no_shadows() -> None:
    assert Average(two_layer_model(), 0.0).shadows == []


def test_a_finished_fit_is_not_run_again(tmp_path: Path) -> None:
    model = two_layer_model()
    rows = engine.fit(model, None, make_job(tmp_path))
    again, watch = two_layer_model(), Recorder()
    assert engine.fit(again, None, make_job(tmp_path, CONFIG, watch)) == rows
    assert watch.weights == []
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_hold_what_was_seen(tmp_path: Path) -> None:
    rows = engine.fit(two_layer_model(), None, make_job(tmp_path))
    assert [set(row) for row in rows] == [
        {"epoch", "loss", "top1", "val_loss", "val_top1", "lr", "seconds"}
    ] * 4
    expected = [0.02 * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert [row["lr"] for row in rows] == pytest.approx(expected, rel=1e-4)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert 0 <= rows[-1]["top1"] <= 100


def test_several_steps_in_one_execution_are_the_same_steps(tmp_path: Path) -> None:
    """Of a method too; five steps are one execution of three and one of two."""
    seen = []
    for steps in (1, 3):
        context = stage_context(4 * STEPS)
        method = create(MagnitudePruning({"classifier": 0.5}, end=0.5, frequency=2), context)
        job = dataclasses.replace(make_job(tmp_path / str(steps)), steps_per_execution=steps)
        model = method.apply(two_layer_model())
        rows = engine.fit(model, method, job)
        seen.append((model.get_weights(), [(row["loss"], row["val_loss"]) for row in rows]))
    (usual, usual_rows), (other, other_rows) = seen
    for one, two in zip(usual, other, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert (model.layers[-1].kernel.numpy() == 0).mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(usual_rows, other_rows, atol=1e-4)


@pytest.mark.parametrize("prunes", [False, True])
def test_mixed_precision_trains_weights_of_32_bits(prunes: bool, tmp_path: Path) -> None:
    method = None
    with strategy.precision("mixed_bfloat16"):
        model = two_layer_model()
        if prunes:
            context = stage_context(4 * STEPS)
            method = create(MagnitudePruning({"classifier": 0.5}, end=0.5, frequency=2), context)
            model = method.apply(model)
        rows = engine.fit(model, method, make_job(tmp_path))
    assert model.layers[-1].compute_dtype == "bfloat16"
    assert rows[-1]["loss"] < rows[0]["loss"]
    for weight in model.get_weights():
        assert weight.dtype == np.float32
        assert (weight.view(np.uint32) & 0xFFFF).any()  # bits that bfloat16 does not have
    assert (model.layers[-1].kernel.numpy() == 0).mean() == pytest.approx(0.5 * prunes, abs=0.05)


def test_no_epochs_leave_the_model_unchanged(tmp_path: Path) -> None:
    model = two_layer_model()
    before = model.get_weights()
    assert engine.fit(model, None, make_job(tmp_path, CONFIG.replace(epochs=0))) == []
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


class Clamp(Method):
    """Sets a weight to the number of the update, and is frozen from step 10 on."""

    config_type = MagnitudePruning

    def __init__(self, model: Any) -> None:
        super().__init__(
            None, StageContext(4 * STEPS, PREPROCESSING["inception"], lambda n: np.empty(n))
        )
        self.kernel = model.get_layer("Conv").kernel

    def after_step(self, model: Any, step: Any) -> None:
        self.kernel.assign(tf.fill(self.kernel.shape, tf.cast(step, tf.float32)))

    def statistics_frozen(self, step: int) -> bool:
        return step >= 2 * STEPS


def test_after_step_runs_after_every_update(tmp_path: Path) -> None:
    model, watch = two_layer_model(), Recorder()
    config = CONFIG.replace(ma_decay_rate=0.0)
    engine.fit(model, Clamp(model), make_job(tmp_path, config, watch))
    seen = [float(weights[0].flat[0]) for weights in watch.weights]
    assert seen == list(range(1, 4 * STEPS + 1))


def test_statistics_are_frozen_while_the_method_asks_for_it(tmp_path: Path) -> None:
    model, watch = two_layer_model(), Recorder()
    engine.fit(model, Clamp(model), make_job(tmp_path, CONFIG.replace(ma_decay_rate=0.0), watch))
    index = next(i for i, w in enumerate(model.weights) if "moving_mean" in w.name)
    means = [weights[index] for weights in watch.weights]
    assert not np.array_equal(means[8], means[9])
    for mean in means[10:]:
        np.testing.assert_array_equal(mean, means[9])


def test_a_method_is_saved_with_the_state(tmp_path: Path) -> None:
    model = two_layer_model()
    method = Clamp(model)
    method.note = tf.Variable(7.0)
    engine.fit(model, method, make_job(tmp_path))
    other = two_layer_model()
    fresh = Clamp(other)
    fresh.note = tf.Variable(0.0)
    engine.fit(other, fresh, make_job(tmp_path))
    assert float(fresh.note) == 7


def as_dataset(images: np.ndarray, labels: np.ndarray) -> Any:
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(7)


def test_scores_are_those_of_keras_on_every_image() -> None:
    model = two_layer_model()
    noise = np.random.default_rng(5)
    images = noise.normal(size=(40, 6, 6, 2)).astype(np.float32)
    labels = noise.integers(0, CLASSES, 40).astype(np.int32)
    scores = scoring.score(inference.compile_model(model), as_dataset(images, labels))
    model.compile(
        loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            tf_keras.metrics.SparseCategoricalAccuracy(),
            tf_keras.metrics.SparseTopKCategoricalAccuracy(2),
        ],
    )
    loss, top1, _ = model.evaluate(as_dataset(images, labels), verbose=0)
    assert scores.loss == pytest.approx(loss, rel=1e-5)
    assert scores.top1 == pytest.approx(100 * top1, rel=1e-5)
    assert (scores.top5, scores.images) == (100, 40)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_outside_the_classes_is_refused(label: int) -> None:
    data = as_dataset(np.zeros((9, 6, 6, 2), np.float32), np.array([0] * 8 + [label], np.int32))
    with pytest.raises(UsageError, match="class indices 0 to 3.*label_offset"):
        scoring.score(inference.compile_model(two_layer_model()), data)


def test_no_images_are_refused() -> None:
    data = as_dataset(np.zeros((1, 6, 6, 2), np.float32), np.zeros(1, np.int32)).take(0)
    with pytest.raises(UsageError, match="at least one image"):
        scoring.score(inference.compile_model(two_layer_model()), data)


def test_one_trace_serves_batches_of_any_size(caplog: pytest.LogCaptureFixture) -> None:
    traces = []
    model = two_layer_model()

    def counted(images: Any, training: bool) -> Any:
        traces.append(images.shape)
        return model(images, training=training)

    counted.input_shape = model.input_shape  # type: ignore[attr-defined]
    infer = inference.compile_model(counted)
    for size in (8, 8, 3, 5, 1):
        assert infer(tf.zeros((size, 6, 6, 2))).shape == (size, CLASSES)
    assert len(traces) == 1
    assert "retracing" not in caplog.text


def test_the_average_restarts_after_the_update_that_the_method_names() -> None:
    """Right after it the average is nearly the weights themselves."""
    model = tf_keras.Sequential([tf_keras.layers.Dense(1, use_bias=False, input_shape=(1,))])
    weight, method = (
        model.weights[0],
        Method(None, StageContext(9, PREPROCESSING["inception"], lambda n: None)),
    )
    method.average_restart_step = 6
    average, expected = Average(model, 0.99), float(weight.numpy()[0, 0])
    for step in range(1, 10):
        weight.assign([[float(step)]])
        average.update(engine.average_step(tf.constant(step, tf.int64), method), pruned=False)
        count = step - 6 if step > 6 else step
        decay = min(0.99, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * step
    average.assign()
    assert weight.numpy()[0, 0] == pytest.approx(expected, rel=1e-5)
