"""All models: sizes against computed figures, stock layers, training, both Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small_models import QUICK, families

from mobilenet.configs import archs

tf_keras = pytest.importorskip("tf_keras")

from mobilenet.models.builder import build  # noqa: E402
from mobilenet.models.counting import count, nonzero_weights  # noqa: E402
from mobilenet.models.end_points import end_points  # noqa: E402

NAMES = list(archs.ALL)
DEEP = (  # building them takes seconds
    *("mobilenet_v4_conv_medium", "mobilenet_v4_conv_large"),
    *(f"mobilenet_edgetpu_v2_{size}" for size in "sml"),
)
SIDES = (224, 192, 160, 128, 96)

# name, width, trainable and total parameters at 1000 classes, MACs at SIDES; from the tables;
# V1 to V3 agree with keras.applications, EdgeTPU with slim's own listing (990.7 M, 4.05 M kernels),
# V4 and EdgeTPU V2 with timm 1.0.29 at 224 px.
GOLDEN = [
    (
        "mobilenet_v1",
        1.0,
        4231976,
        4253864,
        (568740352, 418121728, 290675200, 186400768, 105298432),
    ),
    (
        "mobilenet_v1",
        0.75,
        2585560,
        2601976,
        (325400448, 239273472, 166396800, 106770432, 60394368),
    ),
    ("mobilenet_v1", 0.5, 1331592, 1342536, (149497088, 109970432, 76524800, 49160192, 27876608)),
    ("mobilenet_v1", 0.25, 470072, 475544, (41030272, 30212608, 21059200, 13570048, 7745152)),
    (
        "mobilenet_v2",
        1.4,
        6108776,
        6156712,
        (582195824, 428211136, 297916400, 191311616, 108396784),
    ),
    ("mobilenet_v2", 1.3, 5386792, 5431048, (509374560, 374675840, 260700000, 167447040, 94916960)),
    ("mobilenet_v2", 1.0, 3504872, 3538984, (300774272, 221316608, 154083200, 99074048, 56289152)),
    ("mobilenet_v2", 0.75, 2636424, 2663064, (209069792, 153941888, 107295200, 69129728, 39445472)),
    ("mobilenet_v2", 0.5, 1968680, 1987224, (97131840, 71701760, 50184000, 32578560, 18885440)),
    ("mobilenet_v2", 0.35, 1677128, 1691208, (59285808, 43896512, 30874800, 20220672, 11934128)),
    (
        "mobilenet_v3_large",
        1.0,
        5483032,
        5507432,
        (216589760, 160192640, 112472000, 73427840, 43060160),
    ),
    (
        "mobilenet_v3_large",
        0.75,
        3993528,
        4012616,
        (154560624, 114378560, 80378352, 52560000, 30923504),
    ),
    (
        "mobilenet_v3_small",
        1.0,
        2542856,
        2554968,
        (56510400, 42067712, 29846976, 19848192, 12071360),
    ),
    (
        "mobilenet_v3_small",
        0.75,
        2041872,
        2051552,
        (43399344, 32348096, 22997040, 15346176, 9395504),
    ),
    (
        "mobilenet_v3_large_minimalistic",
        1.0,
        3924288,
        3948688,
        (209136704, 154317056, 107931200, 69979136, 40460864),
    ),
    (
        "mobilenet_v3_large_minimalistic",
        0.75,
        3050312,
        3069400,
        (148802544, 109908416, 76998000, 50071296, 29128304),
    ),
    (
        "mobilenet_v3_small_minimalistic",
        1.0,
        2044736,
        2056848,
        (52288448, 38844160, 27468224, 18160640, 10921408),
    ),
    (
        "mobilenet_v3_small_minimalistic",
        0.75,
        1732512,
        1742192,
        (40072880, 29830336, 21163568, 14072576, 8557360),
    ),
    (
        "mobilenet_edgetpu",
        1.0,
        4091432,
        4130312,
        (990669184, 728178176, 506070400, 324345856, 183004544),
    ),
    (
        "mobilenet_edgetpu",
        0.75,
        2988160,
        3018288,
        (624486304, 459145856, 319242400, 204775936, 115746464),
    ),
    ("mobilenet_edgetpu_v2_xs", 1.0, 4459880, 4501576, (688214528,)),
    ("mobilenet_edgetpu_v2_s", 1.0, 5986456, 6036744, (1198002688,)),
    ("mobilenet_edgetpu_v2_m", 1.0, 8462888, 8524648, (1835637440,)),
    ("mobilenet_edgetpu_v2_l", 1.0, 10921640, 10992872, (2530786432,)),
    ("mobilenet_v4_conv_small", 1.0, 3774024, 3799112, (186005568,)),
    ("mobilenet_v4_conv_small", 0.5, 2238952, 2252808, (64741408,)),
    ("mobilenet_v4_conv_small", 0.35, 1905384, 1916072, (47723040,)),
    ("mobilenet_v4_conv_medium", 1.0, 9715512, 9783416, (827649984,)),
    ("mobilenet_v4_conv_large", 1.0, 32590864, 32740416, (2171341312,)),
]


def images(side: int = 32, n: int = 2, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    noise = random.uniform(-0.3, 0.3, (n, side, side, 3)) + random.uniform(-0.7, 0.7, (n, 1, 1, 3))
    return noise.astype(np.float32)


def randomise(model: Any) -> None:
    """Weights, statistics and shifts under which signals neither die nor explode."""
    random = np.random.default_rng(3)
    values = []
    for weight in model.weights:
        kind, shape = (
            weight.path.split("/")[-1] if hasattr(weight, "path") else weight.name.split("/")[-1],
            weight.shape,
        )
        if "kernel" in kind:
            fan_in = np.prod(shape[:2]) * (1 if "depthwise" in kind else shape[2])
            values.append(random.normal(0, np.sqrt(2 / fan_in), shape))
        elif "gamma" in kind or "variance" in kind:
            values.append(random.uniform(0.5, 1.5, shape))
        else:
            values.append(random.normal(0, 0.2, shape))
    model.set_weights(values)


FAST = {
    ("mobilenet_v1", 0.25),
    ("mobilenet_v2", 0.35),
    ("mobilenet_v3_small", 0.75),
    ("mobilenet_v3_large", 0.75),
}
FAST |= {
    ("mobilenet_v3_large_minimalistic", 0.75),
    ("mobilenet_v3_small_minimalistic", 1.0),
    ("mobilenet_edgetpu", 1.0),
    ("mobilenet_v4_conv_small", 0.35),
}


@pytest.mark.parametrize(
    ("name", "width", "trainable", "total", "macs"),
    [pytest.param(*row, marks=() if row[:2] in FAST else pytest.mark.slow) for row in GOLDEN],
)
def test_parameters_and_macs(
    name: str, width: float, trainable: int, total: int, macs: tuple[int, ...]
) -> None:
    model = build(archs.get(name, width_multiplier=width, num_classes=1000), (None, None, 3))
    assert model.count_params() == total
    for side, expected in zip(SIDES[: len(macs)], macs, strict=True):
        counted = count(model, (side, side, 3))
        assert (counted.params, counted.trainable_params, counted.macs) == (
            total,
            trainable,
            expected,
        )


def test_macs_as_built_equal_macs_at_a_given_size(small_model: Callable[..., Any]) -> None:
    for name in ("mobilenet_v1", "mobilenet_v3_small"):
        assert count(small_model(name)).macs == count(small_model(name), (32, 32, 3)).macs


def test_extra_classes_cost_one_column_each(small_model: Callable[..., Any]) -> None:
    ten, none = (
        count(small_model("mobilenet_v2")),
        count(small_model("mobilenet_v2", num_classes=0)),
    )
    assert ten.params - none.params == 10 * (1280 + 1) and ten.macs - none.macs == 10 * 1280


def test_nonzero_weights_leave_out_statistics(small_model: Callable[..., Any]) -> None:
    model = tf_keras.models.clone_model(small_model("mobilenet_v1"))
    norms = sum(layer.gamma.shape[0] for layer in model.layers if hasattr(layer, "gamma"))
    # at the start beta, biases and moving means are zero
    assert nonzero_weights(model) == model.count_params() - 3 * norms - 10
    kernel = model.get_layer("Conv2d_3_pointwise").kernel
    kernel.assign(np.where(np.arange(kernel.shape[-1]) % 2, kernel.numpy(), 0))
    assert (
        nonzero_weights(model) == model.count_params() - 3 * norms - 10 - np.prod(kernel.shape) // 2
    )


@pytest.mark.parametrize("name", families(quick=[n for n in NAMES if n not in DEEP]))
def test_stock_layers_alone_and_no_slash(name: str, small_model: Callable[..., Any]) -> None:
    for layer in small_model(name).layers:
        stock = getattr(tf_keras.layers, type(layer).__name__, None)
        assert stock is type(layer) and not isinstance(layer, tf_keras.layers.Lambda)
        assert "/" not in layer.name


@pytest.mark.parametrize("name", families())
def test_training_moves_every_weight(name: str) -> None:
    """Gradients with fixed statistics: those of the batch cancel shifts that come before them."""
    tf = pytest.importorskip("tensorflow")
    model = build(
        archs.get(name, width_multiplier=0.25, num_classes=10, batch_norm_decay=0.9), (32, 32, 3)
    )
    randomise(model)
    with tf.GradientTape() as tape:
        outputs = model(images(n=4), training=False)
        loss = tf.reduce_mean(
            tf_keras.losses.sparse_categorical_crossentropy([1, 2, 3, 4], outputs)
        )
    gradients = tape.gradient(loss, model.trainable_weights)
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert np.isfinite(gradient).all() and np.any(gradient), weight.name
    before = [weight.numpy() for weight in model.non_trainable_weights]
    model(images(n=4), training=True)
    for weight, old in zip(model.non_trainable_weights, before, strict=True):
        assert (weight.numpy() != old).any(), weight.name


@pytest.mark.parametrize("name", families(quick=(*QUICK, "mobilenet_v4_conv_small")))
def test_keras_3_builds_the_same_model(name: str) -> None:
    keras = pytest.importorskip("keras", minversion="3")
    config = archs.get(name, width_multiplier=0.25, num_classes=10, classifier_activation=None)
    ours, theirs = build(config, (48, 48, 3)), build(config, (48, 48, 3), keras=keras)
    assert isinstance(theirs, keras.Model)
    randomise(ours)
    assert [layer.name for layer in ours.layers if layer.weights] == [
        layer.name for layer in theirs.layers if layer.weights
    ]
    theirs.set_weights(ours.get_weights())
    expected = ours(images(48), training=False).numpy()
    scale = np.abs(expected).max()
    assert scale > 1e-3 and np.ptp(expected, axis=0).max() > 0.01 * scale
    np.testing.assert_allclose(
        np.asarray(theirs(images(48), training=False)), expected, atol=1e-5 * max(1, scale)
    )
    randomise(theirs)
    np.testing.assert_array_equal(theirs.get_weights()[0], ours.get_weights()[0])


def test_building_twice_gives_the_same_model() -> None:
    for name in ("mobilenet_v2", "mobilenet_v3_small_minimalistic"):
        config = archs.get(name, width_multiplier=0.35, num_classes=10)
        first, second = (build(config, (32, 32, 3)) for _ in range(2))
        assert [w.shape for w in first.weights] == [w.shape for w in second.weights]
        assert config == archs.get(name, width_multiplier=0.35, num_classes=10)


def test_kernels_of_equal_shape_start_unequal(small_model: Callable[..., Any]) -> None:
    model = small_model("mobilenet_v1")
    kernels = [model.get_layer(f"Conv2d_{i}_pointwise").kernel.numpy() for i in range(7, 12)]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


def test_the_seed_of_tf_keras_fixes_the_weights() -> None:
    config = archs.get("mobilenet_v1", width_multiplier=0.25, num_classes=10)
    built = []
    for _ in range(2):
        tf_keras.utils.set_random_seed(5)
        built.append(build(config, (32, 32, 3)).get_weights())
    for a, b in zip(*built, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small", "mobilenet_v4_conv_small"])
def test_end_points_are_the_last_maps_of_their_strides(name: str) -> None:
    strides = (2, 4, 8, 16, 32)
    model = build(
        archs.get(name, width_multiplier=0.25, num_classes=10, use_explicit_padding=True),
        (64, 96, 3),
    )
    maps = end_points(model)
    assert tuple(maps) == strides
    for stride, tensor in maps.items():
        assert tuple(tensor.shape[1:3]) == (64 // stride, 96 // stride)
    outputs = tf_keras.Model(model.input, list(maps.values()))(np.zeros((1, 64, 96, 3), np.float32))
    assert [output.shape[1] for output in outputs] == [64 // stride for stride in strides]


def test_end_points_by_name(small_model: Callable[..., Any]) -> None:
    names = {
        stride: tensor.name.split("/")[0]
        for stride, tensor in end_points(small_model("mobilenet_v2")).items()
    }
    assert names == {
        2: "expanded_conv_1_expand_relu6",
        4: "expanded_conv_3_expand_relu6",
        8: "expanded_conv_6_expand_relu6",
        16: "expanded_conv_13_expand_relu6",
        32: "Conv_1_relu6",
    }
    names = {
        stride: tensor.name.split("/")[0]
        for stride, tensor in end_points(small_model("mobilenet_v3_small")).items()
    }
    assert names[16] == "expanded_conv_8_expand_hard_swish" and names[32] == "Conv_1_hard_swish"
