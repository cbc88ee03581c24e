"""What may be asked of a file, and how a wrong wish is told."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mobilenet.configs.conversion import ConversionConfig
from mobilenet.errors import UsageError


def test_ends_are_the_insides_unless_asked() -> None:
    assert (ConversionConfig().io_type(True), ConversionConfig().io_type(False)) == (
        "int8",
        "float32",
    )
    assert ConversionConfig(io="uint8").io_type(True) == "uint8"
    assert ConversionConfig(io="float32").io_type(False) == "float32"
    for io in ("int8", "uint8"):
        with pytest.raises(UsageError, match="--io: got .*float32, the ends of a float model"):
            ConversionConfig(io=io).io_type(False)


def test_size_is_the_nets_where_it_has_one() -> None:
    assert ConversionConfig().input_shape((96, 64, 3)) == (96, 64, 3)
    assert ConversionConfig(image_size=96).input_shape((96, 96, 1)) == (96, 96, 1)
    assert ConversionConfig(image_size=96).input_shape((None, None, 3)) == (96, 96, 3)
    assert ConversionConfig(image_size=96).input_shape((None, 96, 3)) == (96, 96, 3)


@pytest.mark.parametrize(
    ("size", "own", "words"),
    [
        (None, (None, None, 3), "--image_size: expected a size, as the model's input is open"),
        (None, (64, None, 3), "--image_size"),
        (96, (64, 64, 3), "--image_size: got 96, expected 64 x 64, the size of the model"),
        (96, (None, 64, 3), "--image_size: got 96"),
        (96, (None, None, None), "number of channels"),
    ],
)
def test_sizes_that_do_not_fit_are_told(size: int | None, own: tuple[Any, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ConversionConfig(image_size=size).input_shape(own)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"io": "int16"}, "--io: got 'int16', expected one of int8, uint8, float32"),
        ({"batch": 0}, "--batch: got 0"),
        ({"batch": 1.5}, "--batch: got 1.5"),
        ({"image_size": 0}, "--image_size: got 0"),
        ({"output_activation": "sigmoid"}, "--output_activation: got 'sigmoid'"),
        ({"target": "xnn"}, "did you mean xnnpack"),
    ],
)
def test_wishes_that_cannot_be_are_told(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ConversionConfig(**fields)


def test_a_form_is_judged_without_tensorflow() -> None:
    code = "import sys, mobilenet.configs.conversion; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
