"""`python -m mobilenet.evaluator`: top-1, top-5 and loss of any saved model on any data set, its
classes and confusions; of a sigmoid AUC and F1.

A flatbuffer on the digits, class folders or a list of images is scored without TensorFlow.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from mobilenet import api, cli, console, files
from mobilenet.configs.base import MAX_BATCH
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.data.sources import class_names
from mobilenet.errors import UsageError
from mobilenet.evaluation import saving
from mobilenet.runtime import classifier, evaluation, worker

COMMAND = cli.Command(
    "mobilenet.evaluator",
    "Top-1, top-5 and loss of a model on held-out images, of each class, and what it confuses.",
    [
        spec
        for spec in cli.flag_specs(DatasetConfig)
        if spec.path in ("name", "data_dir", "label_offset", "skip_corrupt", "max_pixels", "exif")
    ],
    (
        cli.option(
            "model",
            Path,
            None,
            "a model folder, .keras, SavedModel, .tflite, frozen graph (.pb), export folder, "
            "timm's .safetensors or the name of released weights",
            group="model",
            on_storage=True,
        ),
        cli.OFFLINE,
        cli.LABELS,
        cli.option(
            "split",
            str,
            "test",
            "train, validation or test",
            group="data",
            choices=evaluation.SPLITS,
        ),
        cli.option(
            "batch_size",
            int,
            32,
            "images a call of a Keras model",
            group="data",
            least=1,
            most=MAX_BATCH,
            integer=True,
        ),
        cli.option(
            "limit",
            int,
            None,
            "maximum number of images, spread evenly",
            group="data",
        ),
        cli.option(
            "output",
            Path,
            None,
            "folder for figures, confusion matrix and the prediction of each image (CSV, JSON, "
            "PNG); an earlier evaluation there is replaced",
        ),
        cli.option(
            "threads", int, None, "images at once through a TFLite file; all cores when left out"
        ),
        cli.option(
            "runtime",
            str,
            "litert",
            f"of a TFLite file: {' or '.join(worker.RUNTIMES)}",
            choices=worker.RUNTIMES,
        ),
        cli.ISOLATED,
        *cli.PREPROCESSING,
    ),
)


@COMMAND.entry_point
def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    options = parsed.options
    if options["model"] is None:
        raise UsageError("--model", None, "a saved model", "python -m mobilenet.trainer makes one")
    path = cli.local_model(options["model"])
    is_file = classifier.is_flatbuffer(path)
    if not is_file:
        for name in sorted({"runtime", "isolated"} & parsed.typed.keys()):
            raise UsageError(f"--{name}", options[name], "a flatbuffer", f"{path} is none")
    output = options["output"]
    if output is not None:  # before anything is computed
        files.check_target(output, "output", replaces=saving.REPLACES)
    started = time.monotonic()
    model: Any
    if is_file:
        runtime, isolated = options["runtime"], options["isolated"]
        model = classifier.Classifier(path, options["threads"], runtime, isolated)
    else:
        with cli.starting_tensorflow():
            from mobilenet.evaluation import scoring  # noqa: F401 - what `evaluate` imports
            from mobilenet.loading import load_model
        model = load_model(path, offline=options["offline"])
    data = cli.dataset_of(parsed, model.card.dataset, path)
    if is_file and data.name not in evaluation.DATASETS:
        with cli.starting_tensorflow():
            from mobilenet.evaluation import scoring  # noqa: F401
    loading = time.monotonic() - started
    with console.log_to_stdout():
        found = api.evaluate(
            model,
            data,
            preprocessing=options["preprocessing"],
            crop=options["crop"],
            split=options["split"],
            batch_size=options["batch_size"],
            limit=options["limit"],
            labels=None if options["labels"] is None else class_names.read_names(options["labels"]),
        )
        found = dataclasses.replace(
            found,
            model=str(options["model"]),
            seconds=time.monotonic() - started,
            startup_seconds=loading + found.startup_seconds,
        )
        if output is not None:
            found.save(output, overwrite=True)
    print(found.classification_report())
    return None


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
