"""`python -m mobilenet.converter`: a saved model to a flatbuffer that is verified against it; or to
a frozen graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilenet import cli, files
from mobilenet.cli import flags
from mobilenet.configs import number_formats
from mobilenet.configs.base import MAX_BATCH, number
from mobilenet.configs.conversion import ConversionConfig, VerificationLimits
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.configs.quantization import PostTraining
from mobilenet.errors import UsageError, one_of

_DATA = [s for s in cli.flag_specs(DatasetConfig) if s.path in ("name", "data_dir")]
_FITTING = [s for s in cli.flag_specs(PostTraining) if s.path != "calibration_images"]
_FITTED = cli.option(
    "fitted", Path, None, "a folder for the model that ptq ends with and its ranges"
)
_WORST = 5  # layers in the table
_FORMATS = ("tflite", "frozen_graph")
_ALONE = ("quantization", "io", "target", *(s.name for s in flags.LIMITS[1:]))  # of flatbuffers

COMMAND = cli.Command(
    "mobilenet.converter",
    "Converts a model: int8 where it was trained for that, else float32; writes what is verified.",
    [*_DATA, *_FITTING],
    (
        cli.option("model", Path, None, "a model folder, .keras or SavedModel", group="model"),
        cli.option(
            "output",
            Path,
            None,
            "the folder; `export` (or `frozen_graph`) beside the model folder when left out",
        ),
        cli.option("format", str, "tflite", f"what is written: {' or '.join(_FORMATS)}"),
        *flags.FORM,
        *cli.CALIBRATION,
        _FITTED,
        *flags.LIMITS,
    ),
)


def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    options = parsed.options
    if options["model"] is None:
        raise UsageError("--model", None, "a saved model", "python -m mobilenet.trainer makes one")
    _check(options)
    if one_of("--format", options["format"], _FORMATS) == "frozen_graph":
        print(cli.table(["what", "value"], _freeze(parsed)))
        return None
    calibrated = _calibrated(parsed)
    own = {spec.path for spec in _FITTING}
    typed = {path: value for path, value in parsed.settings.items() if path in own}
    fitting = cli.settle(PostTraining(), typed)
    with cli.starting_tensorflow():
        from mobilenet.data import arrays
        from mobilenet.export import calibration_data
        from mobilenet.export import pipeline as export_pipeline
        from mobilenet.export.source import preprocessing_of

        form = ConversionConfig(**{spec.name: options[spec.name] for spec in flags.FORM})
    source = Path(options["model"])
    target = Path(options["output"] or source.resolve().parent / "export")
    files.check_target(target, "--output")
    if options["fitted"] is not None:
        files.check_target(options["fitted"], "--fitted")
    opened = _open_source(source)
    form.io_type(opened.quantized)
    shape = form.input_shape(opened.model.input_shape[1:])
    data = cli.dataset_of(parsed, opened.card.dataset)
    way = preprocessing_of(opened.card, data)
    images = arrays.load_images(data, "test", shape, way, options["verify_images"])
    seen = None
    if calibrated:
        place = options["calibration_dataset"], options["calibration_dir"]
        seen = calibration_data.load_calibration(
            *place, data, shape, way, options["calibration_images"]
        )
    limits = VerificationLimits(**{spec.name: options[spec.name] for spec in flags.LIMITS[1:]})
    fits = fitting, options["fitted"]
    print(_told(export_pipeline.export(opened, target, images, form, limits, seen, *fits)))
    return None


def _freeze(parsed: cli.Parsed) -> list[tuple[str, object]]:
    """Writes a frozen graph; returns what was made."""
    options = parsed.options
    for name in parsed.given:
        if name in _ALONE and (name, options[name]) != ("io", "float32"):
            raise UsageError(f"--{name}", options[name], "--format tflite", "leave it out")
    _calibrated(parsed)
    number("--batch", options["batch"], least=0, most=MAX_BATCH, integer=True)
    with cli.starting_tensorflow():
        from mobilenet.export import frozen_graph
        from mobilenet.export import pipeline as export_pipeline
    form = ConversionConfig(
        batch=options["batch"] or 1,
        image_size=options["image_size"],
        output_activation=options["output_activation"],
    )
    source = Path(options["model"])
    target = Path(options["output"] or source.resolve().parent / "frozen_graph")
    frozen_graph.check_target(target)
    count, batch = options["verify_images"], options["batch"] or None
    return export_pipeline.export_frozen_graph(
        _open_source(source), target, form, batch, count, lambda n: cli.dataset_of(parsed, n)
    )


def _open_source(path: Path) -> Any:
    """Loads a model of any form, as a source for the conversion."""
    from mobilenet.compression.quantization.int8 import saving as int8_saving
    from mobilenet.export.source import Source
    from mobilenet.loading import PACKED, detect_form, load_keras_model

    if detect_form(path) == PACKED:  # its ranges would be lost
        unpack = f"python -m mobilenet.packer unpack {path} FOLDER"
        raise UsageError("--model", str(path), "a model that is not packed", unpack)
    return Source(path, load_keras_model(path), int8_saving.has_ranges(path))


def _check(options: dict[str, Any]) -> None:
    """Numbers that can be judged before anything is loaded."""
    number("--verify_images", options["verify_images"], least=1, integer=True)
    number("--calibration_images", options["calibration_images"], least=8, integer=True)
    for name in ("min_agreement", "min_clear_agreement"):
        number(f"--{name}", options[name], least=0, most=1)
    for name in ("max_mean_steps", "max_operator_steps"):
        if options[name] is not None:
            number(f"--{name}", options[name], least=0)
    if options["max_partitions"] is not None:
        number("--max_partitions", options["max_partitions"], least=1, integer=True)


def _calibrated(parsed: cli.Parsed) -> bool:
    """Whether ranges are taken from images; flags that say which are refused where none are."""
    wanted = parsed.options["quantization"]
    calibrated = wanted is not None and number_formats.get(wanted).calibrated
    users = (
        {spec.name: number_formats.CALIBRATED for spec in cli.CALIBRATION} if not calibrated else {}
    )
    if wanted != number_formats.POST_TRAINING:
        users |= {spec.name: (number_formats.POST_TRAINING,) for spec in (*_FITTING, _FITTED)}
    for name, of in users.items():
        if name in parsed.given:
            got = parsed.options.get(name)
            raise UsageError(f"--{name}", got, f"--quantization {' or '.join(of)} beside it")
    return calibrated


def _told(made: Any) -> str:
    """What was made, and the layers that lose most of the signal."""
    told = cli.table(["what", "value"], made.summary())
    lossy = made.noisiest_layers(_WORST)
    if not lossy:
        return told
    heads = ["layers that lose most", "operator", "dB in", "dB out", "likeliest cause"]
    return f"{told}\n\n{cli.table(heads, lossy)}"


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
