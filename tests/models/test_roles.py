"""Roles and joints are read from graphs, whatever the names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from small_models import QUICK, families, rename_layers

from mobilenet.configs import archs

tf_keras = pytest.importorskip("tf_keras")

from mobilenet.models.builder import build  # noqa: E402
from mobilenet.models.graph.roles import ROLES, Graph  # noqa: E402

# kernels by role, from the tables of the papers
EXPECTED = {
    "mobilenet_v1": {"stem": 1, "depthwise": 13, "pointwise": 13, "classifier": 1},
    "mobilenet_v2": {"stem": 1, "depthwise": 17, "pointwise": 34, "classifier": 1},
    "mobilenet_v3_small": {
        "stem": 1,
        "depthwise": 11,
        "pointwise": 23,
        "squeeze_excite": 18,
        "classifier": 1,
    },
    "mobilenet_v3_large": {
        "stem": 1,
        "depthwise": 15,
        "pointwise": 31,
        "squeeze_excite": 16,
        "classifier": 1,
    },
    "mobilenet_v3_small_minimalistic": {
        "stem": 1,
        "depthwise": 11,
        "pointwise": 23,
        "classifier": 1,
    },
    "mobilenet_v3_large_minimalistic": {
        "stem": 1,
        "depthwise": 15,
        "pointwise": 31,
        "classifier": 1,
    },
    "mobilenet_edgetpu": {"stem": 1, "depthwise": 13, "pointwise": 36, "fused": 8, "classifier": 1},
    # So narrow that no convolution has groups.
    **dict.fromkeys(
        [f"mobilenet_edgetpu_v2_{size}" for size in ("xs", "s", "m", "l")],
        {"stem": 1, "depthwise": 12, "pointwise": 33, "fused": 7, "classifier": 1},
    ),
    "mobilenet_v4_conv_small": {
        "stem": 1,
        "depthwise": 15,
        "pointwise": 28,
        "fused": 2,
        "classifier": 1,
    },
    "mobilenet_v4_conv_medium": {
        "stem": 1,
        "depthwise": 30,
        "pointwise": 45,
        "fused": 1,
        "classifier": 1,
    },
    "mobilenet_v4_conv_large": {
        "stem": 1,
        "depthwise": 45,
        "pointwise": 55,
        "fused": 1,
        "classifier": 1,
    },
}


def by_role(model: Any) -> dict[str, int]:
    graph = Graph(model)
    assert all(graph.role(layer) in ROLES for layer in graph.layers)
    assert all(
        graph.role(layer) == "other" for layer in graph.layers if graph.kernel(layer) is None
    )
    return dict(
        Counter(graph.role(layer) for layer in graph.layers if graph.kernel(layer) is not None)
    )


@pytest.mark.parametrize("name", families(quick=(*QUICK, "mobilenet_v4_conv_small")))
def test_roles_of_our_models(name: str, small_model: Callable[..., Any]) -> None:
    assert by_role(small_model(name)) == EXPECTED[name]
    graph = Graph(small_model(name))
    for layer in graph.layers:  # here names and roles happen to agree
        role = graph.role(layer)
        assert (role == "classifier") == (layer.name == "Logits")
        assert (role == "depthwise") == layer.name.endswith("_depthwise")
        assert (role == "squeeze_excite") == layer.name.endswith(
            ("excite_squeeze", "excite_excite")
        )


def test_other_heads(small_model: Callable[..., Any]) -> None:
    for name in ("mobilenet_v2", "mobilenet_v3_small"):
        without = {role: n for role, n in EXPECTED[name].items() if role != "classifier"}
        assert by_role(small_model(name, num_classes=0)) == without
        assert by_role(small_model(name, classifier_activation="softmax")) == EXPECTED[name]
        assert by_role(small_model(name, spatial_squeeze=False)) == EXPECTED[name]


def test_names_play_no_part(small_model: Callable[..., Any]) -> None:
    model = small_model("mobilenet_v3_small")
    renamed = rename_layers(model)
    assert by_role(renamed) == EXPECTED["mobilenet_v3_small"]


@pytest.mark.parametrize(
    ("name", "ours", "options"),
    [
        ("MobileNet", "mobilenet_v1", {"alpha": 0.25}),
        ("MobileNetV2", "mobilenet_v2", {"alpha": 0.35}),
        ("MobileNetV3Small", "mobilenet_v3_small", {"alpha": 0.75}),
        (
            "MobileNetV3Large",
            "mobilenet_v3_large_minimalistic",
            {"alpha": 0.75, "minimalistic": True},
        ),
    ],
)
def test_roles_of_keras_applications(name: str, ours: str, options: dict[str, Any]) -> None:
    model = getattr(tf_keras.applications, name)(
        weights=None, input_shape=(32, 32, 3), classes=5, **options
    )
    assert by_role(model) == EXPECTED[ours]


def test_keras_3_models_have_the_same_graph(small_model: Callable[..., Any]) -> None:
    keras = pytest.importorskip("keras", minversion="3")
    config = archs.get(
        "mobilenet_v3_small", width_multiplier=0.25, num_classes=10, classifier_activation=None
    )
    ours, theirs = (
        Graph(small_model("mobilenet_v3_small")),
        Graph(build(config, (32, 32, 3), keras=keras)),
    )
    assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]
    assert [ours.role(layer) for layer in ours.layers] == [
        theirs.role(layer) for layer in theirs.layers
    ]


def test_joints(small_model: Callable[..., Any]) -> None:
    model = small_model("mobilenet_v3_small")
    graph = Graph(model)

    def names(layers: list[Any]) -> list[str]:
        return [layer.name for layer in layers]

    add = model.get_layer("expanded_conv_2_add")
    assert names(graph.producers(add)) == [
        "expanded_conv_1_project_batch_norm",
        "expanded_conv_2_project_batch_norm",
    ]
    source = model.get_layer("expanded_conv_1_project_batch_norm")
    assert sorted(names(graph.consumers(source))) == [
        "expanded_conv_2_add",
        "expanded_conv_2_expand",
    ]
    assert graph.consumers(graph.layers[-1]) == [] and graph.producers(graph.layers[0]) == []
    order = {id(layer): index for index, layer in enumerate(graph.layers)}
    for layer in graph.layers:
        assert all(order[id(producer)] < order[id(layer)] for producer in graph.producers(layer))
    assert (
        graph.kernel(model.get_layer("expanded_conv_depthwise"))
        is model.get_layer("expanded_conv_depthwise").depthwise_kernel
    )
    assert graph.kernel(model.get_layer("Conv_2")) is model.get_layer("Conv_2").kernel
    assert graph.kernel(add) is None
    assert names(graph.ancestors(model.get_layer("Conv_batch_norm"))) == ["input", "Conv"]
    assert names(graph.descendants(model.get_layer("Logits"))) == ["squeeze"]


def test_a_layer_shared_with_another_model_keeps_to_this_one(
    small_model: Callable[..., Any],
) -> None:
    model = small_model("mobilenet_v1")
    tf_keras.Model(
        model.input, tf_keras.layers.Conv2D(4, 1)(model.get_layer("Conv2d_3_pointwise").output)
    )
    assert by_role(model) == EXPECTED["mobilenet_v1"]
    assert [
        layer.name for layer in Graph(model).consumers(model.get_layer("Conv2d_3_pointwise"))
    ] == ["Conv2d_3_pointwise_batch_norm"]


def test_a_product_that_is_no_gate() -> None:
    layers = tf_keras.layers
    image = layers.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, name="stem")(image)
    other = layers.Conv2D(8, 1, name="branch")(x)
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(other)
    gate = layers.Conv2D(8, 1, name="cross")(pooled)
    x = layers.Multiply()([x, gate])
    x = layers.Dense(3, activation="softmax", name="dense")(layers.Flatten()(x))
    graph = Graph(tf_keras.Model(image, x))
    roles = {
        layer.name: graph.role(layer) for layer in graph.layers if graph.kernel(layer) is not None
    }
    assert roles == {
        "stem": "stem",
        "branch": "pointwise",
        "cross": "pointwise",
        "dense": "classifier",
    }
