"""Every field of the config has its effect, and no other."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from small_models import families, short_blocks

from mobilenet.configs import archs
from mobilenet.errors import UsageError

tf_keras = pytest.importorskip("tf_keras")

from mobilenet.models import builder  # noqa: E402
from mobilenet.models.blocks import BlockBuilder  # noqa: E402
from mobilenet.models.builder import build  # noqa: E402
from mobilenet.models.end_points import end_points  # noqa: E402
from mobilenet.models.layer_plan import make_divisible, plan_rows  # noqa: E402


def build_model(
    name: str = "mobilenet_v2",
    shape: tuple[int | None, ...] = (32, 32, 3),
    short: bool = False,
    **fields: Any,
) -> Any:
    """A narrow model; `short`: the first row of each kind alone."""
    if short:
        fields["blocks"] = short_blocks(name)
    return build(archs.get(name, **{"width_multiplier": 0.25, "num_classes": 10, **fields}), shape)


def widths(name: str, **fields: Any) -> list[int]:
    """Output channels of the rows that have any of their own."""
    return [
        row.filters
        for row in plan_rows(archs.get(name, **fields))
        if row.block.block_type != "GlobalPooling"
    ]


# value -> result by hand: ties round up, nothing sinks by more than 10 %
@pytest.mark.parametrize(
    ("value", "result"), [(12, 16), (20, 24), (11.2, 16), (84, 88), (8.4, 8), (3, 8), (1792, 1792)]
)
def test_make_divisible(value: float, result: int) -> None:
    assert make_divisible(value) == result


def test_width_rules() -> None:
    v2 = [48, 24, 32, 32, 48, 48, 48, 88, 88, 88, 88, 136, 136, 136, 224, 224, 224, 448, 1792]
    assert widths("mobilenet_v2", width_multiplier=1.4) == v2
    v2 = [16, 8, 8, 8, 16, 16, 16, 24, 24, 24, 24, 32, 32, 32, 56, 56, 56, 112]
    assert widths("mobilenet_v2", width_multiplier=0.35) == [*v2, 1280]
    assert widths("mobilenet_v2", width_multiplier=0.35, finegrain_classification_mode=False) == [
        *v2,
        448,
    ]
    assert widths("mobilenet_v1", width_multiplier=0.35)[:5] == [11, 22, 44, 44, 89]
    assert widths("mobilenet_v1", width_multiplier=0.125, min_depth=4)[0] == 4
    assert widths("mobilenet_v1", width_multiplier=0.125)[0] == 8
    v3 = [8, 8, 8, 8, 16, 16, 16, 16, 16, 32, 32, 32, 200]
    assert widths("mobilenet_v3_small", width_multiplier=0.35) == [*v3, 1024]
    assert widths(
        "mobilenet_v3_small", width_multiplier=0.35, finegrain_classification_mode=False
    ) == [*v3, 360]
    # above 1, V3's last row stays in finegrain mode (slim), grows without (keras.applications)
    assert widths("mobilenet_v3_small", width_multiplier=1.5)[-2:] == [864, 1024]
    assert (
        widths("mobilenet_v3_small", width_multiplier=1.5, finegrain_classification_mode=False)[-1]
        == 1536
    )
    edge = [24, 16, 24, 24, 24, 24, 40, 40, 40, 40, *[72] * 8, 120, 120, 120, 120, 144, 1280]
    assert widths("mobilenet_edgetpu", width_multiplier=0.75) == edge


def test_a_stem_that_keeps_its_width() -> None:
    """timm's mobilenetv3_small_050 has 16 channels in its stem, no sum in its first block."""
    name, fields = "mobilenet_v3_large", {"width_multiplier": 0.25}
    narrow, rows = (
        plan_rows(archs.get(name, scale_stem=value, **fields)) for value in (True, False)
    )
    assert [rows[0].filters, rows[1].filters, narrow[0].filters] == [16, 8, 8]
    assert [rows[1].residual, narrow[1].residual] == [False, True]
    assert [row.filters for row in rows[1:]] == [row.filters for row in narrow[1:]]


@pytest.mark.parametrize(
    ("start", "middle", "expected"),
    [
        (
            3,
            5,
            [("start_depthwise", 3, 1, ""), ("expand", 1, 1, "relu"), ("depthwise", 5, 2, "relu")],
        ),
        (3, 0, [("start_depthwise", 3, 2, ""), ("expand", 1, 1, "relu")]),
        (0, 5, [("expand", 1, 1, "relu"), ("depthwise", 5, 2, "relu")]),
        (0, 0, [("expand", 1, 1, "relu")]),
    ],
)
def test_layers_of_a_universal_bottleneck(
    start: int, middle: int, expected: list[tuple[str, int, int, str]]
) -> None:
    """Kernel, stride and activation of each convolution; where both are depthwise, the second has
    the stride."""
    block = archs.UniversalBottleneckConfig(
        stride=2,
        filters=16,
        expansion_size=4.0,
        start_kernel=(start, start) if start else None,
        middle_kernel=(middle, middle) if middle else None,
    )
    config = archs.get("mobilenet_v4_conv_small", num_classes=4)
    assert (
        archs.MobileNetConfig.from_json(config.replace(blocks=(block,)).to_json()).blocks[0]
        == block
    )
    model = build(config.replace(blocks=(config.blocks[0], block, block.replace(stride=1))), 32)
    built = []
    for layer in model.layers:
        part = layer.name.removeprefix("expanded_conv_")
        if (
            hasattr(layer, "kernel_size")
            and layer.name.startswith("expanded_conv_")
            and part[0] != "1"
        ):
            after = layer.outbound_nodes[0].layer.outbound_nodes[0].layer
            activation = (
                after.name.removeprefix(f"{layer.name}_") if "ReLU" in type(after).__name__ else ""
            )
            built.append((part, layer.kernel_size[0], layer.strides[0], activation))
    stride = 1 if start or middle else 2
    assert built == [*expected, ("project", 1, stride, "")]
    assert model.get_layer("expanded_conv_1_add").output.shape == (None, 8, 8, 16)


def test_expansions_and_squeezes_follow_the_narrowed_input() -> None:
    rows = [
        row
        for row in plan_rows(archs.get("mobilenet_v3_large", width_multiplier=0.75))
        if "expanded" in row.name
    ]
    assert [row.expanded for row in rows] == [
        0,
        64,
        72,
        72,
        96,
        96,
        192,
        160,
        144,
        144,
        384,
        528,
        528,
        720,
        720,
    ]
    assert [row.squeezed for row in rows] == [
        0,
        0,
        0,
        24,
        24,
        24,
        0,
        0,
        0,
        0,
        96,
        136,
        136,
        184,
        184,
    ]
    small = plan_rows(archs.get("mobilenet_v3_small"))
    assert [row.squeezed for row in small if row.squeezed] == [8, 24, 64, 64, 32, 40, 72, 144, 144]


def test_residuals_are_those_of_the_tables() -> None:
    def added(name: str) -> list[str]:
        return [
            row.name.removeprefix("expanded_conv_")
            for row in plan_rows(archs.get(name))
            if row.residual
        ]

    assert added("mobilenet_v2") == ["2", "4", "5", "7", "8", "9", "11", "12", "14", "15"]
    assert added("mobilenet_v3_large") == [
        "expanded_conv",
        "2",
        "4",
        "5",
        "7",
        "8",
        "9",
        "11",
        "13",
        "14",
    ]
    assert added("mobilenet_v3_small") == ["2", "4", "5", "7", "9", "10"]
    assert added("mobilenet_edgetpu") == [
        "2",
        "3",
        "4",
        "6",
        "7",
        "8",
        "10",
        "11",
        "12",
        "14",
        "15",
        "16",
        "18",
        "19",
        "20",
    ]


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("shape", [(97, 65, 3), (None, None, 1)])
def test_any_image_size(name: str, shape: tuple[int | None, ...]) -> None:
    model = build_model(name, shape, short=True)
    pixels = np.zeros((2, *(side or 40 for side in shape)), np.float32)
    assert model(pixels).shape == (2, 10)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small"])
def test_too_small_an_image_names_the_least(name: str) -> None:
    with pytest.raises(UsageError, match="at least 32"):
        build_model(name, (31, 64, 3))
    assert build_model(name, (16, 16, 3), output_stride=16).output_shape == (None, 10)


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 0), (32, 32, None), (0, 32, 3)])
def test_illegal_shapes(shape: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match="input_shape"):
        build_model(shape=shape)


def test_no_classes_gives_features() -> None:
    classes = None
    assert build_model("mobilenet_v2", short=True, num_classes=0).output_shape == (None, 1280)
    assert build_model("mobilenet_v1", num_classes=classes, spatial_squeeze=False).output_shape == (
        None,
        1,
        1,
        256,
    )
    model = build_model("mobilenet_v3_small", short=True, num_classes=classes)
    assert model.output_shape == (None, 1024)
    assert not any(layer.name in ("dropout", "Logits", "Predictions") for layer in model.layers)


def test_classifier_activation() -> None:
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    model = build_model(short=True, classifier_activation=None)
    assert model.layers[-1].name == "squeeze"
    logits = model(pixels).numpy()
    for activation, expected in (
        ("softmax", np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)),
        ("sigmoid", 1 / (1 + np.exp(-logits))),
    ):
        other = build_model(short=True, classifier_activation=activation)
        other.set_weights(model.get_weights())
        assert other.layers[-1].name == "Predictions"
        np.testing.assert_allclose(other(pixels).numpy(), expected, rtol=1e-5)


def test_spatial_squeeze_off_keeps_the_map() -> None:
    model = build_model(short=True, spatial_squeeze=False)
    assert model.output_shape == (None, 1, 1, 10)
    np.testing.assert_allclose(
        model(np.ones((1, 32, 32, 3), np.float32)).numpy().sum(-1), 1, rtol=1e-5
    )


def test_fixed_pooling() -> None:
    v1 = functools.partial(build_model, "mobilenet_v1")
    assert v1(shape=(224, 224, 3), global_pool=False).output_shape == (None, 10)
    assert v1(shape=(96, 64, 3), global_pool=False).output_shape == (None, 10)
    assert v1(shape=(448, 448, 3), global_pool=False, spatial_squeeze=False).output_shape == (
        None,
        2,
        2,
        10,
    )
    with pytest.raises(UsageError, match="spatial_squeeze"):
        v1(shape=(448, 448, 3), global_pool=False)
    with pytest.raises(UsageError, match="fixed height and width"):
        v1(shape=(None, None, 3), global_pool=False)


def test_fixed_pooling_of_one_window_is_the_mean() -> None:
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    whole, fixed = (
        build_model("mobilenet_v1", (64, 64, 3), global_pool=flag, classifier_activation=None)
        for flag in (True, False)
    )
    fixed.set_weights(whole.get_weights())
    np.testing.assert_allclose(fixed(pixels).numpy(), whole(pixels).numpy(), atol=1e-6)


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("output_stride", [1, 2, 4, 8, 16, 32])
def test_output_stride_bounds_the_plan(name: str, output_stride: int) -> None:
    rows = plan_rows(archs.get(name, output_stride=output_stride))
    assert np.prod([row.stride for row in rows]) == output_stride
    assert rows[-1].rate == (
        32 // output_stride if rows[-1].block.block_type != "GlobalPooling" else 1
    )


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_bounds_the_maps(name: str, output_stride: int) -> None:
    model = build_model(name, (64, 64, 3), output_stride=output_stride)
    last = list(end_points(model).items())[-1]
    assert last[0] == output_stride and last[1].shape[1] == 64 // output_stride


def test_dilations_are_slims() -> None:
    def rates(output_stride: int) -> list[tuple[int, int]]:
        model = build_model("mobilenet_v1", (64, 64, 3), output_stride=output_stride)
        layers = [model.get_layer(f"Conv2d_{i}_depthwise") for i in range(5, 14)]
        return [(layer.strides[0], layer.dilation_rate[0]) for layer in layers]

    assert rates(32) == [(1, 1), (2, 1), *[(1, 1)] * 5, (2, 1), (1, 1)]
    assert rates(16) == [(1, 1), (2, 1), *[(1, 1)] * 5, (1, 1), (1, 2)]
    assert rates(8) == [(1, 1), (1, 1), *[(1, 2)] * 5, (1, 2), (1, 4)]
    fused = build_model("mobilenet_edgetpu", output_stride=4)
    assert fused.get_layer("expanded_conv_6_expand").dilation_rate == (2, 2)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", pytest.param("mobilenet_edgetpu", marks=pytest.mark.slow)]
)
def test_a_dilated_model_computes_the_strided_one_densely(name: str) -> None:
    """Evenly padded, every fourth value of the dense map is the strided model's (arXiv
    1412.7062).
    """
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 96, 64, 3)).astype(np.float32)
    maps = []
    weights = None
    for output_stride in (None, 8):
        model = build_model(
            name, (96, 64, 3), output_stride=output_stride, use_explicit_padding=True
        )
        weights = weights or [
            np.random.default_rng(i).normal(0.1, 0.2, w.shape) for i, w in enumerate(model.weights)
        ]
        weights = [
            np.abs(w) if "variance" in v.name else w
            for w, v in zip(weights, model.weights, strict=True)
        ]
        model.set_weights(weights)
        last = list(end_points(model).values())[-1]
        maps.append(tf_keras.Model(model.input, last)(pixels).numpy())
    strided, dense = maps
    assert strided.shape[1:3] == (3, 2) and dense.shape[1:3] == (12, 8) and np.ptp(strided) > 0.1
    np.testing.assert_allclose(
        dense[:, ::4, ::4], strided, rtol=1e-3, atol=1e-3 * np.abs(strided).max()
    )


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small"])
def test_explicit_padding_keeps_the_sizes(name: str) -> None:
    same, explicit = (
        build_model(name, (97, 64, 3), use_explicit_padding=flag) for flag in (False, True)
    )
    sizes = [
        [tuple(layer.output.shape[1:3]) for layer in model.layers if "Conv" in type(layer).__name__]
        for model in (same, explicit)
    ]
    assert sizes[0] == sizes[1]
    assert not any(
        layer.padding == "same"
        for layer in explicit.layers
        if getattr(layer, "kernel_size", (1, 1)) > (1, 1)
    )


def test_explicit_padding_grows_with_the_rate() -> None:
    model = build_model("mobilenet_v1", use_explicit_padding=True, output_stride=16)
    assert model.get_layer("Conv2d_13_depthwise_pad").padding == ((2, 2), (2, 2))
    assert model.get_layer("Conv2d_5_depthwise_pad").padding == ((1, 1), (1, 1))


def test_regularizers() -> None:
    def with_l2(**fields: Any) -> set[str]:
        layers = [
            layer
            for layer in build_model("mobilenet_v3_small", short=True, **fields).layers
            if layer.weights
        ]
        names = ("kernel_regularizer", "depthwise_regularizer")
        return {
            layer.name
            for layer in layers
            for name in names
            if getattr(layer, name, None) is not None
        }

    plain = with_l2()
    assert "Conv" in plain and "expanded_conv_1_expand" in plain and "Logits" in plain
    assert not any("depthwise" in name for name in plain)
    assert with_l2(regularize_depthwise=True) - plain == {
        "expanded_conv_depthwise",
        *(f"expanded_conv_{i}_depthwise" for i in range(1, 5)),
    }
    assert with_l2(weight_decay=0.0) == set()
    model = build_model("mobilenet_v1", short=True, weight_decay=0.5)
    expected = sum(0.5 * np.sum(w.numpy() ** 2) for w in model.weights if "/kernel" in w.name)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-4)


def test_initializers() -> None:
    kernel = (
        build_model("mobilenet_v1", stddev=0.02).get_layer("Conv2d_13_pointwise").kernel.numpy()
    )
    # a normal distribution cut at two deviations has 0.8796 of its deviation
    assert (
        np.std(kernel) == pytest.approx(0.02 * 0.8796, rel=0.02)
        and 0.038 < np.abs(kernel).max() <= 0.04
    )
    kernel = (
        build_model("mobilenet_v1", stddev=-1.0).get_layer("Conv2d_13_pointwise").kernel.numpy()
    )
    assert np.abs(kernel).max() <= np.sqrt(6 / 512) and np.std(kernel) == pytest.approx(
        np.sqrt(2 / 512), rel=0.05
    )


def test_normalization_fields() -> None:
    layer = build_model(short=True, batch_norm_decay=0.9, batch_norm_epsilon=0.01).get_layer(
        "Conv_batch_norm"
    )
    assert (layer.momentum, layer.epsilon) == (0.9, 0.01)
    assert build_model(short=True, dropout_keep_prob=0.75).get_layer("dropout").rate == 0.25


@pytest.mark.parametrize("normalization", ["layer_norm", "group_norm"])
@pytest.mark.parametrize("name", ["mobilenet_v1"])
def test_other_normalizations_train(name: str, normalization: str) -> None:
    model = build_model(name, short=True, normalization_name=normalization, width_multiplier=0.35)
    assert not any(isinstance(layer, tf_keras.layers.BatchNormalization) for layer in model.layers)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    assert np.isfinite(model.train_on_batch(pixels, np.array([1, 2])))


def test_activations_by_name() -> None:
    x = np.linspace(-6, 6, 49, dtype=np.float32)
    ramp = np.clip(x + 3, 0, 6) / 6
    expected = {
        "relu": np.maximum(x, 0),
        "relu6": np.clip(x, 0, 6),
        "elu": np.where(x > 0, x, np.expm1(x)),
        "swish": x / (1 + np.exp(-x)),
        "hard_swish": x * ramp,
        "sigmoid": 1 / (1 + np.exp(-x)),
        "hard_sigmoid": ramp,
        "softmax": np.exp(x) / np.exp(x).sum(),
    }
    assert set(expected) == set(archs.ACTIVATIONS)
    blocks = BlockBuilder(archs.get("mobilenet_v2"), tf_keras)
    for activation, values in expected.items():
        image = tf_keras.Input((1, 1, 49))
        model = tf_keras.Model(image, blocks.activate(image, "x", activation))
        np.testing.assert_allclose(model(x.reshape(1, 1, 1, 49)).numpy().ravel(), values, atol=1e-5)


def test_hard_sigmoid_slope_is_the_gates_alone() -> None:
    model = build_model("mobilenet_v3_small", short=True, hard_sigmoid_slope=0.16667)
    assert model.get_layer("expanded_conv_squeeze_excite_excite_scale").scale == 0.16667
    assert model.get_layer("Conv_hard_swish_scale").scale == pytest.approx(1 / 6, abs=1e-12)


def test_channels_thin_a_model() -> None:
    channels = {
        "Conv": 12,
        "expanded_conv_1_expand": 20,
        "expanded_conv_3_squeeze_excite_squeeze": 4,
        "expanded_conv_3_expand": 18,
        "expanded_conv_4_project": 9,
        "expanded_conv_3_project": 9,
        "expanded_conv_5_project": 9,
        "expanded_conv_6_project": 9,
        "expanded_conv_7_project": 9,
        "Conv_1": 40,
        "Conv_2": 30,
    }
    model = build_model("mobilenet_v3_small", channels=channels)
    for name, filters in channels.items():
        assert model.get_layer(name).filters == filters
    assert model.get_layer("expanded_conv_1_depthwise").output.shape[-1] == 20
    assert model.get_layer("expanded_conv_3_squeeze_excite_excite").filters == 18
    plain = build_model("mobilenet_v3_small")
    assert len(plain.layers) == len(model.layers)
    for layer in plain.layers:  # all others keep their width
        follows = layer.name in (
            "expanded_conv_squeeze_excite_excite",
            "expanded_conv_3_squeeze_excite_excite",
        )
        if hasattr(layer, "filters") and layer.name not in channels and not follows:
            assert model.get_layer(layer.name).filters == layer.filters
    thin = build_model("mobilenet_v1", channels={"Conv2d_0": 3, "Conv2d_5_pointwise": 7})
    assert thin.get_layer("Conv2d_6_depthwise").output.shape[-1] == 7


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"expanded_conv_1_expnd": 8}, "did you mean expanded_conv_1_expand"),
        ({"expanded_conv_1_depthwise": 8}, "expanded_conv_1_"),
        ({"Logits": 8}, "one of"),
        ({"expanded_conv_2_project": 4}, "expanded_conv_1_project"),
    ],
)
def test_channels_that_do_not_fit(channels: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model("mobilenet_v2", channels=channels)


def test_equal_channels_by_thinning_add_no_residual() -> None:
    model = build_model("mobilenet_v1", short=True)
    assert not any(isinstance(layer, tf_keras.layers.Add) for layer in model.layers)
    thin = build_model(short=True, width_multiplier=1.0, channels={"expanded_conv_project": 32})
    assert "expanded_conv_add" not in [layer.name for layer in thin.layers]


def test_the_seeds_builders() -> None:
    shape = (32, 32, 3)
    rows = short_blocks("mobilenet_v3_small")
    small = archs.get("mobilenet_v3_small", width_multiplier=0.25, num_classes=10, blocks=rows)
    assert builder.mobilenet_v3_small(small, shape).name == "MobileNetV3Small"
    assert builder.mobilenet_v3(small, shape).name == "MobileNetV3Small"
    with pytest.raises(UsageError, match="expected MobileNetV3LargeConfig or"):
        builder.mobilenet_v3_large(small, shape)
    assert builder.mobilenet_v1(input_shape=shape).output_shape == (None, 1001)
    with pytest.raises(UsageError, match="MobileNetConfig"):
        build("mobilenet_v1")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="rows"):
        build(archs.MobileNetConfig())
