"""Which layers are pruned: by role, by regular expression; the last match decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tf_keras
from short_training import stage_context, train
from small_models import families, toy

from mobilenet.compression import method as methods
from mobilenet.compression.pruning.unstructured.sparsity_targets import assign_targets
from mobilenet.configs.pruning import MagnitudePruning, TfmotPruning
from mobilenet.errors import UsageError


def shares(model: Any, requested: dict[str, float]) -> dict[str, float | None]:
    return {target.layer: target.sparsity for target in assign_targets(model, requested)}


def test_roles_and_names_the_last_match_decides() -> None:
    model = toy()
    by_layer = shares(model, {"pointwise": 0.5, "depthwise": 0.3, "[cd]": 0.75, "d": 0.25})
    assert by_layer == {"a": None, "b": 0.3, "c": 0.75, "d": 0.25, "e": None}
    reverse = shares(model, {"d": 0.25, "pointwise": 0.5})
    assert reverse == {"a": None, "b": None, "c": 0.5, "d": 0.5, "e": None}


def test_an_expression_matches_whole_names() -> None:
    assert shares(toy(), {".*": 0.1, "a|b": 0.2})["c"] == 0.1
    with pytest.raises(UsageError, match="regular expression"):
        shares(toy(), {"nam": 0.5})


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"squeeze_excite": 0.5}, "squeeze_excite"),
        ({"pointwise": 0.5, "Conv_99": 0.5}, "Conv_99"),
        ({"(": 0.5}, "unterminated"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(
    requested: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match="^final_sparsity: ") as error:
        assign_targets(toy(), requested)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="^`final_sparsity` pointwise: "):
        MagnitudePruning(final_sparsity={"pointwise": share})


@pytest.mark.parametrize(
    "fields", [{"begin": 0.6, "end": 0.6}, {"frequency": 0}, {"power": 0}, {"schedule": "linear"}]
)
def test_an_invalid_schedule_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="^(end|frequency|power|schedule): got"):
        MagnitudePruning(**fields)


def test_every_layer_is_listed_as_pruned_or_dense_with_its_reason() -> None:
    method = methods.create(
        MagnitudePruning(final_sparsity={"pointwise": 0.75, "c": 0.0}, frequency=1),
        stage_context(4),
    )
    model = method.apply(toy())
    train(model, method, 4)
    assert method.notes(model) == [
        "a (stem): dense, no pattern matches",
        "b (depthwise): dense, no pattern matches",
        "c (pointwise): dense, matches c",
        "d (pointwise): 75.0% zeros, matches pointwise",
        "e (classifier): dense, no pattern matches",
    ]


def test_every_role_can_be_a_target(small_model: Callable[..., Any]) -> None:
    """The names come from the config's block table, not from the graph that gives the roles."""
    shares = {
        "stem": 0.1,
        "depthwise": 0.2,
        "pointwise": 0.3,
        "squeeze_excite": 0.4,
        "classifier": 0.5,
        "expanded_conv_[0-9]+_expand": 0.6,
    }
    expected = {
        "Conv": 0.1,
        "expanded_conv_1_depthwise": 0.2,
        "expanded_conv_3_project": 0.3,
        "expanded_conv_3_squeeze_excite_squeeze": 0.4,
        "expanded_conv_3_squeeze_excite_excite": 0.4,
        "Logits": 0.5,
        "expanded_conv_3_expand": 0.6,
        "expanded_conv_10_expand": 0.6,
    }
    sparsity = {
        t.layer: t.sparsity for t in assign_targets(small_model("mobilenet_v3_small"), shares)
    }
    assert {name: sparsity[name] for name in expected} == expected
    assert None not in sparsity.values()
    fused = assign_targets(small_model("mobilenet_edgetpu"), {"fused": 0.7})
    chosen = [target.layer for target in fused if target.sparsity == 0.7]
    assert chosen[:2] == ["expanded_conv_1_expand", "expanded_conv_2_expand"]
    assert {target.role for target in fused if target.sparsity} == {"fused"}


def wrapped() -> Any:
    from tensorflow_model_optimization.sparsity import keras as sparsity

    def wrap(layer: Any) -> Any:
        copy = type(layer).from_config(layer.get_config())
        return sparsity.prune_low_magnitude(copy) if layer.name == "d" else copy

    return tf_keras.models.clone_model(toy(), clone_function=wrap)


def keras_3() -> Any:
    keras = pytest.importorskip("keras", minversion="3")
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


def broken() -> Any:
    model = toy()
    model.get_layer("d").kernel.assign(model.get_layer("d").kernel * np.nan)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrapped, "model: got 'wrapped layers prune_low_magnitude_d', expected plain layers"),
        (keras_3, "expected a functional or Sequential model of tf_keras; save it as .keras"),
        (broken, "expected finite values"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("config", [MagnitudePruning(), TfmotPruning()], ids=["ours", "tfmot"])
def test_a_model_that_cannot_be_pruned_is_refused_in_one_line(
    config: Any, make: Callable[[], Any], message: str
) -> None:
    method = methods.create(config, stage_context())
    for function in (method.check, method.apply):
        with pytest.raises(UsageError) as error:
            function(make())
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", families())
def test_the_default_covers_most_of_every_model(name: str, small_model: Callable[..., Any]) -> None:
    model = small_model(name)
    chosen = [t for t in assign_targets(model, MagnitudePruning().final_sparsity) if t.sparsity]
    assert {t.role for t in chosen} == {"pointwise"}
    inside = sum(model.get_layer(t.layer).count_params() for t in chosen)
    assert inside > 0.3 * model.count_params()
