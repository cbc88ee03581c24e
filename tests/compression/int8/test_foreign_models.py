"""Models of keras.applications in tf_keras: V1 and V2 are converted, V3 is refused."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from short_training import stage_context, train
from small_models import INCEPTION, file_inputs, inputs, pixels, randomize_batch_norm, zero_fraction

from mobilenet import trainer
from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.configs.pruning import MagnitudePruning
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.export.freeze import float32_copy
from mobilenet.export.verification import verify
from mobilenet.models import saving
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


def test_v3_is_refused_with_layer_and_remedy() -> None:
    message = refusal(foreign(3))
    assert message.startswith("layer tf.__operators__.add")
    assert "rebuild it from its weights" in message
    assert "\n" not in message


@pytest.mark.slow
def test_the_remedy_works_as_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = foreign(3)
    message = refusal(model)
    match = re.search(r"(model\.save_weights\('model\.h5'\)), then (.*?) with its", message)
    assert match is not None
    monkeypatch.chdir(tmp_path)
    exec(match[1], {"model": model})  # as typed
    args = shlex.split(match[2])
    assert args[:3] == ["python", "-m", "mobilenet.trainer"]
    more = ["--model_name=mobilenet_v3_small", "--width_multiplier=0.75", "--image_size=32"]
    trainer.run([*args[3:], *more, "--stages=train", "--epochs=0", "--model_dir=run"])
    built = saving.load(tmp_path / "run/train").model
    theirs = model.get_layer("Conv").get_weights()[0]
    np.testing.assert_array_equal(built.get_layer("Conv").get_weights()[0], theirs)
