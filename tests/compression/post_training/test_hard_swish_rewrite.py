"""Hard-swish rewritten with a kernel: the same function, with channels that can be scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras
from int8_files import Int8Model, operator_steps
from small_models import (
    INCEPTION,
    hard_swish_model,
    inputs,
    model_outputs,
    narrow_v3,
    pixels,
    relative_error,
)

from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.quantizer_placement import (
    expand_float_layers,
    find_depthwise_hard_swishes,
    find_hard_swishes,
    match_float_layers,
)
from mobilenet.compression.quantization.post_training import (
    hard_swish_equalization,
    hard_swish_rewrite,
)
from mobilenet.compression.quantization.post_training import pipeline as post_training_pipeline
from mobilenet.compression.quantization.post_training.observer import Observation, Observer
from mobilenet.compression.quantization.post_training.scaling_groups import ScalingGroups
from mobilenet.configs.quantization import PostTraining
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.models.graph.roles import Graph
from mobilenet.runtime import interpreter
from mobilenet.tflite import model as tflite_model

PX = 64  # squeeze-excite maps are larger than one position
PLAIN = ("equalize", "maximum", "repair")


@pytest.fixture(scope="module")
def small() -> Any:
    """Do not change it."""
    return narrow_v3(PX)


@pytest.fixture(scope="module")
def rewritten_model(small: Any) -> Any:
    """The same model, rewritten; do not change it."""
    return hard_swish_rewrite.rewrite_hard_swish(small, ())[0]


def assert_same(outputs: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * np.abs(expected).max())


def test_rewriting_changes_no_output(small: Any, rewritten_model: Any) -> None:
    before = find_hard_swishes(Graph(small))
    graph = Graph(rewritten_model)
    rewritten = find_depthwise_hard_swishes(graph)
    assert [x.product.name for x in rewritten] == [x.product.name for x in before]
    assert [x.source.name for x in rewritten] == [x.source.name for x in before]
    assert find_hard_swishes(graph) == []
    assert len(rewritten_model.layers) == len(small.layers) - len(rewritten)
    assert_same(model_outputs(rewritten_model, inputs(6, PX)), model_outputs(small, inputs(6, PX)))


def test_any_factor_passes_a_rewritten_hard_swish(small: Any) -> None:
    copy, count = hard_swish_rewrite.rewrite_hard_swish(small, ())
    groups, rng = ScalingGroups(Graph(copy)), np.random.default_rng(0)
    passed = [s for s in groups if groups.depthwise_hard_swishes_in(s)]
    assert len(passed) == count == len(find_depthwise_hard_swishes(Graph(copy)))
    for group in passed:
        assert group.is_scalable
        group.scale(2.0 ** rng.uniform(-3, 3, group.channels))
    assert_same(model_outputs(copy, inputs(6, PX)), model_outputs(small, inputs(6, PX)))


def test_inputs_whose_output_is_zero_do_not_count(rewritten_model: Any) -> None:
    copy = tf_keras.models.clone_model(rewritten_model)
    copy.set_weights(rewritten_model.get_weights())
    gate = find_depthwise_hard_swishes(Graph(copy))[0]
    scales = np.linspace(0.5, 2, gate.convolution.output_shape[-1]).astype(np.float32)
    gate.convolution.set_weights([scales.reshape(1, 1, -1, 1), np.full(len(scales), 3.0)])
    thresholds = -3.0 / scales.astype(np.float64)
    np.testing.assert_allclose(hard_swish_rewrite.zero_thresholds(gate), thresholds)
    odd = [np.array([0, -1, *scales[2:]]).reshape(1, 1, -1, 1), np.full(len(scales), 3.0)]
    falling = tf_keras.models.clone_model(copy)
    other = find_depthwise_hard_swishes(Graph(falling))[0]
    other.convolution.set_weights(odd)
    assert list(hard_swish_rewrite.zero_thresholds(other)[:2]) == [-np.inf, -np.inf]
    low, high = np.full(len(scales), -4.0), np.full(len(scales), 1.0)
    low[0], high[1] = -0.5, 9.0
    seen = {gate.source.name: Observation(low, high, 0 * low)}
    expected = np.maximum(high, np.minimum(-low, -thresholds))
    np.testing.assert_allclose(
        hard_swish_rewrite.active_abs_max(gate, seen[gate.source.name]), expected
    )
    assert hard_swish_rewrite.lower_bounds([gate], seen) == {
        gate.source.name: max(-4.0, thresholds[1])
    }
    assert hard_swish_rewrite.lower_bounds([gate], {}) == {}


@pytest.fixture(scope="module")
def bent() -> Any:
    """A model whose hard-swish reads some channels that are much smaller than others; do not change
    it."""
    model = hard_swish_model()
    groups = ScalingGroups(Graph(model))
    (hard_swish,) = groups.hard_swishes
    before, after = groups.of(hard_swish.source), groups.of(hard_swish.product)
    factors = np.where(np.arange(before.channels) % 2 == 0, 1 / 60, 1.0)
    before.scale(factors)
    after.scale(factors)
    return model


def test_an_addend_of_a_hard_swish_is_scaled_with_it_or_nothing_is(bent: Any) -> None:
    """V3-large has a residual sum there: rewriting scales the addend, equalization skips it."""
    model, count = hard_swish_rewrite.rewrite_hard_swish(bent)
    assert count == 1
    assert_same(model_outputs(model, inputs(6)), model_outputs(bent, inputs(6)))
    plain = hard_swish_model()
    before = model_outputs(plain, inputs(6))
    seen = Observer(plain)(["norm"], inputs(6), sampled={"norm": 10})
    assert hard_swish_equalization.equalize_hard_swish(ScalingGroups(Graph(plain)), seen) == (
        {},
        {},
        {},
    )
    np.testing.assert_array_equal(model_outputs(plain, inputs(6)), before)


def test_rewriting_lets_unequal_channels_be_equalized(bent: Any) -> None:
    images, unseen = inputs(24), inputs(12, seed=7)
    plain = post_training_pipeline.quantize(bent, INCEPTION, images, PostTraining(steps=PLAIN))
    result = post_training_pipeline.quantize(
        bent, INCEPTION, images, PostTraining(steps=("gates", *PLAIN))
    )
    assert result.notes[1] == "gates: 1 hard-swish written with a kernel, outputs unchanged"
    assert (result.steps[0].name, result.steps[0].accepted) == ("gates", True)
    assert result.steps[0].agreement is None  # exact: there is nothing to compare
    assert any(step.name == "equalize" and step.accepted for step in result.steps)
    expected = model_outputs(bent, unseen)
    assert relative_error(model_outputs(result.wrapped, unseen), expected) < 0.3 * relative_error(
        model_outputs(plain.wrapped, unseen), expected
    )
    assert_same(model_outputs(result.plain, unseen), expected)


def test_a_rewritten_model_becomes_a_file_of_one_partition(bent: Any) -> None:
    steps = ("gates", "equalize", "percentile", "clip", "bias", "repair")
    result = post_training_pipeline.quantize(bent, INCEPTION, inputs(24), PostTraining(steps=steps))
    int8_saving.prepare_export(result.wrapped, result.repair)
    data = tflite_converter.int8_flatbuffer(result.wrapped)
    assert tflite_model.read(data).float_tensors() == []
    assert interpreter.partitions(interpreter.make_interpreter(data)) == 1
    file = Int8Model(result.plain, result.wrapped, {}, data, np.zeros(0))
    for layer, off in operator_steps(file, pixels(2, seed=9)).items():
        assert off.max() <= 1, layer


def test_the_resulting_model_is_wrapped_again_as_it_was(bent: Any) -> None:
    config = PostTraining(steps=("gates", "equalize", "maximum", "clip", "repair"))
    result = post_training_pipeline.quantize(bent, INCEPTION, inputs(16), config)
    again = scheme.wrap(result.plain, INCEPTION)
    scheme.set_ranges(again, scheme.get_ranges(result.wrapped))
    unseen = inputs(4, seed=7)
    np.testing.assert_array_equal(
        model_outputs(again, unseen), model_outputs(result.wrapped, unseen)
    )


def test_hard_swishes_in_float_are_not_rewritten(small: Any, bent: Any) -> None:
    result = post_training_pipeline.quantize(
        bent, INCEPTION, inputs(16), PostTraining(steps=("gates", *PLAIN), keep_float=("first",))
    )
    assert result.notes[1].startswith("gates: 0 hard-swishes")
    assert len(find_hard_swishes(Graph(result.plain))) == 1
    graph = Graph(small)
    names = [x.product.name for x in find_hard_swishes(graph)]
    floats = expand_float_layers(
        graph, match_float_layers(graph, ["Conv", "expanded_conv_depthwise"])
    )
    rewritten, count = hard_swish_rewrite.rewrite_hard_swish(small, floats)
    assert [x.product.name for x in find_hard_swishes(Graph(rewritten))] == names[:1]
    assert count == len(names) - 1


def test_gates_precede_the_automatic_steps(small: Any) -> None:
    assert post_training_pipeline.chosen_steps(small, PostTraining(steps=("gates", "auto"))) == (
        *("gates", "equalize", "hard_swish", "percentile"),
        *("clip", "bias", "tune", "repair"),
    )


@pytest.mark.parametrize("steps", [("auto", "gates"), ("gates",), ("maximum", "gates")])
def test_gates_in_the_wrong_order_are_refused(steps: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="^steps: got .*steps in the order gates,"):
        PostTraining(steps=steps)
