"""The quantization scheme: grid, gradients, what is saved, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from int8_files import file_tensors, operator_steps, quantize_to_file
from short_training import stage_context, train
from small_models import (
    CLASSES,
    INCEPTION,
    SIZE,
    L,
    file_inputs,
    inputs,
    pixels,
    randomize_batch_norm,
    toy,
)

from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import calibrate
from mobilenet.compression.quantization.int8.quantizer_placement import place_quantizers
from mobilenet.compression.quantization.int8.quantizers import (
    ActivationQuantizer,
    InputQuantizer,
    WeightQuantizer,
)
from mobilenet.configs import archs
from mobilenet.configs.dataset import PREPROCESSING
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.errors import UsageError
from mobilenet.export import freeze, tflite_converter
from mobilenet.models.builder import build


def calibrated(model: Any) -> Any:
    wrapped = scheme.wrap(model, INCEPTION)
    calibrate(wrapped, inputs(32))
    return wrapped


def test_outputs_of_the_first_convolution_equal_the_simulation() -> None:
    """From uint8 pixels on; one in a thousand may round apart."""
    off = operator_steps(quantize_to_file(randomize_batch_norm(toy(16))), pixels(48))["a_act"]
    assert off.size == 48 * 64 * 16
    assert np.mean(off > 0) < 1e-3
    assert off.max() <= 1


def test_without_the_shift_pixels_fall_between_quantized_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`p / 127.5 - 1` over [-1, 1], as elsewhere: the reason for the shift."""
    monkeypatch.setattr(scheme, "input_quantizer", lambda *_: ActivationQuantizer((-1.0, 1.0)))
    wrapped = scheme.wrap(randomize_batch_norm(toy(16)), INCEPTION)
    calibrate(wrapped, inputs(32))
    int8_saving.prepare_export(wrapped)
    data = tflite_converter.int8_flatbuffer(wrapped)
    seen = tf_keras.Model(wrapped.input, wrapped.get_layer("quant_a_act").output)
    out = seen(inputs(48), training=False).numpy()
    quantized, scale, zero = next(
        value for name, value in file_tensors(data, pixels(48)).items() if "quant_a_" in name
    )
    off = np.abs(np.round(out / scale) + zero - quantized)
    assert np.mean(off > 0) > 0.01


def test_input_quantizer_is_pixel_minus_128() -> None:
    pixel = np.arange(256, dtype=np.float32)
    grids = ((127.5, 127.5, 128), (0.0, 255.0, 0), (0.0, 1.0, 0), (128.0, 64.0, 128))
    for mean, std, zero in grids:
        quantizer = InputQuantizer(mean, std)
        images = tf.constant((pixel - mean) / std)
        simulated = quantizer(images, False, {}).numpy()
        np.testing.assert_allclose(simulated, (pixel - zero) / std, rtol=1e-5, atol=1e-7 / std)
        quantizer.phase.exporting = True
        np.testing.assert_allclose(quantizer(simulated, False, {}).numpy(), simulated, rtol=1e-6)


def test_weights_are_rounded_by_the_formula() -> None:
    """Symmetric int8 without -128, recomputed by numpy; depthwise by channel, dense as a whole."""
    rng = np.random.default_rng(0)
    for kind, shape, axes in (
        ("conv", (3, 3, 4, 6), (0, 1, 2)),
        ("depthwise", (3, 3, 5, 1), (0, 1, 3)),
        ("depthwise", (3, 3, 5, 2), (0, 1)),
        ("dense", (7, 4), None),
    ):
        kernel = rng.normal(size=shape).astype(np.float32)
        scale = np.abs(kernel).max(axes, keepdims=True) / 127
        expected = np.round(kernel / scale) * scale
        rounded = WeightQuantizer(kind)(tf.constant(kernel), True, {}).numpy()
        np.testing.assert_allclose(rounded, expected, rtol=1e-5, atol=1e-6)


def test_gradients_pass_both_quantizers_unchanged() -> None:
    """Both inside and outside the range."""
    values = tf.constant([[-9.0, -0.4, 0.1, 3.0, 20.0]])
    upstream = tf.constant([[1.0, -2.0, 3.0, -4.0, 5.0]])
    ranges = {"low": tf.constant(-1.0), "high": tf.constant(6.0)}
    for quantize_it in (
        lambda x: ActivationQuantizer()(x, False, ranges),
        lambda x: WeightQuantizer("conv")(x, True, {}),
        lambda x: WeightQuantizer("dense")(x, True, {}),
    ):
        with tf.GradientTape() as tape:
            tape.watch(values)
            shape = (5, 1, 1, 1)  # one channel
            out = tf.reshape(quantize_it(tf.reshape(values, shape)), (1, 5))
        assert np.abs(out.numpy() - values.numpy()).max() > 0
        np.testing.assert_array_equal(tape.gradient(out, values, upstream), upstream)


def test_ranges_are_extremes_first_and_a_moving_average_after() -> None:
    quantizer = ActivationQuantizer()
    weights = {"low": tf.Variable(0.0), "high": tf.Variable(0.0)}
    batches = [np.array([-1.0, 4.0]), np.array([2.0, 6.0]), np.array([-3.0, 1.0])]
    low, high = -1.0, 4.0
    for index, batch in enumerate(batches):
        quantizer.phase.observing = index == 0
        quantizer(tf.constant(batch, tf.float32), True, weights)
        if index:
            low += 0.01 * (min(batch.min(), 0) - low)
            high += 0.01 * (max(batch.max(), 0) - high)
        np.testing.assert_allclose([weights["low"], weights["high"]], [low, high], rtol=1e-5)
    quantizer(tf.constant([100.0]), False, weights)
    np.testing.assert_allclose([weights["low"], weights["high"]], [low, high], rtol=1e-5)


def test_calibration_finds_the_extremes_of_the_float_model() -> None:
    model = randomize_batch_norm(toy())
    images = inputs(32)
    ranges = scheme.get_ranges(calibrated(model))
    for name, (low, high) in ranges.items():
        seen = tf_keras.Model(model.input, model.get_layer(name).output)(images).numpy()
        # the wrapped model reads pixels on its own grid, half a pixel away, with rounded kernels
        assert low == pytest.approx(min(float(seen.min()), 0), abs=0.05 * float(np.ptp(seen)))
        assert high == pytest.approx(max(float(seen.max()), 0), abs=0.05 * float(np.ptp(seen)))


def test_a_trained_model_keeps_its_accuracy_after_calibration() -> None:
    """No step of training; tfmot's fresh wrapping falls to chance."""
    method = methods.create(QuantizationAwareTraining(), stage_context(1))
    model = toy()

    train(model, None, 60)
    images = inputs(400, seed=11)
    labels = images[:, :, :, 0].mean((1, 2)) > 0
    plain = model(images, training=False).numpy().argmax(1)
    wrapped = method.apply(model)
    simulated = wrapped(images, training=False).numpy().argmax(1)
    fresh = scheme.wrap(model, INCEPTION)(images, training=False).numpy().argmax(1)
    assert np.mean(plain == labels) > 0.85
    assert np.mean(simulated == labels) >= np.mean(plain == labels) - 0.01
    assert np.mean(simulated == plain) > 0.98
    assert np.mean(fresh == labels) < 0.7


def test_the_saved_parts_give_the_same_model_bit_for_bit() -> None:
    model = randomize_batch_norm(toy())
    wrapped = calibrated(model)
    plain = scheme.unwrap(wrapped, model)
    for old, new in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [type(x).__name__ for x in plain.layers] == [type(x).__name__ for x in model.layers]
    again = scheme.wrap(plain, INCEPTION)
    scheme.set_ranges(again, scheme.get_ranges(wrapped))
    np.testing.assert_array_equal(wrapped(inputs(8)), again(inputs(8)))
    for name, bounds in scheme.get_ranges(again).items():
        np.testing.assert_array_equal(bounds, scheme.get_ranges(wrapped)[name])


def test_the_file_computes_what_training_evaluated() -> None:
    """The export phase reads its own input grid; the outputs are the same."""
    wrapped = calibrated(randomize_batch_norm(toy()))
    before = wrapped(inputs(16), training=False).numpy()
    int8_saving.prepare_export(wrapped)
    after = wrapped(file_inputs(pixels(16)), training=False).numpy()
    np.testing.assert_allclose(after, before, atol=1e-5)
    np.testing.assert_allclose(
        scheme.to_grid(inputs(16), INCEPTION), file_inputs(pixels(16)), atol=1e-6
    )


@pytest.fixture
def mixed() -> Iterator[None]:
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    tf_keras.mixed_precision.set_global_policy("float32")


def test_it_trains_under_mixed_precision_and_is_float32_afterwards(mixed: None) -> None:
    method = methods.create(QuantizationAwareTraining(calibration_images=32), stage_context(6))
    model = toy()
    wrapped = method.apply(model)
    assert wrapped.get_layer("quant_c").layer.compute_dtype == "bfloat16"
    before = [v.numpy() for v in wrapped.trainable_variables]
    ranges = scheme.get_ranges(wrapped)
    loss = train(wrapped, method, 6)
    assert np.isfinite(loss)
    assert all(v.dtype == tf.float32 for v in wrapped.variables if v.dtype.is_floating)
    for old, variable in zip(before, wrapped.trainable_variables, strict=True):
        assert np.any(old != variable.numpy())
    assert any(
        np.any(bounds != ranges[name]) for name, bounds in scheme.get_ranges(wrapped).items()
    )
    final = scheme.get_ranges(wrapped)
    tf_keras.mixed_precision.set_global_policy("float32")
    plain = freeze.float32_copy(method.finalize(wrapped))
    assert {layer.compute_dtype for layer in plain.layers} == {"float32"}
    again = scheme.wrap(plain, INCEPTION)
    scheme.set_ranges(again, final)
    int8_saving.prepare_export(again)
    assert tflite_converter.int8_flatbuffer(again)


def keras_3() -> Any:
    keras = pytest.importorskip("keras")
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(4, 3)])


def sequential(*layers: Any) -> Any:
    source = x = L.Input((SIZE, SIZE, 3))
    for layer in layers:
        x = layer(x)
    return tf_keras.Model(source, x)


def poisoned() -> Any:
    model = toy()
    set_nan = model.get_layer("d").get_weights()
    set_nan[0][0, 0, 0, 0] = np.nan
    model.get_layer("d").set_weights(set_nan)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (keras_3, "model of tf_keras"),
        (lambda: scheme.wrap(toy(), INCEPTION), "quantized already"),
        (lambda: sequential(L.Conv2D(4, 1), L.LayerNormalization(name="odd")), "layer odd"),
        (lambda: sequential(L.Conv2D(4, 1), L.Activation("tanh", name="odd")), "tanh"),
        (lambda: sequential(L.Conv2D(4, 1, activation="swish", name="odd")), "swish"),
        (lambda: sequential(L.Conv2D(4, 1), L.Softmax(name="odd")), "classifier_activation=None"),
        (
            lambda: sequential(L.Flatten(), L.Dense(4, activation="softmax")),
            "classifier_activation=None",
        ),
        (poisoned, "NaN"),
    ],
)
def test_what_cannot_be_quantized_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        scheme.wrap(make(), INCEPTION)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "images", [np.zeros((0, SIZE, SIZE, 3)), np.full((4, SIZE, SIZE, 3), np.nan)]
)
def test_calibration_refuses_invalid_images(images: np.ndarray) -> None:
    with pytest.raises(UsageError, match="calibration images"):
        calibrate(scheme.wrap(toy(), INCEPTION), images.astype(np.float32))


def test_ranges_that_were_never_set_are_refused() -> None:
    wrapped = scheme.wrap(toy(), INCEPTION)
    with pytest.raises(UsageError, match="calibrate the model"):
        int8_saving.prepare_export(wrapped)
    with pytest.raises(UsageError, match="calibrate the model"):
        scheme.set_ranges(wrapped, scheme.get_ranges(wrapped))
    ranges = scheme.get_ranges(calibrated(toy()))
    for wrong in ([1.0, 2.0], [-2.0, -1.0], [0.0, np.nan], [-np.inf, 1.0], [2.0, -1.0]):
        with pytest.raises(UsageError, match="range of sum"):
            scheme.set_ranges(wrapped, {**ranges, "sum": np.array(wrong, np.float32)})
    with pytest.raises(UsageError, match="ranges"):
        scheme.set_ranges(wrapped, {**ranges, "other": ranges["sum"]})
    del ranges["sum"]
    with pytest.raises(UsageError, match="sum"):
        scheme.set_ranges(wrapped, ranges)


def test_a_tensor_of_zeros_gets_a_range() -> None:
    model = toy()
    for part in (model.get_layer("d").kernel, model.get_layer("d").bias):
        part.assign(tf.zeros_like(part))
    ranges = scheme.get_ranges(calibrated(model))
    assert ranges["d_act"][1] > 0
    scheme.check_ranges(ranges)


def test_a_preprocessing_by_channel_is_calibrated_instead() -> None:
    """No single grid has all three channels' pixels; the range is that of the images."""
    wrapped = scheme.wrap(toy(), PREPROCESSING["imagenet"])
    images = inputs(8) * 2
    calibrate(wrapped, images)
    low, high = scheme.get_ranges(wrapped)["input"]
    np.testing.assert_allclose([low, high], [images.min(), images.max()], rtol=1e-6)
    np.testing.assert_array_equal(scheme.to_grid(images, PREPROCESSING["imagenet"]), images)


def test_wrapping_does_not_change_the_model() -> None:
    model = toy()
    before = model.get_weights()
    wrapped = calibrated(model)
    assert not {id(x) for x in wrapped.layers} & {id(x) for x in model.layers}
    for variable in wrapped.trainable_variables:
        variable.assign_add(tf.ones_like(variable))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert wrapped(inputs(1)).shape == (1, CLASSES)


@pytest.mark.parametrize(("size", "rounded"), [(32, False), (64, True)])
def test_the_mean_of_one_position_is_not_quantized_again(size: int, rounded: bool) -> None:
    """The converter leaves such a mean out: a range of its own, which training moves apart from
    that of its input, would round where the file does not."""
    config = archs.get("mobilenet_v1", width_multiplier=0.25, classifier_activation=None)
    model = build(config, (size, size, 3))
    assert ("global_pool" in place_quantizers(model)) == rounded
