"""`python -m mobilenet.packer`: packs a model into one small file without loss, and unpacks it."""

from __future__ import annotations

from pathlib import Path

from mobilenet import cli
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.errors import UsageError, one_of

_VERBS = {"pack": ("MODEL", "FILE"), "unpack": ("FILE", "MODEL"), "info": ("FILE",)}
_FOLDING = ("images", "image_size", "dataset_name", "data_dir")  # of pack: measure its effect
_USERS = {
    "fold_batch_norm": ("pack",),
    **dict.fromkeys(
        ("images", "dataset_name", "data_dir", *(s.name for s in cli.PREPROCESSING)), ("pack",)
    ),
    "image_size": tuple(_VERBS),
    "flatbuffer": ("info",),
}
COMMAND = cli.Command(
    "mobilenet.packer",
    "Packs a model into one small file without loss, unpacks it, or lists what such a file holds.",
    [spec for spec in cli.flag_specs(DatasetConfig) if spec.path in ("name", "data_dir", "exif")],
    (
        cli.option(
            "fold_batch_norm",
            bool,
            False,
            "pack: round batch norms to a float16 scale and offset per channel; not lossless",
            group="model",
        ),
        cli.option(
            "images",
            int,
            16,
            "pack: test images on which the effect of folding is measured",
            least=1,
            integer=True,
        ),
        cli.option(
            "flatbuffer", bool, True, "info: also convert to a float TFLite file, for comparison"
        ),
        cli.IMAGE_SIZE,
        *cli.PREPROCESSING,
    ),
    arguments="pack MODEL FILE | unpack FILE MODEL | info FILE",
)


@COMMAND.entry_point
def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    options, (verb, *paths) = parsed.options, parsed.arguments or ("",)
    one_of(COMMAND.name, verb, _VERBS)
    names = _VERBS[verb]
    if len(paths) != len(names):
        raise UsageError(f"{COMMAND.name} {verb}", paths or None, " and ".join(names))
    for name, users in _USERS.items():
        if name in parsed.typed and verb not in users:
            raise UsageError(f"--{name}", options.get(name), f"{' or '.join(users)}, which uses it")
        folded = verb != "pack" or options["fold_batch_norm"]
        if name in parsed.typed and name in _FOLDING and not folded:
            raise UsageError(f"--{name}", options.get(name), "--fold_batch_norm, which uses it")
    if verb == "pack":
        _pack(parsed, Path(paths[0]), Path(paths[1]))
    elif verb == "unpack":
        _unpack(parsed, Path(paths[0]), Path(paths[1]))
    else:
        _info(parsed, Path(paths[0]))
    return None


def _pack(parsed: cli.Parsed, source: Path, target: Path) -> None:
    options = parsed.options
    with cli.starting_tensorflow():
        from mobilenet.packing import pipeline as packing_pipeline
    rows = packing_pipeline.pack_saved_model(
        source,
        target,
        options["fold_batch_norm"],
        options["images"],
        lambda name: cli.dataset_of(parsed, name, source),
        options["image_size"],
        options["preprocessing"],
        options["crop"],
    )
    print(cli.table(["what", "value"], rows))


def _unpack(parsed: cli.Parsed, source: Path, target: Path) -> None:
    _check(source)
    with cli.starting_tensorflow():
        from mobilenet.packing import pipeline as packing_pipeline
    rows = packing_pipeline.unpack_file(source, target, parsed.options["image_size"])
    print(cli.table(["what", "value"], rows))


def _info(parsed: cli.Parsed, source: Path) -> None:
    from mobilenet.reporting import packed_size, tables

    contents = packed_size.contents(source)
    print(cli.table(*tables.of_packed(contents)))
    total = contents.total
    print(f"\n{total.plain:,} bytes of weights in {total.packed:,}: {contents.ratio:.2f}")
    if not parsed.options["flatbuffer"]:
        return
    with cli.starting_tensorflow():
        from mobilenet.packing import model as packed_model
        from mobilenet.packing import pipeline as packing_pipeline
    data = packing_pipeline.flatbuffer(packed_model.unpack(source), parsed.options["image_size"])
    sizes = packing_pipeline.sizes(data)
    print(", ".join(f"{value} bytes {what}" for what, value in sizes))


def _check(source: Path) -> None:
    """Refuses what is no packed model before TensorFlow is loaded."""
    from mobilenet.packing import container

    container.read(source)


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
