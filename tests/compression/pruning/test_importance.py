"""Importance of channels, computed again in numpy; how many of them are removed, and which."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given
from hypothesis import strategies as st
from small_models import inputs, randomize_batch_norm, toy

from mobilenet.compression.pruning.channel import dependency_groups, importance, selection
from mobilenet.errors import UsageError


@pytest.fixture(scope="module")
def model() -> Any:
    return randomize_batch_norm(toy())


@pytest.fixture(scope="module")
def tied(model: Any) -> dependency_groups.Group:
    """Stem `a`, its depthwise `b` and the pointwise `c` that is added to the stem's output."""
    return dependency_groups.ChannelGraph(model).by_layer()["a"]


def kernel(model: Any, name: str) -> np.ndarray:
    """`[channels, weights]`."""
    value = model.get_layer(name).get_weights()[0]
    axis = 2 if name == "b" else 3
    return np.moveaxis(value, axis, 0).reshape(8, -1).astype(np.float64)


def test_sums_over_all_convolutions_of_the_group(model: Any, tied: dependency_groups.Group) -> None:
    every = np.concatenate([kernel(model, name) for name in "abc"], axis=1)
    assert every.shape == (8, 27 + 9 + 8)
    np.testing.assert_allclose(importance.score_channels(tied, "magnitude"), np.abs(every).sum(1))
    np.testing.assert_allclose(importance.score_channels(tied, "l2"), np.linalg.norm(every, axis=1))
    apart = [[np.linalg.norm(one - other) for other in every] for one in every]
    np.testing.assert_allclose(
        importance.score_channels(tied, "geometric_median"), np.sum(apart, 1), rtol=1e-6
    )


def test_scales_of_the_batch_norms(model: Any, tied: dependency_groups.Group) -> None:
    gammas = [model.get_layer(f"{name}_norm").gamma.numpy() for name in "abc"]
    expected = np.abs(gammas).sum(0)
    np.testing.assert_allclose(
        importance.score_channels(tied, "batch_norm_scale"), expected, rtol=1e-6
    )
    bare = dependency_groups.ChannelGraph(model).by_layer()["d"]  # no batch norm: its kernel
    expected = np.abs(model.get_layer("d").kernel.numpy()).sum((0, 1, 2))
    np.testing.assert_allclose(
        importance.score_channels(bare, "batch_norm_scale"), expected, rtol=1e-6
    )


def test_taylor_is_the_change_of_the_loss(model: Any) -> None:
    """Against small steps towards a pruned channel, weight by weight."""
    images = inputs(8)

    def loss(model: Any) -> tf.Tensor:
        return tf.reduce_sum(tf.square(model(images, training=False)))

    gradients = importance.gradients(model, loss)
    group = dependency_groups.ChannelGraph(model).by_layer()["d"]
    got = importance.score_channels(group, "taylor", importance.Evidence(gradients))
    layer, before, step = model.get_layer("d"), float(loss(model)), 1e-2
    weights = layer.get_weights()
    changes = []
    for channel in range(16):
        moved = [value.copy() for value in weights]
        for value in moved:
            value[..., channel] *= 1 - step
        layer.set_weights(moved)
        changes.append((float(loss(model)) - before) / step)
    layer.set_weights(weights)
    np.testing.assert_allclose(got, np.square(changes), rtol=0.05, atol=1e-3 * got.max())
    with pytest.raises(UsageError, match="gradient for d/"):
        importance.score_channels(group, "taylor")


def test_taylor_sees_the_batch_norms_of_a_tied_group(
    model: Any, tied: dependency_groups.Group
) -> None:
    gradients = importance.gradients(model, lambda model: tf.reduce_sum(model(inputs(4)) ** 2))
    expected = 0.0
    for name in "abc":
        norm = model.get_layer(f"{name}_norm")
        own = sum(
            getattr(norm, w).numpy() * gradients[f"{name}_norm/{w}"] for w in ("gamma", "beta")
        )
        expected = expected + np.square(own)
    got = importance.score_channels(tied, "taylor", importance.Evidence(gradients))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_random_scores_depend_on_the_seed(tied: dependency_groups.Group) -> None:
    one, again, other = (
        importance.score_channels(tied, "random", importance.Evidence(seed=seed))
        for seed in (1, 1, 2)
    )
    assert (one == again).all() and (one != other).all()


def shuffled(model: Any, order: np.ndarray) -> Any:
    """A copy in which the channels of `d` are in another order, which changes no output."""
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    kernel, bias = model.get_layer("d").get_weights()
    copy.get_layer("d").set_weights([kernel[..., order], bias[order]])
    kernel, bias = model.get_layer("e").get_weights()
    copy.get_layer("e").set_weights([kernel[:, :, order], bias])
    return copy


@pytest.mark.parametrize("name", importance.REGISTRY)
def test_every_importance_scores_channels_by_their_weights(model: Any, name: str) -> None:
    """Whatever is registered: finite scores, the same for equal channels in any order."""
    kernel, bias = model.get_layer("d").get_weights()
    kernel[..., 3], bias[3] = kernel[..., 9], bias[9]
    consumer, offset = model.get_layer("e").get_weights()
    consumer[:, :, 3] = consumer[:, :, 9]
    twins = shuffled(model, np.arange(16))
    twins.get_layer("d").set_weights([kernel, bias])
    twins.get_layer("e").set_weights([consumer, offset])
    order = np.random.default_rng(0).permutation(16)
    images = inputs(8)
    scores = []
    for variant in (twins, shuffled(twins, order)):
        groups = dependency_groups.ChannelGraph(variant).by_layer()
        gradients = importance.gradients(variant, lambda x: tf.reduce_sum(x(images) ** 2))
        evidence = importance.Evidence(gradients, seed=1)
        for group in groups.values():
            vector = importance.REGISTRY[name](group, evidence)
            assert vector.shape == (group.channels,) and vector.dtype == np.float64
            assert np.isfinite(vector).all() and np.ptp(vector) > 0
            np.testing.assert_array_equal(importance.REGISTRY[name](group, evidence), vector)
        scores.append(importance.REGISTRY[name](groups["d"], evidence))
    if name != "random":
        assert scores[0][3] == pytest.approx(scores[0][9], rel=1e-4)
        np.testing.assert_allclose(scores[1], scores[0][order], rtol=1e-3)


def test_a_function_of_your_own(tied: dependency_groups.Group) -> None:
    assert importance.score_channels(tied, lambda group: range(group.channels)).tolist() == [
        *range(8)
    ]
    with pytest.raises(UsageError, match=r"shape \(8,\)"):
        importance.score_channels(tied, lambda group: np.zeros(3))
    with pytest.raises(UsageError, match="finite"):
        importance.score_channels(tied, lambda group: np.full(8, np.nan))
    with pytest.raises(UsageError, match="did you mean magnitude"):
        importance.score_channels(tied, "magnitud")


@given(st.integers(1, 400), st.floats(0, 0.999), st.sampled_from([1, 8, 16, 32]))
def test_counts_are_whole_tiles(channels: int, ratio: float, round_to: int) -> None:
    remaining = selection.remaining_count(channels, ratio, round_to)
    assert min(channels, round_to) <= remaining <= channels
    if ratio == 0:
        assert remaining == channels
    elif remaining < channels:
        assert remaining % round_to == 0
        off = abs(remaining - channels * (1 - ratio))
        assert off <= round_to / 2 + 1e-6 or remaining == round_to


@pytest.mark.parametrize(
    ("channels", "ratio", "round_to", "remaining"),
    [
        (24, 1 / 16, 1, 23),  # 22.5: the seed's last update is just below its ratio
        (24, 5 / 16, 1, 17),
        (1024, 0.42, 1, 594),
        (96, 0.5, 16, 48),
        (24, 0.5, 16, 16),
        (24, 0.1, 16, 16),
        (24, 0.0, 16, 24),
        (8, 0.9, 16, 8),
        (512, 0.28, 32, 384),
    ],
)
def test_counts(channels: int, ratio: float, round_to: int, remaining: int) -> None:
    assert selection.remaining_count(channels, ratio, round_to) == remaining


def chosen(model: Any, ratio: Any, score: Any, **options: Any) -> dict[str, list[int]]:
    groups = dependency_groups.find_groups(model)
    shares = selection.ratios_by_group(groups, ratio)
    remaining = selection.choose_channels(groups, shares, score, **options)
    return {group.name: remaining[group.number].tolist() for group in groups}


def test_exactly_k_remain_where_all_are_equal(model: Any) -> None:
    remaining = chosen(model, 0.5, lambda group: np.ones(group.channels))
    assert remaining == {"a": [*range(4)], "d": [*range(8)]}


def test_the_least_important_are_removed(model: Any) -> None:
    scores = {"a": [3, 9, 1, 8, 2, 7, 4, 6], "d": [*range(16)]}
    remaining = chosen(model, {"stem": 0.5}, lambda group: np.array(scores[group.name], float))
    assert remaining == {"a": [1, 3, 5, 7], "d": [*range(16)]}


def test_one_ranking_for_all_groups(model: Any) -> None:
    """12 of 24 go; the scores of `d` are ten times as large, which the mean evens out."""
    small = np.array([1, 1, 1, 1, 1, 9, 9, 9.0])
    scores = {"a": small, "d": 10 * np.concatenate([small, small])}
    remaining = chosen(model, 0.5, lambda group: scores[group.name], scope="global")
    assert sum(map(len, remaining.values())) == 12
    assert remaining["a"] == [
        5,
        6,
        7,
    ]  # of equals those of the first group go, the first of a group stay
    assert remaining["d"] == [0, 1, 2, 5, 6, 7, 13, 14, 15]
    rounded = chosen(model, 0.9, lambda group: scores[group.name], scope="global", round_to=4)
    assert {name: len(indices) for name, indices in rounded.items()} == {"a": 4, "d": 4}
    assert rounded["a"] == [0, 5, 6, 7]


def test_the_last_pattern_that_matches_decides(model: Any) -> None:
    groups = dependency_groups.find_groups(model)
    shares = selection.ratios_by_group(
        groups, {"stem": 0.1, "[a-d]": 0.2, "c": 0.3, "pointwise": 0.4}
    )
    assert shares == {groups[0].number: 0.3, groups[1].number: 0.4}


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (1.0, "^ratio: got 1.0, expected a number at least 0 and below 1"),
        (-0.1, "^ratio: got -0.1"),
        (math.nan, "^ratio: got nan"),
        ({"pointwise": 1}, "^`ratio` pointwise: got 1,"),
        ({"conv_pw.*": 0.5}, "^ratio: got 'conv_pw.*', expected a role"),
        ({"squeeze_excite": 0.5}, "^ratio: got 'squeeze_excite'"),
        ({"(": 0.5}, r"^ratio: got '\(', expected a role or a regular expression"),
    ],
)
def test_invalid_ratios_are_refused(model: Any, ratio: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        selection.ratios_by_group(dependency_groups.find_groups(model), ratio)
    assert "\n" not in str(raised.value)
