"""`python -m mobilenet.converter`: a saved model to a flatbuffer that is verified against it; or to
ONNX or a frozen graph.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import cli, files
from mobilenet.configs import number_formats
from mobilenet.configs.card import CARD, checked_labels, class_count
from mobilenet.configs.conversion import (
    FILE_FORMATS,
    FROZEN_GRAPH,
    ONNX,
    TFLITE,
    ConversionConfig,
    VerificationLimits,
)
from mobilenet.configs.dataset import FOLDER, LIST, DatasetConfig
from mobilenet.configs.number_formats import INT8
from mobilenet.configs.quantization import PostTraining
from mobilenet.data.sources import class_names
from mobilenet.errors import UsageError, one_of
from mobilenet.runtime.classifier import MODEL

log = logging.getLogger("mobilenet")
_DATA = [s for s in cli.flag_specs(DatasetConfig) if s.path in ("name", "data_dir", "exif")]
_POST_TRAINING = [s for s in cli.flag_specs(PostTraining) if s.path != "calibration_images"]
_METHOD = cli.option(
    "quantization",
    str,
    None,
    "ptq: post-training int8 of a float model, as --number_format int8 is",
)
_CONVERSION = cli.options_of(
    ConversionConfig, batch="images a call; 0 leaves it open in ONNX and frozen graphs"
)
_LIMITS = cli.options_of(VerificationLimits)
_FITTED = cli.option(
    "fitted", Path, None, "a folder for the model that ptq ends with and its ranges"
)
_LOSSIEST = 5  # layers in the table
_OF_FLATBUFFERS = (
    "push_to_hub",
    "number_format",
    "quantization",
    "io",
    "target",
    *(s.name for s in _LIMITS),
)
# What version 0.1 called a number format, by its --quantization.
_FORMER_FORMATS = {"weights": "dynamic_range"}

COMMAND = cli.Command(
    "mobilenet.converter",
    "Converts a model: int8 where it was trained for that, else float32; writes what is verified.",
    [*_DATA, *_POST_TRAINING],
    (
        cli.option(
            "model",
            Path,
            None,
            "a model folder, .keras, SavedModel, timm's .safetensors or the name of released "
            "weights",
            group="model",
        ),
        cli.OFFLINE,
        cli.LABELS,
        cli.option(
            "license",
            str,
            None,
            "of the weights, by its name on the Hugging Face Hub, such as apache-2.0",
        ),
        cli.option(
            "output",
            Path,
            None,
            "the folder; `export` (or `frozen_graph`, `onnx`) next to the model folder when left "
            "out",
        ),
        cli.option(
            "format",
            str,
            TFLITE,
            "tflite; c_array: with C++ sources for TensorFlow Lite Micro; onnx; or frozen_graph",
        ),
        *_CONVERSION,
        _METHOD,
        *cli.PREPROCESSING,
        *cli.CALIBRATION,
        _FITTED,
        cli.option(
            "push_to_hub",
            str,
            None,
            "upload the folder to this repository of the Hugging Face Hub, user/name; an export "
            "folder as --model is uploaded as it is",
        ),
        cli.option(
            "verify_images",
            int,
            200,
            "held-out images used for the comparison",
            least=1,
            integer=True,
        ),
        *_LIMITS,
    ),
)


@COMMAND.entry_point
def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    options = parsed.options
    if options["model"] is None:
        raise UsageError("--model", None, "a saved model", "python -m mobilenet.trainer makes one")
    file_format = one_of("--format", options["format"], FILE_FORMATS)
    _check_method(options["quantization"], options["number_format"])
    if options["quantization"] is not None:
        options["number_format"] = INT8
    _check_calibration(parsed, options["number_format"])
    if file_format in (FROZEN_GRAPH, ONNX):
        print(cli.table(["what", "value"], _export_float_graph(parsed, file_format)))
        return None
    repository = options["push_to_hub"]
    if repository is None:
        print(_summary(_export_flatbuffer(parsed)))
        return None
    from mobilenet.export import hub

    hub.check(repository)
    folder = Path(options["model"])
    if (folder / MODEL).is_file() and (folder / CARD).is_file():
        _check_upload_alone(parsed)
    else:
        export = _export_flatbuffer(parsed)
        print(_summary(export))
        folder = export.path.parent
    print(f"uploaded: {hub.push(folder, repository)}")
    return None


def _check_upload_alone(parsed: cli.Parsed) -> None:
    """Refuses flags of a conversion for an export folder, which is uploaded as it is."""
    for name in sorted(parsed.typed.keys() - {"model", "push_to_hub"}):
        expected = "a model to convert; this is an export folder, which is uploaded as it is"
        raise UsageError(f"--{name}", parsed.options.get(name), expected, "leave it out")


def _export_flatbuffer(parsed: cli.Parsed) -> Any:
    options = parsed.options
    config = ConversionConfig(**{spec.name: options[spec.name] for spec in _CONVERSION})
    limits = VerificationLimits(**{spec.name: options[spec.name] for spec in _LIMITS})
    fields = {spec.path for spec in _POST_TRAINING}
    post_training = cli.apply_overrides(
        PostTraining(), {path: x for path, x in parsed.settings.items() if path in fields}
    )
    with cli.starting_tensorflow():
        from mobilenet.data import arrays
        from mobilenet.export import calibration_data
        from mobilenet.export import pipeline as export_pipeline
    path = Path(options["model"])
    target = Path(options["output"] or path.resolve().parent / "export")
    files.check_target(target, "output")
    if options["fitted"] is not None:
        files.check_target(options["fitted"], "fitted")
    source = _open_source(path, options)
    if source.quantized:
        _check_calibration(parsed, None)
    number_format = config.resolve(source.quantized).number_format
    shape = config.input_shape(source.model.input_shape[1:])
    data = cli.dataset_of(parsed, source.card.dataset, path)
    source = _with_names_of(data, source, parsed.typed)
    source = source.with_preprocessing(options["preprocessing"], options["crop"], data)
    preprocessing = source.card.preprocessing
    images = arrays.load_images(data, "test", shape, preprocessing, options["verify_images"])
    calibration = None
    if number_format in number_formats.CALIBRATED and not source.quantized:
        calibration = calibration_data.load_calibration(
            options["calibration_dataset"],
            options["calibration_dir"],
            data,
            shape,
            preprocessing,
            options["calibration_images"],
        )
    return export_pipeline.export(
        *(source, target, images, config, limits, calibration, post_training),
        *(options["fitted"], options["format"]),
    )


def _export_float_graph(parsed: cli.Parsed, file_format: str) -> list[tuple[str, object]]:
    """Writes a frozen graph or ONNX; returns the rows of its summary."""
    options = parsed.options
    for name in parsed.typed:
        if name in _OF_FLATBUFFERS and (name, options[name]) != ("io", "float32"):
            raise UsageError(f"--{name}", options[name], "--format tflite", "leave it out")
    config = ConversionConfig(
        batch=options["batch"] or 1,  # 0 leaves it open
        image_size=options["image_size"],
        output_activation=options["output_activation"],
    )
    with cli.starting_tensorflow():
        from mobilenet.export import pipeline as export_pipeline
    source = Path(options["model"])
    target = Path(options["output"] or source.resolve().parent / file_format)
    export_pipeline.check_float_target(target, file_format)
    return export_pipeline.export_float_graph(
        _open_source(source, options),
        target,
        config,
        options["batch"] or None,
        options["verify_images"],
        lambda dataset: cli.dataset_of(parsed, dataset, source),
        options["preprocessing"],
        options["crop"],
        file_format,
    )


def _open_source(path: Path, options: Mapping[str, Any]) -> Any:
    """Loads a model of any form, as a source for the conversion.

    Args:
        path: of the model, or the name of released weights.
        options: of the command.
    """
    from mobilenet.compression.quantization.int8 import saving as int8_saving
    from mobilenet.export.source import Source
    from mobilenet.loading import PACKED, detect_form, load_keras_model

    if detect_form(path) == PACKED:  # its ranges would be lost
        unpack = f"python -m mobilenet.packer unpack {path} FOLDER"
        raise UsageError("--model", str(path), "a model that is not packed", unpack)
    labels = options["labels"]
    loaded = load_keras_model(path, offline=options["offline"])
    source = Source(loaded, int8_saving.has_ranges(path), path)
    if options["license"] is not None:
        source = _with_card(source, license=options["license"])
    return source if labels is None else _named(source, class_names.read_names(labels))


def _with_names_of(data: DatasetConfig, source: Any, typed: Collection[str]) -> Any:
    """The source; the classes of a model without names get those of the data that was given."""
    if source.card.labels or source.card.outputs == "features" or "data_dir" not in typed:
        return source
    if data.name not in (FOLDER.name, LIST.name) or data.data_dir is None:
        return source
    names = class_names.find_names(data.data_dir)
    if len(names) != class_count(source.model.output_shape[-1]):
        return source
    log.info("the model's classes are named after those of %s", data.data_dir)
    return _named(source, names)


def _named(source: Any, names: Sequence[str]) -> Any:
    return _with_card(source, labels=checked_labels(names, source.model.output_shape[-1]))


def _with_card(source: Any, **changes: Any) -> Any:
    loaded = dataclasses.replace(source.loaded, card=source.card.replace(**changes))
    return dataclasses.replace(source, loaded=loaded)


def _check_method(method: str | None, number_format: str | None) -> None:
    """Refuses a method that is not post-training int8."""
    if method is None:
        return
    if method != "ptq":
        name = _FORMER_FORMATS.get(method, method)
        remedy = f"--number_format {name}" if name in number_formats.FORMATS else ""
        raise UsageError("--quantization", method, "ptq, the method of int8", remedy)
    if number_format not in (None, INT8):
        raise UsageError("--quantization", method, f"--number_format {INT8}", "leave it out")


def _check_calibration(parsed: cli.Parsed, number_format: str | None) -> None:
    """Refuses flags of calibration and of post-training int8 where the conversion has neither.

    Args:
        parsed: what was typed.
        number_format: the one that a float model is converted to; `None` leaves it as it is.
    """
    calibrated = number_format in number_formats.CALIBRATED
    users = {} if calibrated else {s.name: number_formats.CALIBRATED for s in cli.CALIBRATION}
    if number_format != INT8:
        users |= {spec.name: (INT8,) for spec in (*_POST_TRAINING, _METHOD, _FITTED)}
    for name, formats in users.items():
        if name in parsed.typed:
            value = parsed.options.get(name)
            required = f"a float model and --number_format {' or '.join(formats)}"
            raise UsageError(f"--{name}", value, required)


def _summary(export: Any) -> str:
    """The file's summary, and the layers that lose most of the signal."""
    summary = cli.table(["what", "value"], export.summary())
    lossy = export.file.noisiest_layers(_LOSSIEST)
    if not lossy:
        return summary
    headers = ["layers that lose most", "operator", "dB in", "dB out", "likeliest cause"]
    return f"{summary}\n\n{cli.table(headers, lossy)}"


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
