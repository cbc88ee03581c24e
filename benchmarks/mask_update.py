"""What one mask update costs, ours against that of tfmot's wrapper, on kernels of MobileNet.

    python benchmarks/mask_update.py --threads 1

Both update a float32 mask variable of the same normally distributed kernel to the same share of
zeros, inside a `tf.function`, one after the other in each round (A B, A B ...), in one process. The
figure is the median of the rounds' ratios. With one thread the clock is the process's CPU time,
which is what the update takes on an idle machine; with more it is the wall's.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
KERNELS = {
    "256x256": [(256, 256)],
    "512x512": [(512, 512)],
    "1024x1024": [(1024, 1024)],
    "V1 1.0, all 1x1": [
        *((32, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)),
        *([(512, 512)] * 5),
        *((512, 1024), (1024, 1024), (1024, 1000)),
    ],
}
COLUMNS = ("kernels", "weights", "pattern", "ours_ms", "tfmot_ms", "ratio", "zeros", "tfmot_zeros")


def kernels_of(shapes: list[tuple[int, int]]) -> list[Any]:
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    values = [rng.normal(0, 0.05, (1, 1, *shape)).astype(np.float32) for shape in shapes]
    return [tf.Variable(value) for value in values]


def ours(kernels: list[Any], share: float, pattern: str) -> tuple[Callable[[], Any], list[Any]]:
    """(a compiled update, the masks)."""
    import tensorflow as tf

    from mobilenet.compression.pruning.unstructured import sparsity_patterns
    from mobilenet.compression.pruning.unstructured.masks import Masks
    from mobilenet.configs.pruning import MagnitudePruning

    masks = Masks({str(number): kernel for number, kernel in enumerate(kernels)})
    rule = sparsity_patterns.mask_rule(MagnitudePruning(pattern=pattern))
    due, sparsity = tf.Variable(True), tf.constant(share)

    def update() -> None:
        for mask in masks.masks.values():
            mask.assign(tf.ones_like(mask))  # as at the first update: nothing is zero yet
        masks.refresh(due, dict.fromkeys(masks.masks, lambda kernel: rule(kernel, sparsity)))

    return tf.function(update), list(masks.masks.values())


def peer(kernels: list[Any], share: float, pattern: str) -> tuple[Callable[[], Any], list[Any]]:
    """The same by tfmot; its 2:4 updates at step 1 alone."""
    import tensorflow as tf
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl
    from tensorflow_model_optimization.sparsity import keras as sparsity

    step = tf.Variable(1, dtype=tf.int64)
    masks = [tf.Variable(tf.ones_like(kernel)) for kernel in kernels]
    # One object a kernel, as one wrapper holds one layer.
    objects = [
        pruning_impl.Pruning(
            training_step_fn=lambda: step,
            pruning_vars=[(kernel, mask, tf.Variable(0.0))],
            pruning_schedule=sparsity.ConstantSparsity(share, 1, -1, 1),
            block_size=(1, 1),
            block_pooling_type="AVG",
            sparsity_m_by_n=(2, 4) if pattern == "2:4" else None,
        )
        for kernel, mask in zip(kernels, masks, strict=True)
    ]

    def update() -> None:
        for mask, pruning in zip(masks, objects, strict=True):
            mask.assign(tf.ones_like(mask))
            pruning.conditional_mask_update()

    return tf.function(update), masks


def measure(name: str, pattern: str, share: float, rounds: int, threads: int) -> dict[str, Any]:
    """A row of the table."""
    import numpy as np

    clock = time.process_time if threads == 1 else time.perf_counter
    kernels = kernels_of(KERNELS[name])
    updates = [make(kernels, share, pattern) for make in (ours, peer)]
    seconds: list[list[float]] = [[], []]
    for number in range(rounds + 2):  # the first two trace and allocate
        for taken, (update, _) in zip(seconds, updates, strict=True):
            started = clock()
            update()
            if number >= 2:
                taken.append(clock() - started)
    weights = sum(int(np.prod(kernel.shape)) for kernel in kernels)
    zeros = [
        sum(int(np.sum(mask.numpy() == 0)) for mask in masks) / weights for _, masks in updates
    ]
    own, theirs = (np.array(taken) for taken in seconds)
    return {
        "kernels": name,
        "weights": weights,
        "pattern": pattern,
        "ours_ms": round(1000 * float(np.median(own)), 2),
        "tfmot_ms": round(1000 * float(np.median(theirs)), 2),
        "ratio": round(float(np.median(own / theirs)), 4),
        "zeros": round(zeros[0], 4),
        "tfmot_zeros": round(zeros[1], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.75, help="share of zeros (0.75)")
    parser.add_argument("--rounds", type=int, default=9, help="timed updates a row (9)")
    parser.add_argument("--threads", type=int, default=1, help="of TensorFlow (1); 0 is all cores")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(words.threads)
    tf.config.threading.set_inter_op_parallelism_threads(words.threads)
    threads = words.threads or os.cpu_count()
    cpu = _processor()
    print(f"{cpu}, {threads} thread(s), {words.rounds} rounds, TensorFlow {tf.__version__}")
    print(f"{'kernels':<18}{'weights':>10}{'pattern':>14}", end="")
    print(f"{'ours ms':>10}{'tfmot ms':>10}{'ratio':>8}{'zeros':>9}{'tfmot':>9}")
    rows = []
    for name in KERNELS:
        for pattern, share in (("unstructured", words.share), ("2:4", 0.5)):
            row = measure(name, pattern, share, words.rounds, words.threads)
            rows.append(row)
            print(f"{name:<18}{row['weights']:>10,}{pattern:>14}{row['ours_ms']:>10}", end="")
            print(f"{row['tfmot_ms']:>10}{row['ratio']:>8}", end="")
            print(f"{row['zeros']:>9}{row['tfmot_zeros']:>9}", flush=True)
    if words.csv:
        with open(words.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*COLUMNS, "threads", "cpu"])
            writer.writeheader()
            writer.writerows({**row, "threads": threads, "cpu": cpu} for row in rows)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or platform.machine())


if __name__ == "__main__":
    main()
