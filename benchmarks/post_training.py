"""What post-training int8 costs a model with real weights, remedy by remedy, and what other
converters make.

    python benchmarks/post_training.py --model models/v3 --data photos.csv --calibration photos/cal

`--model` is a float model (`python -m mobilenet.tf1_loader` makes one), `--data` a list of images
with labels that are scored, `--calibration` a folder of other images. Every row is a file, run by
the interpreter: its top-1, its agreement with the float model, the signal-to-noise ratio of its
outputs, its delegate partitions, its time as a share of the float file's on one thread, and the
seconds that making it takes. `--keep_float LAYERS` leaves layers of our int8 files in float.
`--rows float,weights,float16` picks some; reference kernels run `int16x8`, so slowly that
`--limit 100` images do for it. `--counts 25,50,100 --draws 5` shows instead how the default chain
depends on which and how many images it is calibrated on.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.configs.quantization import RANGE_RULES

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ALONE = {
    **{f"ranges: {rule}": (rule, "repair") for rule in RANGE_RULES},
    "clip at -3": ("maximum", "clip", "repair"),
    "equalize": ("equalize", "maximum", "repair"),
    "hard_swish": ("hard_swish", "maximum", "repair"),
    "bias": ("maximum", "bias", "repair"),
    "tune": ("maximum", "tune", "repair"),
    "default": ("auto",),
    "gates and default": ("gates", "auto"),
    "default without tune": ("equalize", "hard_swish", "percentile", "clip", "bias", "repair"),
    "default and tune": (
        *("equalize", "hard_swish", "percentile", "clip"),
        *("bias", "tune", "repair"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a float model")
    parser.add_argument("--data", required=True, help="CSV list of images with labels")
    parser.add_argument("--calibration", required=True, help="folder of images")
    parser.add_argument("--images", type=int, default=100, help="to calibrate on (100)")
    parser.add_argument("--rows", help="comma separated; all but int16x8 when left out")
    parser.add_argument("--keep_float", help="layers in float inside our int8 files")
    parser.add_argument("--limit", type=int, default=100_000, help="images that are scored (all)")
    parser.add_argument("--counts", help="images to calibrate on, as in 25,50,100")
    parser.add_argument("--draws", type=int, default=5, help="draws for each count (5)")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    import tables

    from mobilenet.console import starting_tensorflow

    with starting_tensorflow():
        import tensorflow  # noqa: F401
    bench = Bench(words)
    if words.counts:
        heads = ["images", "draw", "top-1 %", "agreement %", "dB"]
        rows = list(bench.draws([int(n) for n in words.counts.split(",")], words.draws))
    else:
        heads = ["file", "top-1 %", "agreement %", "dB", "partitions", "of float's time"]
        heads += ["seconds", "bytes"]
        chosen = words.rows.split(",") if words.rows else None
        rows = list(bench.table(chosen))
    tables.show(heads, rows, os.cpu_count() or 1, words.csv)


class Bench:
    """A model, the images that are scored and those to calibrate on."""

    def __init__(self, words: argparse.Namespace) -> None:
        from mobilenet.configs import dataset as datasets
        from mobilenet.data import arrays
        from mobilenet.export import calibration_data, freeze
        from mobilenet.models import saving

        self.loaded = model = saving.load(words.model)
        self.model = freeze.float32_copy(model.model)
        shape, self.preprocessing = model.card.input_shape, model.card.preprocessing
        listed = datasets.get("image_list").replace(data_dir=words.data)
        self.images = arrays.load_images(listed, "test", shape, self.preprocessing, words.limit)
        self.labels = labels_of(listed, words.limit)
        self.seen = calibration_data.load_calibration(
            None, words.calibration, listed, shape, self.preprocessing, max(words.images, 8)
        )
        self.expected = self.outputs(self.model)
        self.floats = tuple(words.keep_float.split(",")) if words.keep_float else ()

    def outputs(self, model: Any) -> Any:
        from mobilenet.models.graph import inference

        infer = inference.compile_model(model)
        return np.concatenate(
            [infer(self.images[i : i + 25]).numpy() for i in range(0, len(self.images), 25)]
        )

    def figures(self, data: bytes, on_grid: bool = False) -> tuple[str, str, str]:
        """Top-1, agreement and dB of a file, whose input may be on the grid of our int8 files."""
        from mobilenet.compression.quantization.int8 import scheme
        from mobilenet.metrics import signal_to_noise
        from mobilenet.runtime import interpreter
        from mobilenet.runtime.quantized_io import run

        inputs = scheme.to_grid(self.images, self.preprocessing) if on_grid else self.images
        outputs = run(interpreter.make_interpreter(data, os.cpu_count() or 1), inputs)
        right = outputs.argmax(1) == self.labels
        same = outputs.argmax(1) == self.expected.argmax(1)
        ratio = signal_to_noise(self.expected, outputs)
        return f"{100 * right.mean():.1f}", f"{100 * same.mean():.1f}", f"{ratio:.1f}"

    def fitted(self, steps: tuple[str, ...], images: Any) -> bytes:
        """The file of post-training int8 with these steps."""
        from mobilenet.compression.quantization.int8 import float_layers
        from mobilenet.compression.quantization.int8 import saving as int8_saving
        from mobilenet.compression.quantization.post_training import (
            pipeline as post_training_pipeline,
        )
        from mobilenet.configs.quantization import PostTraining
        from mobilenet.export import tflite_converter
        from mobilenet.export.rewrites import float_fallback

        config = PostTraining(steps=steps, keep_float=self.floats)
        made = post_training_pipeline.quantize(self.model, self.preprocessing, images, config)
        int8_saving.prepare_export(made.wrapped, made.repair)
        floats = float_fallback.FloatLayers(
            float_layers.folded_kernels(made.wrapped),
            float_layers.find_all_float_layers(made.wrapped),
        )
        return tflite_converter.int8_flatbuffer(made.wrapped, float_layers=floats)

    def table(self, chosen: list[str] | None) -> Iterator[list[object]]:
        import models

        from mobilenet.errors import UsageError
        from mobilenet.export import number_formats
        from mobilenet.runtime import interpreter

        makers: dict[str, Callable[[], bytes]] = {"float": self._float, "stock int8": self._stock}
        for name, steps in ALONE.items():
            makers[name] = partial(self.fitted, steps, self.seen.images)
        makers["stock dynamic"] = lambda: models.dynamic(self.model)
        without = ("int8", "float32", "edge_int4")  # rows of their own; needs kernels on a grid
        names = [name for name in number_formats.CONVERTERS if name not in without]
        makers |= {name: partial(self._format, name) for name in names}
        row: list[object]
        for name, make in makers.items():
            if name not in chosen if chosen is not None else name == "int16x8":
                continue
            started = time.monotonic()
            data = make()
            seconds = time.monotonic() - started
            try:
                interpreter.make_interpreter(data)
            except UsageError as error:
                print(name, error, flush=True)
                row = [name, "-", "-", "-", "does not run", "-", f"{seconds:.1f}"]
                yield [*row, f"{len(data):,}"]
                continue
            parts = interpreter.partitions(interpreter.make_interpreter(data))
            times = interpreter.latency({"float": self._float(), "file": data})
            row = [
                name,
                *self.figures(data, name in ALONE),
                parts,
                f"{times['file'] / times['float']:.2f}",
                f"{seconds:.1f}",
                f"{len(data):,}",
            ]
            print(*row, flush=True)
            yield row

    def draws(self, counts: list[int], draws: int) -> Iterator[list[object]]:
        for count in counts:
            for draw in range(draws):
                rng = np.random.default_rng(draw)
                rows = rng.permutation(len(self.seen.images))[:count]
                data = self.fitted(("auto",), self.seen.images[rows])
                row = [count, draw, *self.figures(data, on_grid=True)]
                print(*row, flush=True)
                yield row

    def _float(self) -> bytes:
        from mobilenet.export import tflite_converter

        return tflite_converter.float_flatbuffer(self.model)

    def _stock(self) -> bytes:
        """As TensorFlow's guide has it, from a frozen function."""
        import tensorflow as tf

        from mobilenet.export import freeze

        with freeze.quiet():
            frozen = freeze.freeze(self.model)
            converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([x[None]] for x in self.seen.images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
            return bytes(converter.convert())

    def _format(self, name: str) -> bytes:
        """A number format as the converter writes it, before its verification."""
        from mobilenet.configs.conversion import ConversionConfig
        from mobilenet.export import number_formats
        from mobilenet.export.source import Source

        source = Source(self.loaded)
        form, few = ConversionConfig(number_format=name), self.images[:1]
        job = number_formats.ConversionJob(
            source, few, form, self.loaded.card.input_shape, self.seen
        )
        return number_formats.convert(job).data


def labels_of(listed: Any, limit: int) -> Any:
    """Class indices of a list, in its order."""
    from mobilenet import data

    batches = data.load(listed, "test", image_size=8, batch_size=100, limit=limit)
    return np.concatenate([labels.numpy() for _, labels in batches])


if __name__ == "__main__":
    main()
