"""The configs: legal values, names, JSON, and tables that agree with the papers."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilenet.configs import archs
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.block_tables import EDGETPU_BLOCKS
from mobilenet.errors import UsageError


@pytest.mark.parametrize("name", archs.ALL)
def test_json_round_trip(name: str) -> None:
    config = archs.get(
        name, width_multiplier=0.5, num_classes=None, channels={"Conv_1": 16}, output_stride=8
    )
    text = json.dumps(config.to_json())
    again = MobileNetConfig.from_json(json.loads(text))
    assert again == config and type(again) is archs.ALL[name]
    assert isinstance(again.blocks[0].kernel, tuple) and hash(again) == hash(config)


def test_names_match_patterns() -> None:
    assert archs.names("*v3*") == [
        "mobilenet_v3_small",
        "mobilenet_v3_large",
        "mobilenet_v3_small_minimalistic",
        "mobilenet_v3_large_minimalistic",
    ]
    assert len(archs.names()) == 14 and archs.names("resnet*") == []


def test_defaults_are_the_seeds() -> None:
    base = MobileNetConfig()
    assert (
        base.num_classes,
        base.min_depth,
        base.weight_decay,
        base.finegrain_classification_mode,
    ) == (1001, 8, 4e-5, False)
    for name in archs.ALL:
        config = archs.get(name)
        assert (
            config.weight_decay == 2e-5
            and config.stddev == 0.09
            and config.dropout_keep_prob == 0.8
        )
        assert (config.batch_norm_decay, config.batch_norm_epsilon) == (None, 0.001)
        assert config.finegrain_classification_mode is (name != "mobilenet_v1")
        assert config.classifier_activation == "softmax" and config.channels == {}


def test_flags_keep_the_seeds_names() -> None:
    flags = {
        f.metadata["flag"] or f.name
        for f in dataclasses.fields(archs.MobileNetV2Config)
        if "help" in f.metadata
    }
    assert {
        "width_multiplier",
        "num_classes",
        "std_weight_decay",
        "truncated_normal_stddev",
        "batch_norm_decay",
    } <= flags


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "width_multiplier",
            0,
            "width_multiplier: got 0, expected a number above 0 and at most 100; "
            "common values are 0.25, 0.5, 0.75, 1.0",
        ),
        ("width_multiplier", -1.0, "above 0"),
        ("width_multiplier", math.nan, "above 0"),
        ("width_multiplier", "1.0", "above 0"),
        ("num_classes", -1, "whole number at least 0"),
        ("num_classes", 2.5, "whole number at least 0"),
        ("num_classes", True, "whole number at least 0"),
        ("min_depth", 0, "at least 1"),
        ("output_stride", 0, "one of"),
        ("output_stride", 7, "one of"),
        ("classifier_activation", "sofmax", "did you mean softmax"),
        ("dropout_keep_prob", 0, "above 0"),
        ("dropout_keep_prob", 1.5, "at most 1"),
        ("weight_decay", -1e-5, "at least 0"),
        ("stddev", math.inf, "number"),
        ("activation_name", "relu7", "relu6"),
        ("normalization_name", "batchnorm", "did you mean batch_norm"),
        ("batch_norm_decay", 1, "below 1"),
        ("batch_norm_epsilon", 0, "above 0"),
        ("hard_sigmoid_slope", 0, "above 0"),
        ("channels", {"Conv": 0}, "`channels` Conv"),
        ("widht_multiplier", 1, "did you mean width_multiplier"),
    ],
)
def test_illegal_values_cost_one_line(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        archs.get("mobilenet_v2", **{field: value})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean mobilenet_v3_large"):
        archs.get("mobilenet_v3_larg")


def test_a_misspelt_row_field_is_refused() -> None:
    with pytest.raises(TypeError):
        archs.BlockConfig(residule=False)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="residual"):
        archs.BlockConfig.from_json({"residule": False})


def test_the_callers_dictionary_is_copied() -> None:
    channels = {"Conv_1": 8}
    config = archs.get("mobilenet_v2", channels=channels)
    channels["Conv_1"] = 16
    assert config.channels == {"Conv_1": 8}


def test_minimalistic_differs_only_by_kernel_activation_and_gate() -> None:
    for size in ("small", "large"):
        full, plain = (
            archs.get(f"mobilenet_v3_{size}").blocks,
            archs.get(f"mobilenet_v3_{size}_minimalistic").blocks,
        )
        assert len(full) == len(plain)
        for a, b in zip(full, plain, strict=True):
            assert b == a.replace(kernel=b.kernel, activation_name="relu", squeeze_factor=None)
            assert max(b.kernel) <= 3


def test_edgetpu_block_13_adds_nothing() -> None:
    inverted = [b for b in EDGETPU_BLOCKS if b.block_type == "InvertedResConv"]
    assert [index for index, b in enumerate(inverted) if not b.residual] == [13]
    assert sum(not b.depthwise for b in inverted) == 9


@settings(deadline=None, max_examples=50)
@given(
    width=st.floats(0.05, 3),
    classes=st.none() | st.integers(0, 5000),
    name=st.sampled_from(sorted(archs.ALL)),
    keep=st.floats(0.01, 1),
)
def test_any_legal_config_travels(
    width: float, classes: int | None, name: str, keep: float
) -> None:
    config = archs.get(name, width_multiplier=width, num_classes=classes, dropout_keep_prob=keep)
    assert MobileNetConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
