"""`python -m mobilenet.profiler`: a model by layer, a file by operator, or a file compared with its
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet import api, cli, files
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.errors import UsageError
from mobilenet.runtime import classifier, isolation
from mobilenet.tflite import model as tflite_model

if TYPE_CHECKING:
    from mobilenet.reporting import model_explorer

_COMPARED = "a flatbuffer and --against"
_USES = {  # what some flags require
    **dict.fromkeys(
        ("images", "worst", "dataset_name", "data_dir", *(s.name for s in cli.PREPROCESSING)),
        _COMPARED,
    ),
    **dict.fromkeys(("image_size", "packed", "groups", "histograms"), "a model"),
    "latency": "a model, or a flatbuffer alone",
    "micro": "a flatbuffer alone",
    **dict.fromkeys(("isolated", "overlay"), f"a flatbuffer alone, or {_COMPARED}"),
}
COMMAND = cli.Command(
    "mobilenet.profiler",
    "Parameters, cost and size of each layer; or where an int8 file loses the signal.",
    [spec for spec in cli.flag_specs(DatasetConfig) if spec.path in ("name", "data_dir", "exif")],
    (
        cli.option(
            "latency", bool, True, "measure every layer and the whole model on this machine"
        ),
        cli.option("packed", bool, True, "pack and convert the model to show its sizes"),
        cli.option(
            "groups", bool, False, "list the groups of channels that must be pruned together"
        ),
        cli.option(
            "histograms", Path, None, "a folder for histograms of the weights; lists zeros as well"
        ),
        cli.option("micro", bool, False, "what a microcontroller needs to run a FILE.tflite"),
        cli.option(
            "overlay",
            Path,
            None,
            "a folder for overlays of a FILE.tflite in Model Explorer: sparsity, and with "
            "--against the quantization noise",
        ),
        cli.ISOLATED,
        cli.IMAGE_SIZE,
        cli.option(
            "against",
            Path,
            None,
            "the float model of a FILE.tflite: where the file loses its signal, and the remedy",
            group="model",
        ),
        cli.option(
            "images", int, 16, "held-out images that both are run on", least=1, integer=True
        ),
        cli.option(
            "worst",
            int,
            None,
            "maximum number of lines, those of the lowest signal-to-noise ratio",
            least=1,
            integer=True,
        ),
        *cli.PREPROCESSING,
    ),
    arguments="MODEL",
)


@COMMAND.entry_point
def run(argv: list[str]) -> int | None:
    parsed = COMMAND.parse(argv)
    options = parsed.options
    if len(parsed.arguments) != 1:
        expected = "one model (model folder, .keras, .h5, SavedModel), flatbuffer or export folder"
        raise UsageError("MODEL", parsed.arguments or None, expected)
    path = Path(parsed.arguments[0])
    is_file = classifier.is_flatbuffer(path)
    compared = options["against"] is not None
    if compared and not is_file:
        expected = "a flatbuffer to compare with it"
        raise UsageError(f"{path} --against {options['against']}", None, expected)
    kind = _COMPARED if compared else "a flatbuffer alone" if is_file else "a model"
    for name, users in _USES.items():
        if name in parsed.typed and kind not in users:
            raise UsageError(f"--{name}", parsed.options.get(name), users, f"here is {kind}")
    (_compare if compared else _profile_file if is_file else _profile_model)(path, parsed)
    return None


def _profile_model(path: Path, parsed: cli.Parsed) -> None:
    options = parsed.options
    with cli.starting_tensorflow():
        from mobilenet.loading import load_keras_model
        from mobilenet.reporting import model_profile, plots, tables
    if options["histograms"] is not None:
        plots.check_folder("histograms", options["histograms"])
    loaded = load_keras_model(path)
    profile = api.profile(
        loaded,
        latency=options["latency"],
        packed=options["packed"],
        image_size=options["image_size"],
    )
    assert isinstance(profile, model_profile.ModelProfile)
    print(profile)
    if options["groups"]:
        print("", *profile.groups, sep="\n")
    if options["histograms"] is not None:
        drawn = plots.histograms(loaded.model, options["histograms"])
        print(f"\n{cli.table(*tables.of_zeros(profile.zeros))}")
        print(f"\n{len(drawn)} histograms in {options['histograms']}")


def _profile_file(path: Path, parsed: cli.Parsed) -> None:
    options = parsed.options
    _check_overlay(options)
    print(
        api.profile(
            path,
            latency=options["latency"],
            micro=options["micro"],
            isolated=options["isolated"],
        )
    )
    if options["overlay"] is not None:
        from mobilenet.reporting import model_explorer

        content = tflite_model.read(classifier.resolve_flatbuffer(path))
        _write_overlays([model_explorer.sparsity(content)], options["overlay"])


def _check_overlay(options: Mapping[str, Any]) -> None:
    if options["overlay"] is not None:
        files.check_target(options["overlay"], "overlay")


def _write_overlays(overlays: Sequence[model_explorer.Overlay], folder: Path) -> None:
    from mobilenet.reporting import model_explorer

    written = model_explorer.write(overlays, folder)
    print("", *(f"overlay for Model Explorer: {path}" for path in written), sep="\n")


def _compare(path: Path, parsed: cli.Parsed) -> None:
    options = parsed.options
    _check_overlay(options)
    file = classifier.Classifier(path, isolated=options["isolated"])
    with cli.starting_tensorflow():
        from mobilenet.export import freeze
        from mobilenet.loading import load_keras_model
        from mobilenet.reporting import int8_comparison, model_explorer, tables
    model = load_keras_model(options["against"])
    int8_comparison.warn_of_another(file.card, model.card, options["against"])
    images = _images(parsed, model.card, file.card)
    runner = isolation.open_interpreter(
        file.flatbuffer, options["isolated"], str(path), keep_tensors=True
    )
    lines = int8_comparison.compare(
        file.flatbuffer, freeze.float32_copy(model.model), *images, runner
    )
    shown = lines
    if options["worst"] is not None:
        shown = sorted(lines, key=lambda line: line.accumulated or 0.0)[: options["worst"]]
    print(cli.table(*tables.of_comparison(shown)))
    if options["overlay"] is not None:
        overlays = [model_explorer.noise(lines), model_explorer.sparsity(file.flatbuffer)]
        _write_overlays(overlays, options["overlay"])


def _images(parsed: cli.Parsed, card: Any, file_card: Any) -> tuple[Any, Any]:
    """Held-out images as the float model takes them, and as the file does."""
    import numpy as np

    from mobilenet.data import arrays
    from mobilenet.models import input_preprocessing
    from mobilenet.runtime import images as pixels

    data = cli.dataset_of(parsed, card.dataset, parsed.options["against"])
    options, usual = parsed.options, data.model_preprocessing
    given = options["preprocessing"], options["crop"]
    name = str(options["against"])
    preprocessing = input_preprocessing.complete_card(card, name, *given, usual).preprocessing
    images = arrays.load_images(
        data, "test", card.input_shape, preprocessing, parsed.options["images"]
    )
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    return images, pixels.normalize(images * std + mean, file_card.preprocessing)


def main() -> None:
    cli.main(run)


if __name__ == "__main__":
    main()
