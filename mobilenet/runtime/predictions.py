"""The prediction for one image, and predictions as CSV and JSON lines."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from mobilenet import metrics
from mobilenet.configs.card import SIGMOID, activation_of
from mobilenet.configs.dataset import MAX_PIXELS
from mobilenet.errors import UsageError
from mobilenet.runtime.classifier import ImageClassifier, Ranking, rank_classes

_SEPARATOR = "|"  # of several labels in one cell of CSV, as a list of images has them


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier gives for one image.

    Attributes:
        path: of the image; the number of an image that is no file.
        ranking: the likeliest classes with their probabilities, best first.
        decided: of several labels an image, those with a probability above 0.5; `None` of a
            classifier of one class an image.
        label: the class of the image; of several labels those that it has; `None` where it is not
            known.
    """

    path: str
    ranking: Ranking
    decided: tuple[str, ...] | None = None
    label: str | tuple[str, ...] | None = None

    @property
    def prediction(self) -> str | tuple[str, ...]:
        """The likeliest class, or the labels that were decided for."""
        return self.ranking[0][0] if self.decided is None else self.decided

    def to_json(self) -> dict[str, Any]:
        """The fields of a JSON line; probabilities have six digits."""
        top = [{"label": name, "probability": round(share, 6)} for name, share in self.ranking]
        fields: dict[str, Any] = {"path": self.path}
        if self.label is not None:
            fields["label"] = self.label
        fields["prediction"] = self.prediction
        if self.decided is None:
            fields["probability"] = top[0]["probability"]
        return {**fields, "top": top}


def predict(
    model: ImageClassifier,
    path: str,
    k: int = 5,
    max_pixels: int = MAX_PIXELS,
    exif: bool | None = None,
) -> Prediction | UsageError:
    """The prediction for one image file, or why the file cannot be read.

    Args:
        model: any classifier.
        path: of the image.
        k: how many classes.
        max_pixels, exif: see `ImageClassifier.pixels`.

    Raises:
        UsageError: the model cannot be used.
    """
    try:
        pixels = model.pixels(path, max_pixels, exif)
    except UsageError as error:
        return error
    outputs, card = model.run(pixels), model.card
    ranking = rank_classes(outputs, model.labels, k, card.outputs, card.activation)
    if len(outputs) == 1 or activation_of(card.activation, len(outputs)) != SIGMOID:
        return Prediction(path, ranking)
    flags = metrics.decisions(outputs, SIGMOID, card.outputs != "probabilities")
    decided = (label for label, is_likely in zip(model.labels, flags, strict=True) if is_likely)
    return Prediction(path, ranking, tuple(decided))


def json_line(prediction: Prediction) -> str:
    """One line of JSON, without its end."""
    return json.dumps(prediction.to_json(), ensure_ascii=False, allow_nan=False)


def csv_header(prediction: Prediction) -> str:
    """The line of column names of a table that begins with this prediction.

    `path`, `label` where it is known, `prediction`, its `probability`, and the further classes
    `prediction_2`, `probability_2` and so on; of several labels an image also the likeliest one as
    `prediction_1`, as there may be any number of labels in `prediction`.
    """
    columns = ["path", *(["label"] if prediction.label is not None else []), "prediction"]
    for rank, _ in enumerate(prediction.ranking, start=1):
        is_first = rank == 1 and prediction.decided is None
        columns += ["probability"] if is_first else [f"prediction_{rank}", f"probability_{rank}"]
    return csv_row(columns)


def csv_line(prediction: Prediction) -> str:
    """One row of CSV, without its end: RFC 4180, several labels divided by `|`."""
    labels = [] if prediction.label is None else [_cell(prediction.label)]
    ranked = [cell for name, share in prediction.ranking for cell in (name, f"{share:.6f}")]
    if prediction.decided is None:
        return csv_row([prediction.path, *labels, *ranked])
    return csv_row([prediction.path, *labels, _cell(prediction.decided), *ranked])


def lines(predictions: Iterable[Prediction], kind: str) -> Iterator[str]:
    """The lines of a file of predictions.

    Args:
        predictions: all with labels, or all without.
        kind: `csv`, which begins with the names of the columns, or `jsonl`.
    """
    for number, prediction in enumerate(predictions):
        if kind == "csv" and not number:
            yield csv_header(prediction)
        yield csv_line(prediction) if kind == "csv" else json_line(prediction)


def _cell(labels: str | tuple[str, ...]) -> str:
    return labels if isinstance(labels, str) else _SEPARATOR.join(labels)


def csv_row(cells: Iterable[Any]) -> str:
    """Cells as a row of CSV without its end; they are written as they are, quoted where needed."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # both characters are then quoted
    return text.getvalue().removesuffix("\r\n")
