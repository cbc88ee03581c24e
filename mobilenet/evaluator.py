"""`python -m mobilenet.evaluator`: top-1, top-5 and loss of any saved model on any data set.

A flatbuffer on the digits, class folders or a list of images is scored without TensorFlow.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mobilenet import cli, console
from mobilenet.configs.base import MAX_BATCH
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.errors import UsageError
from mobilenet.metrics import ClassMapping, Metrics, match_classes
from mobilenet.runtime import classifier, evaluation, worker

COMMAND = cli.Command(
    "mobilenet.evaluator",
    "Top-1, top-5 and loss of a model on held-out images.",
    [
        spec
        for spec in cli.flag_specs(DatasetConfig)
        if spec.path in ("name", "data_dir", "label_offset", "skip_corrupt", "max_pixels")
    ],
    (
        cli.option(
            "model",
            Path,
            None,
            "a model folder, .keras, SavedModel, .tflite, frozen graph (.pb) or export folder",
            group="model",
        ),
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
            "maximum number of images (flatbuffers on digits, class folders and lists)",
            group="data",
        ),
        cli.option(
            "threads", int, None, "images at once through a flatbuffer; all cores when left out"
        ),
        cli.option(
            "runtime",
            str,
            "litert",
            f"of a flatbuffer: {' or '.join(worker.RUNTIMES)}",
            choices=worker.RUNTIMES,
        ),
        cli.ISOLATED,
    ),
)


@COMMAND.entry_point
def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    options = parsed.options
    if options["model"] is None:
        raise UsageError("--model", None, "a saved model", "python -m mobilenet.trainer makes one")
    path = Path(options["model"])
    is_file = classifier.is_flatbuffer(path)
    if not is_file:
        for name in sorted({"runtime", "isolated"} & parsed.typed):
            raise UsageError(f"--{name}", options[name], "a flatbuffer", f"{path} is none")
    started = time.monotonic()
    score, data, card = (_flatbuffer if is_file else _keras)(path, parsed)
    seconds = time.monotonic() - started
    rows = [
        [
            f"{score.top1:.2f}",
            f"{score.top5:.2f}",
            f"{score.loss:.4f}",
            f"{score.images:,}",
            f"{seconds:.1f}",
        ]
    ]
    print(f"{path} on {data.name}, {options['split']}")
    print(cli.table(["top-1 %", "top-5 %", "loss", "images", "seconds"], rows))
    if card.published:
        print(f"published: {card.published}")
    return None


def _flatbuffer(path: Path, parsed: cli.Parsed) -> tuple[Metrics, DatasetConfig, Card]:
    options = parsed.options
    model = classifier.Classifier(path, options["threads"], options["runtime"], options["isolated"])
    data = cli.dataset_of(parsed, model.card.dataset)
    if data.name in evaluation.DATASETS:
        left_out: list[UsageError] = []
        on_corrupt = left_out.append if data.skip_corrupt else None
        metrics = evaluation.evaluate(
            model,
            data.name,
            data.data_dir,
            options["split"],
            options["limit"],
            on_corrupt=on_corrupt,
            label_offset=data.label_offset,
            on_note=print,
            max_pixels=data.max_pixels,
        )
        if left_out:
            print(f"{len(left_out)} images left out, first {left_out[0]}")
        return metrics, data, model.card
    with cli.starting_tensorflow():
        from mobilenet.data import arrays
        from mobilenet.evaluation import scoring
    with console.log_to_stdout(), arrays.explain_errors(data, options["split"]):
        names = evaluation.names(model)
        batches, matching = _batches(data, model.card, len(model.labels), names, options)
        metrics = scoring.score_flatbuffer(model, batches, model.card.preprocessing, matching)
        return metrics, data, model.card


def _keras(path: Path, parsed: cli.Parsed) -> tuple[Metrics, DatasetConfig, Card]:
    with cli.starting_tensorflow():
        from mobilenet.data import arrays
        from mobilenet.evaluation import scoring
        from mobilenet.loading import load_model
        from mobilenet.models.graph import inference
    model = load_model(path)
    data = cli.dataset_of(parsed, model.card.dataset)
    probabilities = model.card.outputs == "probabilities"
    with console.log_to_stdout(), arrays.explain_errors(data, parsed.options["split"]):
        classes = model.model.output_shape[-1]
        batches, matching = _batches(data, model.card, classes, model.card.labels, parsed.options)
        infer = inference.compile_model(model.model)
        return scoring.score(infer, batches, probabilities, matching), data, model.card


def _batches(
    data: DatasetConfig, card: Card, classes: int, names: tuple[str, ...], options: dict[str, Any]
) -> tuple[Any, ClassMapping]:
    """The split as the model takes it, and which of its `classes` are those of the data."""
    from mobilenet import data as datasets
    from mobilenet.export import source

    info = datasets.describe(data)
    matching = match_classes(classes, names, info.num_classes, info.labels, data.name)
    if matching.note:
        print(matching.note)
    height, width, channels = card.input_shape
    batches = datasets.load(
        data,
        options["split"],
        image_size=(height, width),
        batch_size=options["batch_size"],
        channels=channels,
        preprocessing=source.preprocessing_of(card, data),
    )
    return batches, matching


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
