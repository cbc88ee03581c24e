"""The likeliest classes of images, by any saved model.

A `.tflite` file needs no TensorFlow and answers in under a second; Keras models load it when they
are met.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mobilenet import cli
from mobilenet.configs.base import number
from mobilenet.configs.dataset import MAX_PIXELS, MAX_PIXELS_HELP
from mobilenet.errors import UsageError
from mobilenet.runtime import classifier, images

COMMAND = cli.Command(
    "mobilenet.predict",
    "Names the likeliest classes of images.",
    extra=(
        cli.option(
            "model", Path, None, "a .tflite, .keras or .pb file, model folder or SavedModel"
        ),
        cli.option("top_k", int, 5, "classes an image"),
        cli.ISOLATED,
        cli.option("max_pixels", int, MAX_PIXELS, MAX_PIXELS_HELP),
    ),
    arguments="IMAGE...",
)

Ranking = list[tuple[str, float]]


class Net(Protocol):
    """Whatever can rank the classes of an image file."""

    def top_k(self, picture: str, k: int, max_pixels: int) -> Ranking: ...


class KerasClassifier:
    """A Keras model behind the same call as `mobilenet.runtime.Classifier`."""

    def __init__(self, path: str) -> None:
        with cli.starting_tensorflow():
            import tf_keras  # noqa: F401

            from mobilenet.loading import load_model
        model = load_model(path, quantizers=False)
        self.model, self.card = model.model, model.card

    def top_k(self, picture: str, k: int, max_pixels: int = MAX_PIXELS) -> Ranking:
        height, width, channels = self.card.input_shape
        pixels = images.preprocess(
            images.decode(picture, channels, max_pixels), self.card.preprocessing, (height, width)
        )
        outputs = self.model(
            images.normalise(pixels, self.card.preprocessing)[None], training=False
        ).numpy()[0]
        if outputs.ndim != 1 or self.card.outputs == "features":
            raise UsageError(
                "--model", list(outputs.shape), "a model that has classes, not features"
            )
        labels = self.card.labels or tuple(str(index) for index in range(len(outputs)))
        if len(labels) != len(outputs):
            raise UsageError(
                "--model", len(labels), f"{len(outputs)} labels in its card.json, one a class"
            )
        return classifier.rank(outputs, labels, k, self.card.outputs)


def open_model(path: str, isolated: bool = True) -> Net:
    """A `.tflite` file, or a folder that holds `model.tflite`, by the runtime; else by Keras.

    A frozen graph is a Keras model to its caller. `isolated` is of `Classifier`.
    """
    place = Path(path)
    if not place.exists():
        raise UsageError(
            "--model",
            path,
            "a .tflite file, model folder, .keras file or SavedModel; there is none",
        )
    if classifier.is_flatbuffer(place):
        return classifier.Classifier(place, isolated=isolated)
    return KerasClassifier(path)


def rank_images(
    model: Net, pictures: Sequence[str], top_k: int = 5, max_pixels: int = MAX_PIXELS
) -> list[tuple[str, Ranking]]:
    """Each image with its `(label, probability)` rows, best first; on a fault, none."""
    if isinstance(model, classifier.Classifier):
        rows = classifier.predict(pictures, model, top_k, max_pixels)
        return list(zip(pictures, rows, strict=True))
    return [(picture, model.top_k(picture, top_k, max_pixels)) for picture in pictures]


def run(argv: list[str]) -> None:
    """Prints a table an image.

    Raises:
        UsageError: a flag, the model or an image cannot be used; nothing is printed then.
    """
    parsed = COMMAND.parse(argv)
    pictures, top_k = parsed.arguments, parsed.options["top_k"]
    if not parsed.options["model"]:
        example = "--model runs/mobilenet_v1_digits/export"
        raise UsageError("--model", None, "a saved model", f"for instance {example}")
    if not pictures:
        raise UsageError("IMAGE", None, "at least one image file behind the flags")
    if top_k < 1:
        raise UsageError("--top_k", top_k, "a whole number of at least 1")
    number("--max_pixels", parsed.options["max_pixels"], least=1, integer=True)
    for picture in pictures:  # before a model is loaded, which may take seconds
        if not Path(picture).is_file():
            raise UsageError(picture, None, "an image file; there is none")
    model = open_model(parsed.options["model"], parsed.options["isolated"])
    if "isolated" in parsed.given and not isinstance(model, classifier.Classifier):
        raise UsageError("--isolated", None, "a flatbuffer", f"{parsed.options['model']} is none")
    results = rank_images(model, pictures, top_k, parsed.options["max_pixels"])
    if isinstance(model, classifier.Classifier) and model.is_bare:
        print(f"Note: {model.card.notes[0]}", file=sys.stderr)
    print("\n\n".join(_block(picture, rows) for picture, rows in results))


def _block(picture: str, rows: Ranking) -> str:
    cells = [(label, f"{100 * probability:.2f} %") for label, probability in rows]
    return f"{picture}\n{cli.table(('label', 'probability'), cells)}"


def main() -> None:
    """The console script `mobilenet-predict`."""
    cli.main(run)


if __name__ == "__main__":
    main()
