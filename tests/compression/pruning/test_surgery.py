"""Thin models: outputs of the masked original model, saved, rebuilt, converted to int8 files."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from int8_files import operator_steps, quantize_to_file
from small_models import families, inputs, pixels, randomize_batch_norm, short_blocks, toy

import mobilenet
from mobilenet import surgery
from mobilenet.compression.pruning.channel import dependency_groups
from mobilenet.configs import archs
from mobilenet.configs.block_tables import edgetpu_v2
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError, VerificationError
from mobilenet.models import builder, saving
from mobilenet.tflite import model as tflite_model

L = tf_keras.layers
FIELDS: dict[str, Any] = {
    "width_multiplier": 0.25,
    "num_classes": 10,
    "classifier_activation": None,
}


@functools.cache
def narrow_model(name: str, width: float = 0.25, size: int = 32, **fields: Any) -> Any:
    """A narrow, short model with statistics as training leaves them; do not change it."""
    tf_keras.utils.set_random_seed(1)
    short = {"blocks": short_blocks(name)}
    config = archs.get(name, **{**FIELDS, "width_multiplier": width, **short, **fields})
    return randomize_batch_norm(builder.build(config, (size, size, 3)))


def full_depth(name: str) -> Any:
    """The narrow model with all rows."""
    return narrow_model(name, blocks=archs.get(name).blocks)


def outputs_in_float64(model: Any, size: int = 32) -> np.ndarray:
    """In float64: a deep model of random weights makes 2e-5 of the order of float32's sums."""
    double = tf_keras.models.clone_model(
        model, clone_function=lambda x: type(x).from_config(x.get_config() | {"dtype": "float64"})
    )
    double.set_weights(model.get_weights())
    return np.asarray(double(inputs(16, size, seed=7), training=False))


def masked_outputs(model: Any, removed: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Outputs without the channels: here, only the weights that make them are zeroed."""
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    groups = dependency_groups.ChannelGraph(copy).by_layer()
    for layer, channels in removed.items():
        for member in groups[layer].members_on("out", "all"):
            own = member.layer
            names = ("gamma", "beta") if hasattr(own, "gamma") else ("kernel", "bias")
            for weight in (getattr(own, name, None) for name in names):
                if weight is not None and "depthwise" not in weight.name.split("/")[-1]:
                    value = weight.numpy()
                    value[..., list(channels)] = 0
                    weight.assign(value)
    return outputs_in_float64(copy)


def close(thin: np.ndarray, masked: np.ndarray) -> None:
    assert np.abs(thin - masked).max() <= 1e-5 * max(1.0, np.abs(masked).max())


@pytest.mark.parametrize("name", families(quick=["mobilenet_v1"]))
@settings(
    max_examples=2,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # an example takes seconds: none are shrunk
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data(), width=st.sampled_from([0.2, 0.35]))
def test_any_channels_can_be_removed(name: str, data: st.DataObject, width: float) -> None:
    model = narrow_model(name, width)
    groups = dependency_groups.find_groups(model)
    chosen = data.draw(st.lists(st.sampled_from(groups), min_size=1, unique_by=id))
    removed = {}
    for group in chosen:
        most = group.channels - 1
        indices = st.lists(st.integers(0, most), min_size=1, max_size=most, unique=True)
        layer = data.draw(st.sampled_from(group.members_on("out", "all"))).layer.name
        removed[layer] = data.draw(indices)
    thinned = surgery.remove_channels(model, removed)
    close(outputs_in_float64(thinned.model), masked_outputs(model, removed))
    thinned.verify(inputs(4, 32))
    assert thinned.config == builder.config_of(thinned.model)


@pytest.mark.slow
def test_a_thin_model_is_like_any_other(tmp_path: Path) -> None:
    """Saved, loaded, thinned again, built under Keras 3."""
    keras = pytest.importorskip("keras", minversion="3")
    model = full_depth("mobilenet_v3_small")
    once = surgery.thin(model, 0.3, 1, importance="l2")
    assert np.abs(outputs_in_float64(once.model) - outputs_in_float64(model)).max() > 1e-3
    card = Card(architecture=once.config.to_json(), input_shape=(32, 32, 3))
    saving.save(once.model, tmp_path / "thin", card)
    loaded = saving.load(tmp_path / "thin")
    assert builder.config_of(loaded.model) == once.config
    assert archs.MobileNetConfig.from_json(loaded.card.architecture) == once.config
    assert (outputs_in_float64(loaded.model) == outputs_in_float64(once.model)).all()
    twice = surgery.thin(loaded.model, {"pointwise": 0.5, "squeeze_excite": 0.5}, 1)
    assert twice.verify(inputs(4, 32)) <= 1e-5
    block = "expanded_conv_5"
    for layer in (f"{block}_expand", f"{block}_squeeze_excite_squeeze"):
        before, after = loaded.model.get_layer(layer), twice.model.get_layer(layer)
        assert after.filters == int(before.filters / 2 + 0.5)
    modern = builder.build(twice.config, (32, 32, 3), keras=keras)
    modern.set_weights(twice.model.get_weights())
    images = inputs(16, 32, seed=7)
    close(np.asarray(modern(images)), np.asarray(twice.model(images, training=False)))


def test_the_original_model_is_left_unchanged() -> None:
    model = narrow_model("mobilenet_v1")
    before = [value.copy() for value in model.get_weights()]
    surgery.thin(model, 0.5, 1)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


# Parameters and thop's FLOPs at 224 px and 1000 classes with the same ratio in every group, by
# sixteenths removed; the seed's tables follow from them.
GOLDEN = {
    "mobilenet_v1": {
        0: (4231976, 579849728),
        1: (3783580, 511998240),
        2: (3359712, 448361536),
        3: (2960372, 388939616),
        4: (2585560, 333732480),
        5: (2235276, 282740128),
        6: (1909520, 235962560),
        7: (1608292, 193399776),
        8: (1331592, 155051776),
        9: (1079420, 120918560),
        10: (851776, 91000128),
        11: (648660, 65296480),
        12: (470072, 43807616),
        13: (316012, 26533536),
        14: (186480, 13474240),
        15: (81476, 4629728),
    },
    "mobilenet_v2": {
        0: (3504872, 315410496),
        1: (3161637, 280780172),
        2: (2834502, 246678264),
        3: (2524432, 216131012),
        4: (2230528, 186319152),
        5: (1953623, 159854972),
        6: (1692950, 134333160),
        7: (1449210, 111952052),
        8: (1221768, 90720288),
        9: (1011193, 72422252),
        10: (816982, 55480536),
        11: (639572, 41265572),
        12: (478592, 28613904),
        13: (334347, 18482012),
        14: (206598, 10120392),
        15: (95518, 4071572),
    },
}
FAST_ROWS = {"mobilenet_v1": (8,), "mobilenet_v2": (5,)}


@functools.cache
def full(name: str) -> Any:
    return builder.build(archs.get(name, num_classes=1000))


@pytest.mark.parametrize(
    ("name", "sixteenths"),
    [
        pytest.param(name, row, marks=() if row in FAST_ROWS[name] else pytest.mark.slow)
        for name in GOLDEN
        for row in GOLDEN[name]
    ],
)
def test_sizes_of_uniformly_thinned_models(name: str, sixteenths: int) -> None:
    thinned = surgery.thin(full(name), sixteenths / 16, round_to=1, importance="random")
    count = mobilenet.count(thinned.model)
    assert (count.trainable_params, count.thop_flops) == GOLDEN[name][sixteenths]


def test_the_papers_rows_have_half_the_ratio_that_they_name() -> None:
    """The rows 0.75x, 0.50x and 0.25x of ivclab/Multistage_Pruning's first README, in millions.

    Its first row has 579.8479 where 579.8497 is meant.
    """
    rows = {0.75: (448.3615, 3.3597), 0.5: (333.7325, 2.5856), 0.25: (235.9626, 1.9095)}
    for label, row in rows.items():
        params, flops = GOLDEN["mobilenet_v1"][round((1 - label) / 2 * 16)]
        assert (round(flops / 1e6, 4), round(params / 1e6, 4)) == row
    params, flops = GOLDEN["mobilenet_v1"][0]
    assert (round(flops / 1e6, 4), round(params / 1e6, 4)) == (579.8497, 4.232)


@pytest.mark.slow
def test_four_tenths_of_the_pointwise_channels_are_six_tenths_of_the_parameters() -> None:
    model = full("mobilenet_v1")
    for share, left in {0.25: 2602712, 0.42: 1703862, 0.5: 1343752, 0.7: 619390}.items():
        thinned = surgery.thin(model, {"pointwise": share}, round_to=1, importance="random")
        assert mobilenet.count(thinned.model).params == left
        for layer, remaining in thinned.remaining.items():
            before = model.get_layer(layer).filters
            removed = round(before * share) if layer != "Conv2d_0" else 0
            assert thinned.model.get_layer(layer).filters == len(remaining) == before - removed
    assert 1 - 1703862 / mobilenet.count(model).params == pytest.approx(0.60, abs=0.005)
    all_but_last = {r"Conv2d_([1-9]|1[0-2])_pointwise": 0.42}
    thinned = surgery.thin(model, all_but_last, round_to=1, importance="random")
    share = mobilenet.count(thinned.model).params / mobilenet.count(model).params
    assert round(100 * (1 - share), 1) == 43.8


def test_channel_counts_are_multiples() -> None:
    rows = archs.get("mobilenet_v2").blocks
    model = narrow_model("mobilenet_v2", 1.0, blocks=(*rows[:6], rows[-1]))
    thinned = surgery.thin(model, 0.5)
    counts = [len(remaining) for remaining in thinned.remaining.values()]
    assert all(count % 16 == 0 for count in counts) and min(counts) == 16
    assert thinned.config.channels["expanded_conv_1_expand"] == 48
    assert thinned.config.channels["expanded_conv_4_project"] == 16
    assert "array" not in repr(thinned)  # of the indices


@pytest.mark.parametrize("name", families(quick=["mobilenet_v1"]))
def test_thin_models_become_int8_files(name: str) -> None:
    """Wrapped, calibrated, trained, converted; every operator within a step of the simulation."""
    thinned = surgery.thin(narrow_model(name, size=64), 0.4, round_to=8)
    converted = quantize_to_file(thinned.model, 64, epochs=2)
    assert tflite_model.read(converted.data).float_tensors() == []
    for layer, off in operator_steps(converted, pixels(2, 64, seed=9)).items():
        assert off.max() <= 1, layer
    assert mobilenet.count(thinned.model).params < mobilenet.count(narrow_model(name)).params


# --- models that are not ours


@pytest.mark.parametrize("name", ["MobileNet", pytest.param("MobileNetV2", marks=pytest.mark.slow)])
def test_models_of_keras_applications_are_rebuilt(name: str) -> None:
    options = {"MobileNet": 0.25, "MobileNetV2": 0.35}
    model = randomize_batch_norm(
        getattr(tf_keras.applications, name)(
            weights=None,
            input_shape=(32, 32, 3),
            classes=6,
            alpha=options[name],
            classifier_activation=None,
        )
    )
    thinned = surgery.thin(model, 0.5, round_to=1)
    assert thinned.config is None and thinned.model.output_shape == (None, 6)
    removed = {
        layer: np.setdiff1d(np.arange(model.get_layer(layer).filters), remaining)
        for layer, remaining in thinned.remaining.items()
    }
    close(outputs_in_float64(thinned.model), masked_outputs(model, removed))


def flattened() -> Any:
    """A flattened map, dense layers with activations, a reshape, and biases."""
    tf_keras.utils.set_random_seed(5)
    source = L.Input((8, 8, 3))
    x = L.Conv2D(6, 3, activation="relu", name="stem")(source)
    x = L.DepthwiseConv2D(3, strides=2, padding="same", activation="relu", name="each")(x)
    x = L.BatchNormalization(name="norm")(L.Flatten()(x))
    x = L.Dense(10, activation="relu", name="wide")(x)
    x = L.Reshape((1, 1, 10), name="map")(x)
    x = L.Conv2D(7, 1, name="last")(x)
    x = L.Dense(3, name="classes")(L.GlobalAveragePooling2D()(x))
    model = tf_keras.Model(source, x)
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.uniform(0, 0.2, w.shape) for w in model.get_weights()])
    return model


def test_flattened_maps_and_reshapes() -> None:
    model = flattened()
    thinned = surgery.remove_channels(model, {"stem": [1, 4], "wide": [0, 9], "last": [2]})
    assert thinned.model.get_layer("map").target_shape == (1, 1, 8)
    kernel = model.get_layer("wide").kernel.numpy().reshape(9, 6, 10)
    remaining, wide = [0, 2, 3, 5], [1, 2, 3, 4, 5, 6, 7, 8]
    expected = kernel[:, remaining][:, :, wide].reshape(36, 8)
    assert (thinned.model.get_layer("wide").kernel.numpy() == expected).all()
    thinned.verify(inputs(4, 8))


# --- channels whose weights are zero


def zeroed(model: Any, share: float, seed: int = 0) -> Any:
    """A copy with kernels of zero in a share of the pointwise channels; nothing else is touched."""
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    rng = np.random.default_rng(seed)
    for group in dependency_groups.find_groups(copy):
        removed = rng.permutation(group.channels)[: int(share * group.channels)]
        if group.role in ("pointwise", "fused"):
            for member in group.members_on("out"):
                kernel, *rest = member.layer.get_weights()
                kernel[..., removed] = 0
                member.layer.set_weights([kernel, *rest])
    return copy


@pytest.mark.slow
def test_channels_around_grouped_convolutions_are_removed() -> None:
    """Constants pass through the groups: what depends on them alone is removed as well."""
    blocks = edgetpu_v2(8, 3, (8, 8, 16, 16, 16, 16, 16), 16, group_size=16)
    model = narrow_model("mobilenet_edgetpu_v2_xs", 1.0, blocks=blocks)
    grouped = [layer.name for layer in model.layers if getattr(layer, "groups", 1) > 1]
    assert grouped == ["expanded_conv_2_expand", "expanded_conv_4_expand", "expanded_conv_6_expand"]
    thinned = surgery.thin(model, 0.5, round_to=1)
    thinned.verify(inputs(4, 32))
    assert not set(grouped) & set(thinned.config.channels)
    assert thinned.config.channels["expanded_conv_1_expand"] == 32
    zero = zeroed(model, 0.4)
    zero.get_layer("expanded_conv_2_expand").kernel.assign_add(
        -zero.get_layer("expanded_conv_2_expand").kernel
    )
    removed = surgery.remove_zero_channels(zero, config=builder.config_of(model))
    close(outputs_in_float64(removed.model), outputs_in_float64(zero))


@pytest.mark.parametrize("name", families(quick=["mobilenet_v1"]))
def test_removing_zero_channels_changes_no_output(name: str) -> None:
    model = zeroed(narrow_model(name), 0.4)
    thinned = surgery.remove_zero_channels(model, config=builder.config_of(narrow_model(name)))
    assert sum(thinned.config.channels.values()) > 0
    close(outputs_in_float64(thinned.model), outputs_in_float64(model))
    assert thinned.verify(inputs(4, 32)) <= 1e-5
    left = {channel for entry in thinned.leftovers for channel in entry.channels}
    assert left and {entry.reason for entry in thinned.leftovers} == {
        "padding makes its constant another value at the borders"
    }
    bold = surgery.remove_zero_channels(
        model, borders=True, config=builder.config_of(narrow_model(name))
    )
    assert mobilenet.count(bold.model).params < mobilenet.count(thinned.model).params
    assert not bold.leftovers


def test_a_constant_moves_into_its_consumer() -> None:
    """V1's last pointwise convolution: no padding follows, so every zero channel goes."""
    model = tf_keras.models.clone_model(full_depth("mobilenet_v1"))
    model.set_weights(full_depth("mobilenet_v1").get_weights())
    last, norm = "Conv2d_13_pointwise", model.get_layer("Conv2d_13_pointwise_batch_norm")
    kernel = model.get_layer(last).kernel.numpy()
    kernel[..., :5] = 0
    model.get_layer(last).set_weights([kernel])
    config = builder.config_of(full_depth("mobilenet_v1"))
    thinned = surgery.remove_zero_channels(model, config=config)
    assert thinned.remaining[last].tolist() == [*range(5, 256)] and not thinned.leftovers
    gamma, beta, mean, variance = (value[:5].astype(np.float64) for value in norm.get_weights())
    constant = np.clip(beta - gamma * mean / np.sqrt(variance + norm.epsilon), 0, 6)
    assert (constant > 0).any()
    kernel, bias = (value.astype(np.float64) for value in model.get_layer("Logits").get_weights())
    expected = bias + constant @ kernel[0, 0, :5]
    np.testing.assert_allclose(thinned.model.get_layer("Logits").bias, expected, atol=1e-6)


def test_biases_and_activations_inside_layers_are_constants_too() -> None:
    model = flattened()
    for name, channels in (("stem", [0, 3]), ("each", [1]), ("last", [2, 5])):
        kernel, bias = model.get_layer(name).get_weights()
        if name == "each":
            kernel[:, :, channels] = 0
        else:
            kernel[..., channels] = 0
        bias[0] = -1.0 if name == "stem" else bias[0]
        model.get_layer(name).set_weights([kernel, bias])
    before = outputs_in_float64(model, 8)
    thinned = surgery.remove_zero_channels(model)
    close(outputs_in_float64(thinned.model, 8), before)
    assert thinned.remaining["stem"].tolist() == [2, 3, 4, 5]  # 3 is positive before a padding
    assert [(entry.layer, entry.channels) for entry in thinned.leftovers] == [("stem", (3,))]
    assert thinned.remaining["last"].tolist() == [0, 1, 3, 4, 6]
    bold = surgery.remove_zero_channels(model, borders=True)
    assert bold.remaining["stem"].tolist() == [2, 4, 5] and not bold.unchanged


def test_a_constant_needs_a_bias_or_batch_norm() -> None:
    source = L.Input((4, 4, 3))
    x = L.Conv2D(4, 1, activation="relu", name="first")(source)
    x = L.Conv2D(2, 1, use_bias=False, name="second")(x)
    model = tf_keras.Model(source, L.ReLU()(x))
    model.get_layer("first").set_weights([np.zeros((1, 1, 3, 4)), np.array([0, -1, 2, 3.0])])
    thinned = surgery.remove_zero_channels(model)
    assert thinned.remaining["first"].tolist() == [2, 3]
    assert (
        thinned.leftovers[0].channels == (2, 3) and "neither a bias" in thinned.leftovers[0].reason
    )
    model.get_layer("first").set_weights([np.zeros((1, 1, 3, 4)), np.zeros(4)])
    assert surgery.remove_zero_channels(model).remaining["first"].tolist() == [0]


def test_a_constant_differs_after_a_padded_convolution() -> None:
    """Its outer positions add up fewer taps, so it is not constant there."""
    source = L.Input((8, 8, 3))
    x = L.Conv2D(4, 1, name="first")(source)
    x = L.Conv2D(3, 3, padding="same", name="second")(x)
    model = tf_keras.Model(source, L.Conv2D(2, 1, name="third")(x))
    model.get_layer("first").set_weights([np.zeros((1, 1, 3, 4)), np.ones(4)])
    thinned = surgery.remove_zero_channels(model)
    assert [len(remaining) for remaining in thinned.remaining.values()] == [4, 3]
    assert [entry.layer for entry in thinned.leftovers] == ["first", "second"]
    padless = tf_keras.models.clone_model(
        model,
        clone_function=lambda layer: type(layer).from_config(
            layer.get_config() | ({"padding": "valid"} if layer.name == "second" else {})
        ),
    )
    padless.set_weights(model.get_weights())
    thinned = surgery.remove_zero_channels(padless)
    assert [len(remaining) for remaining in thinned.remaining.values()] == [1, 1]
    thinned.verify(inputs(4, 8))


# --- bad input


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"Conv2d_3_pointwse": [0]}, "layer: got .*did you mean Conv2d_3_pointwise"),
        (
            {"Logits": [0]},
            "layer Logits: expected channels that can be removed; the model outputs them",
        ),
        ({"Conv2d_0": [8]}, "channels of Conv2d_0: got 8, expected indices from 0 to 7"),
        ({"Conv2d_0": [-1]}, "channels of Conv2d_0: got -1"),
        ({"Conv2d_0": range(4), "Conv2d_1_depthwise": range(4, 8)}, "at least one that remains"),
    ],
)
def test_channels_that_cannot_be_removed(channels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        surgery.remove_channels(full_depth("mobilenet_v1"), channels)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1}, "^ratio: got 1, expected a number at least 0 and below 1"),
        ({"ratio": {"conv.*": 0.5}}, "^ratio: got 'conv.*'"),
        ({"importance": "magnitud"}, "^importance: got 'magnitud'.*did you mean magnitude"),
        ({"importance": "taylor"}, "gradients=surgery.gradients"),
        ({"round_to": 0}, "^round_to: got 0"),
        ({"scope": "layer"}, "scope: got 'layer'"),
        ({"config": archs.get("mobilenet_v2", **FIELDS)}, "config: got .*config of this model"),
        ({"config": archs.get("mobilenet_v1", num_classes=7)}, "config: got 'Logits of another"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        surgery.thin(full_depth("mobilenet_v1"), **options)
    assert "\n" not in str(raised.value)


def test_a_wrong_thin_model_is_not_verified() -> None:
    model = randomize_batch_norm(toy())
    thinned = surgery.thin(model, 0.5, round_to=1)
    kernel, *rest = thinned.model.get_layer("e").get_weights()
    thinned.model.get_layer("e").set_weights([kernel[:, :, ::-1], *rest])
    with pytest.raises(VerificationError, match="thin model: got .*within 1e-05") as raised:
        thinned.verify(inputs(4))
    assert raised.value.status == 3


def test_taylor_by_hand() -> None:
    model = randomize_batch_norm(toy())
    images = inputs(8)

    def loss(model: Any) -> Any:
        logits = model(images, training=False)
        labels = np.arange(8) % 4
        return tf_keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    gradients = surgery.gradients(model, loss)
    thinned = surgery.thin(model, 0.5, round_to=1, importance="taylor", gradients=gradients)
    assert thinned.verify(images) <= 1e-5
