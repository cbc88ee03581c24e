"""`python -m mobilenet.converter`: a saved net to a flatbuffer that is proved against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilenet import cli
from mobilenet.configs import dataset as datasets
from mobilenet.configs.base import number
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.errors import UsageError

_FORM = (
    cli.option(
        "io", str, None, "type of both ends: int8, uint8 or float32; the inside's when left out"
    ),
    cli.option("batch", int, 1, "images a call"),
    cli.option("image_size", int, None, "height and width of a net that leaves its size open"),
    cli.option("output_activation", str, "none", "none (logits) or softmax (1/256 a step in int8)"),
    cli.option(
        "target",
        str,
        "xnnpack",
        "xnnpack (hard-swish written out, stem on pairs of pixels) or generic (neither)",
    ),
)
_LIMITS = (
    cli.option("verify_images", int, 200, "held-out images that net and file must answer alike"),
    cli.option("min_agreement", float, 0.0, "least share of images with the net's top-1"),
    cli.option(
        "min_clear_agreement", float, 0.0, "the same where the net's margin exceeds two steps"
    ),
    cli.option("max_mean_steps", float, None, "largest mean difference of an output, in codes"),
    cli.option("max_operator_steps", int, 1, "largest difference of one operator, in codes"),
    cli.option("max_partitions", int, None, "most delegate partitions; only told when left out"),
)
_WORST = 5  # layers in the table

COMMAND = cli.Command(
    "mobilenet.converter",
    "Converts a net: int8 where it was trained for that, else float32; writes what is proved.",
    [spec for spec in cli.flag_specs(DatasetConfig) if spec.path in ("name", "data_dir")],
    (
        cli.option("model", str, None, "a model folder, .keras or SavedModel", group="model"),
        cli.option(
            "output", str, None, "the export folder; `export` beside the model folder when left out"
        ),
        *_FORM,
        *_LIMITS,
    ),
)


def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    options = parsed.options
    if options["model"] is None:
        raise UsageError("--model", None, "a saved net", "python -m mobilenet.trainer makes one")
    _check(options)
    with cli.starting_tensorflow():
        from mobilenet.export import form as forms
        from mobilenet.export import verify
        from mobilenet.training import exporting
    form = forms.Form(**{spec.name: options[spec.name] for spec in _FORM})
    source = Path(options["model"])
    target = Path(options["output"] or source.resolve().parent / "export")
    exporting.check_place(target)
    opened = exporting.open_source(source)
    form.ends(opened.quantized)
    shape = form.shape(opened.net.model.input_shape[1:])
    name = parsed.settings.get("name", opened.net.card.dataset or datasets.DIGITS.name)
    data = cli.settle(datasets.get(name), parsed.settings)
    limits = verify.Limits(
        agreement=options["min_agreement"],
        agreement_clear=options["min_clear_agreement"],
        mean_steps=float("inf") if options["max_mean_steps"] is None else options["max_mean_steps"],
        operator_steps=options["max_operator_steps"],
        partitions=options["max_partitions"],
    )
    images = _images(data, opened.net.card, shape, options["verify_images"])
    print(_told(exporting.export(opened, target, images, form, limits)))
    return None


def _check(options: dict[str, Any]) -> None:
    """Numbers that can be judged before anything is loaded."""
    number("--verify_images", options["verify_images"], least=1, integer=True)
    for name in ("min_agreement", "min_clear_agreement"):
        number(f"--{name}", options[name], least=0, most=1)
    for name in ("max_mean_steps", "max_operator_steps"):
        if options[name] is not None:
            number(f"--{name}", options[name], least=0)
    if options["max_partitions"] is not None:
        number("--max_partitions", options["max_partitions"], least=1, integer=True)


def _told(made: Any) -> str:
    """What was made, and the layers that lose most of the signal."""
    told = cli.table(["what", "value"], made.summary())
    lossy = made.lossy(_WORST)
    if not lossy:
        return told
    heads = ["layers that lose most", "operator", "dB in", "dB out", "likeliest cause"]
    return f"{told}\n\n{cli.table(heads, lossy)}"


def _images(data: DatasetConfig, card: Any, shape: tuple[int, int, int], count: int) -> Any:
    """Held-out images as the net takes them."""
    import numpy as np

    from mobilenet import data as room
    from mobilenet.training import exporting, reading

    batches = room.load(
        data,
        "test",
        image_size=shape[:2],
        batch_size=32,
        channels=shape[2],
        preprocessing=exporting.preprocessing_of(card, data),
    )
    with reading.explained(data, "test"):
        return np.concatenate([images.numpy() for images, _ in batches.take(-(-count // 32))])[
            :count
        ]


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
