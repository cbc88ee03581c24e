"""XLA compiles the update of the weights: to the same weights, or one line names what it cannot."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402
from replica_training import BATCH, CONFIG, METHODS, STEPS, batches  # noqa: E402
from short_training import make_job, stage_context  # noqa: E402
from small_models import CLASSES, toy, two_layer_model  # noqa: E402

from mobilenet import api  # noqa: E402
from mobilenet.compression import method as methods  # noqa: E402
from mobilenet.configs.pruning import MagnitudePruning  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.training import engine  # noqa: E402

L = tf_keras.layers


def trained(name: str, folder: Path, jit: bool) -> tuple[Any, list[np.ndarray]]:
    """A model after `STEPS` steps of a method, and its weights before them."""
    of_method = METHODS[name]
    method = None if of_method is None else methods.create(of_method, stage_context(STEPS))
    model = toy() if method is None else method.apply(toy())
    before = model.get_weights()
    # A last bit decides how a value is rounded to int8, and the rate how much that changes.
    config = CONFIG.replace(optimizer_name="momentum", lr=0.0005 if name == "qat" else 0.01)
    job = engine.Job(
        "train", config, STEPS, batches, batches(0).take(1), CLASSES, folder / str(jit),
        jit_compile=jit,
    )  # fmt: skip
    engine.fit(model, method, job)
    return model, before


@pytest.mark.parametrize(
    "name",
    [
        "magnitude",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("float", "channel", "surgery", "qat", "codebook")
        ),
    ],
)
def test_weights_are_those_of_a_run_that_is_not_compiled(name: str, tmp_path: Path) -> None:
    (usual, before), (other, _) = (trained(name, tmp_path, jit) for jit in (False, True))
    moved = 0.0
    for first, one, two in zip(before, usual.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-4)
        moved = max(moved, float(np.abs(one - first).max()))
    assert moved > 1e-2
    if name == "magnitude":
        kernel = other.get_layer("d").kernel.numpy()
        assert (kernel == 0).mean() == pytest.approx(0.75, abs=0.01)
        np.testing.assert_array_equal(kernel == 0, usual.get_layer("d").kernel.numpy() == 0)


def test_an_operator_that_xla_does_not_know_is_named(tmp_path: Path) -> None:
    source = L.Input((6, 6, 2))
    x = L.UpSampling2D(interpolation="bicubic")(source)
    model = tf_keras.Model(source, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(x)))
    job = dataclasses.replace(make_job(tmp_path), jit_compile=True)
    with pytest.raises(UsageError) as caught:
        engine.fit(model, None, job)
    assert caught.value.what == "jit_compile"
    assert "ResizeBicubic" in caught.value.expected


@pytest.mark.slow
def test_a_loop_of_the_user_compiles_the_update_alone() -> None:
    """Compiled with the update, the masks did not end on a CPU."""
    weights = []
    images = np.random.default_rng(0).normal(size=(BATCH, 6, 6, 2)).astype(np.float32)
    labels = np.arange(BATCH) % CLASSES
    for jit in (False, True):
        model = two_layer_model()
        config = MagnitudePruning({"classifier": 0.5}, end=0.5, frequency=2)
        pruning = api.prune(model, config=config, steps=8, preprocessing="inception")
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        pruning.model.compile(tf_keras.optimizers.SGD(0.05), loss, jit_compile=jit)
        pruning.model.fit(images, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(pruning.finish().get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5)
    assert min((kernel == 0).mean() for kernel in weights[1] if kernel.ndim > 1) < 0.1
    assert max((kernel == 0).mean() for kernel in weights[1] if kernel.ndim > 1) > 0.4


TWO = """
import pathlib, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import dataclasses
import tf_keras
from short_training import CONFIG, make_job
from small_models import two_layer_model
from mobilenet.errors import UsageError
from mobilenet.training import engine

weights = []
for jit in (False, True):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = two_layer_model()
        config = CONFIG.replace(optimizer_name="momentum")
        job = dataclasses.replace(make_job(pathlib.Path(sys.argv[1]) / str(jit), config),
                                  jit_compile=jit)
        engine.fit(model, None, job)
        weights.append(model.get_weights())
print(max(abs(one - two).max() for one, two in zip(*weights)))
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    job = dataclasses.replace(job, checkpoints=pathlib.Path(sys.argv[1]) / "sync")
    source = tf_keras.Input((6, 6, 2))
    x = tf_keras.layers.BatchNormalization(synchronized=True)(source)
    x = tf_keras.layers.Dense(4)(tf_keras.layers.GlobalAveragePooling2D()(x))
    try:
        engine.fit(tf_keras.Model(source, x), None, job)
    except UsageError as error:
        print(error)
"""


@pytest.mark.slow
def test_on_two_replicas(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO, tmp_path], capture_output=True, text=True,
        cwd=Path(__file__).parents[1], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    difference, line = done.stdout.splitlines()[-2:]
    assert float(difference) < 1e-4
    assert line.startswith("jit_compile: got True, expected layers that need no values")
