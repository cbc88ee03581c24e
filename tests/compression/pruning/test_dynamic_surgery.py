"""Dynamic network surgery: every rule against numpy; pruned weights learn on and are regrown."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from short_training import stage_context, train
from small_models import CLASSES, inputs, randomize_batch_norm, toy, zero_fraction

from mobilenet import cli
from mobilenet.compression import method as methods
from mobilenet.compression.pruning.unstructured.masks import magnitude_at
from mobilenet.configs import archs
from mobilenet.configs.pruning import DnsPruning
from mobilenet.errors import UsageError
from mobilenet.models.builder import build
from mobilenet.models.graph import variables
from mobilenet.trainer import COMMAND
from mobilenet.training.optimization.ema import Average


def surgery(steps: int = 20, seed: int = 0, **fields: Any) -> Any:
    config = DnsPruning(**{"frequency": 4, "end": 0.6, "last": 0.7, **fields})
    return methods.create(config, dataclasses.replace(stage_context(steps), seed=seed))


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(-9, 9, width=32)),
    st.floats(0, 1),
)
def test_threshold_is_numpys_nearest_percentile(kernel: np.ndarray, share: float) -> None:
    """By rank, of all entries; halves go to the even rank in both."""
    share = float(np.float32(share))
    threshold = magnitude_at(tf.constant(kernel), tf.constant(share, tf.float32))
    index = int(np.round((kernel.size - 1) * share))
    assert float(threshold) == np.sort(np.abs(kernel))[index]


def test_threshold_of_a_large_kernel() -> None:
    kernel = np.random.default_rng(2).normal(size=(500, 500)).astype(np.float32)
    threshold = magnitude_at(tf.constant(kernel), tf.constant(0.7, tf.float32))
    assert float(threshold) == np.percentile(np.abs(kernel), 70, method="nearest")


class Reference:
    """The rules for one kernel, in numpy: what the seed repository's `dns.py` does."""

    def __init__(self, kernel: np.ndarray) -> None:
        self.dense = kernel.astype(np.float32)
        self.mask = np.ones_like(self.dense)
        self.threshold = 0.0
        self.mask_changes = np.zeros(3, int)

    def step(self, moved: np.ndarray, share: float | None, draw: float, chance: float) -> None:
        """`share` is set in the steps that compute a threshold."""
        self.dense = self.dense + moved
        magnitude = np.abs(self.dense)
        if share is not None:
            ordered = np.sort(magnitude, axis=None)
            self.threshold = ordered[int(np.round((ordered.size - 1) * share))]
        if draw <= chance:
            prune = magnitude <= np.float32(0.9) * self.threshold
            regrow = magnitude >= np.float32(1.1) * self.threshold
            self.replace_mask(np.minimum(self.mask * (1 - prune) + regrow, 1))

    def replace_mask(self, mask: np.ndarray) -> None:
        self.mask_changes += [np.sum(mask < self.mask), np.sum(mask > self.mask), 1]
        self.mask = mask

    def prune_exactly(self, share: float) -> None:
        pruned = np.argsort(np.abs(self.dense), axis=None)[: int(np.round(self.dense.size * share))]
        mask = np.ones(self.dense.size)
        mask[pruned] = 0
        self.replace_mask(mask.reshape(self.dense.shape))


def chance_at(step: int, steps: int) -> float:
    for boundary, chance in ((1 / 60, 1.0), (0.05, 0.5), (0.1, 0.25), (1 / 6, 0.1)):
        if step <= boundary * steps:
            return chance
    return 0.05


def test_sixty_steps_are_those_of_numpy() -> None:
    """Threshold, schedule, band, probability and draw, under fixed updates."""
    steps, every = 60, 3
    method = surgery(
        steps, seed=11, end=0.5, frequency=every, probabilities=(1, 0.5, 0.25, 0.1, 0.05)
    )
    model = method.apply(toy())
    names = [name for name in "cde" if name in method.schedules]
    assert names == list("cde")
    kernels = {name: variables.kernel(model.get_layer(name)) for name in names}
    expected = {name: Reference(kernel.numpy()) for name, kernel in kernels.items()}
    largest = max(kernel.shape.num_elements() for kernel in kernels.values())
    rng = np.random.default_rng(0)
    after = tf.function(lambda step: method.after_step(model, step))
    history = np.zeros((steps // every + 1, 3), int)
    history[:, 0] = np.arange(0, steps + 1, every)
    for step in range(1, steps + 1):
        before = [reference.mask_changes[:2].copy() for reference in expected.values()]
        draws = tf.random.stateless_uniform([3], [11, step]).numpy()
        for index, (name, reference) in enumerate(expected.items()):
            target = 0.6 + 0.15 * reference.dense.size / largest
            moved = rng.normal(0, 0.05, reference.dense.shape).astype(np.float32)
            kernels[name].assign_add(moved)
            growing = target * (1 - (1 - min(step, 30) / 30) ** 3)
            share = growing if step % every == 0 and step < 42 else None
            chance = chance_at(step, steps) if step < 42 else -1.0
            reference.step(moved, share, draws[index], chance)
            if step == 42:
                reference.prune_exactly(target)
        after(tf.constant(step, tf.int64))
        changes = [reference.mask_changes[:2] for reference in expected.values()]
        history[step // every, 1:] += np.sum(changes, axis=0) - np.sum(before, axis=0)
        for name, reference in expected.items():
            mask = method.surgery.masks.masks[name].numpy()
            np.testing.assert_array_equal(mask, reference.mask, f"{name} {step}")
            np.testing.assert_allclose(
                method.surgery.dense[name], reference.dense, rtol=1e-5, atol=1e-6
            )
            np.testing.assert_array_equal(
                kernels[name], method.surgery.dense[name].numpy() * mask, f"{name} {step}"
            )
            assert method.surgery.counts()[name] == tuple(reference.mask_changes)
            assert not np.signbit(kernels[name].numpy()[mask == 0]).any()
    # some weights were regrown
    assert all(reference.mask_changes[1] > 0 for reference in expected.values())
    assert method.report()["mask_changes"] == history.tolist()
    assert method.average_restart_step == 41  # the average is of the final masks
    assert zero_fraction(kernels["d"]) == 0.75


@pytest.mark.parametrize("step", [1, 5, 6, 15, 16, 30, 31, 50, 51, 300])
def test_chances_are_the_seeds_at_its_length(step: int) -> None:
    """In thousands of steps: 1 to 5, 0.5 to 15, 0.25 to 30, 0.1 to 50, then 0.05."""
    method = surgery(300_000)
    probability = method.probability(tf.constant(1000 * step, tf.int64))
    table = ((5, 1.0), (15, 0.5), (30, 0.25), (50, 0.1), (300, 0.05))
    assert float(probability) == pytest.approx(next(p for last, p in table if step <= last))


def test_draws_differ_by_kernel_step_and_seed_and_are_even() -> None:
    method, other = surgery(), surgery(seed=1)
    method.apply(toy())
    other.apply(toy())
    drawn = np.array([method.draws(tf.constant(s, tf.int64)).numpy() for s in range(400)])
    assert drawn.shape == (400, 3)
    assert len(np.unique(drawn)) == drawn.size
    assert np.abs(np.mean(drawn <= 0.25, axis=0) - 0.25).max() < 0.07
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.15
    assert not np.any(drawn[0] == other.draws(tf.constant(0, tf.int64)).numpy())


SEED = {  # depth multiplier: pointwise 1, 6, 7 to 11, 12, 13, logits; at 1001 classes
    1.0: (0.6003, 0.6188, 0.6375, 0.6750, 0.7500, 0.7466),
    0.25: (0.6001, 0.6048, 0.6096, 0.6192, 0.6384, 0.7500),
}


@pytest.mark.parametrize("width", SEED)
def test_targets_are_the_seeds(width: float) -> None:
    config = archs.MobileNetV1Config(width_multiplier=width, num_classes=1001)
    model = build(config, (32, 32, 3))
    targets = {t.layer: t for t in surgery()._assign(model)}
    matrices = [t.sparsity for t in targets.values() if t.role in ("pointwise", "classifier")]
    shares = [matrices[index] for index in (0, 5, 6, 11, 12, 13)]
    assert [round(share, 4) for share in shares] == list(SEED[width])
    rest = [t for t in targets.values() if t.role in ("stem", "depthwise")]
    assert len(rest) == 14
    assert all(t.sparsity is None for t in rest)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_are_those_at_the_masked_weights_and_move_the_dense_ones(
    momentum: float,
) -> None:
    """Against a loop with dense weights, which are masked for the gradient only, then updated."""
    steps = 12
    method = surgery(steps, end=0.5, frequency=1, probabilities=(1.0,), boundaries=(), train="all")
    model, other = method.apply(toy()), toy()
    kernels = {name: other.get_layer(name).kernel for name in "cde"}
    masks: list[dict[str, np.ndarray]] = [{n: np.ones(k.shape) for n, k in kernels.items()}]

    def watch(step: int) -> None:
        masks.append({n: method.surgery.masks.masks[n].numpy() for n in kernels})

    optimizer = tf_keras.optimizers.SGD(0.05, momentum=momentum)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    from mobilenet.training.engine import Learner

    learner = Learner(model, lambda step: method.after_step(model, step))
    learner.compile(tf_keras.optimizers.SGD(0.05, momentum=momentum), loss, run_eagerly=True)
    images = inputs(8 * steps, seed=5)
    labels = np.arange(len(images)) % CLASSES
    for step in range(steps):
        rows = slice(8 * step, 8 * step + 8)
        learner.train_on_batch(images[rows], labels[rows])
        watch(step)
        dense = {name: kernel.numpy() for name, kernel in kernels.items()}
        for name, kernel in kernels.items():
            kernel.assign(dense[name] * masks[step][name])
        with tf.GradientTape() as tape:
            value = loss(labels[rows], other(images[rows], training=True))
        gradients = tape.gradient(value, other.trainable_variables)
        for name, kernel in kernels.items():
            kernel.assign(dense[name])
        optimizer.apply_gradients(zip(gradients, other.trainable_variables, strict=True))
    for name, kernel in kernels.items():
        np.testing.assert_allclose(method.surgery.dense[name], kernel, rtol=1e-3, atol=1e-5)
        assert (masks[6][name] == 0).any()


def test_a_pruned_weight_regrows_with_its_dense_value() -> None:
    method = surgery(10, probabilities=(1.0,), boundaries=(), frequency=1, end=1.0, last=1.0)
    model = method.apply(toy())
    kernel = variables.kernel(model.get_layer("c"))
    for step in range(1, 6):
        method.after_step(model, tf.constant(step, tf.int64))
    index = tuple(np.argwhere(kernel.numpy() == 0)[0])
    before = method.surgery.dense["c"].numpy()[index]
    assert before != 0
    update = np.zeros(kernel.shape, np.float32)
    update[index] = 3.0
    kernel.assign_add(update)  # as an optimizer would
    method.after_step(model, tf.constant(6, tf.int64))
    assert kernel.numpy()[index] == np.float32(before) + np.float32(3)
    assert method.surgery.counts()["c"][1] >= 1


def batch_norm(model: Any) -> dict[str, np.ndarray]:
    return {n: v.numpy() for n, v in variables.named(model.get_layer("c_norm")).items()}


@pytest.mark.parametrize(("which", "statistics"), [("kernels", True), ("all", False)])
def test_which_weights_train(which: str, statistics: bool) -> None:
    method = surgery(6, train=which, statistics=statistics)
    model = randomize_batch_norm(toy())
    trained = method.apply(model)
    assert method.statistics_frozen(0) is not statistics
    before, bias = batch_norm(trained), trained.get_layer("e").bias.numpy()
    train(trained, method, 2, eager=True)
    after = batch_norm(trained)
    for name in ("gamma", "beta"):
        assert np.array_equal(before[name], after[name]) is (which == "kernels")
    assert np.array_equal(bias, trained.get_layer("e").bias.numpy()) is (which == "kernels")
    for name in ("moving_mean", "moving_variance"):
        assert np.any(before[name] != after[name])  # this loop always runs in training mode
    for name in "abcde":
        assert np.any(
            variables.kernel(model.get_layer(name)) != variables.kernel(trained.get_layer(name))
        )


def test_a_stage_resumed_from_a_checkpoint_is_the_same(tmp_path: Any) -> None:
    def moved(method: Any, model: Any, steps: range) -> None:
        for step in steps:
            rng = np.random.default_rng(step)
            for kernel in method.surgery.masks.kernels.values():
                kernel.assign_add(rng.normal(0, 0.05, kernel.shape))
            method.after_step(model, tf.constant(step, tf.int64))

    method = surgery(20, frequency=3)
    model = method.apply(toy())
    moved(method, model, range(1, 11))
    path = tf.train.Checkpoint(model=model, method=method).write(str(tmp_path / "state"))
    moved(method, model, range(11, 21))
    again = surgery(20, frequency=3)
    resumed = again.apply(toy())
    status = tf.train.Checkpoint(model=resumed, method=again).read(path)
    status.assert_existing_objects_matched()
    moved(again, resumed, range(11, 21))
    for old, new in zip(model.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert method.surgery.counts() == again.surgery.counts()
    for name in method.surgery.dense:
        np.testing.assert_array_equal(method.surgery.dense[name], again.surgery.dense[name])


def test_target_holds_from_the_last_surgery_on_also_in_averages() -> None:
    method = surgery(12, end=0.5, last=0.75, frequency=2, sparsity={"c": 0.5, "depthwise": 0.25})
    model = method.apply(toy())
    average = Average(model, 0.9)
    assert [method.target_reached(step) for step in (8, 9, 12)] == [False, True, True]
    shares = {"b": 0.25, "c": 0.5, "d": 0.75, "e": 0.675}

    def watch(step: int) -> None:
        if step >= 9:
            for name, share in shares.items():
                kernel = variables.kernel(model.get_layer(name))
                assert zero_fraction(kernel) == pytest.approx(
                    share, abs=1 / kernel.shape.num_elements()
                )

    train(model, method, 12, watch=watch, after_update=average.update)
    average.assign()
    watch(12)
    notes = {line.split()[0]: line for line in method.notes(model)}
    assert "50.0% zeros, matches c; " in notes["c"] and " regrown in " in notes["c"]
    assert "0.6 + 0.15 * 128 / 128" in notes["d"]
    assert "dense, not a 1x1 kernel" in notes["a"]


def test_initial_zeros_stay_until_the_first_threshold() -> None:
    model = toy()
    kernel = model.get_layer("c").kernel
    values = kernel.numpy()
    values[..., :7] = 0
    kernel.assign(values)
    model.get_layer("d").kernel.assign(tf.zeros_like(model.get_layer("d").kernel))
    method = surgery(10, frequency=4, probabilities=(1.0,), boundaries=())
    trained = method.apply(model)

    def watch(step: int) -> None:
        now = trained.get_layer("c").kernel.numpy()
        if step < 4:
            np.testing.assert_array_equal(now == 0, values == 0)
        assert zero_fraction(now) >= 0.8
        assert zero_fraction(trained.get_layer("d").kernel) == 1

    train(trained, method, 10, watch=watch, eager=True)
    assert zero_fraction(trained.get_layer("c").kernel) == 0.875


def test_master_weights_stay_float32_under_mixed_precision() -> None:
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        method = surgery(6, frequency=1)
        model = method.apply(toy())
        assert np.isfinite(train(model, method, 6, eager=True))
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    kernel = model.get_layer("d").kernel.numpy()
    assert kernel.dtype == np.float32 and zero_fraction(kernel) == 0.75
    active = kernel[kernel != 0]
    assert np.mean(tf.cast(tf.cast(active, tf.bfloat16), tf.float32).numpy() == active) < 0.05
    dense = method.surgery.dense["d"]
    assert dense.dtype == tf.float32
    np.testing.assert_array_equal(dense.numpy()[kernel != 0], active)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dns_upper=0.5"], "--dns_upper: got 0.5, expected a number at least 1"),
        (["--dns_base=0.9", "--dns_slope=0.2"], "--dns_slope: got 0.2"),
        (["--dns_last=1.5"], "--dns_last: got 1.5, expected a number at most 1"),
        (["--pruning_end=0.6"], "--dns_last: got 0.45, expected a share of at least --pruning_end"),
        (["--dns_boundaries=0.5"], "4 shares in rising order"),
        (["--dns_probabilities=2"], "--dns_probabilities: got 2.0"),
        (["--dns_train=some"], "--dns_train: got 'some', expected one of kernels, all"),
        (["--dns_sparsity=pointwise=1"], "--dns_sparsity pointwise: got 1.0"),
        (["--final_sparsity=0.5"], "dns has no such flag"),
    ],
)
def test_invalid_flags_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        cli.run_config(COMMAND.parse(["--pruning=dns", *flags]))
    assert message in str(caught.value)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    method = surgery(sparsity={"nothing": 0.5})
    with pytest.raises(UsageError, match="^sparsity: got 'nothing'"):
        method.check(toy())


def test_flags_select_it_with_the_seeds_defaults() -> None:
    config = cli.run_config(COMMAND.parse(["--pruning=dns", "--dns_sparsity=0.7"]))
    assert config.pruning == DnsPruning(sparsity={"pointwise": 0.7})
