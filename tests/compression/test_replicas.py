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
from mobilenet.compression.quantization.int8 import scheme, saving as stored
from mobilenet.configs.weight_sharing import CodebookQuantization
from mobilenet.configs.pruning import ChannelPruning, DnsPruning, MagnitudePruning, TfmotPruning
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.export import tflite_converter as convert, freeze
from mobilenet.training.ema import Average
from mobilenet.training.engine import Learner

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
images = inputs(96, seed=5)
labels = (images[:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)

def copies(variable):
    return [np.asarray(value).tolist() for value in strategy.experimental_local_results(variable)]

def train(net, method, steps, callbacks=()):
    average = Average(net, 0.9)
    def behind(step):
        method.after_step(net, step)
        average.update(step)
    learner = Learner(net, behind)
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
    net = method.apply(toy())
    train(net, method, 6)
    found = {"tfmot": copies(variables.kernel(net.get_layer("prune_low_magnitude_c")))}
    config = MagnitudePruning({"c": 0.5}, pattern="2:4", frequency=2)
    method = methods.create(config, stage_context(6))
    net = method.apply(toy())
    train(net, method, 6)
    found["groups"] = copies(net.get_layer("c").kernel)
    config = DnsPruning(frequency=2, probabilities=(0.6,), boundaries=())
    method = methods.create(config, stage_context(6))
    net = method.apply(toy())
    train(net, method, 6)
    found["surgery"] = copies(net.get_layer("d").kernel)
    found["twins"] = copies(method.surgery.dense["d"])
    found["mask_changes"] = copies(method.surgery.mask_changes["d"])
    method = methods.create(CodebookQuantization(pointwise=4), stage_context(3))
    coded = method.apply(net)
    train(coded, method, 3)
    found["values"] = copies(coded.get_layer("coded_d").numbers["values"])
    found["coded"] = method.finalize(coded).get_layer("d").kernel.numpy().tolist()
    method = methods.create(ChannelPruning({"all": 0.5}, round_to=1, frequency=2), stage_context(6))
    net = method.apply(toy())
    enter = lambda batch, logs=None: method.before_step(batch)
    train(net, method, 6, [tf_keras.callbacks.LambdaCallback(on_batch_begin=enter)])
    found["channels"] = copies(net.get_layer("c").kernel)
    found["means"] = copies(net.get_layer("c_norm").moving_mean)
    found["whole"] = net(images[:8], training=False).numpy().tolist()
    found["thin"] = method.finalize(net)(images[:8], training=False).numpy().tolist()
    method = methods.create(
        MagnitudePruning(frequency=2, final_sparsity={"pointwise": 0.75}), stage_context(6)
    )
    net = method.apply(toy())
    before = net.get_layer("c").kernel.numpy()
    average, loss = train(net, method, 6)
    kernel = net.get_layer("c").kernel
    place = next(i for i, w in enumerate(average.weights) if w is kernel)
    found["masks"] = copies(method.masks.masks["c"])
    found["kernels"] = copies(kernel)
    found["averages"] = copies(average.shadows[place])
    found["moved"] = bool(np.any(before != kernel.numpy()))
    found["loss"] = loss
    plain = method.finalize(net)
    method = methods.create(QuantizationAwareTraining(calibration_images=32), stage_context(6))
    net = method.apply(plain)
    start = scheme.get_ranges(net)
    _, found["quantized_loss"] = train(net, method, 6)
    found["held"] = copies(variables.kernel(net.get_layer("quant_c")))
    ranges = scheme.get_ranges(net)
    found["ranges"] = {name: [start[name].tolist(), span.tolist()] for name, span in ranges.items()}
    low = scheme.quantizers(net)["sum"].variables["high"]
    found["local"] = copies(low)
    found["said"] = net(images[:8], training=False).numpy().tolist()
    plain = method.finalize(net)
plain = freeze.float32_copy(plain)
again = scheme.wrap(plain, INCEPTION)
scheme.set_ranges(again, ranges)
found["rebuilt"] = again(images[:8], training=False).numpy().tolist()
stored.for_export(again)
found["bytes"] = len(convert.int8_flatbuffer(again))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_patterns_hold_on_both_replicas(found: dict) -> None:
    first, second = (np.array(value) for value in found["groups"])
    np.testing.assert_array_equal(first, second)
    assert (np.sum(first.reshape(2, 4, 8) == 0, axis=1) == 2).all()  # 8 inputs, 8 outputs


def test_channels_are_silent_on_both_replicas_and_cut_out(found: dict) -> None:
    first, second = (np.array(value) for value in found["channels"])
    np.testing.assert_array_equal(first, second)
    heard = (first != 0).any((0, 1, 2))
    assert heard.sum() == 4 and ((first != 0).any((0, 1, 3)) == heard).all()  # one tied group
    for mean in found["means"]:
        assert (np.array(mean)[~heard] == 0).all()
    np.testing.assert_allclose(found["thin"], found["whole"], atol=1e-5)


def test_surgery_is_the_same_on_both_replicas(found: dict) -> None:
    for name in ("surgery", "twins", "mask_changes", "values"):
        first, second = (np.array(value) for value in found[name])
        np.testing.assert_array_equal(first, second)
    kernel, twin = np.array(found["surgery"][0]), np.array(found["twins"][0])
    assert np.mean(kernel == 0) == 0.75
    np.testing.assert_array_equal(kernel[kernel != 0], twin[kernel != 0])
    assert (twin != 0).all()
    coded = np.array(found["coded"])
    np.testing.assert_array_equal(coded == 0, kernel == 0)
    assert len(np.unique(coded)) <= 2**4


def test_masks_and_pruned_kernels_are_equal_on_both_replicas(found: dict) -> None:
    for name in ("masks", "kernels", "averages", "tfmot"):
        first, second = (np.array(value) for value in found[name])
        np.testing.assert_array_equal(first, second)
        assert np.mean(first == 0) == 0.75
    assert found["moved"]
    assert found["loss"] < 2


def test_zeros_hold_and_ranges_are_the_mean_of_both_replicas(found: dict) -> None:
    """A range of its own on each replica would leave it to chance which one is kept."""
    first, second = (np.array(value) for value in found["held"])
    np.testing.assert_array_equal(first, second)
    assert np.mean(first == 0) == 0.75
    local = found["local"]
    assert len(local) == 2
    assert found["ranges"]["sum"][1][1] == pytest.approx(np.mean(local), rel=1e-6)
    assert all(np.any(np.array(old) != new) for old, new in found["ranges"].values())
    assert found["quantized_loss"] < 2


def test_the_net_leaves_the_strategy_as_it_was(found: dict) -> None:
    np.testing.assert_allclose(found["said"], found["rebuilt"], atol=1e-5)
    assert found["bytes"] > 1000
