"""`python -m mobilenet.trainer`: training, pruning, quantization, conversion in one run folder."""

from __future__ import annotations

from pathlib import Path

from mobilenet import cli, console, files
from mobilenet.configs import archs
from mobilenet.configs.base import sides
from mobilenet.configs.run import RunConfig
from mobilenet.training import resolve_config, run_folder, training_run
from mobilenet.training.stage_report import RunReport

COMMAND = cli.Command(
    "mobilenet.trainer",
    "Trains a MobileNet, prunes it, quantizes it and converts it, in one run folder.",
    cli.flag_specs(RunConfig),
    (
        cli.option(
            "model_name", str, "mobilenet_v1", "one of " + ", ".join(archs.names()), group="model"
        ),
        cli.option(
            "model",
            Path,
            None,
            "a trained model of your own instead: .keras, .h5, SavedModel, timm's .safetensors or "
            "model folder",
            group="model",
        ),
        cli.option(
            "model_dir",
            Path,
            None,
            "the run folder, which may lie on object storage (gs://bucket/run); runs/MODEL_DATASET "
            "when left out",
            on_storage=True,
        ),
        cli.option(
            "resume",
            bool,
            True,
            "continue the run in the folder; --noresume requires a new folder",
        ),
        cli.option("overwrite", bool, False, "replace the run in the folder"),
        cli.option(
            "find_lr",
            bool,
            False,
            "train nothing, but suggest --lr from the losses of rising rates in the first stage, "
            "and draw them next to the run folder",
        ),
        cli.option(
            "sweep",
            Path,
            None,
            "a YAML file of values for fields of the config: trains all settings, each in a folder "
            "of --model_dir, and compares them",
        ),
        cli.option(
            "sweep_jobs", int, 1, "runs of a sweep at once", least=1, most=256, integer=True
        ),
        cli.OFFLINE,
    ),
    config=RunConfig,
)


@COMMAND.entry_point
def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    if parsed.options["sweep"]:
        from mobilenet.cli import sweep

        return sweep.run(COMMAND, parsed)
    config = cli.run_config(parsed)
    folder = str(parsed.options["model_dir"] or training_run.default_folder(config))
    if not parsed.options["resume"] and not parsed.options["overwrite"] and _exists(folder):
        raise cli.UsageError(
            "--model_dir", folder, "a new folder with --noresume", "choose another name"
        )
    replayed = parsed.config is not None
    explicit = resolve_config.Explicit(
        num_classes=replayed or "model.num_classes" in parsed.settings,
        batch_norm_decay=replayed or "model.batch_norm_decay" in parsed.settings,
        teacher="distillation.teacher" in parsed.settings,
        image_size="image_size" in parsed.settings,
        channels="channels" in parsed.settings,
        preprocessing="dataset.preprocessing" in parsed.settings,
    )
    if parsed.options["find_lr"]:
        _find_rate(config, folder, explicit, parsed.options["offline"])
        return None
    with cli.resumable("the same command continues the run"), console.log_to_stdout():
        done = training_run.execute(
            config,
            folder,
            explicit,
            parsed.options["overwrite"],
            offline=parsed.options["offline"],
        )
    from mobilenet.data.sources.example import example_image
    from mobilenet.reporting import page

    print(f"\n{done.report}")
    if report := page.write_after_run(done):
        print(f"\n{done.location}/{report.relative_to(done.folder)}")
    image = None
    if not files.is_remote(done.location):  # predict takes images of this machine
        image = example_image(config.dataset, max(sides(done.config.image_size)), done.folder)
    done.publish()
    print("\n" + _next_steps(done.location, config, done.report, str(image or "PHOTO.jpg")))
    return None


def _find_rate(
    config: RunConfig, folder: str, explicit: resolve_config.Explicit, offline: bool
) -> None:
    """Prints the losses of rising rates with a suggestion, and draws them."""
    if files.is_remote(folder):
        raise cli.UsageError("--model_dir", folder, "a folder of this machine with --find_lr")
    from mobilenet.training.optimization.rate_finder import RateSearch

    picture = Path(f"{folder}_lr_finder.png")
    with console.log_to_stdout():
        curve = training_run.find_rate(config, explicit, RateSearch(), offline=offline)
    print(f"\n{curve}")
    picture.parent.mkdir(parents=True, exist_ok=True)
    curve.save_plot(picture)
    print(f"\n{picture}")


def _exists(folder: str) -> bool:
    if not files.is_remote(folder):
        return Path(folder).exists()
    with console.starting_tensorflow():
        from mobilenet import object_storage
    object_storage.check(folder, "model_dir")
    return object_storage.exists(folder)


def _next_steps(folder: str, config: RunConfig, reports: RunReport, image: str) -> str:
    """Three things to do with what is there now."""
    last = reports.stages[-1].part
    model = f"{folder}/{run_folder.EXPORT if last.stage == 'convert' else last.name}"
    name = f"--dataset_name {config.dataset.name}"
    if config.dataset.data_dir:
        name += f" --data_dir {config.dataset.data_dir}"
    use = f"mobilenet.load_model({model!r}).model"
    if last.stage == "convert":
        use = f"mobilenet.runtime.Classifier({model!r}).top_k({image!r})"
        if files.is_remote(folder):  # the classifier runs without TensorFlow
            use = f"mobilenet.evaluate({model!r}, {config.dataset.name!r})"
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
