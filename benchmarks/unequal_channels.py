"""What a real model's unequal channels cost post-training int8, and what its chain wins back.

    python benchmarks/unequal_channels.py --model runs/v3_large/train --checkpoint V3_SMALL \
        --photos FOLDER

`--model` is a float model that was trained on the digits. Its channels are scaled, where a factor
passes through, as far apart as those of Google's weights in `--checkpoint` are on `--photos`; the
outputs stay as they are. Rows are int8 files of the model before and after, with ranges at
the extremes alone and by the default chain: top-1, agreement with the float model and signal to
noise on the held-out digits.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
Octaves = dict[bool, list[npt.NDArray[np.floating]]]
STEPS = {"extremes alone": ("maximum", "repair"), "default": ("auto",)}


def octaves(checkpoint: str, photos: str) -> Octaves:
    """How far each channel's range is from the median of its tensor, group by group; those of
    residual sums under `True`."""
    from mobilenet.compression.quantization.post_training import cross_layer_equalization
    from mobilenet.compression.quantization.post_training.observer import Observer
    from mobilenet.compression.quantization.post_training.scaling_groups import ScalingGroups
    from mobilenet.configs.dataset import PREPROCESSING, DatasetConfig
    from mobilenet.export import calibration_data
    from mobilenet.models.graph.roles import Graph
    from mobilenet.tf1_loader import load_tf1_checkpoint

    shape = (224, 224, 3)
    model = load_tf1_checkpoint(checkpoint, input_shape=shape).model
    preprocessing = PREPROCESSING["inception"]
    calibration_images = calibration_data.load_calibration(
        None, photos, DatasetConfig(), shape, preprocessing, 8
    ).images
    factors: Octaves = {True: [], False: []}
    for group in ScalingGroups(Graph(model)):
        if group.is_scalable:
            names = [layer.name for layer in group.tensors]
            reach = cross_layer_equalization.group_abs_max(
                group, Observer(model)(names, calibration_images)
            )
            if reach is not None:
                live = reach[reach > 1e-6 * reach.max()]
                factors[len(group.producers) > 1].append(np.log2(live / np.median(live)))
    return factors


def unequal(model: Any, spread: Octaves, seed: int = 0) -> tuple[Any, int]:
    """The same function with such channels, and how many groups were scaled."""
    import tf_keras

    from mobilenet.compression.quantization.post_training.scaling_groups import ScalingGroups
    from mobilenet.models.graph.roles import Graph

    copy, rng, count = tf_keras.models.clone_model(model), np.random.default_rng(seed), 0
    copy.set_weights(model.get_weights())
    for group in ScalingGroups(Graph(copy)):
        if group.is_scalable:
            pool = spread[len(group.producers) > 1]
            group.scale(2.0 ** rng.choice(pool[rng.integers(len(pool))], group.channels))
            count += 1
    return copy, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a float model of the digits")
    parser.add_argument("--checkpoint", required=True, help="real weights with unequal channels")
    parser.add_argument("--photos", required=True, help="a folder of photos that they know")
    parser.add_argument("--images", type=int, default=100, help="digits to calibrate on (100)")
    words = parser.parse_args()
    import tables

    from mobilenet.console import starting_tensorflow

    with starting_tensorflow():
        import tensorflow  # noqa: F401
    from mobilenet.compression.quantization.int8 import saving as int8_saving
    from mobilenet.compression.quantization.int8 import scheme
    from mobilenet.compression.quantization.post_training import pipeline as post_training_pipeline
    from mobilenet.configs import dataset
    from mobilenet.configs.quantization import PostTraining
    from mobilenet.data import arrays
    from mobilenet.export import freeze, tflite_converter
    from mobilenet.metrics import signal_to_noise
    from mobilenet.models import saving
    from mobilenet.models.graph import inference
    from mobilenet.runtime import interpreter, quantized_io

    loaded = saving.load(words.model)
    preprocessing, shape, digits = (
        loaded.card.preprocessing,
        loaded.card.input_shape,
        dataset.get("digits"),
    )
    even = freeze.float32_copy(loaded.model)
    calibration_images = arrays.load_images(digits, "train", shape, preprocessing, words.images)
    images = arrays.load_images(digits, "test", shape, preprocessing, 100_000)
    from mobilenet import data

    batches = data.load(digits, "test", image_size=shape[0], batch_size=100)
    labels = np.concatenate([y.numpy() for _, y in batches])
    expected = inference.compile_model(even)(images).numpy()
    uneven, count = unequal(even, octaves(words.checkpoint, words.photos))
    moved = np.abs(inference.compile_model(uneven)(images).numpy() - expected).max()
    print(f"float top-1 {100 * (expected.argmax(1) == labels).mean():.2f}")
    print(f"{count} groups scaled; outputs move by {moved:.2g}", flush=True)
    rows = []
    for name, model in (("as trained", even), ("unequal", uneven)):
        for ranges, steps in STEPS.items():
            quantized = post_training_pipeline.quantize(
                model, preprocessing, calibration_images, PostTraining(steps=steps)
            )
            int8_saving.prepare_export(quantized.wrapped, quantized.repair)
            file = interpreter.make_interpreter(tflite_converter.int8_flatbuffer(quantized.wrapped))
            outputs = quantized_io.run(file, scheme.to_grid(images, preprocessing))
            same = 100 * (outputs.argmax(1) == expected.argmax(1)).mean()
            right = 100 * (outputs.argmax(1) == labels).mean()
            ratio = signal_to_noise(expected, outputs)
            rows.append([name, ranges, f"{right:.2f}", f"{same:.2f}", f"{ratio:.1f}"])
            print(*rows[-1], flush=True)
    tables.show(["channels", "steps", "top-1 %", "agreement %", "dB"], rows, 2, None)


if __name__ == "__main__":
    main()
