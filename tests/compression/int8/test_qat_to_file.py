"""Every family, dense and pruned, through QAT, the folder, the file and its verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from int8_files import quantize_to_file
from short_training import stage_context, train
from small_models import INCEPTION, inputs, randomize_batch_norm, short_blocks, zero_fraction

from mobilenet.compression import method as methods
from mobilenet.compression.pruning.unstructured.masks import keep_largest
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.configs import archs
from mobilenet.configs.card import Card
from mobilenet.configs.conversion import VerificationLimits
from mobilenet.configs.pruning import MagnitudePruning
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.export import tflite_converter
from mobilenet.export.verification import verify
from mobilenet.models import saving
from mobilenet.models.builder import build
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph
from mobilenet.tflite import model as tflite_model

SHARES = {"pointwise": 0.75, "depthwise": 0.3}


def fresh(name: str, size: int, **fields: Any) -> Any:
    """A model whose statistics keep up with the few steps that it is trained for."""
    tf_keras.utils.set_random_seed(2)
    width = 0.25 if name == "mobilenet_v1" else 0.35
    fields = {"width_multiplier": width, "num_classes": 10, **fields}
    config = archs.get(name, classifier_activation=None, batch_norm_decay=0.8, **fields)
    return randomize_batch_norm(build(config, (size, size, 3)))


def train_eagerly(method: methods.Method, model: Any, steps: int, size: int) -> Any:
    """Some steps without a trace, which would cost more than they do."""
    trained = method.apply(model)
    tf.config.run_functions_eagerly(True)
    try:
        assert np.isfinite(train(trained, method, steps, size, rate=1e-4))
    finally:
        tf.config.run_functions_eagerly(False)
    return trained


def kernels(model: Any) -> dict[str, np.ndarray]:
    variables_by_layer = {layer.name: variables.kernel(layer) for layer in model.layers}
    return {
        name: kernel.numpy() for name, kernel in variables_by_layer.items() if kernel is not None
    }


def same_zeros(model: Any, data: bytes) -> dict[str, float]:
    """Of each kernel, the share of the model's zeros that are zero in the file."""
    content = tflite_model.read(data)
    operators = [op for op in content.operators if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    graph = Graph(model)
    layers = [layer for layer in graph.layers if graph.kernel(layer) is not None]
    shares = {}
    for op, layer in zip(operators, layers, strict=True):
        kernel = variables.kernel(layer).numpy()
        quantized = np.asarray(content.tensors[op.inputs[1]].data)
        depthwise = op.name == "DEPTHWISE_CONV_2D"
        # files have [1, height, width, channels] and [outputs, height, width, inputs]
        own = kernel[None, ..., 0] if depthwise else kernel.transpose(3, 0, 1, 2)
        if quantized.size != own.size:  # the stem on pairs of pixels, which is not pruned here
            continue
        zeros = (own == 0).reshape(quantized.shape)
        if zeros.any():
            shares[layer.name] = float(np.mean(quantized[zeros] == 0))
    return shares


CASES = [
    pytest.param("mobilenet_v1", True, 32),
    *(
        pytest.param(name, pruned, 64, marks=pytest.mark.slow)
        for name in archs.names()
        for pruned in (False, True)
    ),
]


@pytest.mark.parametrize(("name", "pruned", "size"), CASES)
def test_every_family_trains_exports_and_verifies(name: str, pruned: bool, size: int) -> None:
    plain = fresh(name, size, **({} if size == 64 else {"blocks": short_blocks(name)}))
    if pruned:
        config = MagnitudePruning(SHARES, end=1.0, frequency=1)
        method = methods.create(config, stage_context(2, size))
        plain = method.finalize(train_eagerly(method, plain, 2, size))
    method = methods.create(
        QuantizationAwareTraining(calibration_images=32), stage_context(2, size)
    )
    trained = train_eagerly(method, plain, 2, size)
    model, ranges = method.finalize(trained), scheme.get_ranges(trained)
    wrapped = scheme.wrap(model, INCEPTION)
    scheme.set_ranges(wrapped, ranges)
    images = inputs(16, size)
    outputs = wrapped(images, training=False).numpy()
    np.testing.assert_array_equal(outputs, trained(images, training=False))
    int8_saving.prepare_export(wrapped)
    data = tflite_converter.int8_flatbuffer(wrapped)
    # After two steps all outputs are similar: structure is required, top-1 is not.
    verification = verify.verify(
        data,
        outputs,
        scheme.to_grid(images, INCEPTION),
        expect_int8=True,
        io="int8",
        limits=VerificationLimits(),
    )
    assert verification.ok, verification.faults
    assert (verification.float_tensors, verification.partitions) == (0, 1)
    if pruned:
        graph = Graph(model)
        for layer in graph.layers:
            if graph.role(layer) in SHARES:
                share = SHARES[graph.role(layer)]
                assert zero_fraction(graph.kernel(layer)) == pytest.approx(share, abs=0.02), (
                    layer.name
                )
        assert min(same_zeros(model, data).values()) >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_edgetpu"]
)
def test_zeros_survive_pruning_qat_saving_and_more_training(name: str, tmp_path: Path) -> None:
    size = 32
    config = MagnitudePruning(SHARES, end=1.0, frequency=1)
    method = methods.create(config, stage_context(2, size))
    model = method.finalize(train_eagerly(method, fresh(name, size), 2, size))
    start = kernels(model)
    for turn, steps in enumerate((4, 20)):
        method = methods.create(
            QuantizationAwareTraining(calibration_images=32), stage_context(20, size)
        )
        trained = train_eagerly(method, model, steps, size)
        model, target = method.finalize(trained), tmp_path / str(turn)
        saving.save(model, target, Card({}, (size, size, 3), INCEPTION, ("x",) * 10))
        int8_saving.save_ranges(target, scheme.get_ranges(trained))
        model = saving.load(target).model
    wrapped = int8_saving.load(target)
    int8_saving.prepare_export(wrapped)
    data = tflite_converter.int8_flatbuffer(wrapped)
    for layer, kernel in kernels(model).items():
        assert np.any(kernel != start[layer]), layer  # it has trained
        np.testing.assert_array_equal(kernel == 0, start[layer] == 0)
    shares = same_zeros(model, data)
    assert len(shares) > 10
    assert min(shares.values()) >= 0.999


@pytest.mark.slow
def test_a_pruned_file_compresses_to_less_than_half_of_a_dense_one() -> None:
    """V1 at full width; narrower models have more biases and scales, which do not shrink."""
    model = fresh("mobilenet_v1", 32, width_multiplier=1.0)
    dense = verify.gzip_size(quantize_to_file(model, 32).data)
    graph = Graph(model)
    for layer in graph.layers:
        kernel, share = graph.kernel(layer), SHARES.get(graph.role(layer))
        if share is not None:
            kernel.assign(kernel * keep_largest(tf.convert_to_tensor(kernel), tf.constant(share)))
    sparse = verify.gzip_size(quantize_to_file(model, 32).data)
    assert sparse <= 0.46 * dense
