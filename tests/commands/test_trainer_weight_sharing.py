"""Dynamic surgery and weight sharing, read back from the int8 file."""

from __future__ import annotations

import numpy as np
from short_training import stage_context, train
from small_models import randomize_batch_norm, toy, zero_fraction

from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.configs.pruning import DnsPruning
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.configs.weight_sharing import (
    CodebookQuantization,
)
from mobilenet.export import tflite_converter
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph
from mobilenet.tflite import model as tflite_model

PREPROCESSING = stage_context().preprocessing
SURGERY = DnsPruning(frequency=2, probabilities=(1.0,), boundaries=(), lower=0.95, upper=1.02)
FIELDS = {"depthwise": 5, "pointwise": 4, "dense": 4}


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
