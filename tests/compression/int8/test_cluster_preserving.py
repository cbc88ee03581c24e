"""Kernels of few distinct values keep their clusters through QAT, saving and more training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tf_keras
from short_training import stage_context, train
from small_models import INCEPTION, randomize_batch_norm, toy

from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.cluster_preserving import Clusters, is_clustered
from mobilenet.configs.card import Card
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.export import tflite_converter
from mobilenet.models import saving
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import unwrap
from mobilenet.tflite import model as tflite_model

VALUES = np.array([-0.3, -0.1, 0.0, 0.15, 0.4], np.float32)


def kernels(model: Any) -> dict[str, np.ndarray]:
    by_name = {unwrap(x).name: variables.kernel(x) for x in model.layers}
    return {name: kernel.numpy() for name, kernel in by_name.items() if kernel is not None}


def clustered() -> tf_keras.Model:
    """The toy model with five values in every kernel of enough weights."""
    model = randomize_batch_norm(toy(16))
    draw = np.random.default_rng(3)
    for layer in model.layers:
        kernel = variables.kernel(layer)
        if kernel is not None and kernel.shape.num_elements() >= 64:
            kernel.assign(draw.choice(VALUES, kernel.shape))
    return model


def partition(kernel: np.ndarray) -> np.ndarray:
    return np.unique(kernel, return_inverse=True)[1].ravel()


def same_clusters(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    clustered = [name for name, kernel in before.items() if len(np.unique(kernel)) == len(VALUES)]
    assert len(clustered) >= 3
    for name in clustered:
        np.testing.assert_array_equal(partition(after[name]), partition(before[name]))
        assert (after[name][before[name] == 0] == 0).all()
        assert not np.array_equal(after[name], before[name])  # the values train


def test_clusters_stay_through_training_saving_and_more_training(tmp_path: Path) -> None:
    plain = clustered()
    first = kernels(plain)
    for name in ("once", "again"):
        method = methods.create(QuantizationAwareTraining(calibration_images=8), stage_context(4))
        model = method.apply(plain)
        train(model, method, 4, rate=0.005)
        assert any("5 distinct weights preserved" in note for note in method.notes(model))
        ranges = scheme.get_ranges(model)
        plain = method.finalize(model)
        same_clusters(first, kernels(plain))
        saved = saving.save(plain, tmp_path / name, Card(preprocessing=INCEPTION))
        int8_saving.save_ranges(saved, ranges)
        plain = saving.load(saved).model
    wrapped = int8_saving.load(tmp_path / "again")
    int8_saving.prepare_export(wrapped)
    content = tflite_model.read(tflite_converter.int8_flatbuffer(wrapped))
    for op in content.operators:
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            quantized = content.tensors[op.inputs[1]].data
            if quantized.size >= 64:
                rows = quantized if op.name == "CONV_2D" else np.moveaxis(quantized, 3, 0)
                assert max(len(np.unique(row)) for row in rows) <= len(VALUES)


def test_a_step_is_the_mean_of_the_cluster() -> None:
    plain = clustered()
    layer = next(x for x in plain.layers if x.name in same_size(plain))
    kernel = variables.kernel(layer)
    clusters = Clusters({layer.name: kernel})
    before = kernel.numpy()
    moved = before + np.random.default_rng(4).normal(0, 0.01, before.shape).astype(np.float32)
    kernel.assign(moved)
    clusters.apply()
    for value in VALUES:
        chosen = before == value
        np.testing.assert_allclose(kernel.numpy()[chosen], moved[chosen].mean(), rtol=1e-5)


def same_size(model: Any) -> list[str]:
    return [name for name, kernel in kernels(model).items() if is_clustered(kernel)]


def test_a_dense_kernel_is_left_alone() -> None:
    plain = randomize_batch_norm(toy(16))
    assert (
        Clusters(
            {
                x.name: variables.kernel(x)
                for x in plain.layers
                if x.weights[:1] and variables.kernel(x) is not None
            }
        ).counts
        == {}
    )
    assert not is_clustered(np.zeros((8, 8)))
    assert not is_clustered(np.full((8, 8), 0.5))  # one value is no cluster to keep
    assert not is_clustered(np.arange(1.0, 65.0))
    assert is_clustered(np.tile([0.5, -0.5], 32))
