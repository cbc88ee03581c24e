"""Dynamic surgery and weight sharing: interrupted and resumed, and read back from the int8 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from short_training import Signal, stage_context, train
from small_models import CLASSES, inputs, randomize_batch_norm, toy, zero_fraction

from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.configs.base import Config
from mobilenet.configs.pruning import DnsPruning
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.configs.run import TrainConfig
from mobilenet.configs.weight_sharing import (
    CodebookQuantization,
    LinearQuantization,
    TfmotClustering,
)
from mobilenet.export import tflite_converter
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph
from mobilenet.tflite import model as tflite_model
from mobilenet.training import engine

PREPROCESSING = stage_context().preprocessing
SURGERY = DnsPruning(frequency=2, probabilities=(1.0,), boundaries=(), lower=0.95, upper=1.02)
FIELDS = {"depthwise": 5, "pointwise": 4, "dense": 4}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SURGERY, id="dns"),
        pytest.param(CodebookQuantization(**FIELDS), id="codebook"),
        pytest.param(LinearQuantization(**FIELDS), id="linear", marks=pytest.mark.slow),
        pytest.param(TfmotClustering(**FIELDS), id="cluster", marks=pytest.mark.slow),
    ],
)
def test_a_killed_stage_resumes_to_the_same_model(config: Config, tmp_path: Path) -> None:
    """Dense kernels, masks, thresholds, parameters, labels and counts are in the resume state."""
    recipe = TrainConfig(epochs=2, batch_size=8, optimizer_name="adam", lr=0.03, ma_decay_rate=0.5)
    images = inputs(40, seed=5)
    labels = (images[:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    start = randomize_batch_norm(toy())

    def fit(name: str, *callbacks: Any) -> tuple[Any, Any]:
        method = methods.create(config, stage_context(10))
        model = method.apply(start)
        job = engine.Job(
            "prune",
            recipe,
            5,
            lambda done: data.repeat().skip(done),
            data,
            CLASSES,
            tmp_path / name,
            callbacks,
        )
        engine.fit(model, method, job)
        return method.finalize(model), method

    whole, method = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("cut", Signal(4))
    resumed, again = fit("cut")
    moved = 0.0
    for one, other, old in zip(whole.weights, resumed.weights, start.weights, strict=True):
        np.testing.assert_array_equal(one, other)
        moved = max(moved, float(tf.reduce_max(tf.abs(one - old))))
    assert moved > 0.01
    assert method.report() == again.report()
    assert method.notes(whole) == again.notes(resumed)


def test_zeros_and_shared_values_are_in_the_int8_file() -> None:
    """Zeros and clusters are read from the tensors of the file."""
    plain = randomize_batch_norm(toy(16))
    for config, steps in (
        (SURGERY, 10),
        (CodebookQuantization(depthwise=5, pointwise=3, dense=2), 2),
        (QuantizationAwareTraining(calibration_images=8), 2),
    ):
        before, method = plain, methods.create(config, stage_context(steps))
        model = method.apply(plain)
        train(model, method, steps, rate=0.005)
        plain = method.finalize(model)
    wrapped = scheme.wrap(plain, PREPROCESSING)
    scheme.set_ranges(wrapped, scheme.get_ranges(model))
    int8_saving.prepare_export(wrapped)
    content = tflite_model.read(tflite_converter.int8_flatbuffer(wrapped))
    graph = Graph(before)
    layers = [layer for layer in graph.layers if graph.kernel(layer) is not None]
    convolutions = [op for op in content.operators if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    seen = 0
    for op, layer in zip(convolutions, layers, strict=True):
        kernel = variables.kernel(layer).numpy()
        quantized = np.asarray(content.tensors[op.inputs[1]].data)
        if layer.name not in "cde":
            continue
        seen += 1
        kernel, quantized = (
            kernel.reshape(-1, kernel.shape[-1]).T,
            quantized.reshape(len(quantized), -1),
        )
        assert zero_fraction(kernel) > 0.55
        np.testing.assert_array_equal(quantized == 0, kernel == 0)
        assert len(np.unique(kernel)) <= (4 if layer.name == "e" else 8)
        for row, own in zip(quantized, kernel, strict=True):  # a channel has a scale of its own
            for value in np.unique(own):
                assert len(np.unique(row[own == value])) == 1
    assert seen == 3
