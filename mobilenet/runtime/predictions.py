"""Predictions of single images as CSV and as JSON lines."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from mobilenet.runtime.classifier import Ranking

FORMATS = ("table", "csv", "jsonl")
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
    return _csv_line(columns)


def csv_line(prediction: Prediction) -> str:
    """One row of CSV, without its end: RFC 4180, several labels divided by `|`."""
    labels = [] if prediction.label is None else [_cell(prediction.label)]
    ranked = [cell for name, share in prediction.ranking for cell in (name, f"{share:.6f}")]
    if prediction.decided is None:
        return _csv_line([prediction.path, *labels, *ranked])
    return _csv_line([prediction.path, *labels, _cell(prediction.decided), *ranked])


def csv_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """The lines of a CSV file, that of the column names first."""
    for number, prediction in enumerate(predictions):
        if not number:
            yield csv_header(prediction)
        yield csv_line(prediction)


def _cell(labels: str | tuple[str, ...]) -> str:
    return labels if isinstance(labels, str) else _SEPARATOR.join(labels)


def _csv_line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # both characters are then quoted
    return text.getvalue().removesuffix("\r\n")
