"""Faults of the backends that the scheme is designed around, each seen to exist and then avoided.

Others are in `test_converter_workarounds.py` (dead channels and biases), `test_int8_families.py`
(quantizers and scales), `test_methods.py` (zeros) and `test_replicas.py` (replicas).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from int8_files import operator_steps, quantize_to_file
from short_training import stage_context
from small_models import CLASSES, INCEPTION, SIZE, L, inputs, pixels, randomize_batch_norm, toy

from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import calibrate
from mobilenet.compression.quantization.int8.quantizers import ActivationQuantizer, WeightQuantizer
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.models.graph import variables
from mobilenet.tflite import model as tflite_model


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [("conv", (1, 1, 96, 64)), ("conv", (3, 3, 8, 5)), ("depthwise", (5, 5, 64, 1))],
)
def test_rounding_equals_the_fake_quant_operator_bit_for_bit(
    kind: str, shape: tuple[int, ...], traced: bool
) -> None:
    """Training rounds by other operators than the file is made from; they must not differ."""
    quantizer = WeightQuantizer(kind)
    rng = np.random.default_rng(1)
    channels = shape[2] if kind == "depthwise" else shape[3]
    for size in (1e-12, 1e-3, 1.0, 1e6):
        spread = size * np.exp(rng.normal(0, 3, channels))
        kernel = rng.normal(size=shape) * (spread[:, None] if kind == "depthwise" else spread)
        kernel = kernel.astype(np.float32)
        flat = kernel.reshape(-1, channels)
        abs_max = np.abs(flat).max(0)
        expected = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            flat, -abs_max, abs_max, 8, narrow_range=True
        )
        call = lambda k: quantizer(k, True, {})  # noqa: E731
        rounded = (tf.function(call) if traced else call)(tf.constant(kernel))
        np.testing.assert_array_equal(rounded.numpy().reshape(-1, channels), expected.numpy())


@pytest.mark.parametrize("size", [0.0, 1e-44, 2e-38, 3e-37, 1e-30, 1e-19])
def test_a_tiny_kernel_stays_finite(size: float) -> None:
    """Weight decay leaves dead channels of 1e-37 in released models; their scale has no inverse."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)
    kernel[..., 2] = size
    rounded = WeightQuantizer("conv")(tf.constant(kernel), True, {}).numpy()
    assert np.isfinite(rounded).all()
    assert np.abs(rounded[..., 2]).max() <= max(2 * size, 0)
    assert np.isfinite(WeightQuantizer("conv")(tf.zeros((3, 3, 4, 6)) + size, True, {})).all()


def test_a_dense_classifier_has_one_scale_and_converts() -> None:
    """A scale for each channel is an error of the converter there."""
    source = L.Input((SIZE, SIZE, 3))
    x = L.ReLU(6.0, name="a_act")(L.Conv2D(8, 3, 2, name="a")(source))
    x = L.GlobalAveragePooling2D(name="pool")(x)
    quantized = quantize_to_file(tf_keras.Model(source, L.Dense(CLASSES, name="e")(x)))
    content = tflite_model.read(quantized.data)
    dense = next(op for op in content.operators if op.name == "FULLY_CONNECTED")
    kernel = content.tensors[dense.inputs[1]]
    assert kernel.dtype == "int8"
    assert len(kernel.scales) == 1
    assert content.float_tensors() == []
    assert max(off.max() for off in operator_steps(quantized, pixels(8)).values()) <= 1


def test_the_variable_of_a_called_wrappers_kernel_is_found() -> None:
    """Code that reads `layer.kernel` works on a stale value from the first call on."""
    wrapped = scheme.wrap(toy(), INCEPTION)
    calibrate(wrapped, inputs(4))
    layer = wrapped.get_layer("quant_c")
    assert not isinstance(layer.layer.kernel, tf.Variable)
    kernel = variables.kernel(layer)
    assert isinstance(kernel, tf.Variable)
    kernel.assign(kernel + 1.0)
    plain = scheme.unwrap(wrapped, toy())
    np.testing.assert_array_equal(plain.get_layer("c").kernel, kernel)


def test_a_bright_batch_does_not_change_the_input_grid_and_ranges_recover() -> None:
    """tfmot's input range keeps the largest value it ever saw."""
    method = methods.create(QuantizationAwareTraining(calibration_images=32), stage_context())
    model = method.apply(randomize_batch_norm(toy()))
    entry = tf_keras.Model(model.input, model.get_layer("quant_input").output)
    images, before = inputs(8), scheme.get_ranges(model)
    expected = entry(images).numpy()
    model(50 * images, training=True)
    np.testing.assert_array_equal(entry(images), expected)
    assert len(np.unique(expected)) > 100
    quantizer, weights = ActivationQuantizer(), {"low": tf.Variable(-1.0), "high": tf.Variable(1.0)}
    quantizer(tf.constant([-50.0, 50.0]), True, weights)
    assert float(weights["high"]) == pytest.approx(1.49)
    for _ in range(300):
        quantizer(tf.constant([-1.0, 1.0]), True, weights)
    assert float(weights["high"]) == pytest.approx(1.0, abs=0.03)
    assert set(before) == set(scheme.get_ranges(model))


def test_the_low_of_rectified_outputs_stays_zero() -> None:
    wrapped = scheme.wrap(randomize_batch_norm(toy()), INCEPTION)
    rectified = {
        name
        for name, quantizer in scheme.quantizers(wrapped).items()
        if isinstance(quantizer, ActivationQuantizer) and quantizer.rectified
    }
    assert rectified == {"a_act", "b_act", "d_act"}
    calibrate(wrapped, inputs(8))
    for _ in range(3):
        wrapped(inputs(8, seed=1), training=True)
    for name, (low, _) in scheme.get_ranges(wrapped).items():
        assert (low == 0) == (name in rectified | {"pool"})


WORKER = """
import json, sys
import numpy as np, tensorflow as tf, tf_keras
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from short_training import stage_context
from small_models import inputs, toy
from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import scheme, saving as stored
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.export import tflite_converter as convert, freeze
from mobilenet.tflite import model as flatbuffer
from mobilenet.training.engine import Learner

images = inputs(64, seed=5)
labels = (images[:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)
with strategy.scope():
    method = methods.create(QuantizationAwareTraining(calibration_images=16), stage_context(4))
    model = method.apply(toy())
    learner = Learner(model, lambda step: method.after_step(model, step))
    learner.compile(
        tf_keras.optimizers.SGD(0.05),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16).with_options(options)
    learner.fit(data.repeat(), steps_per_epoch=4, epochs=1, verbose=0)
    ranges = scheme.get_ranges(model)
    plain = method.finalize(model)
trained = tf.function(lambda x: model(x, training=False))
graph = trained.get_concrete_function(tf.TensorSpec((1, 16, 16, 3))).graph
collectives = sum("Collective" in op.type for op in graph.get_operations())
plain = freeze.float32_copy(plain)
again = scheme.wrap(plain, stage_context().preprocessing)
scheme.set_ranges(again, ranges)
stored.prepare_export(again)
content = flatbuffer.read(convert.int8_flatbuffer(again))
print(json.dumps({
    "collectives": collectives,
    "float": len(content.float_tensors()),
    "operators": len(content.operators),
    "range": ranges["sum"].tolist(),
    "kernel": float(np.abs(plain.get_layer("c").get_weights()[0]).sum()),
}))
"""


def _port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_two_workers_train_one_model_and_each_can_convert_it() -> None:
    """The trained model's own graph reads its statistics by collectives, which no file can hold."""
    workers = [f"localhost:{_port()}" for _ in range(2)]
    started = []
    for index in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(task),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
            ),
            "CUDA_VISIBLE_DEVICES": "",
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    reports: list[dict[str, Any]] = []
    try:
        for process in started:
            out, error = process.communicate(timeout=400)
            assert process.returncode == 0, error[-3000:]
            reports.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in started:
            process.kill()
    first, second = reports
    assert first["collectives"] > 0
    assert (first["float"], first["operators"]) == (0, second["operators"])
    assert first["range"] == second["range"]
    assert first["kernel"] == pytest.approx(second["kernel"], rel=1e-6)
