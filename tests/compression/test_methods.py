"""The method interface: every registered method is applied, trained for two steps and finalized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from int8_files import Int8Model, operator_steps, quantize_to_file
from short_training import stage_context, train
from small_models import (
    INCEPTION,
    file_inputs,
    inputs,
    pixels,
    randomize_batch_norm,
    toy,
    zero_fraction,
)

from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.configs import archs
from mobilenet.configs.base import Config
from mobilenet.configs.card import Card
from mobilenet.configs.pruning import PRUNING, DnsPruning, MagnitudePruning, TfmotPruning
from mobilenet.configs.quantization import QUANTIZATION, QuantizationAwareTraining
from mobilenet.configs.weight_sharing import (
    CodebookQuantization,
    LinearQuantization,
    TfmotClustering,
)
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.export.freeze import float32_copy
from mobilenet.export.verification.verify import verify
from mobilenet.models import saving
from mobilenet.models.builder import build
from mobilenet.models.graph import variables
from mobilenet.tflite import model as tflite_model


def half_is_zero(model: Any, plain: Any, ranges: Any) -> None:
    for name in "cd":
        assert zero_fraction(plain.get_layer(name).kernel) == 0.5


def zeros_are_by_size(model: Any, plain: Any, ranges: Any) -> None:
    for name, share in {"a": 0, "b": 0, "c": 0.675, "d": 0.75}.items():
        kernel = variables.kernel(plain.get_layer(name))
        assert zero_fraction(kernel) == pytest.approx(share, abs=1 / 64)


def values_are_few(model: Any, plain: Any, ranges: Any) -> None:
    for name in "cd":
        kernel = variables.kernel(plain.get_layer(name)).numpy()
        assert 2 < len(np.unique(kernel)) <= 2**5 < kernel.size


def every_quantizer_has_a_range(model: Any, plain: Any, ranges: Any) -> None:
    scheme.check_ranges(ranges)
    again = scheme.wrap(plain, INCEPTION)
    scheme.set_ranges(again, ranges)
    np.testing.assert_array_equal(
        again(inputs(4), training=False), model(inputs(4), training=False)
    )


# What holds of the model that a method returns; a method without an entry fails its test.
CONSTRAINTS: dict[type[Config], Callable[[Any, Any, Any], None]] = {
    MagnitudePruning: half_is_zero,
    DnsPruning: zeros_are_by_size,
    LinearQuantization: values_are_few,
    CodebookQuantization: values_are_few,
    TfmotClustering: values_are_few,
    TfmotPruning: half_is_zero,
    QuantizationAwareTraining: every_quantizer_has_a_range,
}
REGISTERED = [*PRUNING.values(), *QUANTIZATION.values()]


# Eight bits, the default, are more values than a kernel of the toy has weights.
FIELDS = {kind: {"pointwise": 5} for kind, check in CONSTRAINTS.items() if check is values_are_few}


# One returns a model of other shapes, the other does not train: see `test_channel_pruning.py` and
# `test_post_training.py`.
_TESTED_ELSEWHERE = ("ChannelPruning", "PostTraining")


@pytest.mark.parametrize(
    "config",
    [kind for kind in REGISTERED if kind.__name__ not in _TESTED_ELSEWHERE],
    ids=lambda kind: kind.__name__,
)
def test_a_method_returns_a_plain_model_that_meets_its_constraints(config: type[Config]) -> None:
    model = randomize_batch_norm(toy())
    method = methods.create(config(**FIELDS.get(config, {})), stage_context(2))
    assert type(method).config_type is config
    method.check(model)
    trained = method.apply(model)
    before = model.get_weights()
    train(trained, method, 2)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    ranges = int8_saving.ranges_of(trained)
    plain = method.finalize(trained)
    assert all(type(layer).__module__.startswith("tf_keras.") for layer in plain.layers)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    assert [w.shape for w in plain.weights] == [w.shape for w in model.weights]
    assert plain.output_shape == model.output_shape
    assert method.notes(trained)
    CONSTRAINTS[config](trained, plain, ranges)


def test_a_config_without_a_method_is_an_error() -> None:
    with pytest.raises(UsageError, match="MagnitudePruning"):
        methods.create(Config(), stage_context())


def test_a_config_has_one_method() -> None:
    methods.create(MagnitudePruning(), stage_context())

    class Second(methods.Method):
        config_type = MagnitudePruning

    with pytest.raises(ValueError, match="already"):
        methods.register(Second)


def pruned(model: Any, shares: dict[str, float], size: int = 16) -> Any:
    method = methods.create(
        MagnitudePruning(final_sparsity=shares, frequency=1), stage_context(3, size)
    )
    trained = method.apply(model)
    train(trained, method, 3, size, rate=0.001)
    return method.finalize(trained)


def kernel_zeros(model: Any) -> dict[str, float]:
    kernels = {layer.name: variables.kernel(layer) for layer in model.layers}
    return {name: zero_fraction(kernel) for name, kernel in kernels.items() if kernel is not None}


def file_zeros(data: bytes) -> list[float]:
    """Share of quantized zeros of every kernel, in execution order."""
    content = tflite_model.read(data)
    kernels = [op for op in content.operators if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    return [zero_fraction(content.tensors[op.inputs[1]].data) for op in kernels]


def quantized_twice(model: Any, path: Path, size: int, steps: int) -> tuple[Any, bytes]:
    """QAT, save, load, QAT again; the last model and its file."""
    config = QuantizationAwareTraining(calibration_images=32)
    for turn in range(2):
        method = methods.create(config, stage_context(steps, size))
        trained = method.apply(model)
        train(trained, method, steps, size, rate=0.001)
        ranges, plain = scheme.get_ranges(trained), method.finalize(trained)
        target = path / str(turn)
        card = Card({}, (size, size, 3), INCEPTION, ("a",) * plain.output_shape[-1])
        saving.save(plain, target, card)
        int8_saving.save_ranges(target, ranges)
        model = saving.load(target).model
    wrapped = int8_saving.load(target)
    np.testing.assert_array_equal(
        wrapped(inputs(2, size), training=False), trained(inputs(2, size), training=False)
    )
    int8_saving.prepare_export(wrapped)
    return model, tflite_converter.int8_flatbuffer(wrapped)


def test_zeros_stay_through_training_saving_and_more_training(tmp_path: Path) -> None:
    """tfmot loses the depthwise zeros at once and all others after reloading."""
    start = pruned(toy(), {"pointwise": 0.75, "depthwise": 0.3})
    before = kernel_zeros(start)
    assert before == pytest.approx({"a": 0, "b": 0.3, "c": 0.75, "d": 0.75, "e": 0}, abs=0.01)
    model, data = quantized_twice(start, tmp_path, 16, 8)
    assert kernel_zeros(model) == before
    in_file = dict(zip("abcde", file_zeros(data), strict=True))
    assert all(in_file[name] >= before[name] for name in "bcd")
    assert in_file["e"] < 0.1
    moved = [np.any(a != b) for a, b in zip(start.get_weights(), model.get_weights(), strict=True)]
    assert all(moved)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_zeros_of_a_family_stay(name: str, tmp_path: Path) -> None:
    fields = {"width_multiplier": 0.25, "num_classes": 10, "classifier_activation": None}
    start = pruned(
        randomize_batch_norm(build(archs.get(name, **fields), (32, 32, 3))),
        {"pointwise": 0.75, "depthwise": 0.3},
        32,
    )
    before = kernel_zeros(start)
    model, data = quantized_twice(start, tmp_path, 32, 4)
    assert kernel_zeros(model) == before
    in_file = dict(zip(before, file_zeros(data), strict=True))
    assert all(in_file[layer] >= share for layer, share in before.items())
    assert sorted(before.values())[len(before) // 2] >= 0.3


def trained_file() -> Int8Model:
    """The toy model trained on its task, plainly and by QAT."""
    model = toy()
    train(model, None, 60)
    method = methods.create(QuantizationAwareTraining(), stage_context(20))
    trained = method.apply(model)
    train(trained, method, 20, rate=0.005)
    ranges = scheme.get_ranges(trained)
    wrapped = scheme.wrap(method.finalize(trained), INCEPTION)
    scheme.set_ranges(wrapped, ranges)
    int8_saving.prepare_export(wrapped)
    logits = trained(inputs(300, seed=21), training=False).numpy()
    return Int8Model(None, wrapped, ranges, tflite_converter.int8_flatbuffer(wrapped), logits)


def test_the_file_of_a_trained_model_has_the_outputs_of_training() -> None:
    int8 = trained_file()
    images, logits = pixels(300, seed=21), int8.logits
    labels = inputs(300, seed=21)[:, :, :, 0].mean((1, 2)) > 0
    assert np.mean(logits.argmax(1) == labels) > 0.85
    exported = int8.wrapped(file_inputs(images), training=False).numpy()
    np.testing.assert_allclose(exported, logits, atol=1e-4)
    verification = verify(int8.data, logits, file_inputs(images), expect_int8=True, io="int8")
    assert verification.ok
    assert verification.clear_images > 200
    assert verification.agreement_clear == 1.0
    assert verification.mean_steps < 1
    assert max(off.max() for off in operator_steps(int8, images[:8]).values()) <= 1


def test_ranges_move_with_training_and_are_frozen_later() -> None:
    method = methods.create(QuantizationAwareTraining(freeze=0.5), stage_context(10))
    assert [method.statistics_frozen(step) for step in (0, 4, 5, 9)] == [
        False,
        False,
        True,
        True,
    ]
    model = method.apply(randomize_batch_norm(toy()))
    start = scheme.get_ranges(model)
    train(model, method, 3)
    after = scheme.get_ranges(model)
    assert all(np.any(start[name] != after[name]) for name in start if name != "input")


@pytest.mark.slow
def test_models_of_keras_applications_go_through() -> None:
    """keras.applications' V1, built with tf_keras; its softmax is cut off first."""
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.applications.MobileNet((32, 32, 3), 0.25, weights=None, classes=4)
    start = pruned(randomize_batch_norm(float32_copy(model)), {"pointwise": 0.5}, 32)
    int8 = quantize_to_file(start, 32)
    assert tflite_model.read(int8.data).float_tensors() == []
    shares = file_zeros(int8.data)
    assert sum(share >= 0.5 for share in shares) >= 13
