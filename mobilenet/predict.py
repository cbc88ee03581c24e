"""`python -m mobilenet.predict`: the likeliest classes of images, by any saved model.

A `.tflite` file needs no TensorFlow and takes less than a second; it is loaded for Keras models
alone.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mobilenet import cli, console
from mobilenet.configs.card import activation_of
from mobilenet.configs.dataset import EXIF_HELP, MAX_PIXELS, MAX_PIXELS_HELP
from mobilenet.data.sources import class_names, image_paths
from mobilenet.errors import UsageError
from mobilenet.models import input_preprocessing
from mobilenet.runtime import classifier, predictions
from mobilenet.runtime.classifier import ImageClassifier
from mobilenet.runtime.predictions import Prediction

FORMATS = ("table", "csv", "jsonl")

COMMAND = cli.Command(
    "mobilenet.predict",
    "Prints the likeliest classes of images.",
    extra=(
        cli.option(
            "model",
            Path,
            None,
            "a .tflite, .keras or .pb file, model folder or SavedModel",
            on_storage=True,
        ),
        cli.LABELS,
        cli.option(
            "data_dir",
            Path,
            None,
            "class folders or a list of images whose classes the model has; names them",
            group="model",
        ),
        cli.option("top_k", int, 5, "classes per image", least=1, integer=True),
        cli.option(
            "format",
            str,
            "table",
            "what is printed of each image: a table, a row of CSV or a line of JSON (jsonl)",
            choices=FORMATS,
        ),
        cli.ISOLATED,
        *cli.PREPROCESSING,
        cli.option("max_pixels", int, MAX_PIXELS, MAX_PIXELS_HELP, least=1, integer=True),
        cli.option("exif", bool | None, None, EXIF_HELP),
    ),
    arguments="IMAGE|FOLDER|PATTERN|-...",
)


def open_classifier(
    path: str,
    isolated: bool = True,
    preprocessing: input_preprocessing.Choice = None,
    crop: input_preprocessing.Crop = None,
) -> ImageClassifier:
    """Opens a saved model: a `.tflite` file by the runtime, any other by Keras.

    Args:
        path: a `.tflite` file or a folder that holds `model.tflite`; or what `load_model` reads.
        isolated: a `.tflite` file runs in a process of its own, see `Classifier`.
        preprocessing, crop: instead of the model's own, see `input_preprocessing.complete_card`.
    """
    if not Path(path).exists():
        raise UsageError(
            "--model",
            path,
            "a .tflite file, model folder, .keras file or SavedModel; there is none",
        )
    if classifier.is_flatbuffer(path):
        file = classifier.Classifier(path, isolated=isolated)
        card = input_preprocessing.with_file_preprocessing(file.card, preprocessing, crop)
        if card is file.card and file.is_bare:  # with what else is assumed of such a file
            print(f"Note: {card.notes[0]}", file=sys.stderr)
            return file
        usual = card.preprocessing
        return file.with_card(input_preprocessing.complete_card(card, path, usual=usual))
    with cli.starting_tensorflow():
        from mobilenet.evaluation.keras_classifier import KerasClassifier
        from mobilenet.loading import load_model
    loaded = load_model(path, quantizers=False)
    card = input_preprocessing.complete_card(loaded.card, path, preprocessing, crop)
    return KerasClassifier(dataclasses.replace(loaded, card=card))


def predict_images(
    model: ImageClassifier,
    images: Iterable[str],
    top_k: int = 5,
    max_pixels: int = MAX_PIXELS,
    exif: bool | None = None,
) -> Iterator[Prediction | UsageError]:
    """The prediction for each image, or why it cannot be read; in their order, as they are read."""

    def one(image: str) -> Prediction | UsageError:
        return predictions.predict(model, image, top_k, max_pixels, exif)

    if isinstance(model, classifier.Classifier):
        return model.map(one, images)
    return map(one, images)


@COMMAND.entry_point
def run(argv: list[str]) -> int:
    """Prints a table, a row of CSV or a line of JSON per image.

    An image that cannot be read is a line on stderr; the others go on.

    Returns:
        The exit status: that of a `UsageError` if an image could not be read.

    Raises:
        UsageError: a flag or the model cannot be used, or an argument stands for no image; nothing
            is printed then.
    """
    parsed = COMMAND.parse(argv)
    options = parsed.options
    if not options["model"]:
        example = "--model runs/mobilenet_v1_digits/export"
        raise UsageError("--model", None, "a saved model", f"for instance {example}")
    if not parsed.arguments:
        expected = "image files, folders or patterns after the flags, or - for paths on stdin"
        raise UsageError("IMAGE", None, expected)
    images = image_paths.expand(parsed.arguments)  # before a model is loaded, which takes seconds
    model = open_classifier(
        str(cli.local_model(options["model"])),
        options["isolated"],
        options["preprocessing"],
        options["crop"],
    )
    if "isolated" in parsed.typed and not isinstance(model, classifier.Classifier):
        raise UsageError("--isolated", None, "a flatbuffer", f"{options['model']} is none")
    _explain_outputs(model)
    _name_classes(model, options["labels"], options["data_dir"])
    results = predict_images(
        model, _with_stdin(images), options["top_k"], options["max_pixels"], options["exif"]
    )
    failed: list[UsageError] = []
    for text in _texts(_readable(results, failed), options["format"]):
        print(text, flush=True)
    return UsageError.status if failed else 0


def _with_stdin(images: Iterable[str]) -> Iterator[str]:
    for image in images:
        yield from image_paths.from_stdin() if image == image_paths.STDIN else [image]


def _readable(
    results: Iterable[Prediction | UsageError], failed: list[UsageError]
) -> Iterator[Prediction]:
    """The predictions; errors are printed as they come, and added to `failed`."""
    for result in results:
        if isinstance(result, UsageError):
            console.print_error(str(COMMAND.naming_flags(result)))
            failed.append(result)
        else:
            yield result


def _texts(results: Iterable[Prediction], kind: str) -> Iterator[str]:
    """What is printed of each prediction, without the end of its last line."""
    if kind != "table":
        yield from predictions.lines(results, kind)
        return
    for number, result in enumerate(results):
        cells = [(label, f"{100 * probability:.2f} %") for label, probability in result.ranking]
        blank = "\n" if number else ""
        yield f"{blank}{result.path}\n{cli.table(('label', 'probability'), cells)}"


def _name_classes(model: ImageClassifier, labels: Path | None, data_dir: Path | None) -> None:
    """Gives the classes the names of a file or of the data; says where they have numbers alone.

    Raises:
        UsageError: the names are not as many as the classes.
    """
    if labels is not None and data_dir is not None:
        raise UsageError("--data_dir", str(data_dir), "nothing, as --labels names the classes")
    if labels is not None:
        model.name_classes(class_names.read_names(labels))
    elif data_dir is not None:
        names = class_names.find_names(data_dir)
        try:
            model.name_classes(names)
        except UsageError as error:
            raise UsageError("--data_dir", f"{len(names)} classes", error.expected) from None
    elif not (model.is_named or getattr(model, "is_bare", False)):  # whose note says it
        note = "Note: the model's classes have numbers; --labels FILE or --data_dir names them"
        print(note, file=sys.stderr)


def _explain_outputs(model: ImageClassifier) -> None:
    """Says what is assumed where nothing says how logits become probabilities."""
    card = model.card
    is_known = card.activation or card.outputs != "logits" or not card.is_derived
    if not (is_known or getattr(model, "is_bare", False)):  # whose note says it
        kind = activation_of(card.activation, model.output_count)
        print(f"Note: the model's outputs are taken for the logits of a {kind}", file=sys.stderr)


def main() -> None:
    """The console script `mobilenet-predict`."""
    cli.main(run)


if __name__ == "__main__":
    main()
