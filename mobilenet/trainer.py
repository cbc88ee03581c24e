"""`python -m mobilenet.trainer`: training, pruning, quantization, conversion in one run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilenet import cli, console
from mobilenet.configs import archs
from mobilenet.configs.run import RunConfig

HEADERS = (
    "stage",
    "top-1 %",
    "top-5 %",
    "params",
    "MACs",
    "non-zero",
    "bytes",
    "gzip",
    "ms (1 thread)",
)
_COLUMNS = [
    *("stage", "top1", "top5", "params", "macs", "nonzero_weights"),
    *("bytes", "gzip_bytes", "latency_ms"),
]

COMMAND = cli.Command(
    "mobilenet.trainer",
    "Trains a MobileNet, prunes it, trains it for int8 and converts it, in one run folder.",
    cli.flag_specs(RunConfig),
    (
        cli.option(
            "model_name", str, "mobilenet_v1", "one of " + ", ".join(archs.names()), group="model"
        ),
        cli.option("model_dir", Path, None, "the run folder; runs/MODEL_DATASET when left out"),
        cli.option(
            "resume",
            bool,
            True,
            "go on with a run that is in the folder; --noresume wants a new folder",
        ),
        cli.option("overwrite", bool, False, "throw away the run that is in the folder"),
    ),
    config=RunConfig,
)


def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    config = cli.run_config(parsed)
    folder = Path(
        parsed.options["model_dir"] or f"runs/{_model_name(config)}_{config.dataset.name}"
    )
    if not parsed.options["resume"] and not parsed.options["overwrite"] and folder.exists():
        raise cli.UsageError(
            "--model_dir", str(folder), "a new folder with --noresume", "choose another name"
        )
    with cli.starting_tensorflow():
        from mobilenet import data
        from mobilenet.training import pipeline as training_pipeline
        from mobilenet.training import resolve_config, run_folder
    replayed = parsed.config is not None
    with console.log_to_stdout():
        config, info = resolve_config.completed(
            config,
            classes_given=replayed or "model.num_classes" in parsed.settings,
            decay_given=replayed or "model.batch_norm_decay" in parsed.settings,
            teacher_given="distillation.teacher" in parsed.settings,
        )
        with run_folder.opened(folder, config, parsed.options["overwrite"]) as opened:
            entries = training_pipeline.Chain(opened, info, config.stages).execute()
    print("\n" + cli.table(*_table(entries)))
    _draw(folder / "plots", entries)
    picture = data.example(config.dataset, config.image_size, folder)
    print("\n" + _next_steps(folder, config, entries, str(picture or "PHOTO.jpg")))
    return None


def _model_name(config: RunConfig) -> str:
    return next(name for name, kind in archs.ALL.items() if kind is type(config.model))


def _table(entries: list[dict[str, Any]]) -> tuple[list[str], list[list[str | None]]]:
    """Heads and rows; what surgery did has columns where there was some."""
    rows = [_row(entry) for entry in entries]
    if not any("flips" in entry for entry in entries):
        return list(HEADERS), rows
    for row, entry in zip(rows, entries, strict=True):
        counts = [sum(n) for n in zip(*entry["flips"], strict=True)] if "flips" in entry else []
        row += [f"{count:,}" for count in counts[1:]] or [None, None]
    return [*HEADERS, "removed", "came back"], rows


def _draw(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Pictures of the stages that have something to show."""
    shown = {entry["stage"]: entry["flips"] for entry in entries if "flips" in entry}
    if not shown:
        return
    from mobilenet.reporting import plots

    for stage, flips in shown.items():
        print(plots.flips(flips, f"{stage}: surgery", folder / f"{stage}_flips.png"))


def _row(entry: dict[str, Any]) -> list[str | None]:
    cells: list[str | None] = []
    for column in _COLUMNS:
        value = entry.get(column)
        if column in ("top1", "top5"):
            cells.append(f"{value:.2f}")
        elif isinstance(value, int):
            cells.append(f"{value:,}")
        else:
            cells.append(None if value is None else str(value))
    return cells


def _next_steps(
    folder: Path, config: RunConfig, entries: list[dict[str, Any]], picture: str
) -> str:
    """Three things to do with what is there now."""
    last = entries[-1]["stage"]
    model = folder / ("export" if last == "convert" else last)
    name = f"--dataset_name {config.dataset.name}"
    if config.dataset.data_dir:
        name += f" --data_dir {config.dataset.data_dir}"
    use = f"mobilenet.load_model({str(model)!r}).model"
    if last == "convert":
        use = f"mobilenet.runtime.Classifier({str(model)!r}).top_k({picture!r})"
    return (
        "Next:\n"
        f"  python -m mobilenet.evaluator --model {model} {name}\n"
        f"  python -m mobilenet.predict --model {model} {picture}\n"
        f'  python -c "import mobilenet; print({use})"'
    )


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
