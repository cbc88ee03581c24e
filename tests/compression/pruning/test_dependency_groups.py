"""Dependency groups, against the tables of the papers and small models built by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import tf_keras
from small_models import families, rename_layers

from mobilenet.compression.pruning.channel import dependency_groups
from mobilenet.configs import archs
from mobilenet.errors import UsageError
from mobilenet.models.builder import build

L = tf_keras.layers

# Channels of the groups at width 1 by the role of the layer that makes them first; stages that
# residual sums tie count once.
V3_SMALL = {
    "stem": [16],
    "pointwise": [
        *(16, 24, 40, 48, 96),  # outputs of blocks
        *(72, 88, 96, 240, 240, 120, 144, 288, 576, 576),  # expansions
        *(576, 1024),
    ],
}
V3_LARGE = {
    "stem": [16],  # the first block adds it to its output
    "pointwise": [
        *(24, 40, 80, 112, 160),
        *(64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960),
        *(960, 1280),
    ],
}
EXPECTED: dict[str, dict[str, list[int]]] = {
    "mobilenet_v1": {
        "stem": [32],
        "pointwise": [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024],
    },
    "mobilenet_v2": {
        "stem": [32],
        "pointwise": [
            *(16, 24, 32, 64, 96, 160, 320),
            *(96, 144, 144, 192, 192, 192, 384, 384, 384, 384, 576, 576, 576, 960, 960, 960),
            1280,
        ],
    },
    "mobilenet_v3_small": {
        **V3_SMALL,
        "squeeze_excite": [8, 24, 64, 64, 32, 40, 72, 144, 144],
    },
    "mobilenet_v3_large": {
        **V3_LARGE,
        "squeeze_excite": [24, 32, 32, 120, 168, 168, 240, 240],
    },
    "mobilenet_v3_small_minimalistic": V3_SMALL,
    "mobilenet_v3_large_minimalistic": V3_LARGE,
    "mobilenet_edgetpu": {
        "stem": [32],
        "fused": [128, 128, 128, 128, 256, 192, 192, 192],
        "pointwise": [
            *(16, 32, 48, 96, 96, 160, 192),  # one block of 96 adds nothing and begins anew
            *(384, 384, 384, 384, 768, 384, 384, 384, 768, 640, 640, 640, 1280),
            1280,
        ],
    },
}


# A depthwise convolution before an expansion belongs to the group of the block's input.
EXPECTED |= {
    "mobilenet_v4_conv_small": {
        "stem": [32],
        "fused": [32, 96],
        "pointwise": [
            *(32, 64, 96, 128),  # outputs of convolutions and blocks
            *(192, 192, 192, 192, 192, 384, 576, 512, 512, 384, 512, 512),  # expansions
            *(960, 1280),
        ],
    },
    "mobilenet_v4_conv_medium": {
        "stem": [32],
        "fused": [128],
        "pointwise": [
            *(48, 80, 160, 256),
            *(192, 160, 480, *[640] * 5, 320, 640, 960, *[1024] * 5, 512, *[1024] * 3, 512),
            *(960, 1280),
        ],
    },
    "mobilenet_v4_conv_large": {
        "stem": [24],
        "fused": [96],
        "pointwise": [
            *(48, 96, 192, 512),
            *(192, 384, 384, *[768] * 11, *[2048] * 12),
            *(960, 1280),
        ],
    },
}


def edgetpu_v2(stem: int, filters: tuple[int, ...], last: int) -> dict[str, list[int]]:
    """Channels next to a grouped convolution are fixed: outputs of the second and third stage."""
    first, second, third, fourth, fifth, sixth, seventh = filters
    return {
        "stem": [stem],
        "fused": [8 * first, 8 * second, 4 * third, 8 * third],
        "pointwise": [
            *(first, fourth, fifth, sixth, seventh, last),
            *([4 * fourth] * 3 + [8 * fourth] + [4 * fifth] * 3),
            *([8 * fifth] + [4 * sixth] * 3 + [8 * sixth]),
        ],
    }


EXPECTED |= {
    "mobilenet_edgetpu_v2_xs": edgetpu_v2(32, (16, 32, 48, 96, 144, 160, 192), 1280),
    "mobilenet_edgetpu_v2_s": edgetpu_v2(64, (24, 48, 64, 128, 160, 192, 256), 1280),
    "mobilenet_edgetpu_v2_m": edgetpu_v2(64, (32, 64, 80, 160, 192, 240, 320), 1344),
    "mobilenet_edgetpu_v2_l": edgetpu_v2(64, (32, 64, 96, 192, 240, 256, 384), 1408),
}


def sizes(groups: tuple[dependency_groups.Group, ...]) -> dict[str, Counter[int]]:
    roles = {group.role for group in groups}
    return {role: Counter(g.channels for g in groups if g.role == role) for role in roles}


@pytest.mark.parametrize("name", families())
def test_the_groups_of_each_model(name: str) -> None:
    groups = dependency_groups.find_groups(build(archs.get(name, num_classes=10), (32, 32, 3)))
    assert sizes(groups) == {role: Counter(n) for role, n in EXPECTED[name].items()}
    if name in ("mobilenet_v1", "mobilenet_v2"):
        counts = {"mobilenet_v1": (14, 5984), "mobilenet_v2": (25, 9128)}
        assert (len(groups), sum(group.channels for group in groups)) == counts[name]


def test_a_group_shows_its_members_and_why(small_model: Callable[..., Any]) -> None:
    groups = dependency_groups.ChannelGraph(small_model("mobilenet_v3_small")).by_layer()
    block = "expanded_conv_4"
    lines = str(groups[f"{block}_expand"]).splitlines()
    assert lines[0].endswith(f" channels of {block}_expand (pointwise)")
    assert [line.split(maxsplit=2) for line in lines[1:]] == [
        [f"{block}_expand", "out", "makes them"],
        [f"{block}_expand_batch_norm", "all", "a scale and a shift for each"],
        [f"{block}_depthwise", "all", "a filter for each"],
        [f"{block}_depthwise_batch_norm", "all", "a scale and a shift for each"],
        [f"{block}_squeeze_excite_squeeze", "in", "reads their means"],
        [
            f"{block}_squeeze_excite_excite",
            "out",
            f"makes what {block}_squeeze_excite_multiply joins to them",
        ],
        [f"{block}_project", "in", "reads them"],
    ]
    assert groups[f"{block}_squeeze_excite_excite"] is groups[f"{block}_expand"]
    squeeze = groups[f"{block}_squeeze_excite_squeeze"]
    assert squeeze.role == "squeeze_excite" and len(squeeze.members) == 2


def test_a_depthwise_convolution_before_an_expansion_follows_the_input(
    small_model: Callable[..., Any],
) -> None:
    groups = dependency_groups.ChannelGraph(small_model("mobilenet_v4_conv_small")).by_layer()
    block, before = "expanded_conv_5", "expanded_conv_4_project"
    start = groups[f"{block}_start_depthwise"]
    assert start is groups[before] is groups[f"{block}_project"]
    readers = [member.layer.name for member in start.members_on("in")]
    assert f"{block}_expand" in readers and groups[f"{block}_expand"] is not start


def test_sums_tie_projections(small_model: Callable[..., Any]) -> None:
    groups = dependency_groups.ChannelGraph(small_model("mobilenet_v2")).by_layer()
    tied = [f"expanded_conv_{n}_project" for n in (13, 14, 15)]
    assert len({groups[name].number for name in tied}) == 1
    assert groups["expanded_conv_16_project"] is not groups[tied[0]]
    makers = [member.layer.name for member in groups[tied[0]].members_on("out")]
    assert makers == tied
    assert "makes what expanded_conv_15_add joins to them" in str(groups[tied[0]])


def test_the_classes_are_fixed(small_model: Callable[..., Any]) -> None:
    model = small_model("mobilenet_v1")
    every = dependency_groups.find_groups(model, fixed=True)
    assert [g.name for g in every if g.fixed] == ["Logits"]
    assert "fixed: the model outputs them" in str(every[-1])
    features = small_model("mobilenet_v1", num_classes=0)
    assert [g.name for g in dependency_groups.find_groups(features, fixed=True) if g.fixed] == [
        "Conv2d_13_pointwise"
    ]


def test_names_play_no_part(small_model: Callable[..., Any]) -> None:
    model = small_model("mobilenet_v3_small")
    renamed = rename_layers(model)
    assert sizes(dependency_groups.find_groups(renamed)) == sizes(
        dependency_groups.find_groups(model)
    )


def test_keras_3_models_have_the_same_groups(small_model: Callable[..., Any]) -> None:
    keras = pytest.importorskip("keras", minversion="3")
    model = small_model("mobilenet_v3_small")
    fields = {"width_multiplier": 0.25, "num_classes": 10, "classifier_activation": None}
    other = build(archs.get("mobilenet_v3_small", **fields), (32, 32, 3), keras=keras)
    assert [str(g) for g in dependency_groups.find_groups(other)] == [
        str(g) for g in dependency_groups.find_groups(model)
    ]


@pytest.mark.parametrize(
    ("name", "ours"),
    [("MobileNet", "mobilenet_v1"), ("MobileNetV2", "mobilenet_v2")],
)
def test_models_of_keras_applications(name: str, ours: str) -> None:
    make = getattr(tf_keras.applications, name)
    groups = dependency_groups.find_groups(make(weights=None, input_shape=(32, 32, 3), classes=5))
    assert sizes(groups) == {role: Counter(n) for role, n in EXPECTED[ours].items()}


def head(*layers: Any, size: int = 8) -> Any:
    source = L.Input((size, size, 3))
    x = L.Conv2D(6, 3, name="stem")(source)
    for layer in layers:
        x = layer(x)
    return tf_keras.Model(source, x)


def test_flattened_maps_are_read_at_every_position() -> None:
    model = head(L.Flatten(), L.BatchNormalization(name="norm"), L.Dense(4, name="dense"))
    (group,) = dependency_groups.find_groups(model)
    assert [(m.layer.name, m.side, m.repeats) for m in group.members] == [
        ("stem", "out", 1),
        ("norm", "all", 36),
        ("dense", "in", 36),
    ]
    assert "reads them, at 36 positions" in str(group)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([L.Permute((3, 1, 2), name="odd")], "layer odd: got 'Permute'"),
        ([L.LayerNormalization(name="odd")], "layer odd: got 'LayerNormalization'"),
        ([L.DepthwiseConv2D(3, depth_multiplier=2, name="odd")], "layer odd.*depth_multiplier 1"),
        ([L.BatchNormalization(axis=1, name="odd")], "layer odd.*last axis"),
        ([L.Reshape((12, 18), name="odd")], "layer odd.*keeps the channels last"),
        ([L.Lambda(lambda x: x, name="odd")], "layer odd: got 'Lambda'"),
    ],
)
def test_a_layer_that_cannot_be_followed_is_named(layers: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dependency_groups.find_groups(head(*layers))


def test_a_layer_that_is_used_twice_is_named() -> None:
    source = L.Input((8, 8, 3))
    shared = L.Conv2D(3, 1, name="shared")
    with pytest.raises(UsageError, match="layer shared.*used once"):
        dependency_groups.find_groups(tf_keras.Model(source, shared(shared(source))))


def test_a_grouped_convolution_fixes_its_channels() -> None:
    model = head(L.Conv2D(8, 3, groups=2, name="grouped"), L.Conv2D(4, 1, name="next"), L.Flatten())
    every = dependency_groups.ChannelGraph(model).by_layer()
    for name in ("stem", "grouped"):
        assert every[name].fixed == "grouped convolves them in groups"
    assert [m.layer.name for m in every["grouped"].members_on("in")] == ["next"]


def test_constants_by_channel_fix_the_group() -> None:
    model = head(L.Rescaling([1.0, 2, 3, 4, 5, 6], name="table"), L.Conv2D(2, 1, name="end"))
    every = dependency_groups.ChannelGraph(model).by_layer()
    assert every["stem"].fixed == "table has a constant for each"
    assert not dependency_groups.find_groups(model)
