"""Models of keras.applications in tf_keras are pruned, quantized and converted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras
from short_training import stage_context, train
from small_models import (
    INCEPTION,
    OWN_MODELS,
    file_inputs,
    inputs,
    model_outputs,
    own_inputs,
    own_model,
    pixels,
    randomize_batch_norm,
    zero_fraction,
)

from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import calibration, scheme
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8.quantizer_placement import find_hard_swishes
from mobilenet.configs.pruning import MagnitudePruning
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.export.freeze import float32_copy
from mobilenet.export.verification import verify
from mobilenet.models.graph.final_activation import split_final_activation
from mobilenet.models.graph.roles import Graph
from mobilenet.models.input_preprocessing import resolve
from mobilenet.runtime import interpreter
from mobilenet.tflite import model as tflite_model

SHAPE = (32, 32, 3)


def foreign(version: int) -> Any:
    tf_keras.utils.set_random_seed(0)
    if version == 1:
        return tf_keras.applications.MobileNet(SHAPE, 0.25, weights=None, classes=4)
    if version == 2:
        return tf_keras.applications.MobileNetV2(SHAPE, 0.35, weights=None, classes=4)
    return tf_keras.applications.MobileNetV3Small(SHAPE, 0.75, weights=None, classes=4)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_v1_and_v2_are_pruned_quantized_and_converted(version: int) -> None:
    """From their own graph: zero padding, global pool with a reshape, and a softmax, cut off."""
    plain = randomize_batch_norm(float32_copy(foreign(version)))
    config = MagnitudePruning({"pointwise": 0.5}, end=1.0, frequency=1)
    method = methods.create(config, stage_context(2, 32))
    model = method.apply(plain)
    train(model, method, 2, 32, rate=0.001)
    sparse = method.finalize(model)
    method = methods.create(QuantizationAwareTraining(calibration_images=32), stage_context(2, 32))
    model = method.apply(sparse)
    train(model, method, 2, 32, rate=0.001)
    simulated = model(inputs(32, 32), training=False).numpy()
    repaired = int8_saving.prepare_export(model)
    data = tflite_converter.int8_flatbuffer(model)
    content = tflite_model.read(data)
    assert content.float_tensors() == []
    kernels = [op for op in content.operators if op.name == "CONV_2D"]
    sparse_kernels = [zero_fraction(content.tensors[op.inputs[1]].data) >= 0.49 for op in kernels]
    assert sum(sparse_kernels) >= len(kernels) - 2  # all but the stem and the classifier
    outputs = verify.run(interpreter.make_interpreter(data), file_inputs(pixels(32, 32)))
    correlation = np.corrcoef(
        (outputs - outputs.mean(0)).ravel(), (simulated - simulated.mean(0)).ravel()
    )[0, 1]
    assert correlation > 0.9, repaired


def test_with_its_softmax_it_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match="classifier_activation=None"):
        scheme.wrap(foreign(1), INCEPTION)


def refusal(model: Any) -> str:
    with pytest.raises(UsageError) as error:
        scheme.wrap(model, INCEPTION)
    return str(error.value)


def test_the_operators_of_v3_are_refused_with_layer_and_remedy() -> None:
    message = refusal(foreign(3))
    assert message.startswith("layer tf.__operators__.add")
    assert "mobilenet.quantize makes a flat model of stock layers" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "v3" else pytest.mark.slow) for n in OWN_MODELS]
)
def test_own_models_are_quantized_once_they_are_flat(name: str) -> None:
    model, images = own_model(name), own_inputs(name, 32)
    preprocessing = resolve(model)
    logits, _ = split_final_activation(model)
    wrapped = scheme.wrap(logits, preprocessing)
    calibration.calibrate(wrapped, images)
    scheme.check_ranges(scheme.get_ranges(wrapped))
    if name.startswith("v3"):  # two in each of 8 blocks, and three around them
        assert len(find_hard_swishes(Graph(logits))) == 19
    outputs, expected = model_outputs(wrapped, images), model_outputs(logits, images)
    # Errors of random weights grow along the 17 residual blocks of V2.
    least = 0.6 if "v2" in name else 0.9
    assert np.corrcoef(outputs.ravel(), expected.ravel())[0, 1] > least
