"""int8 files of models that take pixels, or scale them in their first layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from small_models import CLASSES, SIZE, model_outputs, pixels

import mobilenet
from mobilenet.compression.quantization.int8 import calibration, quantized_model, scheme
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import PREPROCESSING, Preprocessing
from mobilenet.configs.quantization import PostTraining
from mobilenet.export import pipeline
from mobilenet.export.source import source_of
from mobilenet.runtime import interpreter
from mobilenet.runtime.images import normalize
from mobilenet.runtime.quantized_io import run
from mobilenet.tflite import model as tflite_model

L = tf_keras.layers
RAW = Preprocessing("raw", mean=(0.0,), std=(1.0,))
UNIT = Preprocessing("unit", mean=(0.0,), std=(255.0,))


def small(scale: float | None, offset: float = 0.0) -> Any:
    """Two convolutions; with a scale, after a `Rescaling`."""
    tf_keras.utils.set_random_seed(4)
    source = x = L.Input((SIZE, SIZE, 3))
    if scale is not None:
        x = L.Rescaling(scale, offset, name="scaling")(x)
    x = L.ReLU(name="relu")(L.Conv2D(8, 3, 2, "same", name="first")(x))
    x = L.GlobalAveragePooling2D(name="pool")(L.Conv2D(8, 1, name="second")(x))
    return tf_keras.Model(source, L.Dense(CLASSES, name="dense")(x))


@pytest.mark.parametrize(
    ("model", "preprocessing", "step", "zero"),
    [
        (small(1 / 127.5, -1.0), RAW, 1 / 127.5, 0),
        (small(1 / 255), RAW, 1 / 255, -128),
        (small(2.0, -1.0), UNIT, 1 / 127.5, 0),
        (small(None), UNIT, 1 / 255, -128),
    ],
    ids=["rescaling", "rescaling_to_1", "after_preprocessing", "no_rescaling"],
)
def test_pixels_are_exact_and_the_first_layer_is_no_operator(
    model: Any, preprocessing: Preprocessing, step: float, zero: int
) -> None:
    images = pixels(64)
    inputs = (images - np.float32(preprocessing.mean[0])) / np.float32(preprocessing.std[0])
    wrapped = scheme.wrap(model, preprocessing)
    calibration.calibrate(wrapped, inputs)
    expected, simulated = model_outputs(model, inputs), model_outputs(wrapped, inputs)
    assert np.abs(simulated - expected).max() < 0.05 * np.ptp(expected)
    card = Card(input_shape=(SIZE, SIZE, 3), preprocessing=preprocessing)
    quantized = quantized_model.quantized_model(wrapped, model, card)
    file = pipeline.convert(source_of(quantized), inputs)
    content = tflite_model.read(file.content)
    assert "MUL" not in [op.name for op in content.operators]
    source = interpreter.make_interpreter(file.content)
    detail = source.get_input_details()[0]
    assert detail["quantization"] == (pytest.approx(step, rel=1e-6), zero)
    assert file.card.preprocessing.std[0] == pytest.approx(1 / step)
    assert file.card.preprocessing.mean[0] == zero + 128
    outputs = []
    for image in images:  # a pixel as int8 is the pixel minus 128
        source.set_tensor(detail["index"], (image.astype(np.int16) - 128).astype(np.int8)[None])
        source.invoke()
        end = source.get_output_details()[0]
        scale, offset = end["quantization"]
        outputs.append((source.get_tensor(end["index"])[0].astype(np.float32) - offset) * scale)
    assert np.abs(np.asarray(outputs) - simulated).max() < 0.02 * np.ptp(expected)


MEANS, DEVIATIONS = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
FIRST_LAYERS = {
    "to_1": L.Rescaling(1 / 255),
    "to_both_sides": L.Rescaling(1 / 127.5, -1.0),
    "negative": L.Rescaling(-1 / 127.5, 1.0),
    "normalization": L.Normalization(mean=MEANS, variance=np.square(DEVIATIONS)),
    "torch": lambda x: tf_keras.applications.imagenet_utils.preprocess_input(x, mode="torch"),
    "caffe": lambda x: tf_keras.applications.imagenet_utils.preprocess_input(x, mode="caffe"),
    "after_padding": lambda x: L.Rescaling(1 / 127.5, -1.0)(L.ZeroPadding2D(1)(x)),
}
QUICK = PostTraining(steps=("maximum", "repair"))


def cnn(first: Any) -> Any:
    """A convolution of padded maps and a dense layer after a layer that scales pixels."""
    tf_keras.utils.set_random_seed(6)
    source = L.Input((SIZE, SIZE, 3))
    x = L.ReLU()(L.Conv2D(8, 3, padding="same")(first(source)))
    return tf_keras.Model(source, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("first", FIRST_LAYERS)
def test_the_first_layer_is_int8_after_calibration_and_after_training(
    first: str, tmp_path: Path
) -> None:
    images = pixels(24).astype(np.float32)
    model = cnn(FIRST_LAYERS[first])
    expected = model_outputs(model, images)
    tolerance = 0.02 * np.ptp(expected)
    quantized = mobilenet.quantize(model, images, preprocessing="raw", config=QUICK)
    file = mobilenet.convert(quantized, images=images)
    assert (file.verification.contents, file.verification.float_tensors) == ("int8", 0)
    assert min(layer.signal_to_noise or 0 for layer in file.verification.layers) > 30
    assert np.abs(file.classifier(threads=1).logits(images) - expected).max() < tolerance
    np.testing.assert_allclose(model_outputs(quantized.float_model, images), expected, atol=1e-4)
    loaded = mobilenet.load_model(quantized.save(tmp_path / "quantized"))
    assert mobilenet.convert(loaded, images=images).content == file.content

    training = mobilenet.quantize_aware(model, images, steps=2, preprocessing="raw")
    rate = 1e-3 / max(1.0, np.ptp(expected)) ** 2  # pixels less their mean have large outputs
    training.model.compile(tf_keras.optimizers.SGD(rate), "mse")
    training.model.fit(images[:16], expected[:16], 8, callbacks=training.callbacks, verbose=0)
    finished = training.finish()
    trained = mobilenet.convert(finished, images=images)
    assert (trained.verification.contents, trained.verification.float_tensors) == ("int8", 0)
    actual = trained.classifier(threads=1).logits(images)
    expected = model_outputs(finished.float_model, images)
    assert np.abs(actual - expected).max() < tolerance


@pytest.mark.parametrize("first", ["to_both_sides", "normalization"])
def test_the_border_of_a_padded_stem_is_that_of_keras(first: str) -> None:
    """Keras pads what the first layer gives, with zeros: the mean, not the pixel 0."""
    tf_keras.utils.set_random_seed(6)
    source = L.Input((SIZE, SIZE, 3))
    stem = L.Conv2D(2, 3, padding="same")
    model = tf_keras.Model(source, L.Flatten()(stem(FIRST_LAYERS[first](source))))
    images = pixels(16).astype(np.float32)
    shape = (len(images), SIZE, SIZE, 2)
    expected = model_outputs(model, images).reshape(shape)
    file = mobilenet.convert(mobilenet.quantize(model, images, config=QUICK), images=images)
    inputs = normalize(images, file.card.preprocessing)
    actual = run(interpreter.make_interpreter(file.content), inputs)
    error = np.abs(actual.reshape(shape) - expected)
    is_border = np.ones((SIZE, SIZE), bool)
    is_border[1:-1, 1:-1] = False
    step = file.verification.output.scale
    assert error[:, ~is_border].max() < 4 * step
    assert error[:, is_border].max() < 4 * step

    # A convolution that has taken the first layer in, and pads pixels with zeros, is wrong there.
    at_zero, at_one = (model.layers[1](np.full((1, 1, 1, 3), x, np.float32)) for x in (0, 1))
    scale, offset = np.asarray(at_one - at_zero)[0, 0, 0], np.asarray(at_zero)[0, 0, 0]
    kernel, bias = (np.asarray(weight) for weight in stem.weights)
    moved = bias + np.einsum("hwio,i->o", kernel, offset)
    folded = tf.nn.conv2d(images, kernel * scale[:, None], 1, "SAME") + moved
    wrong = np.abs(folded.numpy() - expected)
    assert wrong[:, ~is_border].max() < 1e-3
    assert wrong[:, is_border].max() > 20 * step


def test_inputs_with_a_mean_for_each_channel_are_calibrated() -> None:
    shown = pixels(24).astype(np.float32)
    images = (shown - np.float32(MEANS)) / np.float32(DEVIATIONS)
    model = cnn(lambda x: x)
    quantized = mobilenet.quantize(model, images, preprocessing="imagenet", config=QUICK)
    low, high = quantized.ranges[scheme.INPUT]
    assert (low, high) == (images.min(), images.max())
    file = mobilenet.convert(quantized, images=images)
    assert file.card.preprocessing == PREPROCESSING["imagenet"]
    expected = model_outputs(model, images)
    actual = file.classifier(threads=1).logits(shown)
    assert np.abs(actual - expected).max() < 0.02 * np.ptp(expected)


def test_pixels_may_be_whole_numbers() -> None:
    model, whole = small(1 / 127.5, -1.0), pixels(16)
    config = PostTraining(steps=("maximum",))
    files = [
        mobilenet.convert(mobilenet.quantize(model, images, config=config), images=images)
        for images in (whole, whole.astype(np.float32))
    ]
    assert files[0].content == files[1].content
    assert files[0].verification.agreement == files[1].verification.agreement
