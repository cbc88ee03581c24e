"""What a finished stage reached, as an object and as an entry of `report.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mobilenet import text_tables
from mobilenet.configs.card import StageFigures
from mobilenet.configs.run import Part

_LARGEST = 2**53  # larger values are damage: float64 is exact up to here
_SCORES = ("top1", "top5")
_FIGURES = (
    *("loss", "auc", "f1", "params", "macs", "nonzero_weights"),
    *("bytes", "gzip_bytes", "latency_ms", "minutes"),
)
MASK_CHANGES = "mask_changes"  # the key in the report of a method and in the file
_MASK_CHANGES_0_1 = "flips"  # the key in files of version 0.1
_COLUMNS = 3  # step, weights removed, weights regrown


@dataclasses.dataclass(frozen=True)
class StageReport:
    """The figures of a finished stage, or of one round of it.

    Attributes:
        part: which one.
        top1, top5: of the test images, in percent.
        loss: cross-entropy of the test images.
        auc, f1: of a sigmoid, the means over its labels.
        params, macs, nonzero_weights: of the model; MACs of one image.
        bytes, gzip_bytes: of its flatbuffer.
        latency_ms: of one image on one thread, in milliseconds.
        minutes: that the stage took.
        history: one row of figures an epoch.
        mask_changes: of dynamic network surgery, one row a refresh of the masks: first step,
            weights removed, weights regrown.
        details: further JSON values by name, as the method or the conversion reports them.
    """

    part: Part
    top1: float
    top5: float
    loss: float | None = None
    auc: float | None = None
    f1: float | None = None
    params: int | None = None
    macs: int | None = None
    nonzero_weights: int | None = None
    bytes: int | None = None
    gzip_bytes: int | None = None
    latency_ms: float | None = None
    minutes: float | None = None
    history: tuple[Mapping[str, float], ...] = ()
    mask_changes: tuple[tuple[int, ...], ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def accuracy(self) -> str:
        """Top-1 in words; accuracy and AUC of a sigmoid."""
        if self.f1 is None:
            return f"top-1 {self.top1:.2f} %"
        auc = "" if self.auc is None else f", AUC {self.auc:.4f}"
        return f"accuracy {self.top1:.2f} %{auc}"

    @property
    def known(self) -> dict[str, float]:
        """The figures that are known, by name."""
        values = {name: getattr(self, name) for name in (*_SCORES, *_FIGURES)}
        return {name: value for name, value in values.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The entry of `report.json`; figures that are not known are left out."""
        values: dict[str, Any] = {**self.known, **self.details}
        if self.mask_changes:
            values[MASK_CHANGES] = [list(row) for row in self.mask_changes]
        if self.part.stage != "convert":
            values["history"] = [dict(row) for row in self.history]
        return {
            "stage": self.part.name,
            **{name: value for name, value in values.items() if value is not None},
        }

    def figures(self, images: int) -> StageFigures:
        """The figures for the card of its model.

        Args:
            images: test images that they were measured on.
        """
        scores = {k: v for k, v in self.known.items() if k in (*_SCORES, "loss", "auc", "f1")}
        counts = (self.params, self.macs, self.nonzero_weights, self.bytes)
        return StageFigures(self.part.name, scores, images, *counts)

    @classmethod
    def from_json(cls, entry: Any) -> StageReport:
        """Reads an entry of `report.json`.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(entry, dict):
            raise ValueError("a stage is an object")
        values = dict(entry)
        part = Part.parse(str(values.pop("stage", "")))
        figures = {name: _number(values.pop(name, None)) for name in _SCORES}
        figures |= {name: _number(values.pop(name)) for name in _FIGURES if name in values}
        history = _rows(values.pop("history", []), dict)
        changes = [
            _mask_changes(values.pop(k)) for k in (_MASK_CHANGES_0_1, MASK_CHANGES) if k in values
        ]
        changed = changes[-1] if changes else ()
        return cls(part, **figures, history=history, mask_changes=changed, details=values)


@dataclasses.dataclass(frozen=True)
class RunReport:
    """The reports of a run's finished stages; `str()` shows them as a table.

    `report["train"]` is the report of a stage; a loop goes over all, in the order in which they
    ran.

    Attributes:
        stages: rounds of a stage are among them.
    """

    stages: tuple[StageReport, ...]

    def __getitem__(self, stage: str) -> StageReport:
        for report in self.stages:
            if report.part.name == stage:
                return report
        raise KeyError(f"{stage}: finished are {', '.join(str(r.part) for r in self.stages)}")

    def __iter__(self) -> Iterator[StageReport]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def table(self) -> tuple[list[str], list[list[str | None]]]:
        """Headers and rows; with columns of the changes of masks if there were some."""
        rows = [_cells(report) for report in self.stages]
        headers = list(_HEADERS)
        if any(report.f1 is not None for report in self.stages):
            headers[1:3] = "accuracy %", "AUC"
        if not any(report.mask_changes for report in self.stages):
            return headers, rows
        for row, report in zip(rows, self.stages, strict=True):
            sums = [sum(column) for column in zip(*report.mask_changes, strict=True)]
            row += [f"{count:,}" for count in sums[1:]] or [None, None]
        return [*headers, "removed", "regrown"], rows

    def __str__(self) -> str:
        return text_tables.table(*self.table())


_HEADERS = (
    "stage",
    "top-1 %",
    "top-5 %",
    "params",
    "MACs",
    "non-zero",
    "bytes",
    "gzip",
    "ms (1 thread)",
)


def _cells(report: StageReport) -> list[str | None]:
    counts = (
        *(report.params, report.macs, report.nonzero_weights),
        *(report.bytes, report.gzip_bytes),
    )
    return [
        report.part.name,
        f"{report.top1:.2f}",
        f"{report.top5:.2f}" if report.f1 is None else _share(report.auc),
        *(None if count is None else f"{count:,}" for count in counts),
        None if report.latency_ms is None else text_tables.milliseconds(report.latency_ms),
    ]


def finished_before(report: StageReport) -> str:
    """The line that a run prints for a stage which it need not run again."""
    return f"{report.part}: finished before, {report.accuracy}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _mask_changes(value: Any) -> tuple[tuple[int, ...], ...]:
    rows = _rows(value, list)
    if not rows or any(len(row) != _COLUMNS for row in rows):
        raise ValueError(f"rows of {_COLUMNS} values")
    return tuple(tuple(map(_number, row)) for row in rows)


def _rows(value: Any, kind: type) -> tuple[Any, ...]:
    if not isinstance(value, list) or not all(isinstance(row, kind) for row in value):
        raise ValueError(f"a list of {kind.__name__}")
    return tuple(value)


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
        raise ValueError("a number")
    return value
