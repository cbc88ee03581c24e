"""Two replicas on one machine: every stage works, and the replicas stay equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_runs import SHORT, report

from mobilenet.errors import UsageError
from mobilenet.training import strategy

pytest.importorskip("tensorflow")

TWO = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
tf.distribute.MirroredStrategy = lambda: strategy
assert strategy.num_replicas_in_sync == 2
from mobilenet import trainer
trainer.run(sys.argv[1:])
"""


@pytest.mark.slow
def test_all_stages_on_two_replicas(tmp_path: Path) -> None:
    args = [*SHORT, "--batch_size=16", "--distribution_strategy=mirrored", "--model_dir=run"]
    done = subprocess.run(
        [sys.executable, "-c", TWO, *args], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "39 steps an epoch" in done.stdout  # 1257 // (2 * 16)
    assert "32 images a step, 16 on each of 2 replicas" in done.stdout
    entries = report(tmp_path / "run")
    assert list(entries) == ["train", "prune", "quantize", "convert"]
    assert entries["prune"]["nonzero_weights"] < 0.6 * entries["train"]["nonzero_weights"]
    assert entries["convert"]["verification"]["float_tensors"] == 0


TAUGHT = """
import sys, pathlib
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import dataclasses
from short_training import CONFIG, Recorder, make_job
from small_models import two_layer_model
from mobilenet.configs.dataset import PREPROCESSING
from mobilenet.configs.distillation import Distillation
from mobilenet.training import engine
from mobilenet.training.distillation.teacher_model import TeacherModel

preprocessing, watch = PREPROCESSING["inception"], Recorder()
teacher = TeacherModel(two_layer_model(), preprocessing, "twin")
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = two_layer_model()
    config = CONFIG.replace(keep_best=True, epochs=2, ma_decay_rate=0.0)
    job = make_job(pathlib.Path(sys.argv[1]), config, watch)
    distillation = Distillation(weight=1.0, features=1.0)
    job = dataclasses.replace(job, teacher=teacher.teacher(distillation, preprocessing))
    rows = engine.fit(model, None, job)
    again = two_layer_model()
    assert engine.fit(again, None, job) == rows  # from the state after the last epoch
best_epoch = next(int(row["epoch"]) for row in rows if row["kept"])
for weight, then in zip(model.get_weights(), watch.weights[5 * best_epoch - 1], strict=True):
    np.testing.assert_allclose(weight, then, rtol=1e-6)
for weight, first in zip(again.get_weights(), model.get_weights(), strict=True):
    np.testing.assert_array_equal(weight, first)
print("loss", rows[0]["loss"])
"""


def test_a_teacher_and_the_best_epoch_on_two_replicas(tmp_path: Path) -> None:
    """The model starts as its teacher, so that their distance stays small next to a
    cross-entropy.
    """
    done = subprocess.run(
        [sys.executable, "-c", TAUGHT, tmp_path], capture_output=True, text=True,
        cwd=Path(__file__).parents[1], env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 < float(done.stdout.split()[-1]) < 0.5


CURVES = """
import json, pathlib, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from replica_training import curve

folder = pathlib.Path(sys.argv[1])
one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
curves = {
    name: [curve(name, one, folder / "one"), curve(name, two, folder / "two")]
    for name in sys.argv[2:]
}
print(json.dumps(curves))
"""


@pytest.mark.parametrize(
    "names",
    [
        ["qat"],
        pytest.param(
            ["float", "magnitude", "channel", "surgery", "codebook"], marks=pytest.mark.slow
        ),
    ],
)
def test_losses_on_two_replicas_are_those_of_one_device(names: list[str], tmp_path: Path) -> None:
    """At the same images a step; all state of model, optimizer, average and method is the same on
    both replicas at the end.
    """
    done = subprocess.run(
        [sys.executable, "-c", CURVES, tmp_path, *names], capture_output=True, text=True,
        cwd=Path(__file__).parents[1], env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (one, two) in json.loads(done.stdout.splitlines()[-1]).items():
        assert len(one["losses"]) == 20 and one["losses"][0] > one["losses"][-1]
        np.testing.assert_allclose(two["losses"], one["losses"], atol=1e-3, rtol=0, err_msg=name)
        assert two["apart"] == 0, name


@pytest.mark.parametrize("name", ["none", "mirrored"])
def test_a_strategy_by_name(name: str) -> None:
    kinds = {"none": "_DefaultDistributionStrategy", "mirrored": "MirroredStrategy"}
    assert type(strategy.create_strategy(name)).__name__ == kinds[name]


def test_an_unknown_strategy_and_absent_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean mirrored"):
        strategy.create_strategy("miror")
    with pytest.raises(UsageError, match="^distribution_strategy: got 'tpu'.*its devices"):
        strategy.create_strategy("tpu")
