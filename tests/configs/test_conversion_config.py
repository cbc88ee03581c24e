"""`ConversionConfig` and `VerificationLimits`: defaults by model, and illegal values."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mobilenet.configs.conversion import ConversionConfig, VerificationLimits
from mobilenet.errors import UsageError


def test_number_format_and_io_type_follow_the_model_unless_set() -> None:
    quantized, plain = ConversionConfig().resolve(True), ConversionConfig().resolve(False)
    assert (quantized.number_format, quantized.io) == ("int8", "int8")
    assert (plain.number_format, plain.io) == ("float32", "float32")
    assert ConversionConfig(io="uint8").resolve(True).io == "uint8"
    assert ConversionConfig(io="float32").resolve(False).io == "float32"
    for io in ("int8", "uint8"):
        expected = "io: got .*expected float32, the input and output type of float32"
        with pytest.raises(UsageError, match=expected):
            ConversionConfig(io=io).resolve(False)


def test_int8_and_float32_are_for_every_model_other_formats_for_float_ones() -> None:
    for quantized in (True, False):
        assert ConversionConfig("int8").resolve(quantized).io == "int8"
        assert ConversionConfig("float32").resolve(quantized).io == "float32"
        with pytest.raises(UsageError, match="io: got 'int8', expected float32"):
            ConversionConfig("float32", io="int8")
    assert ConversionConfig("int16x8").resolve(False).io == "float32"
    with pytest.raises(UsageError, match="number_format: got 'int16x8', expected a float model"):
        ConversionConfig("int16x8").resolve(True)


def test_the_size_is_the_models_where_it_has_one() -> None:
    assert ConversionConfig().input_shape((96, 64, 3)) == (96, 64, 3)
    assert ConversionConfig(image_size=96).input_shape((96, 96, 1)) == (96, 96, 1)
    assert ConversionConfig(image_size=96).input_shape((None, None, 3)) == (96, 96, 3)
    assert ConversionConfig(image_size=96).input_shape((None, 96, 3)) == (96, 96, 3)
    assert ConversionConfig(image_size=(48, 96)).input_shape((None, None, 1)) == (48, 96, 1)
    assert ConversionConfig(image_size=(48, 96)).input_shape((48, None, 3)) == (48, 96, 3)


@pytest.mark.parametrize(
    ("size", "model_shape", "message"),
    [
        (None, (None, None, 3), "^image_size: expected a size, as the model's input is open"),
        (None, (64, None, 3), "^image_size"),
        (96, (64, 64, 3), "^image_size: got 96, expected 64 x 64, the size of the model"),
        (96, (None, 64, 3), "^image_size: got 96"),
        ((48, 96), (96, 48, 3), r"^image_size: got \(48, 96\), expected 96 x 48"),
        (96, (None, None, None), "number of channels"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(
    size: Any, model_shape: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ConversionConfig(image_size=size).input_shape(model_shape)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"io": "int16"}, "^io: got 'int16', expected one of int8, uint8, float32"),
        ({"batch": 0}, "^batch: got 0"),
        ({"batch": 1.5}, "^batch: got 1.5"),
        ({"image_size": 0}, "^image_size: got 0"),
        ({"image_size": (1, 2, 3)}, r"^image_size: got \[1, 2, 3\], expected one number, or"),
        ({"output_activation": "relu"}, "^output_activation: got 'relu'"),
        ({"target": "xnn"}, "did you mean xnnpack"),
        ({"number_format": "weights"}, "^number_format: got 'weights', expected one of int8, dyn"),
    ],
)
def test_an_illegal_choice_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ConversionConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_agreement": 98.0}, "^min_agreement: got 98.0, expected .*at most 1"),
        ({"min_clear_agreement": -0.1}, "^min_clear_agreement: got -0.1, .*at least 0"),
        ({"max_mean_steps": -1.0}, "^max_mean_steps: got -1.0, .*at least 0"),
        ({"max_operator_steps": -1}, "^max_operator_steps: got -1, .*at least 0"),
        ({"max_partitions": 0}, "^max_partitions: got 0, expected a whole number at least 1"),
    ],
)
def test_an_illegal_limit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VerificationLimits(**fields)


def test_limits_are_none_at_first_but_one_step_an_operator() -> None:
    assert VerificationLimits() == VerificationLimits(0.0, 0.0, None, 1, None)
    assert VerificationLimits(max_operator_steps=None).max_operator_steps is None


def test_the_config_is_checked_without_tensorflow() -> None:
    code = "import sys, mobilenet.configs.conversion; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
