"""Hard-swish written with a kernel: the same function, open to a factor per channel."""

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

PX = 64  # squeeze-excite maps are larger than one place
PLAIN = ("equalize", "maximum", "repair")


@pytest.fixture(scope="module")
def small() -> Any:
    """Do not change it."""
    return narrow_v3(PX)


@pytest.fixture(scope="module")
def gated(small: Any) -> Any:
    """The same with gates; do not change it."""
    return hard_swish_rewrite.rewrite_hard_swish(small, ())[0]


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_gates_change_no_output(small: Any, gated: Any) -> None:
    before = find_hard_swishes(Graph(small))
    graph = Graph(gated)
    found = find_depthwise_hard_swishes(graph)
    assert [x.product.name for x in found] == [x.product.name for x in before]
    assert [x.source.name for x in found] == [x.source.name for x in before]
    assert find_hard_swishes(graph) == []
    assert len(gated.layers) == len(small.layers) - len(found)
    same(model_outputs(gated, inputs(6, PX)), model_outputs(small, inputs(6, PX)))


def test_any_factor_passes_a_gate(small: Any) -> None:
    copy, count = hard_swish_rewrite.rewrite_hard_swish(small, ())
    groups, rng = ScalingGroups(Graph(copy)), np.random.default_rng(0)
    passed = [s for s in groups if groups.depthwise_hard_swishes_in(s)]
    assert len(passed) == count == len(find_depthwise_hard_swishes(Graph(copy)))
    for group in passed:
        assert group.is_scalable
        group.scale(2.0 ** rng.uniform(-3, 3, group.channels))
    same(model_outputs(copy, inputs(6, PX)), model_outputs(small, inputs(6, PX)))


def test_what_a_gate_makes_zero_does_not_count(gated: Any) -> None:
    copy = tf_keras.models.clone_model(gated)
    copy.set_weights(gated.get_weights())
    gate = find_depthwise_hard_swishes(Graph(copy))[0]
    scales = np.linspace(0.5, 2, gate.convolution.output_shape[-1]).astype(np.float32)
    gate.convolution.set_weights([scales.reshape(1, 1, -1, 1), np.full(len(scales), 3.0)])
    bends = -3.0 / scales.astype(np.float64)
    np.testing.assert_allclose(hard_swish_rewrite.zero_thresholds(gate), bends)
    odd = [np.array([0, -1, *scales[2:]]).reshape(1, 1, -1, 1), np.full(len(scales), 3.0)]
    falling = tf_keras.models.clone_model(copy)
    other = find_depthwise_hard_swishes(Graph(falling))[0]
    other.convolution.set_weights(odd)
    assert list(hard_swish_rewrite.zero_thresholds(other)[:2]) == [-np.inf, -np.inf]
    low, high = np.full(len(scales), -4.0), np.full(len(scales), 1.0)
    low[0], high[1] = -0.5, 9.0
    seen = {gate.source.name: Observation(low, high, 0 * low)}
    wanted = np.maximum(high, np.minimum(-low, -bends))
    np.testing.assert_allclose(
        hard_swish_rewrite.active_abs_max(gate, seen[gate.source.name]), wanted
    )
    assert hard_swish_rewrite.lower_bounds([gate], seen) == {gate.source.name: max(-4.0, bends[1])}
    assert hard_swish_rewrite.lower_bounds([gate], {}) == {}


@pytest.fixture(scope="module")
def bent() -> Any:
    """A model whose hard-swish reads some channels that are much smaller than others; do not change
    it."""
    model = hard_swish_model()
    groups = ScalingGroups(Graph(model))
    (found,) = groups.hard_swishes
    before, behind = groups.of(found.source), groups.of(found.product)
    factors = np.where(np.arange(before.channels) % 2 == 0, 1 / 60, 1.0)
    before.scale(factors)
    behind.scale(factors)
    return model


def test_what_is_added_to_a_hard_swish_is_scaled_with_it_or_nothing_is(bent: Any) -> None:
    """V3-large has a residual sum there: gates scale its other side, soft factors stay away."""
    model, count = hard_swish_rewrite.rewrite_hard_swish(bent)
    assert count == 1
    same(model_outputs(model, inputs(6)), model_outputs(bent, inputs(6)))
    plain = hard_swish_model()
    before = model_outputs(plain, inputs(6))
    seen = Observer(plain)(["norm"], inputs(6), sampled={"norm": 10})
    assert hard_swish_equalization.equalize_hard_swish(ScalingGroups(Graph(plain)), seen) == (
        {},
        {},
        {},
    )
    np.testing.assert_array_equal(model_outputs(plain, inputs(6)), before)


def test_gates_let_unequal_channels_be_mended(bent: Any) -> None:
    images, unseen = inputs(24), inputs(12, seed=7)
    plain = post_training_pipeline.quantize(bent, INCEPTION, images, PostTraining(steps=PLAIN))
    made = post_training_pipeline.quantize(
        bent, INCEPTION, images, PostTraining(steps=("gates", *PLAIN))
    )
    assert made.notes[1] == "gates: 1 hard-swish written with a kernel, outputs unchanged"
    assert (made.steps[0].name, made.steps[0].accepted) == ("gates", True)
    assert made.steps[0].agreement is None  # exact: there is nothing to compare
    assert any(step.name == "equalize" and step.accepted for step in made.steps)
    wanted = model_outputs(bent, unseen)
    assert relative_error(model_outputs(made.wrapped, unseen), wanted) < 0.3 * relative_error(
        model_outputs(plain.wrapped, unseen), wanted
    )
    same(model_outputs(made.plain, unseen), wanted)


def test_a_net_with_gates_becomes_a_file_of_one_partition(bent: Any) -> None:
    steps = ("gates", "equalize", "percentile", "clip", "bias", "repair")
    made = post_training_pipeline.quantize(bent, INCEPTION, inputs(24), PostTraining(steps=steps))
    int8_saving.prepare_export(made.wrapped, made.repair)
    data = tflite_converter.int8_flatbuffer(made.wrapped)
    assert tflite_model.read(data).float_tensors() == []
    assert interpreter.partitions(interpreter.make_interpreter(data)) == 1
    file = Int8Model(made.plain, made.wrapped, {}, data, np.zeros(0))
    for layer, off in operator_steps(file, pixels(2, seed=9)).items():
        assert off.max() <= 1, layer


def test_the_fitted_net_is_wrapped_again_as_it_was(bent: Any) -> None:
    config = PostTraining(steps=("gates", "equalize", "maximum", "clip", "repair"))
    made = post_training_pipeline.quantize(bent, INCEPTION, inputs(16), config)
    again = scheme.wrap(made.plain, INCEPTION)
    scheme.set_ranges(again, scheme.get_ranges(made.wrapped))
    unseen = inputs(4, seed=7)
    np.testing.assert_array_equal(model_outputs(again, unseen), model_outputs(made.wrapped, unseen))


def test_hard_swishes_in_float_get_no_gate(small: Any, bent: Any) -> None:
    made = post_training_pipeline.quantize(
        bent, INCEPTION, inputs(16), PostTraining(steps=("gates", *PLAIN), keep_float=("first",))
    )
    assert made.notes[1].startswith("gates: 0 hard-swishes")
    assert len(find_hard_swishes(Graph(made.plain))) == 1
    graph = Graph(small)
    names = [x.product.name for x in find_hard_swishes(graph)]
    floats = expand_float_layers(
        graph, match_float_layers(graph, ["Conv", "expanded_conv_depthwise"])
    )
    kept, count = hard_swish_rewrite.rewrite_hard_swish(small, floats)
    assert [x.product.name for x in find_hard_swishes(Graph(kept))] == names[:1]
    assert count == len(names) - 1


def test_gates_go_in_front_of_what_the_net_wants(small: Any) -> None:
    assert post_training_pipeline.chosen_steps(small, PostTraining(steps=("gates", "auto"))) == (
        *("gates", "equalize", "hard_swish", "percentile"),
        *("clip", "bias", "tune", "repair"),
    )


@pytest.mark.parametrize("steps", [("auto", "gates"), ("gates",), ("maximum", "gates")])
def test_gates_out_of_place(steps: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="^--ptq_steps: got .*steps in the order gates,"):
        PostTraining(steps=steps)
