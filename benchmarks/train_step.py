"""What a training step costs once the model is quantized, pruned or distilled, against one in
float.

    python benchmarks/train_step.py --width 0.5 --size 96

Every variant trains the same MobileNet on the same batches, one after the other in each round
(A B C, A B C ...), in one process. The figure is the median of the rounds' ratios to float. The
clock is the process's CPU time, which for one thread is what the step takes on an idle machine.
tfmot's own schemes are set up as its guides do: `quantize_model`, and `prune_low_magnitude` with
`UpdatePruningStep`; its `quantize_model` takes no V3 (leave it out with --variants). `distilled`
learns from the same model in float; `applications` is the model of keras.applications, compiled as
its guides do (not of EdgeTPU and minimalistic models).

    python benchmarks/train_step.py --epoch --width 0.5 --size 96 --batch 32

times whole epochs from JPEGs in the loop of `mobilenet.train` by wall clock, which needs two idle
cores: one makes batches, the other trains. After each epoch, in the same process, as many batches
are read without training, and as many steps are taken on one batch without reading. Where reading
and training overlap, an epoch takes as long as the slower of the two. The JPEGs are those of
`input_pipeline.py`, 500x375 pixels. `compiled` is the float step with `jit_compile`, which is left
out unless it is among --variants.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import input_pipeline
import tables

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
CLASSES = 100
VARIANTS = (
    "float",
    "applications",
    "qat",
    "tfmot qat",
    "pruning",
    "tfmot pruning",
    "distilled",
    "distilled qat",
)
COMPILED = "compiled"
IMAGES = 480  # JPEGs that epochs are read from
APPLICATIONS = {
    "mobilenet_v1": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3_small": "MobileNetV3Small",
    "mobilenet_v3_large": "MobileNetV3Large",
}


@dataclasses.dataclass
class Variant:
    """A model that trains.

    Attributes:
        step: one optimizer step on a batch.
        seconds: of every step that was timed.
    """

    step: Callable[[Any, Any], Any]
    seconds: list[float] = dataclasses.field(default_factory=list)


def learner(
    model: Any, after_update: Callable[[Any], None], teacher: Any = None, jit: bool = False
) -> Callable[[Any, Any], Any]:
    """One compiled step as the trainer takes it."""
    import tensorflow as tf
    import tf_keras

    from mobilenet.training import losses
    from mobilenet.training.learner import Learner

    trained = Learner(model, after_update, teacher, jit)
    loss = losses.cross_entropy(CLASSES, 0.0)
    trained.compile(
        tf_keras.optimizers.SGD(0.01, momentum=0.9, jit_compile=False),
        loss if teacher is None else losses.distillation_loss(loss, teacher),
    )
    step: Callable[[Any, Any], Any] = tf.function(
        lambda images, labels: trained.train_step((images, labels))
    )
    return step


def applications(name: str, width: float, size: int) -> Callable[[Any, Any], Any]:
    """A step of Keras' own `fit` on its own model."""
    import tensorflow as tf
    import tf_keras

    options: dict[str, Any] = {"alpha": width, "weights": None, "classes": CLASSES}
    if "v3" in name:
        options["include_preprocessing"] = False
    make_model = getattr(tf_keras.applications, APPLICATIONS[name])
    model = make_model((size, size, 3), classifier_activation=None, **options)
    model.compile(
        tf_keras.optimizers.SGD(0.01, momentum=0.9, jit_compile=False),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    step: Callable[[Any, Any], Any] = tf.function(
        lambda images, labels: model.train_step((images, labels))
    )
    return step


def make(name: str, plain: Any, images: Any, frequency: int) -> Variant:
    """The variant called `name`, ready to train."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from mobilenet.compression import method as methods
    from mobilenet.configs.dataset import PREPROCESSING
    from mobilenet.configs.distillation import Distillation
    from mobilenet.configs.pruning import MagnitudePruning
    from mobilenet.configs.quantization import QuantizationAwareTraining
    from mobilenet.training.distillation.teacher_model import TeacherModel

    preprocessing = PREPROCESSING["inception"]
    teacher = None
    if name.startswith("distilled"):
        teacher = TeacherModel(plain, preprocessing, name).teacher(Distillation(), preprocessing)
    stage = methods.StageContext(10**6, preprocessing, lambda count: images[:count])
    copy = tf_keras.models.clone_model(plain)
    copy.set_weights(plain.get_weights())
    if name in ("float", "distilled", COMPILED):
        return Variant(learner(copy, lambda step: None, teacher, name == COMPILED))
    if name == "tfmot qat":
        return Variant(learner(tfmot.quantization.keras.quantize_model(copy), lambda step: None))
    if name == "tfmot pruning":
        schedule = tfmot.sparsity.keras.ConstantSparsity(0.8, 0, -1, frequency)
        wrapped = tfmot.sparsity.keras.prune_low_magnitude(copy, schedule)
        callback = tfmot.sparsity.keras.UpdatePruningStep()
        callback.set_model(wrapped)
        callback.on_train_begin()
        inner = learner(wrapped, lambda step: None)

        def step(x: Any, y: Any) -> Any:
            callback.on_train_batch_begin(0)
            return inner(x, y)

        return Variant(step)
    config: Any = QuantizationAwareTraining(calibration_images=len(images))
    if name == "pruning":
        shares = {"pointwise": 0.8, "stem": 0.8, "classifier": 0.8}
        config = MagnitudePruning(shares, schedule="constant", begin=0.0, frequency=frequency)
    method = methods.create(config, stage)
    model = method.apply(copy)
    return Variant(learner(model, lambda step: method.after_step(model, step), teacher))


def measure(variants: dict[str, Variant], images: Any, labels: Any, rounds: int, warm: int) -> None:
    """Interleaved; the first `warm` rounds (tracing, allocation) do not count."""
    import tensorflow as tf

    x, y = tf.constant(images), tf.constant(labels)
    for number in range(warm + rounds):
        for variant in variants.values():
            started = time.process_time()
            variant.step(x, y)
            if number >= warm:
                variant.seconds.append(time.process_time() - started)


def summarize(variants: dict[str, Variant], frequency: int, warm: int) -> list[dict[str, Any]]:
    """A row for each variant; steps that refresh masks are a figure of their own."""
    import numpy as np

    rounds = len(variants["float"].seconds)
    # Steps count from 1; both schedules refresh when (step - begin) is a multiple of frequency.
    refresh = np.array([
        any((warm + index + 1 - shift) % frequency == 0 for shift in (0, 1))
        for index in range(rounds)
    ])  # fmt: skip
    base = np.array(variants["float"].seconds)
    rows = []
    for name, variant in variants.items():
        own = np.array(variant.seconds)
        row = {
            "variant": name,
            "step_ms": round(1000 * float(np.median(own[~refresh])), 2),
            "ratio": round(float(np.median(own[~refresh] / base[~refresh])), 3),
            "refresh_ms": "",
        }
        if "pruning" in name and refresh.any():
            # Of two neighbouring steps only one refreshes; it is the dearer one.
            row["refresh_ms"] = round(
                1000 * float(np.sort(own[refresh])[refresh.sum() // 2 :].mean())
                - 1000 * float(np.median(own[~refresh])),
                2,
            )
        rows.append(row)
    return rows


def epoch_seconds(model: Any, words: Any) -> dict[str, list[float]]:
    """Wall time of each epoch, of reading its batches alone, and of taking its steps alone."""
    import tensorflow as tf
    import tf_keras

    from mobilenet import data as library
    from mobilenet.configs import dataset as datasets
    from mobilenet.configs.training import TrainConfig
    from mobilenet.training import engine, progress

    seconds: dict[str, list[float]] = {"input alone": [], "step alone": [], "epoch": []}

    class Turns(tf_keras.callbacks.Callback):
        """Times the two halves after each epoch; the first one, which traces, does not count."""

        def __init__(self, batches: Any) -> None:
            super().__init__()
            self.reading = iter(batches)
            self.synthetic = iter(tf.data.Dataset.from_tensors(next(self.reading)).repeat())

        def turn(self, take: Callable[[], Any]) -> float:
            input_pipeline.rest()
            started = time.perf_counter()
            for _ in range(words.steps):
                result = take()
            tf.nest.map_structure(lambda tensor: tensor.numpy(), result)
            return time.perf_counter() - started

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            took = self.turn(lambda: next(self.reading)), self.turn(self.take_step)
            if epoch:
                for name, value in zip(seconds, (*took, logs["seconds"]), strict=True):
                    seconds[name].append(value)

        def take_step(self) -> Any:
            return self.model.train_function(self.synthetic)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photos = input_pipeline.write_data(root, IMAGES, quality=87, subsampling=2).folders
        config = datasets.get("image_folder").replace(data_dir=str(photos))
        load = functools.partial(
            library.load, config, image_size=words.size, batch_size=words.batch
        )
        options = tf.data.Options()
        options.threading.private_threadpool_size = words.threads

        def training(start: int, context: Any = None) -> Any:
            # Of later epochs: the first one decodes more, to find damaged images.
            batches = load("train", training=True, start_epoch=1, start_step=start)
            return batches.with_options(options)

        epochs = words.rounds + 1
        bar = progress.Progress("epoch", epochs, words.steps, words.batch, has_bar=False)
        recipe = TrainConfig(epochs=epochs, batch_size=words.batch)
        job = engine.Job(
            "train", recipe, words.steps, training, load("validation"), CLASSES, root / "states",
            (bar, Turns(training(0))),
        )  # fmt: skip
        engine.fit(model, None, job)
    return seconds


def show_epoch(model: Any, words: Any) -> None:
    """The table of `--epoch`."""
    import numpy as np

    seconds = {name: np.array(values) for name, values in epoch_seconds(model, words).items()}
    images = words.steps * words.batch
    slower = max(("input alone", "step alone"), key=lambda name: float(np.median(seconds[name])))
    rows = [
        [
            name,
            f"{np.median(values):.2f}",
            f"{images / np.median(values):,.0f}",
            f"{np.median(values / seconds[slower]):.3f}",
        ]
        for name, values in seconds.items()
    ]
    print(
        f"{words.model_name} {words.width:g}, {words.size} px, {words.steps} steps of "
        f"{words.batch} images, {words.rounds} epochs, {words.threads} thread(s) for each of both"
    )
    heads = ("of an epoch", "seconds", "images/s", "/ the slower")
    tables.show(heads, rows, words.threads, words.csv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_name", default="mobilenet_v1", help="of a family (mobilenet_v1)")
    parser.add_argument("--width", type=float, default=0.5, help="width multiplier (0.5)")
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels (96)")
    parser.add_argument("--batch", type=int, default=16, help="images a step (16)")
    parser.add_argument("--epoch", action="store_true", help="time whole epochs from JPEGs")
    parser.add_argument("--steps", type=int, default=60, help="of an epoch (60)")
    parser.add_argument(
        "--rounds", type=int, help="timed steps a variant (40), or epochs that count (4)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of TensorFlow (1)")
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        help=f"which of {', '.join((*VARIANTS, COMPILED))} (all but the last)",
    )
    parser.add_argument("--deterministic", action="store_true", help="as the trainer's flag")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    words = parser.parse_args()
    words.rounds = words.rounds or (4 if words.epoch else 40)

    import numpy as np
    import tensorflow as tf
    import tf_keras

    from mobilenet.configs import archs
    from mobilenet.models.builder import build
    from mobilenet.training import random_state

    tf.config.threading.set_intra_op_parallelism_threads(words.threads)
    tf.config.threading.set_inter_op_parallelism_threads(words.threads)
    tf_keras.utils.set_random_seed(0)
    if words.deterministic:
        random_state.enable_determinism(0)
    frequency, warm = 10, 5
    fields = {"width_multiplier": words.width, "num_classes": CLASSES}
    config = archs.get(words.model_name, classifier_activation=None, **fields)
    plain = build(config, (words.size, words.size, 3))
    if words.epoch:
        show_epoch(plain, words)
        return
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (words.batch, words.size, words.size, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, words.batch).astype(np.int32)
    chosen = [
        name
        for name in (*VARIANTS, COMPILED)
        if name in words.variants.split(",") or name == "float"
    ]
    if words.model_name not in APPLICATIONS:
        chosen = [name for name in chosen if name != "applications"]
    peer = functools.partial(applications, words.model_name, words.width, words.size)
    variants = {
        name: Variant(peer()) if name == "applications" else make(name, plain, images, frequency)
        for name in chosen
    }
    measure(variants, images, labels, words.rounds, warm)
    rows = summarize(variants, frequency, warm)
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line),
        platform.processor(),
    )
    print(
        f"{words.model_name} {words.width:g}, {words.size} px, batch {words.batch}, "
        f"{words.rounds} rounds; "
        f"{cpu}, {words.threads} thread(s), TensorFlow {tf.__version__}"
    )
    print(f"{'variant':<16}{'step ms':>10}{'/ float':>10}{'mask refresh ms':>18}")
    for row in rows:
        print(f"{row['variant']:<16}{row['step_ms']:>10}{row['ratio']:>10}{row['refresh_ms']:>18}")
    if words.csv:
        with open(words.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "width", "size", "batch", "threads", "cpu"])
            writer.writeheader()
            extra = {"width": words.width, "size": words.size, "batch": words.batch}
            writer.writerows({**row, **extra, "threads": words.threads, "cpu": cpu} for row in rows)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
