"""An evaluation as files: CSV, JSON and a picture."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet import files
from mobilenet.evaluation import confusion
from mobilenet.runtime import predictions

if TYPE_CHECKING:
    from mobilenet.evaluation.result import Evaluation

MARKER = "evaluation.json"
REPLACES = (MARKER, "an evaluation")
MOST_CLASSES = 2000  # of a matrix in one file, which has their square of cells
_FIGURES = (
    *("model", "data", "split", "images", "top1", "top5", "loss", "auc", "f1", "macro_f1"),
    *("balanced_accuracy", "calibration_error", "seconds", "startup_seconds", "images_per_second"),
)

log = logging.getLogger("mobilenet")


def save(found: Evaluation, folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """Writes an evaluation, see `Evaluation.save`."""
    files.check_target(folder, "folder", replaces=REPLACES, overwrite=overwrite)
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        _write_summary(found, temporary / MARKER)
        _write_dataclasses(temporary / "per_class.csv", found.per_class, confusion.ClassFigures)
        _write_confusion(found, temporary)
        bins = found.calibration.bins
        _write_dataclasses(temporary / "calibration.csv", bins, type(bins[0]))
        for kind in ("csv", "jsonl"):
            lines = predictions.lines(found.predictions, kind)
            _write_lines(temporary / f"predictions.{kind}", lines)
    return Path(folder)


def _write_summary(found: Evaluation, path: Path) -> None:
    values = {name: getattr(found, name) for name in _FIGURES}
    shown = {name: value for name, value in values.items() if value is not None}
    shown |= {"classes": len(found.class_names), "notes": found.notes}
    text = json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False)
    _write_lines(path, [text])


def _write_confusion(found: Evaluation, folder: Path) -> None:
    names = found.class_names
    if found.predictions.has_several_labels:
        columns = ["true_negatives", "false_positives", "false_negatives", "true_positives"]
        counts = found.confusion.reshape(len(names), 4).tolist()
        rows = [[name, *own] for name, own in zip(names, counts, strict=True)]
        _write_csv(folder / "confusion.csv", ["label", *columns], rows)
        return
    _write_dataclasses(folder / "confusions.csv", found.confusions, confusion.Confusion)
    if len(names) > MOST_CLASSES:
        line = "confusion.csv and confusion.png are left out for %s classes: confusions.csv has all"
        log.info(line, f"{len(names):,}")
        return
    rows = [[name, *own] for name, own in zip(names, found.confusion.tolist(), strict=True)]
    _write_csv(folder / "confusion.csv", ["class", *names], rows)
    try:
        confusion.draw(found.confusion, names, folder / "confusion.png")
    except ModuleNotFoundError as error:  # on a device that only runs files
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        log.info("confusion.png is left out: matplotlib is not installed")


def _write_dataclasses(path: Path, rows: Iterable[Any], kind: type) -> None:
    """Rows of one dataclass; a column that has no value in any row is left out."""
    names = [field.name for field in dataclasses.fields(kind)]
    cells = [[getattr(row, name) for name in names] for row in rows]
    filled = [
        index
        for index in range(len(names))
        if not cells or any(row[index] is not None for row in cells)
    ]
    columns = [names[index] for index in filled]
    _write_csv(path, columns, ([_cell(row[index]) for index in filled] for row in cells))


def _cell(value: Any) -> Any:
    """Numbers have six digits after the point; what is not known is an empty cell."""
    return round(value, 6) if isinstance(value, float) else value


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    _write_lines(path, map(predictions.csv_row, itertools.chain([header], rows)))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    # The name of a file may have bytes that are no UTF-8.
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        stream.writelines(f"{line}\n" for line in lines)
