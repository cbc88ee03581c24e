"""Small sound files that the targets damage."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

SIDE, CLASSES = 32, 10


@functools.cache
def model() -> Any:
    """A classifier of six stock layers."""
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    image = layers.Input((SIDE, SIDE, 3), name="input")
    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="conv")(image)
    x = layers.ReLU(6.0, name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return tf_keras.Model(image, layers.Dense(CLASSES, name="logits")(x), name="small")


@functools.cache
def card() -> Any:
    """A card with something in every field."""
    from mobilenet.configs import archs
    from mobilenet.configs.card import Card

    return Card(
        architecture=archs.get("mobilenet_v1", width_multiplier=0.25).to_json(),
        input_shape=(SIDE, SIDE, 3),
        labels=tuple(map(str, range(CLASSES))),
        dataset="digits",
        stage="train",
        metrics={"top1": 90.5, "loss": 0.25},
        history=({"epoch": 1.0, "loss": 2.0},),
        keep_float=("conv",),
        notes=("a note",),
    )


def photo(size: tuple[int, int] = (40, 36), seed: int = 1) -> Any:
    """A smooth image."""
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_photo(path: Path, seed: int = 1) -> Path:
    photo(seed=seed).save(path)
    return path


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))


def write_model_folder(folder: Path) -> None:
    from mobilenet.models import saving as folders

    folders.save(model(), folder, card())


@functools.cache
def flatbuffer(quantized: bool) -> bytes:
    """A file with metadata and labels in it."""
    import tflite_files

    from mobilenet.export import tflite_converter, tflite_metadata

    data = (
        tflite_files.flatbuffer("int8") if quantized else tflite_converter.float_flatbuffer(model())
    )
    return tflite_metadata.attach(data, card())


def write_export(folder: Path) -> None:
    """An export folder of the float file."""
    folder.mkdir()
    (folder / "model.tflite").write_bytes(flatbuffer(quantized=False))
    write_json(folder / "card.json", card().to_json())
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in card().labels))


@functools.cache
def packed() -> bytes:
    from mobilenet.models import saving
    from mobilenet.packing import model as packed_model

    return packed_model.pack(saving.LoadedModel(model(), card()))


def run_config() -> Any:
    """The config of a short run on the digits."""
    from mobilenet.configs import recipes

    config = recipes.get("mobilenet_v1", "digits")
    narrow = config.model.replace(width_multiplier=0.25, num_classes=CLASSES)
    return config.replace(model=narrow, image_size=SIDE, stages=("train",))


def write_run(folder: Path, config: Any) -> None:
    """A run folder in which training is finished."""
    from mobilenet.training import run_folder
    from mobilenet.training.stage_report import StageReport

    rows = [{"epoch": 1, "loss": 2.0, "top1": 50.0}]
    entry = {"stage": "train", "top1": 90.5, "top5": 99.0, "loss": 0.25, "params": 1000}
    entry |= {"macs": 20_000, "nonzero_weights": 900, "bytes": 4000, "gzip_bytes": 3000}
    entry |= {"latency_ms": 0.5, "minutes": 0.1, "history": rows}
    with run_folder.opened(folder, config) as run:
        run.begin()
        report = StageReport.from_json(entry)
        write_model_folder(run.folder(report.part))
        run.record(report)


@functools.cache
def slim_values() -> dict[str, Any]:
    """Variables of the narrowest MobileNetV1 under slim's names."""
    import slim_checkpoints as slim

    return slim.values(slim.Slim("mobilenet_v1", width=0.25, classes=CLASSES))


def write_checkpoint(folder: Path) -> Path:
    import slim_checkpoints as slim

    return slim.write_checkpoint(folder / "model.ckpt-7", slim_values() | slim.STEP)
