"""`python -m mobilenet.tf1_loader`: a TF1 checkpoint to `.keras`, SavedModel and TF2 checkpoint,
verified equal; the start of every later stage.
"""

from __future__ import annotations

from pathlib import Path

from mobilenet import cli
from mobilenet.configs import released_models, released_weights
from mobilenet.configs.base import MAX_SIDE, ImageSize, sides
from mobilenet.errors import UsageError
from mobilenet.tf1_loader import locate, tf2_formats
from mobilenet.weights import pretrained

COMMAND = cli.Command(
    "mobilenet.tf1_loader",
    "A TF1 checkpoint of slim's MobileNets as .keras, SavedModel and TF2 checkpoint.",
    extra=(
        cli.option(
            "checkpoint",
            Path,
            None,
            f"{locate.EXPECTED}; or its name, which is fetched",
            short="i",
            group="model",
        ),
        cli.option("output", Path, None, "the folder to write", short="o"),
        cli.option(
            "num_classes",
            int,
            None,
            "1000 drops the background class of 1001, 0 the classifier; unchanged when left out",
            group="model",
        ),
        cli.option(
            "image_size",
            ImageSize,
            None,
            "side of the input, or height,width; that in the file's name, or 224, when left out",
            group="model",
            least=1,
            most=MAX_SIDE,
            integer=True,
        ),
        cli.option(
            "use_ema", bool, True, "moving averages where there are some, not raw", group="model"
        ),
        cli.option(
            "hard_sigmoid_slope",
            float,
            0.16667,
            "of V3's gates: TF1's literal; keras.applications has 1/6",
            group="model",
            above=0,
        ),
        cli.option("overwrite", bool, False, "replace a folder that holds a model"),
        cli.OFFLINE,
        cli.option("list", bool, False, "show the released models, with figures and archives"),
    ),
)


@COMMAND.entry_point
def run(argv: list[str]) -> int | None:
    options = COMMAND.parse(argv).options
    if options["list"]:
        _list_releases()
        return None
    for name, example in (("checkpoint", "mobilenet_v1_0.25_128.tgz"), ("output", "nets/v1")):
        if options[name] is None:
            raise UsageError(f"--{name}", None, "a path", f"as in --{name} {example}")
    checkpoint = _checkpoint(options["checkpoint"], options["offline"])
    # Files that cannot be a checkpoint are refused before TensorFlow is loaded.
    locate.check_checkpoint(checkpoint, options["use_ema"])
    target = Path(options["output"])
    tf2_formats.check_target(target, "--output", options["overwrite"])
    with cli.starting_tensorflow():
        import tensorflow as tf

        from mobilenet.models import counting
        from mobilenet.tf1_loader import fake_quant_ranges, loading
    tf.get_logger().setLevel("ERROR")  # a SavedModel of a model that is not compiled is meant
    size = options["image_size"]
    loaded = loading.load_tf1_checkpoint(
        checkpoint,
        options["use_ema"],
        num_classes=options["num_classes"],
        hard_sigmoid_slope=options["hard_sigmoid_slope"],
        input_shape=None if size is None else sides(size),
    )
    report = loaded.report
    extra = (
        {tf2_formats.RANGES: fake_quant_ranges.ranges_to_json(report.ranges)}
        if report.ranges
        else {}
    )
    difference = tf2_formats.save_formats(
        loaded.model, loaded.card, target, extra, options["overwrite"]
    )
    count = counting.count(loaded.model)
    verified = f"the outputs of all three are equal (largest difference {difference:.2g})"
    rows = [
        ["found", report.description],
        ["input", " x ".join(map(str, loaded.model.input_shape[1:]))],
        ["parameters, MACs", f"{count.params:,}, {count.macs:,}"],
        ["variables loaded", f"{len(report.loaded)}, of them {report.averaged} moving averages"],
        *[[f"left aside, {why}", str(len(names))] for why, names in report.left_aside.items()],
        *[["ranges", f"{len(report.ranges)} in {tf2_formats.RANGES}"]] * bool(report.ranges),
        *[["published", str(report.release)]] * (report.release is not None),
        *[["note", note] for note in report.notes],
        [
            "written",
            f"{target}: model.keras, card.json, {tf2_formats.SAVED_MODEL}, "
            f"{tf2_formats.CHECKPOINT}",
        ],
        ["verified", verified],
    ]
    print(cli.table(["what", "value"], rows))
    return None


def _checkpoint(text: str, offline: bool) -> str:
    """The path of a checkpoint, which is fetched if the text is a name of one.

    Raises:
        UsageError: the name is that of a file of keras.applications; or see `pretrained.fetch`.
    """
    released = pretrained.find(text)
    if released is not None and released.source != released_weights.GOOGLE:
        remedy = f"mobilenet.load_model({text!r}) loads it"
        raise UsageError("--checkpoint", text, "a checkpoint of Google", remedy)
    return pretrained.local_path(text, offline)


def _list_releases() -> None:
    """Prints released weights by name, and what else is known of Google's; addresses are split so
    that they fit the terminal.
    """
    print(released_weights.names(), end="\n\n")
    headers, rows = released_models.rows()
    folders: dict[str, str] = {}
    for row in rows:
        folder, _, name = row[-1].rpartition("/")
        mark = folders.setdefault(f"{folder}/", chr(ord("A") + len(folders)))
        row[-1] = f"{mark} {name}"
    print(cli.table(headers, rows))
    notes = [note.split(maxsplit=1) for note in released_models.footnotes()]
    notes += [[mark, folder] for folder, mark in folders.items()]
    print("", *cli.definitions([(mark, text) for mark, text in notes], indent=0), sep="\n")


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
