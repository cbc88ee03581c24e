"""Latency of the float files of models, measured side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mobilenet.export import tflite_converter
from mobilenet.runtime import interpreter

_MIN_SECONDS = 0.01  # of a round of timing; shorter ones measure the machine more than the model


def measure_latency(original: Any) -> Callable[[Any], tuple[float, float]]:
    """Times the float files of models and of `original` side by side.

    See `StageContext.measure_latency`.
    """
    file = tflite_converter.float_flatbuffer(original)
    once = interpreter.latency({"original": file}, rounds=3)["original"]
    invokes = math.ceil(min(max(_MIN_SECONDS / once, 4), 200))

    def compare(model: Any) -> tuple[float, float]:
        files = {"original": file, "model": tflite_converter.float_flatbuffer(model)}
        seconds = interpreter.latency(files, invokes=invokes)
        return seconds["model"], seconds["original"]

    return compare
