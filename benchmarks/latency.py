"""One image through the flatbuffer of every family, int8 against float, side by side.

    python benchmarks/latency.py --size 224 --width 1.0

All files run interleaved in one process, in an order shuffled every round, batch 1, one thread; the
figure is the median, the clock the thread's CPU time. Weights are random, which the time does not
depend on. `stock` is what `TFLiteConverter` makes of the same V3 with a representative data set:
int8 throughout, every hard-swish outside the delegate. `--stems` adds each int8 file with its first
convolution on single pixels. The targets are for a CPU with AVX-512 VNNI; with AVX2 alone int8 is
no faster than float.

    python benchmarks/latency.py --formats dynamic_range stock_dynamic --models mobilenet_v1

compares number formats of float models instead: `dynamic_range` and `float16` of ours, `all` as the
first with narrow kernels in int8 too, `stock_dynamic` what `TFLiteConverter` makes with
`Optimize.DEFAULT` alone. `dynamic_range` has a target over `stock_dynamic`.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
TARGETS = {
    "mobilenet_v1": 0.40,
    "mobilenet_v2": 0.52,
    "mobilenet_v3_small": 0.60,
    "mobilenet_v3_large": 0.52,
    "mobilenet_v3_small_minimalistic": 0.50,
    "mobilenet_v3_large_minimalistic": 0.50,
    "mobilenet_edgetpu": 0.36,
    "mobilenet_v4_conv_small": 0.45,
}
STOCK = ("mobilenet_v3_small", "mobilenet_v3_large")
FORMATS = ("dynamic_range", "all", "stock_dynamic", "float16")
OVER_DYNAMIC = {
    "mobilenet_v1": 0.35,
    "mobilenet_v2": 0.35,
    "mobilenet_v3_large": 0.60,
    "mobilenet_v3_small": 0.70,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="*", default=list(TARGETS), help="default: those with a target"
    )
    parser.add_argument("--width", type=float, default=1.0, help="default %(default)s")
    parser.add_argument("--size", type=int, default=224, help="pixels, default %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="tables to take the median of")
    parser.add_argument("--threads", type=int, default=1, help="default %(default)s")
    parser.add_argument("--stems", action="store_true", help="also with a stem of single pixels")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, help="these, instead of int8")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    import tables

    from mobilenet.console import starting_tensorflow
    from mobilenet.runtime import interpreter

    with starting_tensorflow():
        import tensorflow  # noqa: F401
    files: dict[tuple[str, str], bytes] = {}
    for name in words.models:
        print(f"converting {name}", flush=True)
        files.update({(name, kind): data for kind, data in _files(name, words).items()})
        gc.collect()
    keyed = {f"{name} {kind}": data for (name, kind), data in files.items()}
    runs = [
        interpreter.latency(keyed, words.rounds, threads=words.threads, seed=seed)
        for seed in range(words.repeats)
    ]
    rows = []
    for name, kind in files:
        key = f"{name} {kind}"
        ratios = [run[key] / run[f"{name} float"] for run in runs]
        rows.append(
            [
                name,
                kind,
                f"{1000 * statistics.median(run[key] for run in runs):.3f}",
                f"{statistics.median(ratios):.3f}",
                f"{min(ratios):.3f}-{max(ratios):.3f}",
                f"{TARGETS[name]:.2f}" if kind == "int8" and name in TARGETS else "-",
                interpreter.partitions(interpreter.make_interpreter(keyed[key], words.threads)),
                f"{len(keyed[key]):,}",
            ]
        )
    heads = ["model", "file", "ms", "/ float", "spread", "target", "partitions", "bytes"]
    tables.show(heads, rows, words.threads, words.csv)
    if words.formats and {"dynamic_range", "stock_dynamic"} <= set(words.formats):
        over = [_over_dynamic(name, runs) for name in words.models]
        heads = ["model", "dynamic_range / stock", "spread", "target"]
        tables.show(heads, over, words.threads, None)


def _over_dynamic(name: str, runs: list[dict[str, float]]) -> list[object]:
    ratios = [run[f"{name} dynamic_range"] / run[f"{name} stock_dynamic"] for run in runs]
    target = f"{OVER_DYNAMIC[name]:.2f}" if name in OVER_DYNAMIC else "-"
    spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
    return [name, f"{statistics.median(ratios):.3f}", spread, target]


def _files(name: str, words: Any) -> dict[str, bytes]:
    """The files of one model, by kind."""
    import models

    from mobilenet.compression.quantization.int8 import saving as int8_saving
    from mobilenet.export import tflite_converter

    model = models.build(name, words.width, words.size)
    files = {"float": tflite_converter.float_flatbuffer(model)}
    if words.formats:
        return files | {kind: _format(model, kind, files["float"]) for kind in words.formats}
    wrapped = models.quantized(model, words.size)
    int8_saving.prepare_export(wrapped)
    files["int8"] = tflite_converter.int8_flatbuffer(wrapped)
    if words.stems:
        files["int8 plain stem"] = tflite_converter.int8_flatbuffer(wrapped, target="generic")
    if name in STOCK:
        files["stock int8"] = _stock(model, words.size)
    return files


def _format(model: Any, kind: str, data: bytes) -> bytes:
    """A number format of a float model, whose float file is `data`."""
    import models

    from mobilenet.export import tflite_converter
    from mobilenet.export.rewrites import dynamic_range

    if kind == "dynamic_range":
        return dynamic_range.quantize_kernels(data)
    if kind == "all":
        return dynamic_range.quantize_kernels(data, narrow=0)
    return (
        tflite_converter.float16_flatbuffer(model) if kind == "float16" else models.dynamic(model)
    )


def _stock(model: Any, size: int) -> bytes:
    """Post-training int8 as TensorFlow's guide has it."""
    import models
    import tensorflow as tf

    from mobilenet.export import freeze

    with freeze.quiet():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            [image[None]] for image in models.images(8, size, seed=1)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        return bytes(converter.convert())


if __name__ == "__main__":
    main()
