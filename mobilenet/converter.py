"""`python -m mobilenet.converter`: a saved net to a flatbuffer that is proved against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilenet import cli
from mobilenet.configs import dataset as datasets
from mobilenet.configs.base import number
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.errors import UsageError, one_of

COMMAND = cli.Command(
    "mobilenet.converter",
    "Converts a net: int8 where it was trained for that, else float32; writes what is proved.",
    [spec for spec in cli.flag_specs(DatasetConfig) if spec.path in ("name", "data_dir")],
    (
        cli.option("model", str, None, "a model folder, .keras or SavedModel", group="model"),
        cli.option(
            "output", str, None, "the export folder; `export` beside the model folder when left out"
        ),
        cli.option(
            "io", str, None, "type of both ends: int8, uint8 or float32; the inside's when left out"
        ),
        cli.option(
            "verify_images", int, 200, "held-out images that net and file must answer alike"
        ),
    ),
)


def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    options = parsed.options
    if options["model"] is None:
        raise UsageError("--model", None, "a saved net", "python -m mobilenet.trainer makes one")
    if options["io"] is not None:
        one_of("--io", options["io"], ("int8", "uint8", "float32"))
    number("--verify_images", options["verify_images"], least=1, integer=True)
    source = Path(options["model"])
    target = Path(options["output"] or source.resolve().parent / "export")
    with cli.starting_tensorflow():
        from mobilenet.models import folder
        from mobilenet.training import exporting
    exporting.check_place(target)
    card = folder.load(source).card
    name = parsed.settings.get("name", card.dataset or datasets.DIGITS.name)
    data = cli.settle(datasets.get(name), parsed.settings)
    made = exporting.export(
        source, target, _images(data, card, options["verify_images"]), options["io"]
    )
    found = made.verification
    rows: list[list[Any]] = [
        ["file", made.path],
        ["bytes", f"{found.bytes:,} ({found.gzip_bytes:,} under gzip)"],
        ["input", f"{found.input.dtype} {list(found.input_shape)}"],
        ["output", f"{found.output.dtype} {list(found.output_shape)}"],
        ["float tensors inside", found.float_tensors],
        ["delegate partitions", found.partitions],
        ["same top-1 as the net", f"{found.agreement:.2%} of {found.images} images"],
        ["channels repaired", sum(repair.channels for repair in made.repairs)],
    ]
    print(cli.table(["what", "value"], rows))
    return None


def _images(data: DatasetConfig, card: Any, count: int) -> Any:
    """Held-out images as the net takes them."""
    import numpy as np

    from mobilenet import data as room
    from mobilenet.training import exporting, reading

    height, width, channels = card.input_shape
    way = exporting.preprocessing_of(card, data)
    batches = room.load(
        data,
        "test",
        image_size=(height, width),
        batch_size=32,
        channels=channels,
        preprocessing=way,
    )
    with reading.explained(data, "test"):
        return np.concatenate([images.numpy() for images, _ in batches.take(-(-count // 32))])[
            :count
        ]


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
