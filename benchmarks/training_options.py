"""What options of training change in the time of a step and in memory, against a step without them.

    python benchmarks/training_options.py frozen --model_name mobilenet_v2 --size 96 --batch 32
    python benchmarks/training_options.py memory --size 96 --batch 32 --parts 4

`frozen` compares a step with the backbone frozen. Steps are interleaved in one process; the figure
is the median of the rounds' ratios, of the process's CPU time. `memory` is the largest resident set
of a process that takes a few steps, of one process each: a batch at once, and the same in parts
that are accumulated.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from typing import Any

import tables

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
CLASSES = 100
WARM = 3


def train_step(words: Any, parts: int = 1, freeze: str = "none") -> Any:
    """A compiled step of the trainer, without arguments."""
    import numpy as np
    import tensorflow as tf
    import tf_keras

    from mobilenet.configs import archs
    from mobilenet.configs.training import TrainConfig
    from mobilenet.models.builder import build
    from mobilenet.training import losses
    from mobilenet.training.freezing import Freezing
    from mobilenet.training.learner import Learner

    tf.config.threading.set_intra_op_parallelism_threads(words.threads)
    tf.config.threading.set_inter_op_parallelism_threads(words.threads)
    fields = {"width_multiplier": words.width, "num_classes": CLASSES}
    config = archs.get(words.model_name, classifier_activation=None, **fields)
    model = build(config, (words.size, words.size, 3))
    learner = Learner(model, lambda step: None, accumulation_steps=parts)
    freezing = Freezing(model, TrainConfig(freeze=freeze), 1)
    learner.frozen = freezing.frozen_at(0)
    freezing.apply(learner.frozen)
    optimizer = tf_keras.optimizers.SGD(0.01, momentum=0.9, jit_compile=False)
    learner.compile(optimizer, losses.cross_entropy(CLASSES, 0.0))
    optimizer.build(learner.trainable_variables)
    rng = np.random.default_rng(0)
    shape = (words.batch, words.size, words.size, 3)
    images = tf.constant(rng.uniform(-1, 1, shape).astype(np.float32))
    labels = tf.constant(rng.integers(0, CLASSES, words.batch).astype(np.int32))
    learner.build_metrics()
    step = tf.function(learner.train_step)
    return lambda: step((images, labels))


def compare(steps: dict[str, Any], words: Any) -> None:
    """Interleaved rounds, against the first of the steps."""
    import numpy as np

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM + words.rounds):
        for name, step in steps.items():
            started = time.process_time()
            step()
            if number >= WARM:
                seconds[name].append(time.process_time() - started)
    base = np.array(next(iter(seconds.values())))
    rows = [
        [name, f"{1000 * np.median(own):.1f}", f"{np.median(own / base):.3f}"]
        for name, own in seconds.items()
    ]
    print(f"{words.model_name} {words.width:g}, {words.size} px, batch {words.batch}")
    tables.show(("step", "CPU ms", "/ the first"), rows, words.threads, words.csv)


def memory(words: Any) -> None:
    """The largest resident set of processes that take steps, and of one that takes none."""
    rows: list[list[str]] = []
    for parts in (0, 1, words.parts):
        command = [sys.executable, __file__, "memory", f"--process={parts}"]
        names = ("model_name", "width", "size", "batch", "rounds", "threads")
        command += [f"--{name}={getattr(words, name)}" for name in names]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        batch = f"{parts} x {words.batch // parts} images" if parts else "no step"
        rows.append([batch, f"{peak:.0f}", f"{peak - float(rows[0][1]):.0f}" if rows else ""])
    print(f"{words.model_name} {words.width:g}, {words.size} px")
    tables.show(("a step", "peak MiB", "more than no step"), rows, words.threads, words.csv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("frozen", "memory"))
    parser.add_argument("--model_name", default="mobilenet_v2", help="of a family (mobilenet_v2)")
    parser.add_argument("--width", type=float, default=1.0, help="width multiplier (1)")
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels (96)")
    parser.add_argument("--batch", type=int, default=32, help="images a step (32)")
    parser.add_argument("--parts", type=int, default=4, help="of an accumulated batch (4)")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each (15)")
    parser.add_argument("--threads", type=int, default=1, help="threads of TensorFlow (1)")
    parser.add_argument("--csv", help="also write the table here")
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.process is not None:
        step = train_step(words, max(words.process, 1))
        for _ in range(words.rounds if words.process else 0):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    elif words.what == "memory":
        memory(words)
    else:
        names = {"all layers": "none", "backbone frozen": "backbone"}
        compare({name: train_step(words, freeze=freeze) for name, freeze in names.items()}, words)


if __name__ == "__main__":
    main()
