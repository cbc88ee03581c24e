"""A small quantized model and its int8 file, shared by the tests of this folder."""

from __future__ import annotations

import pytest
import tf_keras
from small_models import fake_quant_model

from mobilenet.export import tflite_converter


@pytest.fixture(scope="session")
def quantized() -> tf_keras.Model:
    """Do not change it."""
    return fake_quant_model()


@pytest.fixture(scope="session")
def int8_file(quantized: tf_keras.Model) -> bytes:
    return tflite_converter.int8_flatbuffer(quantized)
