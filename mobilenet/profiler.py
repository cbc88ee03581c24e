"""`python -m mobilenet.profiler`: an int8 file beside the float net that it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilenet import cli
from mobilenet.configs.base import number
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.errors import UsageError
from mobilenet.runtime import classifier

COMMAND = cli.Command(
    "mobilenet.profiler",
    "Where an int8 file loses the signal of its float net, tensor by tensor, and what mends it.",
    [spec for spec in cli.flag_specs(DatasetConfig) if spec.path in ("name", "data_dir")],
    (
        cli.option(
            "against",
            str,
            None,
            "the float net: a model folder, .keras or SavedModel",
            group="model",
        ),
        cli.option("images", int, 16, "held-out images that both are run on"),
        cli.option("worst", int, None, "only so many lines, those of the least signal to noise"),
    ),
    arguments="FILE.tflite",
)


def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    options = parsed.options
    if len(parsed.arguments) != 1:
        raise UsageError("FILE.tflite", parsed.arguments or None, "one flatbuffer or export folder")
    if options["against"] is None:
        raise UsageError(
            "--against", None, "the float net of the file", "as in --against runs/x/train"
        )
    number("--images", options["images"], least=1, integer=True)
    if options["worst"] is not None:
        number("--worst", options["worst"], least=1, integer=True)
    file = classifier.Classifier(Path(parsed.arguments[0]))
    with cli.starting_tensorflow():
        from mobilenet.export import freeze
        from mobilenet.models import folder
        from mobilenet.reporting import profile
    net = folder.load(options["against"])
    lines = profile.compare(
        file.flatbuffer,
        freeze.float32_copy(net.model),
        *_images(parsed, net.card, file.card),
    )
    if options["worst"] is not None:
        lines = sorted(lines, key=lambda line: line.accumulated or 0.0)[: options["worst"]]
    heads = [
        "layer",
        "operator",
        "range",
        "reached",
        "outlier",
        "dB alone",
        "dB",
        "cause",
        "remedy",
    ]
    print(cli.table(heads, [_row(line) for line in lines]))
    return None


def _images(parsed: cli.Parsed, card: Any, file_card: Any) -> tuple[Any, Any]:
    """Held-out images as the float net takes them, and as the file does."""
    import numpy as np

    from mobilenet.runtime import images as pixels
    from mobilenet.training import exporting, reading

    data = cli.dataset_of(parsed, card.dataset)
    way = exporting.preprocessing_of(card, data)
    count = parsed.options["images"]
    images = reading.images(data, "test", card.input_shape, way, count)
    mean, std = np.asarray(way.mean, np.float32), np.asarray(way.std, np.float32)
    return images, pixels.normalise(images * std + mean, file_card.preprocessing)


def _row(line: Any) -> list[str]:
    def decibels(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    return [
        line.layer,
        line.operator,
        f"{line.low:.3g}..{line.high:.3g}",
        f"{line.reached[0]:.3g}..{line.reached[1]:.3g}",
        f"{line.outliers:.1f}",
        decibels(line.alone),
        decibels(line.accumulated),
        line.cause,
        line.remedy or "-",
    ]


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
