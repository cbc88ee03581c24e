"""How many images each worker of a run reads in an epoch, and its CPU time for them.

    python benchmarks/worker_input.py --workers 2

JPEGs of 500x375 pixels, cut at random from the two photos of scikit-learn, are written as class
folders with one image in each, so that labels number the images, and as records. One process reads
the part of each worker after the other, by `mobilenet.data.load(..., input_context=)`, without a
model: on hosts of their own the workers read at the same time, each at the rate of its own cores.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import tables
from input_pipeline import ASPECT, BATCH, PHOTO, SIZE, cuts

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def write_data(root: Path, images: int) -> tuple[Path, Path]:
    """Class folders and records of the same images; a label for each."""
    from mobilenet import data
    from mobilenet.configs import dataset as datasets
    from mobilenet.configs.reencoding import ReencodingConfig

    for number, cut in enumerate(cuts(images)):
        for split in ("train", "val"):
            path = root / "folders" / split / f"{number:05d}" / "image.jpg"
            path.parent.mkdir(parents=True)
            cut.save(path, quality=87)
    folders = datasets.get("image_folder").replace(data_dir=str(root / "folders"))
    data.reencode(folders, root / "records", ReencodingConfig(short_side=PHOTO[1]))
    return root / "folders", root / "records"


def read(
    config: Any, worker: int, workers: int, steps: int, epochs: int
) -> tuple[list[int], float]:
    """The images of the first epoch, and CPU seconds an epoch of the next ones."""
    import tensorflow as tf

    from mobilenet import data

    context = tf.distribute.InputContext(workers, worker, workers)
    batches = iter(
        data.load(
            config,
            "train",
            image_size=SIZE,
            batch_size=BATCH,
            training=True,
            seed=0,
            input_context=context,
        )
    )
    images = [int(n) for _, labels in itertools.islice(batches, steps) for n in labels.numpy()]
    started = time.process_time()
    for _ in itertools.islice(batches, epochs * steps):
        pass
    return images, (time.process_time() - started) / epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=480, help="JPEGs that are written (480)")
    parser.add_argument("--workers", type=int, default=2, help="of the run (2)")
    parser.add_argument("--epochs", type=int, default=3, help="that are timed (3)")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()

    from mobilenet.configs import dataset as datasets

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_data(Path(folder), words.images)
        for name, path in zip(("image_folder", "tfrecord"), paths, strict=True):
            config = datasets.get(name).replace(data_dir=str(path), aspect_max=ASPECT)
            steps = words.images // BATCH
            _, alone = read(config, 0, 1, steps, words.epochs)
            together: list[int] = []
            for worker in range(words.workers):
                images, seconds = read(config, worker, words.workers, steps, words.epochs)
                together += images
                share = f"{seconds / alone:0.2f}"
                counts = [len(images), len(set(images))]
                rows.append([name, worker, *counts, f"{seconds:0.2f}", share])
            rows.append([name, "all", len(together), len(set(together)), "", ""])
    heads = ["source", "worker", "images", "different", "CPU s", "/ alone"]
    tables.show(heads, rows, os.cpu_count() or 1, words.csv)


if __name__ == "__main__":
    main()
