"""What a process of its own costs a flatbuffer: its start, each image, its memory.

    python benchmarks/isolation.py

Float and int8 files of V2 0.35 at 96 px and V1 1.0 at 224 px, 1000 classes, random weights. The
same image goes through `Classifier` in this process and in a child, interleaved, on one thread;
times are medians of the wall clock in milliseconds. `start` is a `Classifier` from the file to its
first image; `child CPU` is the processor time of a child that starts and ends, which a busy machine
does not lengthen; `child MB` the peak of its resident memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
MODELS = (("mobilenet_v2", 0.35, 96), ("mobilenet_v1", 1.0, 224))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300, help="default %(default)s")
    parser.add_argument("--starts", type=int, default=15, help="default %(default)s")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    import tables

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, width, size in MODELS:
            for kind, content in _files(name, width, size).items():
                path = Path(folder) / f"{name}_{kind}.tflite"
                path.write_bytes(content)
                rows.append([f"{name} {width}", size, kind, *_row(path, words)])
    heads = [
        "model",
        "px",
        "file",
        "ms",
        "ms isolated",
        "more",
        "start ms",
        "isolated",
        "child CPU",
    ]
    tables.show([*heads, "child MB"], rows, 1, words.csv)


def _files(name: str, width: float, size: int) -> dict[str, bytes]:
    import models

    from mobilenet.compression.quantization.int8 import saving as int8_saving
    from mobilenet.export import tflite_converter

    files = {"float": tflite_converter.float_flatbuffer(models.build(name, width, size))}
    wrapped = models.quantized(models.build(name, width, size), size)
    int8_saving.prepare_export(wrapped)
    return files | {"int8": tflite_converter.int8_flatbuffer(wrapped)}


def _row(path: Path, words: argparse.Namespace) -> list[str]:
    import numpy as np

    from mobilenet.runtime import Classifier

    both = {isolated: Classifier(path, 1, isolated=isolated) for isolated in (False, True)}
    image = np.random.default_rng(0).uniform(0, 255, both[True].input_shape).astype(np.float32)
    here, child = _medians({x: partial(both[x].run, image) for x in both}, words.images)
    memory = max(_peak(int(pid)) for pid in _children())
    before = _child_seconds()
    starts = _medians(
        {isolated: partial(_run_once, path, isolated, image) for isolated in both}, words.starts
    )
    processor = (_child_seconds() - before) / words.starts
    times = [here, child, child - here, *starts, processor]
    shown = [f"{1000 * seconds:.{3 if index < 3 else 0}f}" for index, seconds in enumerate(times)]
    return [*shown, f"{memory / 1024:.0f}"]


def _run_once(path: Path, isolated: bool, image: Any) -> None:
    from mobilenet.runtime import Classifier

    Classifier(path, 1, isolated=isolated).run(image)


def _medians(calls: dict[bool, Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each call, in turns."""
    times: dict[bool, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            times[key].append(time.perf_counter() - start)
    return [statistics.median(values) for values in times.values()]


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def _peak(pid: int) -> int:
    """Kilobytes of the process's largest resident set."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
