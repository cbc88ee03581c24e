"""Masks: the threshold against numpy, the schedule, and what holds after every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from short_training import stage_context, train
from small_models import toy, zero_fraction

from mobilenet.compression import method as methods
from mobilenet.compression.pruning.unstructured.masks import Masks, keep_largest
from mobilenet.configs.pruning import MagnitudePruning
from mobilenet.errors import UsageError
from mobilenet.models.graph import variables
from mobilenet.training.optimization.ema import Average

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
FEW = st.sampled_from([0.0, -0.5, 0.5, 1.0])  # ties on purpose
KERNELS = st.one_of(
    arrays.arrays(np.float32, st.integers(1, 60), elements=elements) for elements in (FLOATS, FEW)
)


@settings(max_examples=150, deadline=None)
@given(KERNELS, st.floats(0, 0.999))
@example(np.zeros(7, np.float32), 0.5)
@example(np.array([1e-30, 1e-20, 1.0], np.float32), 0.34)  # 100 powers of two below the largest
@example(np.array([1, 1 + 2**-23, 1 + 2**-22, 9], np.float32), 0.5)  # one float apart
def test_threshold_is_that_of_a_partition(kernel: np.ndarray, sparsity: float) -> None:
    count = int(np.round(np.float32(kernel.size) * np.float32(sparsity)))
    magnitude = np.abs(kernel)
    least = np.partition(magnitude, count - 1)[count - 1] if count else 0.0
    expected = magnitude > least
    mask = keep_largest(tf.constant(kernel), tf.constant(sparsity, tf.float32))
    assert mask.dtype == tf.float32
    np.testing.assert_array_equal(mask.numpy(), expected.astype(np.float32))
    assert np.sum(mask.numpy() == 0) >= count


@pytest.mark.parametrize("digits", [9, 2])  # no ties, many ties
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.5, 0.9, 0.99999])
def test_threshold_of_a_large_kernel(digits: int, share: float) -> None:
    """Counted in two passes over large tables instead of three over small ones."""
    kernel = np.random.default_rng(1).normal(size=(400, 400)).round(digits).astype(np.float32)
    count = int(np.round(np.float32(kernel.size) * np.float32(share)))
    least = np.sort(np.abs(kernel), axis=None)[count - 1] if count else 0.0
    mask = keep_largest(tf.constant(kernel), tf.constant(share, tf.float32)).numpy()
    np.testing.assert_array_equal(mask == 1, np.abs(kernel) > least)


def test_a_kernel_sparser_than_the_target_keeps_its_zeros() -> None:
    """tfmot's threshold is 0 there, and `abs(weight) >= 0` lets everything regrow."""
    kernel = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    kernel[:968] = 0
    mask = keep_largest(tf.constant(kernel), tf.constant(0.8)).numpy()
    np.testing.assert_array_equal(mask, kernel != 0)


def magnitude(steps: int = 20, **fields: Any) -> Any:
    config = MagnitudePruning(**{"final_sparsity": {"pointwise": 0.75}, **fields})
    return methods.create(config, stage_context(steps))


def kernels(model: Any) -> dict[str, np.ndarray]:
    kernels = {layer.name: variables.kernel(layer) for layer in model.layers}
    return {name: v.numpy() for name, v in kernels.items() if v is not None}


@pytest.mark.parametrize(
    ("steps", "end", "frequency"),
    [(12, 0.5, 100), (10, 0.7, 3), (10, 1.0, 4), (9, 0.5, 1), (2, 0.1, 8)],
)
@pytest.mark.parametrize("schedule", ["polynomial", "constant"])
def test_target_is_reached_at_the_end_step(
    steps: int, end: float, frequency: int, schedule: str
) -> None:
    method = magnitude(steps, end=end, frequency=frequency, schedule=schedule)
    model = method.apply(toy())
    kernel = variables.kernel(model.get_layer("c"))
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        kernel.assign_add(rng.normal(0, 0.01, kernel.shape))
        method.after_step(model, tf.constant(step, tf.int64))
        if step >= method.timing.end:
            assert zero_fraction(kernel) == 0.75
    assert zero_fraction(kernel) == 0.75
    assert zero_fraction(variables.kernel(model.get_layer("a"))) == 0


def test_polynomial_schedule_is_the_papers() -> None:
    """Zhu and Gupta, equation 1, recomputed; steps between two updates change nothing."""
    method = magnitude(40, begin=0.1, end=0.6, frequency=5, final_sparsity={"c": 0.75})
    model = method.apply(toy(16))
    kernel = variables.kernel(model.get_layer("c"))
    begin, end = 4, 24
    expected = 0.0
    for step in range(1, 41):
        kernel.assign_add(np.random.default_rng(step).normal(0, 0.01, kernel.shape))
        method.after_step(model, tf.constant(step, tf.int64))
        if begin <= step <= end and ((step - begin) % 5 == 0 or step == end):
            expected = 0.75 - 0.75 * (1 - (step - begin) / (end - begin)) ** 3
        assert zero_fraction(kernel) == pytest.approx(expected, abs=1 / 256)


def test_schedules_are_tfmots_own() -> None:
    from tensorflow_model_optimization.sparsity import keras as tfmot

    polynomial, constant = magnitude(), magnitude(schedule="constant", begin=0.25)
    polynomial.apply(toy())
    constant.apply(toy())
    assert isinstance(polynomial.schedules["c"], tfmot.PolynomialDecay)
    assert isinstance(constant.schedules["c"], tfmot.ConstantSparsity)
    assert polynomial.schedules["c"].get_config()["config"]["final_sparsity"] == 0.75
    assert constant.schedules["c"].get_config()["config"]["begin_step"] == 6


def test_masks_hold_after_the_optimizer_in_averages_and_checkpoints(tmp_path: Any) -> None:
    """tfmot's weights are dense here: its mask comes with the next forward pass."""
    method = magnitude(12, end=0.5, frequency=2)
    model = method.apply(toy())
    average = Average(model, 0.9)
    kernel = variables.kernel(model.get_layer("c"))
    index = next(i for i, weight in enumerate(average.weights) if weight is kernel)
    seen = []

    def watch(step: int) -> None:
        seen.append(zero_fraction(kernel))
        mask = method.masks.masks["c"].numpy()
        np.testing.assert_array_equal(kernel.numpy() != 0, mask == 1)
        np.testing.assert_array_equal(average.shadows[index].numpy() != 0, mask == 1)
        path = tf.train.Checkpoint(model=model, method=method, average=average).write(
            str(tmp_path / "step")
        )
        reader = tf.train.load_checkpoint(path)
        names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE")]
        same_shape = [reader.get_tensor(name) for name in names if "OPTIMIZER" not in name]
        stored = [value for value in same_shape if value.shape == kernel.shape]
        assert (
            sorted(zero_fraction(value) for value in stored)[:3] == [seen[-1]] * 3
        )  # kernel, mask, mean
        assert len(stored) == 3

    train(model, method, 12, watch=watch, after_update=average.update)
    assert seen[-1] == 0.75
    assert seen == sorted(seen)
    assert 0 < seen[2] < 0.75
    with average.swapped():
        assert zero_fraction(kernel) == 0.75
    average.assign()
    assert zero_fraction(method.finalize(model).get_layer("c").kernel) == 0.75


def test_average_is_the_recursion_of_its_weights() -> None:
    """Of a weight that is not pruned: against the formula of ExponentialMovingAverage."""
    model = toy()
    average = Average(model, 0.8)
    bias = model.get_layer("e").bias
    shadow = next(s for s, w in zip(average.shadows, average.weights, strict=True) if w is bias)
    expected = bias.numpy().astype(np.float64)
    for step in range(1, 60):
        bias.assign(np.full(bias.shape, float(step)))
        average.update(tf.constant(step, tf.int64))
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        np.testing.assert_allclose(shadow.numpy(), expected, rtol=1e-5)
    with average.swapped():
        np.testing.assert_allclose(bias.numpy(), expected, rtol=1e-5)
    assert (bias.numpy() == 59).all()


def test_resumed_pruning_takes_its_masks_from_the_zeros() -> None:
    model = toy()
    kernel = variables.kernel(model.get_layer("c"))
    values = kernel.numpy()
    values[..., :7] = 0  # 87.5 %, sparser than the target
    kernel.assign(values)
    method = magnitude(10, final_sparsity={"pointwise": 0.5, "d": 0.25}, frequency=1)
    again = method.apply(model)
    least = zero_fraction(values)

    def watch(step: int) -> None:
        now = kernels(again)["c"]
        assert zero_fraction(now) == least
        np.testing.assert_array_equal(now != 0, values != 0)

    train(again, method, 10, watch=watch, eager=True)
    assert zero_fraction(kernels(again)["d"]) == 0.25


def test_a_kernel_of_zeros_stays_so() -> None:
    model = toy()
    model.get_layer("c").kernel.assign(tf.zeros_like(model.get_layer("c").kernel))
    method = magnitude(4, final_sparsity={"pointwise": 0.5})
    pruned = method.apply(model)
    train(pruned, method, 4, eager=True)
    assert zero_fraction(kernels(pruned)["c"]) == 1
    assert zero_fraction(kernels(pruned)["d"]) == 0.5


@pytest.fixture
def mixed() -> Iterator[None]:
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    tf_keras.mixed_precision.set_global_policy("float32")


def test_master_weights_are_not_rounded_under_mixed_precision(mixed: None) -> None:
    """tfmot's wrapper leaves every weight representable in 16 bits after one call."""
    method = magnitude(6, frequency=1)
    model = method.apply(toy())
    assert model.get_layer("c").compute_dtype == "bfloat16"
    loss = train(model, method, 6, eager=True)
    assert np.isfinite(loss)
    kernel = kernels(model)["c"]
    assert kernel.dtype == np.float32
    assert method.masks.masks["c"].dtype == tf.float32
    assert zero_fraction(kernel) == 0.75
    active = kernel[kernel != 0]
    rounded = tf.cast(tf.cast(active, tf.bfloat16), tf.float32).numpy()
    assert np.mean(rounded == active) < 0.05


def test_the_input_model_is_left_unchanged() -> None:
    model = toy()
    before = model.get_weights()
    method = magnitude(3)
    train(method.apply(model), method, 3, eager=True)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_stage_too_short_is_refused() -> None:
    with pytest.raises(UsageError, match="at least"):
        methods.create(MagnitudePruning(begin=0.9, end=1.0), stage_context(1))


def test_masks_of_any_shape_start_from_the_zeros() -> None:
    kernel = tf.Variable([[0.0, 1.0], [2.0, 0.0]])
    masks = Masks({"x": kernel})
    kernel.assign_add(tf.ones((2, 2)))
    masks.apply()
    np.testing.assert_array_equal(kernel, [[0, 2], [3, 0]])
    assert masks.sparsity() == {"x": 0.5}


def test_removed_weights_are_plain_zeros() -> None:
    """A product leaves -0.0 of a negative weight, which a packed model stores as a value."""
    kernel = tf.Variable([-1.0, 2.0, -3.0])
    masks = Masks({"k": kernel})
    masks.masks["k"].assign([0.0, 1.0, 0.0])
    masks.apply()
    assert kernel.numpy().tobytes() == np.array([0, 2, 0], np.float32).tobytes()


def test_masks_are_replaced_under_a_strategy_of_one_device() -> None:
    """Its variables are assigned to as those of several replicas are."""
    start = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    devices = tf.distribute.MirroredStrategy(["CPU:0"])
    with devices.scope():
        kernel = tf.Variable(start)
        masks = Masks({"layer": kernel})

    def prune(due: tf.Tensor) -> None:
        masks.refresh(due, {"layer": lambda values: keep_largest(values, tf.constant(0.5))})
        masks.apply()

    @tf.function
    def step(due: tf.Tensor) -> None:
        devices.run(prune, args=(due,))

    step(tf.constant(False))
    np.testing.assert_array_equal(kernel.numpy(), start)
    step(tf.constant(True))
    kept = np.abs(start) > np.median(np.abs(start))
    np.testing.assert_array_equal(kernel.numpy(), np.where(kept, start, 0))
