"""The steps of post-training int8, each against numpy, and the loop that accepts or reverts
them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from int8_files import Int8Model, operator_steps
from small_models import (
    INCEPTION,
    SIZE,
    L,
    inputs,
    model_outputs,
    narrow_v3,
    pixels,
    randomize_batch_norm,
    relative_error,
    relu_model,
    short_blocks,
    toy,
)

from mobilenet import strict_json
from mobilenet.compression.quantization.int8 import float_layers, scheme
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8.calibration import calibrate
from mobilenet.compression.quantization.post_training import (
    acceptance,
    bias_correction,
    cross_layer_equalization,
    hard_swish_equalization,
    output_tuning,
    range_setting,
)
from mobilenet.compression.quantization.post_training import pipeline as post_training_pipeline
from mobilenet.compression.quantization.post_training import steps as ptq_steps
from mobilenet.compression.quantization.post_training.observer import Observation, Observer
from mobilenet.compression.quantization.post_training.scaling_groups import ScalingGroups
from mobilenet.configs import archs
from mobilenet.configs.card import CalibrationSummary, Card, QuantizationStep
from mobilenet.configs.conversion import VerificationLimits
from mobilenet.configs.quantization import PTQ_STEPS, PostTraining
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.export.rewrites import float_fallback
from mobilenet.export.verification import verify
from mobilenet.models import saving
from mobilenet.models.builder import build
from mobilenet.models.graph.batch_norm_folding import Folded
from mobilenet.models.graph.roles import Graph, kind
from mobilenet.models.saving import LoadedModel
from mobilenet.reporting import int8_comparison
from mobilenet.tflite import model as tflite_model

PX = 64  # squeeze-excite maps are larger than one position


@pytest.fixture(scope="module")
def small() -> Any:
    """Do not change it."""
    return narrow_v3(PX)


def clone(model: Any) -> Any:
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def spread(model: Any, seed: int = 0, octaves: float = 4.0) -> Any:
    """The same function with channels that differ by powers of two inside."""
    copy, rng = clone(model), np.random.default_rng(seed)
    for group in ScalingGroups(Graph(copy)):
        if group.is_scalable:
            group.scale(2.0 ** rng.uniform(-octaves, octaves, group.channels))
    return copy


def test_a_kernel_and_its_batch_norm_are_an_affine_map() -> None:
    model = relu_model()
    pair = Folded(Graph(model), model.get_layer("first"))
    multiplier, offset = pair.affine()
    read = tf_keras.Model(model.inputs, model.get_layer("norm").output)
    kernel = model.get_layer("first").kernel.numpy()
    plain = tf.nn.conv2d(inputs(2), kernel, 1, "SAME").numpy()
    np.testing.assert_allclose(plain * multiplier + offset, read(inputs(2)), atol=2e-5)


def test_scaling_groups_end_at_convolutions_and_at_barriers(small: Any) -> None:
    groups = ScalingGroups(Graph(small))
    named = {s.name: s for s in groups}
    residual = named["expanded_conv_1_project"]
    assert [m.name for m in residual.producers] == [
        "expanded_conv_1_project",
        "expanded_conv_2_project",
    ]
    assert [t.name for t in residual.consumers] == [
        "expanded_conv_2_expand",
        "expanded_conv_3_expand",
    ]
    gated = named["expanded_conv_depthwise"]  # a factor passes the squeeze-excite product
    assert [t.name for t in gated.consumers] == [
        "expanded_conv_squeeze_excite_squeeze",
        "expanded_conv_project",
    ]
    assert not named["expanded_conv_3_expand"].is_scalable  # hard-swish
    assert not named["expanded_conv_squeeze_excite_excite"].is_scalable  # hard sigmoid
    assert not any(
        s.is_scalable for s in ScalingGroups(Graph(toy())) if s.producers[:1] and s.name == "a"
    )  # ReLU6


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small", "mobilenet_edgetpu"])
def test_scaling_a_group_changes_no_output(name: str) -> None:
    tf_keras.utils.set_random_seed(2)
    fields = {"width_multiplier": 0.25, "num_classes": 5, "classifier_activation": None}
    fields["blocks"] = short_blocks(name)
    model = randomize_batch_norm(build(archs.get(name, **fields), (PX, PX, 3)))
    before = model_outputs(model, inputs(4, PX))
    after = model_outputs(spread(model), inputs(4, PX))
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())


def test_tensors_are_observed_as_numpy_sees_them() -> None:
    model, images = relu_model(), inputs(23)
    seen = Observer(model)(["norm", "relu"], images, counted=["norm"], sampled={"relu": 40})
    values = tf_keras.Model(model.inputs, model.get_layer("norm").output)(images).numpy()
    flat = values.reshape(-1, 6).astype(np.float64)
    np.testing.assert_allclose(seen["norm"].low, flat.min(0), rtol=1e-5)
    np.testing.assert_allclose(seen["norm"].high, flat.max(0), rtol=1e-5)
    np.testing.assert_allclose(seen["norm"].mean, flat.mean(0), atol=1e-5)
    centers, counts = seen["norm"].values()
    assert counts.sum() == flat.size
    assert counts[centers > 0].sum() == (flat > 0).sum()
    middle = np.sort(flat.ravel())[
        np.searchsorted(np.cumsum(counts), flat.size // 2) * 0 + flat.size // 2
    ]
    assert np.interp(flat.size / 2, np.cumsum(counts), centers) == pytest.approx(middle, abs=0.02)
    sampled = seen["relu"].samples
    assert sampled is not None and sampled.shape[0] >= 40
    assert np.isin(sampled, np.maximum(values, 0).astype(np.float32)).all()


def test_equalization_makes_ranges_similar_and_changes_no_output() -> None:
    model = spread(relu_model())
    before = model_outputs(model, inputs(8))
    names = ["relu", "again"]
    seen = Observer(model)(names, inputs(16))
    factors = cross_layer_equalization.equalize_groups(ScalingGroups(Graph(model)), seen)
    after = Observer(model)(names, inputs(16))
    assert set(factors) == {"first", "middle"}
    # Before a depthwise layer all ranges are equal.
    assert np.ptp(after["relu"].high) < 1e-3 * after["relu"].high.max()
    np.testing.assert_allclose(model_outputs(model, inputs(8)), before, rtol=1e-3, atol=1e-4)
    # Before a 1x1 kernel activations and weights meet in the middle.
    kernel = np.abs(model.get_layer("last").kernel.numpy()).reshape(-1, 4)
    share = (kernel / kernel.max(axis=0)).max(axis=1)
    relative = after["again"].high / after["again"].high.max()
    assert np.log2(relative).std() < np.log2(seen["again"].high).std() / 1.5
    assert share.min() > 0.05


def test_factors_meet_in_the_middle() -> None:
    reach, reading = np.array([1.0, 4.0, 16.0, 0.0]), np.array([1.0, 0.25, 1.0, 1.0])
    factors = cross_layer_equalization.equalization_factors(reach, [reading])
    balanced = np.sqrt(reading[:3] / reach[:3])
    np.testing.assert_allclose(factors[:3], balanced / np.median(balanced))
    assert factors[3] == 1.0  # a dead channel
    np.testing.assert_allclose(
        cross_layer_equalization.equalization_factors(reach, [])[:3] * reach[:3], 4.0
    )


def rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """int8 values of a range that includes zero, computed again here."""
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    return (np.clip(np.round(values / scale + zero), 0, 255) - zero) * scale


def test_hard_swish_equalization_reduces_the_error_of_small_and_large_channels() -> None:
    rng = np.random.default_rng(0)
    samples = np.stack(
        [rng.normal(0, 2, 500), rng.normal(-0.07, 0.05, 500), rng.normal(15, 5, 500)], axis=1
    )
    weights = np.array([1.0, 1e4, 1e-2])
    scaling = hard_swish_equalization.choose_scaling(samples, weights, float(samples.max()))

    def error(before: np.ndarray, after: np.ndarray, high: float) -> float:
        def swish(x: np.ndarray) -> np.ndarray:
            return x * np.clip(x + 3, 0, 6) / 6

        outputs = after * rounded(swish(rounded(before * samples, -3, high)), -0.375, high)
        return float(weights @ np.square(outputs - swish(samples)).mean(axis=0))

    plain = error(np.ones(3), np.ones(3), float(samples.max()))
    chosen = error(scaling.input_factors, scaling.output_factors, scaling.high)
    assert chosen == pytest.approx(scaling.error, rel=0.1)
    assert chosen < plain / 10
    assert (
        scaling.input_factors[1] > 1 > scaling.input_factors[2]
    )  # the small channel is scaled up, the large one down
    assert scaling.high < samples.max() / 2


def test_hard_swish_equalization_reaches_every_hard_swish(small: Any) -> None:
    model, images = clone(small), inputs(16, PX)
    groups = ScalingGroups(Graph(model))
    names = [one.source.name for one in groups.hard_swishes]
    seen = Observer(model)(names, images, sampled=dict.fromkeys(names, 200))
    factors, ranges, chosen = hard_swish_equalization.equalize_hard_swish(groups, seen)
    assert len(chosen) == len(names) == 7
    assert all(c.error <= c.original_error * 1.0001 for c in chosen.values())
    assert {low for low, _ in ranges.values()} == {-3.0, -0.375}
    before, after = model_outputs(small, images), model_outputs(model, images)
    assert np.square(after - before).mean() < 0.1 * np.square(before).mean()
    assert set(factors) <= {layer.name for layer in model.layers}


def seen_of(values: np.ndarray) -> Observation:
    counts = np.bincount(values.astype(np.float32).view(np.uint16)[1::2], minlength=1 << 16)
    return Observation(values.min(keepdims=True), values.max(keepdims=True), values, counts)


def test_a_percentile_clips_that_share() -> None:
    values = np.random.default_rng(0).standard_t(3, 200_000)
    low, high = range_setting.find_range(seen_of(values), "percentile")
    expected = np.percentile(values, [0.005, 99.995])
    np.testing.assert_allclose([low, high], expected, rtol=0.02)
    positive = np.abs(values)
    low, high = range_setting.find_range(seen_of(positive), "percentile")
    assert low == 0 and high == pytest.approx(np.percentile(positive, 99.99), rel=0.02)
    assert range_setting.clipped_share(seen_of(positive), (low, high)) == pytest.approx(
        1e-4, rel=0.5
    )


def test_the_least_error_is_found() -> None:
    rng = np.random.default_rng(1)
    values = np.append(np.abs(rng.normal(0, 1, 1_000_000)), 40.0)  # one far away
    low, high = range_setting.find_range(seen_of(values), "mse")
    tried = {
        end: np.square(rounded(values, 0, end) - values).mean() for end in np.geomspace(3, 60, 30)
    }
    best = min(tried.values())
    assert low == 0
    assert np.square(rounded(values, 0, high) - values).mean() < 1.1 * best
    assert high < values.max() / 2


def test_ranges_include_zero_and_some_start_higher() -> None:
    assert range_setting.find_range(seen_of(np.array([2.0, 3.0])), "maximum") == (0.0, 3.0)
    ranges = {"swish": (-9.0, 5.0), "short": (-1.0, 0.0), "x": (-9.0, 5.0)}
    assert range_setting.raise_lower_bounds(
        ranges, {"swish": -3.0, "short": -3.0, "other": -1.0}
    ) == {
        "swish": (-3.0, 5.0),
        "short": (-1.0, 1e-6),
        "x": (-9.0, 5.0),
    }


def test_corrected_offsets_give_every_channel_its_mean() -> None:
    model, images = relu_model(), inputs(30)
    pairs = {"first": "norm", "middle": "middle", "last": "last"}
    seen = Observer(model)(list(pairs.values()), images)
    means = bias_correction.original_means(seen, Graph(model))
    wrapped = scheme.wrap(model, INCEPTION)
    calibrate(wrapped, images)
    # A coarse first tensor, so that all after it are far off.
    scheme.quantizers(wrapped)["relu"].variables["high"].assign(40.0)
    off = model_outputs(wrapped, images) - model_outputs(model, images)
    outputs, corrections = bias_correction.correct_biases(wrapped, images, means)
    assert set(corrections) == set(pairs) and max(corrections.values()) > 1e-3
    np.testing.assert_allclose(outputs, model_outputs(wrapped, images), atol=1e-5)
    now = model_outputs(wrapped, images) - model_outputs(model, images)
    assert np.abs(now.mean(0)).max() < 0.1 * np.abs(off.mean(0)).max()
    for name, output in pairs.items():
        before = seen[output].mean
        reader = tf_keras.Model(wrapped.inputs, wrapped.get_layer(f"quant_{output}").output)
        mean = reader(images, training=False).numpy().reshape(-1, len(before)).mean(0)
        step = 0.02 * np.abs(before).max() if name != "first" else 1e-4
        np.testing.assert_allclose(mean, before, atol=step, err_msg=name)


def test_augmented_images_are_crops_of_the_images() -> None:
    images = inputs(40)
    augmented = output_tuning.augment(images, np.random.default_rng(0))
    assert augmented.shape == images.shape
    assert images.min() <= augmented.min() and augmented.max() <= images.max()
    slope = np.arange(SIZE, dtype=np.float32)[None, None, :, None] * np.ones((40, SIZE, 1, 3), "f")
    steps = np.diff(
        output_tuning.augment(slope, np.random.default_rng(0))[:, 0, :, 0], axis=1
    ).mean(1)
    assert 10 < (steps < 0).sum() < 30  # mirrored
    assert np.abs(steps).min() > 0.65 and np.abs(steps).max() <= 1.01


def test_tuning_moves_no_kernel_and_no_fixed_range() -> None:
    source = L.Input((SIZE, SIZE, 3))
    x = L.BatchNormalization(name="norm")(L.Conv2D(8, 3, 2, use_bias=False, name="first")(source))
    x = L.Multiply()([x, L.Rescaling(1 / 6)(L.ReLU(6.0)(L.Rescaling(1.0, 3.0)(x)))])
    x = L.GlobalAveragePooling2D(keepdims=True)(L.ReLU()(L.Conv2D(16, 1, name="second")(x)))
    small = randomize_batch_norm(tf_keras.Model(source, L.Flatten()(L.Conv2D(5, 1, name="end")(x))))
    images, wrapped = inputs(20), scheme.wrap(small, INCEPTION)
    calibrate(wrapped, images)
    kernels = {w.name: w.numpy() for w in wrapped.weights if "kernel" in w.name}
    fixed = [n for n, q in scheme.quantizers(wrapped).items() if getattr(q, "fixed", None)]
    ranges = scheme.get_ranges(wrapped)
    ranges |= {name: bounds / 2 for name, bounds in ranges.items() if name not in fixed}
    scheme.set_ranges(wrapped, ranges)  # too narrow, so that tuning can improve them
    losses = output_tuning.Tuner(wrapped).tune(
        images, lambda x: model_outputs(small, x), epochs=6, rate=3e-3
    )
    assert losses[-1] < 0.9 * losses[0]
    for weight in wrapped.weights:
        if weight.name in kernels:
            np.testing.assert_array_equal(weight.numpy(), kernels[weight.name])
    now = scheme.get_ranges(wrapped)
    assert fixed and all((now[name] == ranges[name]).all() for name in fixed)
    assert sum(bool((now[name] != ranges[name]).any()) for name in now) > len(now) // 4


def test_the_steps_recover_what_unequal_channels_cost() -> None:
    model = spread(relu_model(), octaves=5)
    images, unseen = inputs(40), inputs(40, seed=9)
    naive = scheme.wrap(model, INCEPTION)
    calibrate(naive, images)
    expected = model_outputs(model, unseen)
    result = post_training_pipeline.quantize(
        model, INCEPTION, images, PostTraining(tuning_epochs=2)
    )

    error = relative_error(model_outputs(naive, unseen), expected)
    assert relative_error(model_outputs(result.wrapped, unseen), expected) < error / 10
    assert [step.name for step in result.steps][:2] == ["maximum", "equalize"]
    assert result.notes[0].startswith("steps fitted on 20 images, accepted on 20 others, ")
    assert result.calibration == CalibrationSummary(40, float(images.min()), float(images.max()))
    np.testing.assert_allclose(
        model_outputs(result.plain, unseen), expected, atol=0.2 * np.abs(expected).max()
    )


def test_every_step_of_the_config_is_registered_or_part_of_the_pipeline() -> None:
    handled = ("gates", "maximum", "repair")  # before all steps, compared with each, at the export
    assert sorted(PTQ_STEPS) == sorted((*handled, *ptq_steps.STEPS))


def test_a_step_that_is_not_registered_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ptq_steps.STEPS, "bias")
    config = PostTraining(steps=("maximum", "bias", "repair"))
    with pytest.raises(ValueError, match="registered as bias"):
        post_training_pipeline.quantize(relu_model(), INCEPTION, inputs(20), config)


def test_a_step_that_does_not_help_is_reverted(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(wrapped: Any, images: Any, targets: Any) -> Any:
        for layer in wrapped.layers:
            if kind(layer) == "BatchNormalization":
                beta = next(w for w in layer.weights if "beta" in w.name)
                beta.assign(beta + 3.0)
        return None, {"everything": 3.0}

    monkeypatch.setattr(bias_correction, "correct_biases", spoil)
    model = relu_model()
    result = post_training_pipeline.quantize(
        model, INCEPTION, inputs(40), PostTraining(steps=("maximum", "bias"))
    )
    verdicts = [(step.name, step.accepted) for step in result.steps]
    assert verdicts == [("maximum", True), ("bias", False)]
    assert result.notes[2].endswith("; rejected: no improvement")
    np.testing.assert_array_equal(result.plain.get_weights()[2], model.get_weights()[2])
    np.testing.assert_allclose(
        model_outputs(result.wrapped, inputs(4)), model_outputs(model, inputs(4)), atol=0.1
    )


def test_one_image_far_off_decides_on_no_step() -> None:
    rng = np.random.default_rng(2)
    expected = rng.normal(size=(20, 10)).astype(np.float32)
    near = expected + rng.normal(size=expected.shape).astype(np.float32) * 0.01
    spoilt = expected + rng.normal(size=expected.shape).astype(np.float32) * 0.05
    near[3] = 3 * np.roll(expected[3], 1)  # exceeds the ranges, which the step repairs
    agreement, ratio = acceptance.compare_outputs(near, expected, "softmax")
    decibels = [
        10 * np.log10(np.sum(w**2) / np.sum((f - w) ** 2))
        for f, w in zip(near, expected, strict=True)
    ]
    assert ratio == pytest.approx(np.median(decibels), abs=1e-3)
    assert agreement == np.mean(
        [f.argmax() == w.argmax() for f, w in zip(near, expected, strict=True)]
    )
    assert relative_error(near, expected) > 10 * relative_error(spoilt, expected)
    before = QuantizationStep("maximum", True, 1.0, ratio)
    assert not acceptance.is_improvement(
        1.0, acceptance.compare_outputs(spoilt, expected, "softmax")[1], before, 20
    )


@pytest.mark.parametrize(("agree", "accepted"), [(10, False), (11, True), (12, True), (14, True)])
def test_one_image_does_not_outvote_the_noise(agree: int, accepted: bool) -> None:
    """Shares such as 12 / 20 and 11 / 20 differ by a little more than one image in binary."""
    for images, last in ((20, 12), (100, 12), (50, 12)):
        before = QuantizationStep("maximum", True, last / images, 20.0)
        assert acceptance.is_improvement(agree / images, 21.0, before, images) is accepted
        assert acceptance.is_improvement(agree / images, 19.0, before, images) is (agree == 14)


def test_labels_of_a_sigmoid_are_compared_one_by_one() -> None:
    """The likeliest label is far above the others, whose signs are what rounding changes."""
    rng = np.random.default_rng(3)
    reference = rng.normal(size=(20, 3)).astype(np.float32) + np.float32([9, 0, 0])
    rounded = np.round(reference + 0.2)
    labels = ((rounded > 0) == (reference > 0)).all(axis=1).mean()
    assert 0.5 < labels < 1
    for activation, expected in (("sigmoid", labels), ("softmax", 1.0)):
        assert acceptance.compare_outputs(rounded, reference, activation)[0] == expected


@pytest.mark.parametrize(("activation", "same"), [("sigmoid", False), (None, True)])
def test_the_card_says_which_decisions_are_compared(activation: str | None, same: bool) -> None:
    source = L.Input((8, 8, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(3, 3, name="conv")(source))
    model = tf_keras.Model(source, L.Dense(3)(x))
    model.layers[-1].set_weights([np.eye(3, dtype=np.float32), np.float32([90, 0, 0])])
    card = saving.card_of(model).replace(activation=activation)
    config = PostTraining(steps=("maximum",))
    result = post_training_pipeline.quantize_model(LoadedModel(model, card), inputs(40, 8), config)
    assert (result.card.quantization_steps[0].agreement == 1) is same


def test_statistics_of_another_model_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model, images = relu_model(), inputs(20)
    config = PostTraining(steps=("maximum", "repair"))
    assert not any(
        "moving statistics" in x
        for x in post_training_pipeline.quantize(model, INCEPTION, images, config).notes
    )
    norm = model.get_layer("norm")
    norm.moving_variance.assign(norm.moving_variance / 1000)
    result = post_training_pipeline.quantize(model, INCEPTION, images, config)
    assert "moving statistics of 1 of 1 batch norms are not those of the images" in result.notes[0]
    assert result.notes[0] in caplog.text
    # A batch norm that came folded holds none that could be wrong.
    first = model.get_layer("first")
    first.kernel.assign(100 * first.kernel)
    norm.set_weights([norm.gamma / 100, norm.beta, np.zeros(6), np.ones(6)])
    assert (
        "moving statistics"
        not in post_training_pipeline.quantize(model, INCEPTION, images, config).notes[0]
    )


@pytest.mark.parametrize(
    ("steps", "warns"),
    [(("equalize", "maximum"), True), (("maximum", "bias"), False), (("maximum",), False)],
)
def test_a_comparison_with_the_model_before_scaling_is_warned_of(
    steps: tuple[str, ...], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = spread(relu_model(), octaves=5)
    result = post_training_pipeline.quantize(
        model, INCEPTION, inputs(20), PostTraining(steps=steps)
    )
    file = Card(quantization_steps=result.steps)
    int8_comparison.warn_of_another(file, file.replace(stage="quantize"), "fitted")
    assert "whose channels" not in caplog.text
    int8_comparison.warn_of_another(file, Card(notes=("trained",)), "models/v3")
    assert ("models/v3: the file is of a model whose channels" in caplog.text) == warns


def test_only_accepted_steps_make_another_model(caplog: pytest.LogCaptureFixture) -> None:
    rejected = QuantizationStep("equalize", False, 0.5, 10.0)
    int8_comparison.warn_of_another(Card(quantization_steps=(rejected,)), Card(), "models/v3")
    assert "whose channels" not in caplog.text


def test_the_record_of_the_steps_is_in_the_card_and_survives_json() -> None:
    images = inputs(40)
    result = post_training_pipeline.quantize(
        relu_model(), INCEPTION, images, PostTraining(steps=("gates", "maximum", "bias"))
    )
    assert [step.name for step in result.steps] == ["gates", "maximum", "bias"]
    card = Card(quantization_steps=result.steps, calibration=result.calibration)
    text = json.dumps(card.to_json(), allow_nan=False)
    assert Card.from_json(strict_json.loads(text)) == card
    older = {
        key: value
        for key, value in card.to_json().items()
        if key not in ("quantization_steps", "calibration")
    }
    assert Card.from_json(older) == Card()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agreement": 1.5}, "agreement: got 1.5"),
        ({"accepted": "yes"}, "accepted: got 'yes'"),
        ({"seconds": -1}, "seconds: got -1"),
        ({"steps": 3}, "QuantizationStep field"),
    ],
)
def test_a_record_of_other_types_is_refused(change: dict[str, Any], message: str) -> None:
    step = QuantizationStep("bias", True, 0.5, 10.0, 1.0, "offsets").to_json()
    with pytest.raises(UsageError) as raised:
        Card.from_json({"quantization_steps": [{**step, **change}]})
    assert message in str(raised.value)


def test_models_with_relu6_alone_need_only_bias_correction(small: Any) -> None:
    config = PostTraining()
    tf_keras.utils.set_random_seed(0)
    assert post_training_pipeline.chosen_steps(toy_relu6(), config) == ("maximum", "bias", "repair")
    assert "tune" in post_training_pipeline.chosen_steps(small, config)


def toy_relu6() -> Any:
    source = L.Input((SIZE, SIZE, 3))
    x = L.ReLU(6.0)(L.Conv2D(4, 3)(source))
    return tf_keras.Model(source, L.Flatten()(L.GlobalAveragePooling2D(keepdims=True)(x)))


@pytest.mark.parametrize("layer", ["point", "depth"])
def test_a_channel_far_above_the_others_is_reported_with_its_layer(layer: str) -> None:
    """The file could not be run: XNNPACK refuses it and names only the number of a node."""
    tf_keras.utils.set_random_seed(0)
    source = L.Input((SIZE, SIZE, 3))
    x = L.ReLU(6.0)(L.Conv2D(4, 3, name="first")(source))
    x = L.ReLU(6.0)(L.DepthwiseConv2D(3, name="depth")(x))
    x = L.ReLU(6.0)(L.Conv2D(4, 1, name="point")(x))
    model = tf_keras.Model(source, L.Flatten()(L.GlobalAveragePooling2D(keepdims=True)(x)))
    kernel, offset = model.get_layer(layer).get_weights()
    kernel[:, :, :, 3:] *= 1e6 if layer == "point" else 1
    kernel[:, :, 3:] *= 1e6 if layer == "depth" else 1
    model.get_layer(layer).set_weights([kernel, offset])
    images = inputs(16)
    steps = PostTraining(steps=("maximum", "repair"))

    def checked(config: PostTraining) -> None:
        result = post_training_pipeline.quantize(model, INCEPTION, images, config)
        int8_saving.prepare_export(result.wrapped, result.repair)
        floats = float_fallback.FloatLayers(
            float_layers.folded_kernels(result.wrapped),
            float_layers.find_all_float_layers(result.wrapped),
        )
        data = tflite_converter.int8_flatbuffer(result.wrapped, float_layers=floats)
        outputs, limits = model_outputs(result.wrapped, images), VerificationLimits()
        verify.verify(data, outputs, images, expect_int8=True, limits=limits, float_layers=floats)

    with pytest.raises(UsageError) as caught:
        checked(steps)
    reach = np.abs(kernel).max(axis=(0, 1, 3) if layer == "depth" else (0, 1, 2))
    assert str(caught.value) == (
        f"{layer}: got 'channel 3 at {reach[3] / np.median(reach):,.0f} times the median "
        "channel', expected channels that one int8 layer can hold; "
        f"`keep_float={layer}` computes it in float; or train on with weight decay"
    )
    checked(steps.replace(keep_float=(layer,)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (inputs(3), "images: got 3, expected at least 8"),
        (np.full((20, SIZE, SIZE, 3), 0.5, np.float32), "one color in each image"),
        (inputs(20) * np.float32(127.5) + np.float32(127.5), "expected values from -1 to 1"),
        (inputs(20) * np.float32(np.nan), "images: got 'NaN or infinity'"),
        (inputs(20) * np.float32(0.004), "they may have been scaled twice"),
    ],
)
def test_images_that_give_no_useful_range_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match="^images: got") as raised:
        post_training_pipeline.quantize(toy_relu6(), INCEPTION, images, PostTraining())
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (("equalise",), "did you mean equalize?"),
        (("bias", "maximum"), "steps in the order"),
        (("maximum", "mse"), "one of maximum, percentile, mse"),
        (("bias",), "one of maximum, percentile, mse"),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match="^steps: got") as raised:
        PostTraining(steps=steps)
    assert message in str(raised.value)


def test_an_unknown_layer_to_keep_float_is_refused() -> None:
    with pytest.raises(UsageError, match="^keep_float: got 'frist'.*did you mean first"):
        scheme.wrap(relu_model(), INCEPTION, keep_float=("frist",))


@pytest.mark.slow
@pytest.mark.parametrize("name", archs.names())
def test_every_family_is_quantized_and_becomes_a_file(name: str) -> None:
    """Whose operators are within a step of the simulation; benchmarks/post_training_digits.py has
    what it costs trained models."""
    tf_keras.utils.set_random_seed(4)
    width = 0.25 if name == "mobilenet_v1" else 0.35
    fields = {"width_multiplier": width, "num_classes": 10, "classifier_activation": None}
    model = randomize_batch_norm(build(archs.get(name, **fields), (PX, PX, 3)))
    result = post_training_pipeline.quantize(
        model, INCEPTION, inputs(40, PX), PostTraining(tuning_epochs=2)
    )
    int8_saving.prepare_export(result.wrapped, result.repair)
    data = tflite_converter.int8_flatbuffer(result.wrapped)
    assert tflite_model.read(data).float_tensors() == []
    file = Int8Model(model, result.wrapped, {}, data, np.zeros(0))
    for layer, off in operator_steps(file, pixels(2, PX, seed=9)).items():
        assert off.max() <= 1, layer


@pytest.mark.slow
def test_unequal_channels_are_recovered_on_v3_large() -> None:
    """Further apart than any real ones; `benchmarks/unequal_channels.py` takes those."""
    tf_keras.utils.set_random_seed(4)
    fields = {"width_multiplier": 0.35, "num_classes": 10, "classifier_activation": None}
    even = randomize_batch_norm(build(archs.get("mobilenet_v3_large", **fields), (PX, PX, 3)))
    uneven = spread(even)
    images, unseen = inputs(40, PX), inputs(40, PX, seed=9)
    expected = model_outputs(even, unseen)
    np.testing.assert_allclose(
        model_outputs(uneven, unseen), expected, atol=1e-3 * np.abs(expected).max()
    )
    config = PostTraining(steps=("equalize", "maximum", "bias", "repair"))
    errors = {}
    for tag, model in (("even", even), ("uneven", uneven)):
        naive = scheme.wrap(model, INCEPTION)
        calibrate(naive, images)
        errors[f"{tag} naive"] = relative_error(model_outputs(naive, unseen), expected)
        result = post_training_pipeline.quantize(model, INCEPTION, images, config)
        errors[tag] = relative_error(model_outputs(result.wrapped, unseen), expected)
    assert errors["uneven naive"] > 2 * errors["even naive"]
    assert errors["uneven"] < 1.25 * errors["even"]
