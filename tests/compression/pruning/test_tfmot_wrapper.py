"""Faults of tfmot's pruning wrapper, and that both of our methods avoid them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from short_training import Signal, stage_context, train
from small_models import inputs, toy, zero_fraction

from mobilenet.compression import method as methods
from mobilenet.configs.pruning import MagnitudePruning, TfmotPruning
from mobilenet.configs.training import TrainConfig
from mobilenet.errors import UsageError
from mobilenet.models.graph import variables
from mobilenet.training import engine

SHARES = {"pointwise": 0.5}
BOTH = pytest.mark.parametrize("kind", [MagnitudePruning, TfmotPruning])


def tfmot_model(start: float, final: float, end: int, frequency: int) -> Any:
    """The toy's layer `d` under tfmot's wrapper, as its guide has it."""
    from tensorflow_model_optimization.sparsity import keras as sparsity

    schedule = sparsity.PolynomialDecay(start, final, 0, end, frequency=frequency)

    def wrapped(layer: Any) -> Any:
        copy = type(layer).from_config(layer.get_config())
        return sparsity.prune_low_magnitude(copy, schedule) if layer.name == "d" else copy

    source = toy()
    model = tf_keras.models.clone_model(source, clone_function=wrapped)
    for layer in source.layers:
        name = f"prune_low_magnitude_{layer.name}" if layer.name == "d" else layer.name
        model.get_layer(name).set_weights(layer.get_weights())
    return model


def train_tfmot(model: Any, steps: int) -> list[float]:
    """`fit` with tfmot's callback; the share of zeros of `d` after every step."""
    from tensorflow_model_optimization.sparsity import keras as sparsity

    kernel = kernel_of(model)
    seen: list[float] = []
    watch = tf_keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(zero_fraction(kernel))
    )
    model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = (inputs(8 * steps), np.zeros(8 * steps, np.int32))
    callbacks = [sparsity.UpdatePruningStep(), watch]
    model.fit(*data, batch_size=8, verbose=0, callbacks=callbacks)
    return seen


def kernel_of(model: Any) -> Any:
    names = [layer.name for layer in model.layers]
    return variables.kernel(model.get_layer("d" if "d" in names else "prune_low_magnitude_d"))


def pruned(
    kind: Any, steps: int, change: Callable[[Any], None] = lambda model: None, **fields: Any
):
    """(zeros of `d` after every step, the plain model)."""
    source = toy()
    change(source)
    method = methods.create(kind(SHARES, **fields), stage_context(steps))
    model = method.apply(source)
    seen: list[float] = []

    def watch(step: int) -> None:
        seen.append(zero_fraction(kernel_of(model)))

    train(model, method, steps, watch=watch, eager=True)
    return seen, method.finalize(model)


def test_tfmots_wrapper_never_prunes_where_the_end_comes_before_its_frequency() -> None:
    model = tfmot_model(0.0, 0.5, end=9, frequency=10)
    train_tfmot(model, 10)
    assert zero_fraction(kernel_of(model)) == 0


def test_tfmots_wrapper_misses_an_end_between_two_updates() -> None:
    model = tfmot_model(0.0, 0.5, end=7, frequency=4)
    train_tfmot(model, 10)
    assert 0 < zero_fraction(kernel_of(model)) < 0.5


@BOTH
@pytest.mark.parametrize(("end", "frequency"), [(0.9, 10), (0.7, 4)])
def test_ours_reach_the_target_there(kind: Any, end: float, frequency: int) -> None:
    _, plain = pruned(kind, 10, end=end, frequency=frequency)
    assert zero_fraction(kernel_of(plain)) == 0.5


@pytest.mark.parametrize(("end", "frequency"), [(1.0, 3), (0.1, 1)])
@pytest.mark.parametrize("schedule", ["polynomial", "constant"])
def test_the_wrapper_reaches_it_at_other_end_steps(
    end: float, frequency: int, schedule: str
) -> None:
    _, plain = pruned(TfmotPruning, 10, end=end, frequency=frequency, schedule=schedule)
    assert zero_fraction(kernel_of(plain)) == 0.5


def test_tfmots_weights_are_dense_after_every_step() -> None:
    seen = train_tfmot(tfmot_model(0.5, 0.5, end=9, frequency=1), 8)
    assert max(seen) < 0.1


@BOTH
def test_our_masks_hold_after_every_step(kind: Any) -> None:
    seen, plain = pruned(kind, 8, end=0.25, frequency=1)
    assert seen[2:] == [0.5] * 6
    assert zero_fraction(kernel_of(plain)) == 0.5


def empty(model: Any) -> None:
    """97 % zeros."""
    kernel = model.get_layer("d").kernel
    kernel.assign(kernel * (np.arange(128).reshape(kernel.shape) >= 124))


def test_tfmots_wrapper_lets_a_sparser_start_regrow() -> None:
    model = tfmot_model(0.0, 0.5, end=6, frequency=1)
    kernel = kernel_of(model)
    kernel.assign(kernel * (np.arange(128).reshape(kernel.shape) >= 124))
    train_tfmot(model, 8)
    assert zero_fraction(kernel) < 0.9


@BOTH
@pytest.mark.parametrize("begin", [0.0, 0.4])
def test_ours_keep_a_sparser_start(kind: Any, begin: float) -> None:
    seen, plain = pruned(kind, 8, empty, begin=begin, end=0.8, frequency=1)
    assert seen == [124 / 128] * 8
    assert np.flatnonzero(kernel_of(plain).numpy()).tolist() == [124, 125, 126, 127]


@pytest.mark.parametrize("count", [1, 3, 63, 64, 127])
def test_the_wrapper_keeps_any_number_of_zeros(count: int) -> None:
    def change(model: Any) -> None:
        kernel = model.get_layer("d").kernel
        kernel.assign(kernel * (np.arange(128).reshape(kernel.shape) >= count))

    seen, _ = pruned(TfmotPruning, 4, change, end=0.5, frequency=1)
    assert min(seen) >= count / 128
    assert seen[-1] == max(count / 128, 0.5)


def test_the_stripped_model_shares_no_layer() -> None:
    """tfmot's own: writing one changes the other."""
    source = toy()
    method = methods.create(TfmotPruning(SHARES), stage_context(2))
    model = method.apply(source)
    train(model, method, 2, eager=True)
    plain = method.finalize(model)
    for layer in plain.layers:
        assert not hasattr(layer, "get_prunable_weights")
    before = [w.numpy() for w in [*model.weights, *source.weights]]
    outputs = plain(inputs(4), training=False).numpy()
    np.testing.assert_array_equal(model(inputs(4), training=False), outputs)
    for weight in plain.weights:
        weight.assign(weight + 1.0)
    for old, new in zip(before, [*model.weights, *source.weights], strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_tfmot_cannot_prune_is_listed() -> None:
    method = methods.create(TfmotPruning({".*": 0.5, "e": 0.25}, frequency=1), stage_context(2))
    model = method.apply(toy())
    train(model, method, 2, eager=True)
    assert method.notes(model) == [
        "a (stem): 50.0% zeros, matches .*",
        "b (depthwise): dense, matches .*, but tfmot does not prune DepthwiseConv2D",
        "c (pointwise): 50.0% zeros, matches .*",
        "d (pointwise): 50.0% zeros, matches .*",
        "e (classifier): 25.0% zeros, matches e",
    ]


def test_mixed_precision_is_refused_with_a_remedy() -> None:
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        with pytest.raises(UsageError, match="`pruning=magnitude`") as error:
            methods.create(TfmotPruning(SHARES), stage_context()).check(toy())
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert "\n" not in str(error.value)


def test_a_kernel_of_zeros_is_refused() -> None:
    model = toy()
    model.get_layer("d").kernel.assign(tf.zeros((1, 1, 8, 16)))
    with pytest.raises(UsageError, match="d, whose weights are all zero"):
        methods.create(TfmotPruning(SHARES), stage_context()).apply(model)


def test_a_resumed_stage_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Steps, masks and thresholds of the wrappers are in the resume state; averages too."""
    config = TrainConfig(epochs=2, batch_size=8, optimizer_name="adam", lr=0.01, ma_decay_rate=0.5)
    images = inputs(32, seed=5)
    labels = (images[:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)

    def fit(folder: str, *callbacks: Any) -> Any:
        method = methods.create(TfmotPruning(SHARES, frequency=3, end=0.9), stage_context(8))
        model = method.apply(toy())
        job = engine.Job(
            "prune",
            config,
            4,
            lambda start: batches.repeat().skip(start),
            batches,
            4,
            tmp_path / folder,
            callbacks,
        )
        engine.fit(model, method, job)
        return method.finalize(model)

    uninterrupted = fit("uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        fit("cut", Signal(5))
    resumed = fit("cut")
    for one, other in zip(uninterrupted.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert zero_fraction(kernel_of(resumed)) == 0.5
