"""Every script in benchmarks/ runs, at its smallest size, and ends with its table."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

tf_keras = pytest.importorskip("tf_keras")
import slim_checkpoints as slim  # noqa: E402
from data_sets import smooth_image, write_class_folders  # noqa: E402
from small_models import INCEPTION, randomize_batch_norm  # noqa: E402

from mobilenet.configs import archs  # noqa: E402
from mobilenet.configs.card import Card  # noqa: E402
from mobilenet.models import builder, saving  # noqa: E402

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARED = {"models", "tables"}  # modules of the scripts
RUN = "--epochs=1 --prune_epochs=2 --quantize_epochs=1"
# Flags, and a part of the table; {} is a folder with a model, photos and checkpoints.
SCRIPTS = {
    "channel_pruning": (
        "--variants=stages --seeds=1 --image_size=32 --epochs=1 --prune_epochs=8 --round_to=8",
        "stages",
    ),
    "conversion": ("--width=0.25 --size=32 --rounds=1", "from_keras_model"),
    "distillation": (
        f"--seeds=1 --variants='quantize, T 2' --flags='{RUN}'",
        "quantize, T 2",
    ),
    "few_bits": ("--model={}/model --data={}/list.csv --restarts=1", "tfmot clusters"),
    "field_cases": ("--cases Rescaling", "1 99.75 %"),
    "fine_tuning": (
        "--data_dir={}/photos --models=v1 --weights=v1={}/mobilenet_v1_0.25_128.ckpt --seeds=1"
        " --methods=zeros --train=epochs=1,image_size=32 --compress=prune_epochs=2,image_size=32"
        " --shuffle_split",
        "v1 zeros",
    ),
    "input_pipeline": ("--images=4 --rounds=1 --batches=1", "256: ours, color"),
    "isolation": ("--images=2 --starts=1", "mobilenet_v2"),
    "keras3_training": (
        "--backends jax --models mobilenet_v1 --width=0.25 --size=32 --batch=2 --steps=1",
        "mobilenet_v1",
    ),
    "kill_resume": (
        "--kills=2 --per_folder=2 --epochs=1 --stages=train,prune --work={}/kill_resume",
        "1 of 1",
    ),
    "latency": (
        "--models mobilenet_v1 mobilenet_v3_small --width=0.25 --size=32 --rounds=1 --repeats=1"
        " --stems",
        "stock int8",
    ),
    "latency formats": (
        "--models mobilenet_v1 --width=0.25 --size=32 --rounds=1 --repeats=1"
        " --formats dynamic_range all stock_dynamic float16",
        "dynamic_range / stock",
    ),
    "mask_update": ("--rounds=1", "1024x1024"),
    "post_training": (
        "--model={}/model --data={}/list.csv --calibration={}/photos/train --images=8",
        "stock dynamic",
    ),
    "post_training_digits": (
        "--models=mobilenet_v1 --width_multiplier=0.25 --image_size=32 --epochs=1",
        "mobilenet_v1",
    ),
    "real_weights": (
        "--models=v1 --data_dir={}/photos --checkpoints={} --seeds=1 --image_size=32 --epochs=1"
        " --quantize_epochs=1",
        "v1",
    ),
    "released_models": (
        "--weights={} --data_dir={}/list.csv --calibration_dir={}/photos/train"
        " --calibration_images=8 --csv={}/released.csv",
        "mobilenet_v1_0.25_128",
    ),
    "smallest": (
        f"--seeds=1 --books=4/4/4 --flags='{RUN} --width_multiplier=0.25'",
        "dns, codebook 4/4/4",
    ),
    "thin_latency": ("--models mobilenet_v1 --size=32 --rounds=1 --repeats=1", "mobilenet_v1"),
    "train_step": ("--width=0.25 --size=32 --batch=2 --rounds=1", "applications"),
    "train_step epoch": (
        "--epoch --width=0.25 --size=32 --batch=8 --steps=5 --rounds=1",
        "input alone",
    ),
    "training_options frozen": ("frozen --width=0.25 --size=32 --batch=2 --rounds=1", "backbone"),
    "training_options memory": (
        "memory --width=0.25 --size=32 --batch=4 --rounds=1",
        "4 x 1 images",
    ),
    "unequal_channels": (
        "--model={}/model --checkpoint={}/mobilenet_v1_0.25_128.ckpt --photos={}/photos/train"
        " --images=16",
        "unequal",
    ),
    "worker_input": ("--images=64 --epochs=1", "tfrecord"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    config = archs.get(
        "mobilenet_v1", width_multiplier=0.25, num_classes=10, classifier_activation=None
    )
    model = randomize_batch_norm(builder.build(config, (32, 32, 3)))
    card = Card(
        architecture=config.to_json(),
        input_shape=(32, 32, 3),
        dataset="digits",
        preprocessing=INCEPTION,
    )
    saving.save(model, folder / "model", card)
    write_class_folders(folder / "photos", train=32, val=10)
    with open(folder / "list.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["label", "file"])
        for label in range(10):
            smooth_image(label).save(folder / f"{label}.png")
            table.writerow([label, f"{label}.png"])
    wide = slim.Slim("mobilenet_v1", width=0.25, classes=1001)
    slim.write_checkpoint(folder / "mobilenet_v1_0.25_128.ckpt", slim.values(wide) | slim.STEP)
    return folder


def test_every_script_is_run() -> None:
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")} - SHARED
    assert {name.split()[0] for name in SCRIPTS} == scripts


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_ends_with_its_table(name: str, files: Path) -> None:
    flags, expected = SCRIPTS[name]
    args = shlex.split(flags.replace("{}", str(files)))
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name.split()[0]}.py"), *args],
        capture_output=True,
        text=True,
        cwd=files,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert expected in done.stdout
