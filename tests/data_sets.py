"""Tiny data sets that tests write: images, class folders, ImageNet records."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image


def smooth_image(seed: int, height: int = 40, width: int = 50) -> Image.Image:
    """A smooth random image, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    smooth_image(seed).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def write_class_folders(root: Path, train: int = 7, val: int = 3, classes: str = "ab") -> Path:
    """Class folders whose images differ; `train` and `val` images a class."""
    for split, count in (("train", train), ("val", val)):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                (folder / f"{n:02d}.jpg").write_bytes(jpeg(1000 * count + 100 * number + n))
    return root


def encode_example(encoded: bytes, label: int, text: str = "") -> bytes:
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    if text:
        features["image/class/text"] = tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[text.encode()])
        )
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_records(root: Path, labels: list[int], files: int = 3, split: str = "train") -> Path:
    """Record files with a image a label, spread over `files` files."""
    root.mkdir(parents=True, exist_ok=True)
    for file in range(files):
        path = str(root / f"{split}-{file:05d}-of-{files:05d}")
        with tf.io.TFRecordWriter(path) as writer:
            for position in range(file, len(labels), files):
                label = labels[position]
                writer.write(encode_example(jpeg(position), label, f"class {label}"))
    return root
