"""Images a second of training under Keras 3, by backend, against timm with PyTorch.

    python benchmarks/keras3_training.py --backends jax torch timm

Each backend trains each model in a process of its own (Keras takes its backend on import), on one
batch of noise that stays the same, with `train_on_batch` and SGD with momentum, 1000 classes. timm
runs as its training script does on one GPU: channels last, autocast. A figure is the batch divided
by the median seconds of a step, by the wall clock: let nothing else run. `first step` includes
tracing and compiling. A backend that is not installed is left out with a line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
CLASSES = 1000
MODELS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large")
TIMM = {
    "mobilenet_v1": "mobilenetv1_100",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_edgetpu": "mobilenet_edgetpu_100",
}
BACKENDS = ("jax", "tensorflow", "torch", "timm")  # names of their packages too
FORMATS = ("float32", "mixed_bfloat16", "mixed_float16")
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--backends", nargs="+", choices=BACKENDS, default=BACKENDS, help="default: all")
    add("--models", nargs="+", default=MODELS, help="default: " + " ".join(MODELS))
    add("--width", type=float, default=1.0, help="width multiplier, default %(default)s")
    add("--size", type=int, default=224, help="side of the images, default %(default)s")
    add("--batch", type=int, default=256, help="images a step, default %(default)s")
    add("--steps", type=int, default=30, help="timed steps, default %(default)s")
    add("--precision", choices=FORMATS, default="mixed_bfloat16", help="default %(default)s")
    add("--csv", type=Path, help="also write the table here")
    add("--run", nargs=2, metavar=("BACKEND", "MODEL"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.run:
        backend, model = words.run
        print(json.dumps(measure(backend, model, words)))
        return
    import tables

    rows = []
    for backend in words.backends:
        if importlib.util.find_spec(backend) is None:
            print(f"{backend}: not installed", file=sys.stderr)
            continue
        for model in words.models:
            if backend != "timm" or model in TIMM:
                rows.append(row(backend, model))
    heads = ["model", "backend", "images/s", "first step s", "device", "version"]
    print(f"{words.precision}, batch {words.batch}, {words.size} px, width {words.width:g}")
    tables.show(heads, rows, os.cpu_count() or 1, words.csv)


def row(backend: str, model: str) -> list[str]:
    """The figures of one model under one backend, measured in a process of its own."""
    command = [sys.executable, *sys.argv, "--run", backend, model]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{backend}, {model}: status {done.returncode}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return [model, backend, *found.values()]


def measure(backend: str, model: str, words: argparse.Namespace) -> dict[str, str]:
    make = timm_step if backend == "timm" else keras_step
    step, device, version = make(backend, model, words)
    started = time.perf_counter()
    step()
    first = time.perf_counter() - started
    for _ in range(2):
        step()
    seconds = []
    for _ in range(words.steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    rate = words.batch / statistics.median(seconds)
    return {"rate": f"{rate:,.0f}", "first": f"{first:.1f}", "device": device, "version": version}


def batch(words: argparse.Namespace) -> tuple[Any, Any]:
    """Images `[batch, size, size, 3]` in -1..1 and labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (words.batch, words.size, words.size, 3)
    images = rng.random(shape, np.float32) * 2 - 1
    return images, rng.integers(0, CLASSES, words.batch)


def keras_step(backend: str, model: str, words: argparse.Namespace) -> tuple[Step, str, str]:
    """A step of Keras 3; its `train_on_batch` returns when the loss is there."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    import mobilenet

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(words.precision)
    fields: dict[str, Any] = {"num_classes": CLASSES, "classifier_activation": None}
    shape = (words.size, words.size, 3)
    built: Any = mobilenet.build(model, shape, keras=keras, width_multiplier=words.width, **fields)
    built.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    images, labels = batch(words)
    version = importlib.import_module(backend).__version__
    return lambda: built.train_on_batch(images, labels), device_of(backend), version


def device_of(backend: str) -> str:
    if backend == "jax":
        import jax

        return str(jax.devices()[0].device_kind)
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        return str(
            tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "cpu"
        )
    import torch

    return str(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu")


def timm_step(backend: str, model: str, words: argparse.Namespace) -> tuple[Step, str, str]:
    """A step of timm's model, written as in timm's `train.py`."""
    import timm
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    name = TIMM[model]
    if words.width != 1:
        name = f"{name.rpartition('_')[0]}_{round(100 * words.width):03d}"
    module = timm.create_model(name, num_classes=CLASSES).to(
        kind, memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(module.train().parameters(), lr=0.01, momentum=0.9)
    images, labels = batch(words)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(kind, memory_format=torch.channels_last)
    y = torch.from_numpy(labels).to(kind)
    half = {"mixed_bfloat16": torch.bfloat16, "mixed_float16": torch.float16}.get(words.precision)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(kind, half or torch.bfloat16, enabled=half is not None):
            loss = torch.nn.functional.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step, device_of("torch"), torch.__version__


if __name__ == "__main__":
    main()
