"""Pruning and QAT on two replicas: masks and ranges equal, training works. Two logical CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import json, sys
import numpy as np, tensorflow as tf, tf_keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from short_training import stage_context
from small_models import INCEPTION, inputs, toy
from mobilenet.compression import method as methods
from mobilenet.models.graph import variables
from mobilenet.compression.quantization.int8 import scheme, saving
from mobilenet.configs.weight_sharing import CodebookQuantization
from mobilenet.configs.pruning import ChannelPruning, DnsPruning, MagnitudePruning, TfmotPruning
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.export import tflite_converter as convert, freeze
from mobilenet.training.optimization.ema import Average
from mobilenet.training.engine import Learner

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
images = inputs(96, seed=5)
labels = (images[:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)

def copies(variable):
    return [np.asarray(value).tolist() for value in strategy.experimental_local_results(variable)]

def train(model, method, steps, callbacks=()):
    average = Average(model, 0.9)
    def after_update(step):
        method.after_step(model, step)
        average.update(step)
    learner = Learner(model, after_update)
    learner.compile(
        tf_keras.optimizers.SGD(0.05, momentum=0.9),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16).repeat()
    history = learner.fit(
        data, steps_per_epoch=steps, epochs=1, verbose=0, callbacks=list(callbacks)
    )
    return average, history.history["loss"][0]

with strategy.scope():
    method = methods.create(TfmotPruning({"pointwise": 0.75}, frequency=2), stage_context(6))
    model = method.apply(toy())
    train(model, method, 6)
    kernel = variables.kernel(model.get_layer("prune_low_magnitude_c"))
    results = {"tfmot": copies(kernel)}
    config = MagnitudePruning({"c": 0.5}, pattern="2:4", frequency=2)
    method = methods.create(config, stage_context(6))
    model = method.apply(toy())
    train(model, method, 6)
    results["groups"] = copies(model.get_layer("c").kernel)
    config = DnsPruning(frequency=2, probabilities=(0.6,), boundaries=())
    method = methods.create(config, stage_context(6))
    model = method.apply(toy())
    train(model, method, 6)
    results["surgery"] = copies(model.get_layer("d").kernel)
    results["dense"] = copies(method.surgery.dense["d"])
    results["mask_changes"] = copies(method.surgery.mask_changes["d"])
    method = methods.create(CodebookQuantization(pointwise=4), stage_context(3))
    coded = method.apply(model)
    train(coded, method, 3)
    results["values"] = copies(coded.get_layer("coded_d").parameters["values"])
    results["coded"] = method.finalize(coded).get_layer("d").kernel.numpy().tolist()
    pruning = ChannelPruning(ratio={"all": 0.5}, round_to=1, frequency=2)
    method = methods.create(pruning, stage_context(6))
    model = method.apply(toy())
    before_step = lambda batch, logs=None: method.before_step(batch)
    train(model, method, 6, [tf_keras.callbacks.LambdaCallback(on_batch_begin=before_step)])
    results["channels"] = copies(model.get_layer("c").kernel)
    results["means"] = copies(model.get_layer("c_norm").moving_mean)
    results["masked"] = model(images[:8], training=False).numpy().tolist()
    results["thin"] = method.finalize(model)(images[:8], training=False).numpy().tolist()
    method = methods.create(
        MagnitudePruning(frequency=2, final_sparsity={"pointwise": 0.75}), stage_context(6)
    )
    model = method.apply(toy())
    before = model.get_layer("c").kernel.numpy()
    average, loss = train(model, method, 6)
    kernel = model.get_layer("c").kernel
    index = next(i for i, w in enumerate(average.weights) if w is kernel)
    results["masks"] = copies(method.masks.masks["c"])
    results["kernels"] = copies(kernel)
    results["averages"] = copies(average.shadows[index])
    results["moved"] = bool(np.any(before != kernel.numpy()))
    results["loss"] = loss
    plain = method.finalize(model)
    method = methods.create(QuantizationAwareTraining(calibration_images=32), stage_context(6))
    model = method.apply(plain)
    start = scheme.get_ranges(model)
    _, results["quantized_loss"] = train(model, method, 6)
    results["frozen"] = copies(variables.kernel(model.get_layer("quant_c")))
    ranges = scheme.get_ranges(model)
    results["ranges"] = {
        name: [start[name].tolist(), limits.tolist()] for name, limits in ranges.items()
    }
    low = scheme.quantizers(model)["sum"].variables["high"]
    results["local"] = copies(low)
    results["outputs"] = model(images[:8], training=False).numpy().tolist()
    plain = method.finalize(model)
plain = freeze.float32_copy(plain)
again = scheme.wrap(plain, INCEPTION)
scheme.set_ranges(again, ranges)
results["rebuilt"] = again(images[:8], training=False).numpy().tolist()
saving.prepare_export(again)
results["bytes"] = len(convert.int8_flatbuffer(again))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results() -> dict:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=900
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def test_patterns_hold_on_both_replicas(results: dict) -> None:
    first, second = (np.array(value) for value in results["groups"])
    np.testing.assert_array_equal(first, second)
    assert (np.sum(first.reshape(2, 4, 8) == 0, axis=1) == 2).all()  # 8 inputs, 8 outputs


def test_channels_are_pruned_on_both_replicas_and_cut_out(results: dict) -> None:
    first, second = (np.array(value) for value in results["channels"])
    np.testing.assert_array_equal(first, second)
    active = (first != 0).any((0, 1, 2))
    assert active.sum() == 4 and ((first != 0).any((0, 1, 3)) == active).all()  # one tied group
    for mean in results["means"]:
        assert (np.array(mean)[~active] == 0).all()
    np.testing.assert_allclose(results["thin"], results["masked"], atol=1e-5)


def test_surgery_is_the_same_on_both_replicas(results: dict) -> None:
    for name in ("surgery", "dense", "mask_changes", "values"):
        first, second = (np.array(value) for value in results[name])
        np.testing.assert_array_equal(first, second)
    kernel, dense = np.array(results["surgery"][0]), np.array(results["dense"][0])
    assert np.mean(kernel == 0) == 0.75
    np.testing.assert_array_equal(kernel[kernel != 0], dense[kernel != 0])
    assert (dense != 0).all()
    coded = np.array(results["coded"])
    np.testing.assert_array_equal(coded == 0, kernel == 0)
    assert len(np.unique(coded)) <= 2**4


def test_masks_and_pruned_kernels_are_equal_on_both_replicas(results: dict) -> None:
    for name in ("masks", "kernels", "averages", "tfmot"):
        first, second = (np.array(value) for value in results[name])
        np.testing.assert_array_equal(first, second)
        assert np.mean(first == 0) == 0.75
    assert results["moved"]
    assert results["loss"] < 2


def test_zeros_hold_and_ranges_are_equal_on_both_replicas(results: dict) -> None:
    """With a range of its own on each replica, the saved one would be arbitrary."""
    first, second = (np.array(value) for value in results["frozen"])
    np.testing.assert_array_equal(first, second)
    assert np.mean(first == 0) == 0.75
    local = results["local"]
    assert len(local) == 2 and local[0] == local[1]
    assert results["ranges"]["sum"][1][1] == pytest.approx(local[0], rel=1e-6)
    assert all(np.any(np.array(old) != new) for old, new in results["ranges"].values())
    assert results["quantized_loss"] < 2


def test_the_model_is_the_same_outside_the_strategy(results: dict) -> None:
    np.testing.assert_allclose(results["outputs"], results["rebuilt"], atol=1e-5)
    assert results["bytes"] > 1000
