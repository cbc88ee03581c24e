"""`python -m mobilenet.predict`: the likeliest classes of images, by any saved model.

A `.tflite` file needs no TensorFlow and takes less than a second; it is loaded for Keras models
alone.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from mobilenet import cli
from mobilenet.configs.card import activation_of
from mobilenet.configs.dataset import EXIF_HELP, MAX_PIXELS, MAX_PIXELS_HELP
from mobilenet.data.sources import class_names
from mobilenet.errors import UsageError
from mobilenet.models import input_preprocessing
from mobilenet.runtime import classifier
from mobilenet.runtime.classifier import ImageClassifier, Ranking

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
        cli.ISOLATED,
        *cli.PREPROCESSING,
        cli.option("max_pixels", int, MAX_PIXELS, MAX_PIXELS_HELP, least=1, integer=True),
        cli.option("exif", bool | None, None, EXIF_HELP),
    ),
    arguments="IMAGE...",
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


def rank_images(
    model: ImageClassifier,
    images: Sequence[str],
    top_k: int = 5,
    max_pixels: int = MAX_PIXELS,
    exif: bool | None = None,
) -> list[tuple[str, Ranking]]:
    """Each image with its `(label, probability)` rows, best first; an error leaves none."""
    if isinstance(model, classifier.Classifier):
        rows = classifier.predict(images, model, top_k, max_pixels, exif)
        return list(zip(images, rows, strict=True))
    return [(image, model.top_k(image, top_k, max_pixels, exif)) for image in images]


@COMMAND.entry_point
def run(argv: list[str]) -> None:
    """Prints a table per image.

    Raises:
        UsageError: a flag, the model or an image cannot be used; nothing is printed then.
    """
    parsed = COMMAND.parse(argv)
    images, top_k = parsed.arguments, parsed.options["top_k"]
    if not parsed.options["model"]:
        example = "--model runs/mobilenet_v1_digits/export"
        raise UsageError("--model", None, "a saved model", f"for instance {example}")
    if not images:
        raise UsageError("IMAGE", None, "at least one image file after the flags")
    for image in images:  # before a model is loaded, which may take seconds
        if not Path(image).is_file():
            raise UsageError(image, None, "an image file; there is none")
    options = parsed.options
    model = open_classifier(
        str(cli.local_model(options["model"])),
        options["isolated"],
        options["preprocessing"],
        options["crop"],
    )
    if "isolated" in parsed.typed and not isinstance(model, classifier.Classifier):
        raise UsageError("--isolated", None, "a flatbuffer", f"{parsed.options['model']} is none")
    options = parsed.options
    _explain_outputs(model)
    _name_classes(model, options["labels"], options["data_dir"])
    results = rank_images(model, images, top_k, options["max_pixels"], options["exif"])
    print("\n\n".join(_format_ranking(image, rows) for image, rows in results))


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


def _format_ranking(image: str, rows: Ranking) -> str:
    cells = [(label, f"{100 * probability:.2f} %") for label, probability in rows]
    return f"{image}\n{cli.table(('label', 'probability'), cells)}"


def main() -> None:
    """The console script `mobilenet-predict`."""
    cli.main(run)


if __name__ == "__main__":
    main()
