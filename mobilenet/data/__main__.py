"""`python -m mobilenet.data`: re-encodes a data set as records of small JPEGs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilenet import cli
from mobilenet.configs.dataset import RECORDS, DatasetConfig
from mobilenet.configs.reencoding import ReencodingConfig
from mobilenet.errors import UsageError, one_of
from mobilenet.evaluation.data_source import find_dataset

_ACTIONS = ("reencode",)
_READING = ("name", "data_dir", "label_offset", "skip_corrupt", "max_pixels", "exif")
COMMAND = cli.Command(
    "mobilenet.data",
    "Writes a data set as record files of small JPEGs, which training reads in less time.",
    [spec for spec in cli.flag_specs(DatasetConfig) if spec.path in _READING],
    (
        cli.option("output", Path, None, "the folder to write; the same command goes on with it"),
        *cli.options_of(ReencodingConfig),
    ),
    arguments="reencode",
)


@COMMAND.entry_point
def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    one_of(COMMAND.name, " ".join(parsed.arguments), _ACTIONS)
    for name, value, example in (
        ("data_dir", parsed.settings.get("data_dir", parsed.settings.get("name")), "photos"),
        ("output", parsed.options["output"], "shards"),
    ):
        if value is None:
            raise UsageError(f"--{name}", None, "a folder", f"as in --{name} {example}")
    dataset = _dataset(parsed)
    names = [spec.name for spec in cli.options_of(ReencodingConfig)]
    config = ReencodingConfig(**{name: parsed.options[name] for name in names})
    with cli.starting_tensorflow():
        from mobilenet.data import reencoding
    with cli.resumable("the same command goes on with the first file that is missing"):
        shards = _with_progress(reencoding.reencode, dataset, parsed.options["output"], config)
    rows = [
        (split, f"{size:,}", shards.files[split], f"{shards.bytes[split] / 1e6:.1f}")
        for split, size in shards.sizes.items()
    ]
    print(cli.table(("split", "images", "files", "MB"), rows))
    print(f"\n{shards.written:,} images were re-encoded now. To train on them:")
    print(f"  --dataset_name {RECORDS.name} --data_dir {shards.folder}")
    return None


def _dataset(parsed: cli.Parsed) -> DatasetConfig:
    """The data set that is named, or that lies at `--data_dir`."""
    if "name" not in parsed.settings:
        kind = find_dataset(Path(parsed.settings["data_dir"])).name
        parsed.settings["name"] = kind
    return cli.dataset_of(parsed, "")


def _with_progress(reencode: Any, *arguments: Any) -> Any:
    """Calls `reencode`, with a bar on a terminal."""
    import tqdm

    with tqdm.tqdm(unit="image", disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return reencode(*arguments, show)


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
