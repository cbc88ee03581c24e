"""`python -m mobilenet.trainer`: training, pruning, quantization, conversion in one run folder."""

from __future__ import annotations

from pathlib import Path

from mobilenet import cli, console, text_tables
from mobilenet.configs import archs
from mobilenet.configs.run import RunConfig
from mobilenet.training import resolve_config, run_folder
from mobilenet.training.stage_report import StageReport, finished_before

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

COMMAND = cli.Command(
    "mobilenet.trainer",
    "Trains a MobileNet, prunes it, quantizes it and converts it, in one run folder.",
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
            "continue the run in the folder; --noresume requires a new folder",
        ),
        cli.option("overwrite", bool, False, "replace the run in the folder"),
    ),
    config=RunConfig,
)


@COMMAND.entry_point
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
    replayed = parsed.config is not None
    explicit = resolve_config.Explicit(
        num_classes=replayed or "model.num_classes" in parsed.settings,
        batch_norm_decay=replayed or "model.batch_norm_decay" in parsed.settings,
        teacher="distillation.teacher" in parsed.settings,
    )
    overwrite = parsed.options["overwrite"]
    with cli.resumable("the same command continues the run"):
        finished = None if overwrite else _finished_before(folder, config, explicit)
        reports = finished or _train(folder, config, explicit, overwrite)
    from mobilenet.data.sources.example import example_image

    print("\n" + cli.table(*_table(reports)))
    _draw(folder / "plots", reports, redraw=finished is None)
    image = example_image(config.dataset, config.image_size, folder)
    print("\n" + _next_steps(folder, config, reports, str(image or "PHOTO.jpg")))
    return None


def _finished_before(
    folder: Path, config: RunConfig, explicit: resolve_config.Explicit
) -> list[StageReport] | None:
    """The reports of a run that has nothing left to do; TensorFlow is not needed to find out.

    Raises:
        UsageError: the folder holds a run of another config.
    """
    stored = run_folder.stored_config(folder)
    if stored is None:
        return None
    resolved = resolve_config.resolve_as(config, stored, explicit)
    reports = run_folder.finished_reports(folder, resolved)
    for report in reports or ():
        if report.part.stage in config.stages:
            print(finished_before(report))
    return reports


def _train(
    folder: Path, config: RunConfig, explicit: resolve_config.Explicit, overwrite: bool
) -> list[StageReport]:
    with cli.starting_tensorflow():
        from mobilenet.training import pipeline as training_pipeline
    with console.log_to_stdout():
        resolved, info = resolve_config.resolve(config, explicit)
        with run_folder.opened(folder, resolved, overwrite) as opened:
            return training_pipeline.Pipeline(opened, info, resolved.stages).execute()


def _model_name(config: RunConfig) -> str:
    return next(name for name, kind in archs.ALL.items() if kind is type(config.model))


def _table(reports: list[StageReport]) -> tuple[list[str], list[list[str | None]]]:
    """Headers and rows; with columns of the changes of masks if there were some."""
    rows = [_row(report) for report in reports]
    if not any(report.mask_changes for report in reports):
        return list(HEADERS), rows
    for row, report in zip(rows, reports, strict=True):
        sums = [sum(column) for column in zip(*report.mask_changes, strict=True)]
        row += [f"{count:,}" for count in sums[1:]] or [None, None]
    return [*HEADERS, "removed", "regrown"], rows


def _draw(folder: Path, reports: list[StageReport], redraw: bool) -> None:
    """Plots of the stages that changed masks; those that exist are kept unless `redraw`."""
    for report in reports:
        path = folder / f"{report.part}_mask_changes.png"
        if report.mask_changes and (redraw or not path.exists()):
            from mobilenet.reporting import plots

            plots.mask_changes(report.mask_changes, f"{report.part}: surgery", path)
        if report.mask_changes:
            print(path)


def _row(report: StageReport) -> list[str | None]:
    counts = (
        *(report.params, report.macs, report.nonzero_weights),
        *(report.bytes, report.gzip_bytes),
    )
    return [
        report.part.name,
        f"{report.top1:.2f}",
        f"{report.top5:.2f}",
        *(None if count is None else f"{count:,}" for count in counts),
        None if report.latency_ms is None else text_tables.milliseconds(report.latency_ms),
    ]


def _next_steps(folder: Path, config: RunConfig, reports: list[StageReport], image: str) -> str:
    """Three things to do with what is there now."""
    last = reports[-1].part
    model = folder / (run_folder.EXPORT if last.stage == "convert" else last.name)
    name = f"--dataset_name {config.dataset.name}"
    if config.dataset.data_dir:
        name += f" --data_dir {config.dataset.data_dir}"
    use = f"mobilenet.load_model({str(model)!r}).model"
    if last.stage == "convert":
        use = f"mobilenet.runtime.Classifier({str(model)!r}).top_k({image!r})"
    return (
        "Next:\n"
        f"  python -m mobilenet.evaluator --model {model} {name}\n"
        f"  python -m mobilenet.predict --model {model} {image}\n"
        f'  python -c "import mobilenet; print({use})"'
    )


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
