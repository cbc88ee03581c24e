"""A quantized model in memory: what it computes, and that its folder reads back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tf_keras
from small_models import CLASSES, INCEPTION, SIZE, L, inputs, model_outputs, toy

import mobilenet
from mobilenet.compression.quantization.int8 import quantized_model, scheme
from mobilenet.compression.quantization.int8.calibration import calibrate
from mobilenet.compression.quantization.int8.quantized_model import QuantizedModel
from mobilenet.configs.card import Card, QuantizationStep
from mobilenet.errors import UsageError
from mobilenet.loading import load_model

LABELS = tuple("abcd")
CARD = Card(
    input_shape=(SIZE, SIZE, 3), preprocessing=INCEPTION, labels=LABELS, metrics={"top1": 1.0}
)
STEPS = (QuantizationStep("maximum", True, 1.0, 30.0, 0.1, "ranges from the extremes"),)


@pytest.fixture(scope="module")
def quantized() -> QuantizedModel:
    plain = toy()
    wrapped = scheme.wrap(plain, INCEPTION, keep_float=["d"])
    calibrate(wrapped, inputs(32))
    return quantized_model.quantized_model(wrapped, plain, CARD, STEPS)


def test_its_card_describes_the_quantization(quantized: QuantizedModel) -> None:
    assert quantized.card.stage == "quantize"
    assert quantized.card.keep_float == ("d",)
    assert quantized.card.quantization_steps == quantized.steps == STEPS
    assert quantized.card.metrics == {}  # they were the float model's
    assert quantized.card.labels == LABELS


def test_its_outputs_are_on_the_grid_of_the_last_range(quantized: QuantizedModel) -> None:
    outputs = model_outputs(quantized.model, inputs(16, seed=1))
    low, high = quantized.ranges["e"]
    steps = outputs / ((high - low) / 255)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    exact = model_outputs(quantized.float_model, inputs(16, seed=1))
    assert 0 < np.abs(outputs - exact).max() < 0.2 * np.abs(exact).max()


def test_its_folder_reads_back_as_it_was(quantized: QuantizedModel, tmp_path: Path) -> None:
    folder = quantized.save(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == [
        "card.json",
        "model.keras",
        "ranges.npz",
    ]
    images = inputs(16, seed=1)
    expected = model_outputs(quantized.model, images)
    again = quantized_model.load(folder)
    np.testing.assert_array_equal(model_outputs(again.model, images), expected)
    assert (again.card, again.steps) == (quantized.card, STEPS)
    loaded = load_model(folder)
    np.testing.assert_array_equal(model_outputs(loaded.model, images), expected)
    plain = load_model(folder, quantizers=False)
    floats = model_outputs(quantized.float_model, images)
    np.testing.assert_array_equal(model_outputs(plain.model, images), floats)


def test_one_from_its_parts_computes_the_same(quantized: QuantizedModel) -> None:
    again = quantized_model.assemble(quantized.float_model, quantized.ranges, quantized.card, STEPS)
    assert again.model is not quantized.model
    images = inputs(16, seed=1)
    expected = model_outputs(quantized.model, images)
    np.testing.assert_array_equal(model_outputs(again.model, images), expected)
    assert again.card == quantized.card


def test_an_older_model_is_replaced_only_when_asked(
    quantized: QuantizedModel, tmp_path: Path
) -> None:
    quantized.save(tmp_path / "model")
    before = (tmp_path / "model" / "ranges.npz").stat().st_mtime_ns
    with pytest.raises(UsageError, match="^path: got .*overwrite"):
        quantized.save(tmp_path / "model")
    assert (tmp_path / "model" / "ranges.npz").stat().st_mtime_ns == before
    quantized.save(tmp_path / "model", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("keep me")
    with pytest.raises(UsageError, match="^path: got"):
        quantized.save(tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "keep me"


def test_ranges_that_were_never_set_are_refused() -> None:
    source = L.Input((SIZE, SIZE, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(CLASSES, 3, name="only")(source))
    plain = tf_keras.Model(source, x)
    with pytest.raises(UsageError, match="range of only"):
        quantized_model.quantized_model(scheme.wrap(plain, INCEPTION), plain, CARD)


@pytest.mark.parametrize("keepdims", [False, True])
def test_the_mean_of_a_single_pixel_is_converted(keepdims: bool) -> None:
    """The converter removes the mean of a 1x1 map only where that keeps the shape."""
    source = L.Input((8, 8, 3))
    x = L.Conv2D(16, 8, activation="relu")(source)
    x = L.GlobalAveragePooling2D(keepdims=keepdims)(x)
    model = tf_keras.Model(source, L.Dense(4)(L.Flatten()(x)))
    images = inputs(16, 8)
    file = mobilenet.convert(mobilenet.quantize(model, images), images=images)
    assert ("MEAN" in file.verification.operators) != keepdims
    assert file.verification.agreement == 1
