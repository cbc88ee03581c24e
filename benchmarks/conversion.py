"""What a conversion to int8 costs: our frozen function against `TFLiteConverter.from_keras_model`.

    python benchmarks/conversion.py --model_name mobilenet_v1 --size 224

Both convert the same model with fake quantization, in turns (A B A B), in one process. Ours counts
everything from the trained model to the bytes of the file: repair, freezing, conversion, metadata.
The verification of the file, which `from_keras_model` has no counterpart for, is a row of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
TARGET = 0.2  # of from_keras_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_name", default="mobilenet_v1", help="default %(default)s")
    parser.add_argument("--width", type=float, default=1.0, help="default %(default)s")
    parser.add_argument("--size", type=int, default=224, help="pixels, default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    import models
    import tables

    from mobilenet.console import starting_tensorflow

    with starting_tensorflow():
        from mobilenet.compression.quantization.int8 import scheme
    model = models.build(words.model_name, words.width, words.size)
    wrapped = models.quantized(model, words.size)
    ranges = scheme.get_ranges(wrapped)
    seconds: dict[str, list[tuple[float, float]]] = {}
    for _ in range(words.rounds):
        fresh = scheme.wrap(model, _preprocessing())
        scheme.set_ranges(fresh, ranges)
        data = _timed(seconds, "ours", partial(_ours, fresh))
        _timed(seconds, "from_keras_model", partial(_stock, fresh))
        _timed(
            seconds,
            "verification of ours (8 images)",
            partial(_verify, data, fresh, model, words.size),
        )
    peer = [statistics.median(column) for column in zip(*seconds["from_keras_model"], strict=True)]
    rows = []
    for name, pairs in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append(
            [name, f"{wall:.2f}", f"{cpu:.2f}", f"{wall / peer[0]:.3f}", f"{cpu / peer[1]:.3f}"]
        )
    heads = ["conversion", "wall s", "CPU s", "wall / peer", "CPU / peer"]
    print(f"{words.model_name} {words.width} at {words.size} px, quantized; target {TARGET}")
    tables.show(heads, rows, os.cpu_count() or 1, words.csv)


def _timed(
    seconds: dict[str, list[tuple[float, float]]], name: str, work: Callable[[], Any]
) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    pair = time.perf_counter() - wall, time.process_time() - cpu
    seconds.setdefault(name, []).append(pair)
    return result


def _preprocessing() -> Any:
    from mobilenet.configs.dataset import PREPROCESSING

    return PREPROCESSING["inception"]


def _ours(wrapped: Any) -> bytes:
    from mobilenet.compression.quantization.int8 import saving as int8_saving
    from mobilenet.configs.card import Card
    from mobilenet.export import bundle, tflite_converter, tflite_metadata

    int8_saving.prepare_export(wrapped)
    data = tflite_converter.int8_flatbuffer(wrapped)
    return tflite_metadata.attach(data, bundle.file_card(Card(), 1000, quantized=True))


def _stock(wrapped: Any) -> bytes:
    import tensorflow as tf

    from mobilenet.export import freeze

    for layer in wrapped.layers:  # the layers' own methods: a SavedModel cannot trace what hides
        vars(layer).pop("call", None)  # them from autograph
    with freeze.quiet():
        converter = tf.lite.TFLiteConverter.from_keras_model(wrapped)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        return bytes(converter.convert())


def _verify(data: bytes, wrapped: Any, model: Any, size: int) -> None:
    import models

    from mobilenet.compression.quantization.int8 import scheme
    from mobilenet.configs.conversion import VerificationLimits
    from mobilenet.export.verification import verify

    inputs = scheme.to_grid(models.images(8, size, seed=2), _preprocessing())
    reference = wrapped(inputs, training=False).numpy()
    verification = verify.verify(
        data,
        reference,
        inputs,
        expect_int8=True,
        io="int8",
        limits=VerificationLimits(),
        simulated=wrapped,
        plain=model,
    )
    assert verification.ok, verification.faults


if __name__ == "__main__":
    main()
