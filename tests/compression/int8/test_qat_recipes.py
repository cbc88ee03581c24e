"""The two recipes, from scratch with a delay and from a trained model; ranges of a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from short_training import stage_context, train
from small_models import CLASSES, INCEPTION, file_inputs, inputs, pixels, randomize_batch_norm, toy

from mobilenet import trainer
from mobilenet.compression import method as methods
from mobilenet.compression.method import StageContext
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import (
    calibrate,
    set_ranges_from_checkpoint,
)
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.configs.training import TrainConfig
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.tflite import model as tflite_model
from mobilenet.training import engine
from mobilenet.training.optimization.ema import Average

EPOCH, EPOCHS, DELAY = 4, 5, 6  # quantization starts in the middle of the second epoch
CONFIG = TrainConfig(
    epochs=EPOCHS,
    batch_size=8,
    optimizer_name="sgd",
    learning_scheduler_name="constant",
    lr=0.02,
    ma_decay_rate=0.0,
)


class Watch(tf_keras.callbacks.Callback):
    """Records weights and ranges after every step; can interrupt the run after an epoch."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.kernels: list[np.ndarray] = []
        self.highs: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        model = self.model.model
        name = "quant_c" if hasattr(model, "phase") else "c"
        weights = {v.name.split("/")[-1]: v for v in model.get_layer(name).weights}
        self.kernels.append(weights["kernel:0"].numpy())
        if hasattr(model, "phase"):
            self.highs.append(float(scheme.get_ranges(model)["b_act"][1]))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.stop_after:
            raise KeyboardInterrupt


def make_job(folder: Path, shift: float, *watchers: Any, **fields: Any) -> engine.Job:
    """Batches that are a function of their number; `shift` moves the images to the file's grid."""
    images = inputs(8 * EPOCH * EPOCHS, seed=5)
    labels = (images[:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)
    data = tf.data.Dataset.from_tensor_slices((images + np.float32(shift), labels)).batch(8)
    config = CONFIG.replace(**fields)
    return engine.Job(
        "quantize",
        config,
        EPOCH,
        lambda start: data.skip(start),
        data.take(2),
        CLASSES,
        folder,
        watchers,
    )


def delayed(**fields: Any) -> methods.Method:
    config = QuantizationAwareTraining(
        **{"quant_delay": DELAY, "freeze": 0.8, "calibration_images": 32, **fields}
    )
    return methods.create(config, stage_context(EPOCH * EPOCHS))


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Watch]:
    """A run with a delay, and its record."""
    method, watch = delayed(), Watch()
    model = method.apply(toy())
    engine.fit(model, method, make_job(tmp_path_factory.mktemp("full_run"), 0.0, watch))
    return model, watch


def test_the_model_trains_in_float_before_the_delay_and_quantized_after_it(
    tmp_path: Path, full_run: tuple[Any, Watch]
) -> None:
    """Compared with a plain model on the same pixels and grid."""
    floats, watch = Watch(), full_run[1]
    engine.fit(toy(), None, make_job(tmp_path, -0.5 / 127.5, floats))
    differences = [
        float(np.abs(a - b).max()) for a, b in zip(floats.kernels, watch.kernels, strict=True)
    ]
    assert max(differences[:DELAY]) < 1e-6
    assert min(differences[DELAY:]) > 1e-5
    assert watch.highs[0] > 0  # observed from the first step on
    frozen_from = round(0.8 * EPOCH * EPOCHS)
    assert len(set(watch.highs[:frozen_from])) > 10
    assert len(set(watch.highs[frozen_from - 1 :])) == 1  # and then frozen


def test_the_first_observation_is_the_range() -> None:
    """tfmot's initial -6..6 takes thousands of steps to change."""
    wrapped = delayed().apply(toy())
    before = scheme.get_ranges(wrapped)
    assert all(tuple(bounds) == (0, 0) for bounds in before.values())
    wrapped(inputs(8), training=True)
    model = toy()
    for name, bounds in scheme.get_ranges(wrapped).items():
        layer = tf_keras.Model(model.input, model.get_layer(name).output)
        seen = layer(inputs(8) - np.float32(0.5 / 127.5), training=True).numpy()
        np.testing.assert_allclose(
            bounds, [min(seen.min(), 0), max(seen.max(), 0)], rtol=1e-3, atol=1e-5
        )


def operators(model: Any) -> list[str]:
    """Kinds of the operators of a training step's forward pass."""
    step = tf.function(lambda x: model(x, training=True))
    graph = step.get_concrete_function(tf.TensorSpec((8, 16, 16, 3))).graph
    return [op.type for op in graph.get_operations()]


def test_a_step_before_the_delay_has_no_quantization_operators() -> None:
    method = delayed()
    model = method.apply(toy())
    early = operators(model)
    assert early.count("FakeQuantWithMinMaxVars") == 0
    assert early.count("Floor") == 0
    assert early.count("Max") == 7  # the activations' own
    assert not method.before_step(DELAY - 1)
    assert method.before_step(DELAY)
    assert not method.before_step(DELAY + 1)
    late = operators(model)
    assert late.count("FakeQuantWithMinMaxVars") == 7
    assert late.count("Floor") == 5
    assert "If" not in early + late


@pytest.mark.parametrize("stop", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_before_and_after_the_delay(
    tmp_path: Path, stop: int, full_run: tuple[Any, Watch]
) -> None:
    method = delayed()
    with pytest.raises(KeyboardInterrupt):
        engine.fit(method.apply(toy()), method, make_job(tmp_path, 0.0, Watch(stop)))
    method = delayed()
    resumed = method.apply(toy())
    engine.fit(resumed, method, make_job(tmp_path, 0.0))
    for one, other in zip(resumed.get_weights(), full_run[0].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_tensor_that_stayed_zero_through_the_delay_gets_a_range() -> None:
    model = toy()
    for part in (model.get_layer("d").kernel, model.get_layer("d").bias):
        part.assign(tf.zeros_like(part))
    method = delayed()
    wrapped = method.apply(model)
    wrapped(inputs(8), training=True)
    assert tuple(scheme.get_ranges(wrapped)["d_act"]) == (0, 0)
    method.before_step(DELAY)
    scheme.check_ranges(scheme.get_ranges(wrapped))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quant_delay": 20}, "got 20, expected less than the 20 steps of the quantize stage"),
        ({"quant_delay": 15, "freeze": 0.7}, "less than the 14 steps before ranges are frozen"),
    ],
)
def test_a_delay_beyond_the_stage_is_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        methods.create(QuantizationAwareTraining(**fields), stage_context(20))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    methods.create(QuantizationAwareTraining(quant_delay=19, freeze=1.0), stage_context(20))


@pytest.mark.parametrize("delay", [-1, 0.5])
def test_a_delay_is_a_number_of_steps(delay: Any) -> None:
    with pytest.raises(UsageError, match="^quant_delay.*a whole number at least 0"):
        QuantizationAwareTraining(quant_delay=delay)


def test_the_trainer_refuses_it_before_it_writes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    args = ["--width_multiplier=0.25", "--image_size=32", "--stages=quantize"]
    with pytest.raises(UsageError, match="^--quant_delay: got 40, expected less than the 39 steps"):
        trainer.run([*args, "--quantize_epochs=1", "--quant_delay=40", "--model_dir=run"])
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_digits_are_learned_from_scratch_with_a_delay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No float stage before; without a delay a model from scratch is refused."""
    monkeypatch.chdir(tmp_path)
    args = ["--width_multiplier=0.25", "--image_size=32", "--stages=quantize,convert"]
    with pytest.raises(UsageError, match="a trained model in the run folder"):
        trainer.run([*args, "--model_dir=refused"])
    recipe = ["--quantize_epochs=20", "--quantize_lr=0.004", "--quant_delay=300"]
    trainer.run([*args, *recipe, "--model_dir=run"])
    content = tflite_model.read(tmp_path / "run/export/model.tflite")
    assert content.float_tensors() == []
    stages = json.loads((tmp_path / "run/report.json").read_text())["stages"]
    assert [entry["stage"] for entry in stages] == ["quantize", "convert"]
    assert min(entry["top1"] for entry in stages) > 90


def test_averaged_weights_fit_the_ranges_of_the_trained_weights() -> None:
    """Ranges follow the weights in training; the final weights are an average of those."""
    model = toy()
    train(model, None, 60)
    method = methods.create(QuantizationAwareTraining(), stage_context(60))
    wrapped = method.apply(model)
    average = Average(wrapped, 0.95)
    train(wrapped, method, 60, rate=0.02, after_update=lambda step: average.update(step))
    ranges = scheme.get_ranges(wrapped)
    own = wrapped.get_weights()
    average.assign()
    assert any(np.any(a != b) for a, b in zip(own, wrapped.get_weights(), strict=True))
    for name, bounds in scheme.get_ranges(wrapped).items():
        np.testing.assert_array_equal(
            bounds, ranges[name]
        )  # ranges are not averaged: they are moving averages already
    fresh = scheme.wrap(method.finalize(wrapped), INCEPTION)
    calibrate(fresh, inputs(256, seed=5))
    for name, bounds in scheme.get_ranges(fresh).items():
        assert 0.6 < np.ptp(ranges[name]) / np.ptp(bounds) < 1.6, name
    images = inputs(300, seed=21)
    plain = method.finalize(wrapped)(images, training=False).numpy().argmax(1)
    simulated = wrapped(images, training=False).numpy().argmax(1)
    assert np.mean(plain == simulated) > 0.97
    assert np.mean(simulated == (images[:, :, :, 0].mean((1, 2)) > 0)) > 0.85


CHECKPOINT_RANGES = {
    "a_act": (-0.0, 5.5),
    "sum": (-3.25, 4.5),
    "c_norm": (-2.0, 0.0),
    "a_norm": (-1.0, 1.0),  # inside a fused operator
    "a/kernel": (-0.3, 0.3),
    "d_act": (0.0, 0.0),
    "e": (1.0, 2.0),
    "pool": (0.0, float("nan")),
    "elsewhere": (0.0, 1.0),
}


def test_valid_ranges_of_a_checkpoint_are_used() -> None:
    model = randomize_batch_norm(toy())
    wrapped, calibrated = scheme.wrap(model, INCEPTION), scheme.wrap(model, INCEPTION)
    calibrate(calibrated, inputs(32))
    expected = scheme.get_ranges(calibrated)
    notes = set_ranges_from_checkpoint(wrapped, CHECKPOINT_RANGES, inputs(32))
    for name, bounds in scheme.get_ranges(wrapped).items():
        own = CHECKPOINT_RANGES[name] if name in ("a_act", "sum", "c_norm") else expected[name]
        np.testing.assert_allclose(bounds, own, rtol=1e-6)
    assert notes[0] == "3 of 7 activation ranges from the checkpoint, the others calibrated"
    assert "not used, not quantized in the file: a_norm, elsewhere" in notes
    assert "not used, zero is outside: d_act, e, pool" in notes
    assert len(notes) == 3


def test_a_range_that_the_arithmetic_fixes_is_not_used() -> None:
    source = tf_keras.layers.Input((16, 16, 3))
    x = tf_keras.layers.Conv2D(4, 3, 2, name="conv")(source)
    y = tf_keras.layers.Rescaling(1.0, 3.0, name="shift")(x)
    y = tf_keras.layers.ReLU(6.0, name="six")(y)
    x = tf_keras.layers.Multiply(name="product")([x, y])
    wrapped = scheme.wrap(tf_keras.Model(source, x), INCEPTION)
    notes = set_ranges_from_checkpoint(wrapped, {"six": (0.0, 5.0)}, inputs(4))
    assert tuple(scheme.get_ranges(wrapped)["six"]) == (0, 6)
    assert "not used, fixed by the arithmetic: six" in notes


def test_a_rectified_range_starts_at_zero() -> None:
    """In a checkpoint the range of a ReLU6 may start a little below zero; no value ever is."""
    wrapped = scheme.wrap(randomize_batch_norm(toy()), INCEPTION)
    set_ranges_from_checkpoint(wrapped, {"a_act": (-0.02, 6.0), "sum": (-0.02, 6.0)}, inputs(4))
    assert tuple(scheme.get_ranges(wrapped)["a_act"]) == (0, 6)
    assert scheme.get_ranges(wrapped)["sum"][0] == np.float32(-0.02)


def test_training_starts_from_the_ranges_of_its_stage_and_the_file_has_them() -> None:
    ranges = {"a_act": (0.0, 5.5), "sum": (-13.0, 14.0)}
    context = StageContext(20, INCEPTION, lambda count: inputs(count), initial_ranges=ranges)
    method = methods.create(QuantizationAwareTraining(calibration_images=32), context)
    model = method.apply(randomize_batch_norm(toy()))
    assert scheme.get_ranges(model)["a_act"][1] == np.float32(5.5)
    assert any("2 of 7" in line for line in method.notes(model))
    int8_saving.prepare_export(model)
    content = tflite_model.read(tflite_converter.int8_flatbuffer(model))
    add = next(op for op in content.operators if op.name == "ADD")
    scale = float(content.tensors[add.outputs[0]].scales[0])
    assert scale == pytest.approx(27 / 255, rel=1e-6)
    outputs = model(file_inputs(pixels(4)), training=False).numpy()
    assert np.isfinite(outputs).all()


def test_without_ranges_of_a_checkpoint_there_is_no_note_of_them() -> None:
    method = methods.create(QuantizationAwareTraining(calibration_images=8), stage_context())
    assert not any("from the checkpoint" in line for line in method.notes(method.apply(toy())))
