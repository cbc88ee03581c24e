"""The sections of a report of several runs: a table, overlaid curves, differences of configs."""

from __future__ import annotations

from collections.abc import Sequence

from mobilenet.reporting import charts, recorded_run, run_sections
from mobilenet.reporting.charts import Curve
from mobilenet.reporting.recorded_run import RecordedRun
from mobilenet.reporting.sections import Section, Table, pictures, section

_NONE = "–"
_CURVES = (
    ("loss", "val_loss", "Validation loss", "", 1.0, None),
    ("top1", "val_top1", "Validation top-1", "%", 1.0, None),
    ("learning_rate", "lr", "Learning rate", "", 1.0, 0.0),
    ("sparsity", "sparsity", "Sparsity", "%", 100.0, 0.0),
)


def all_sections(runs: Sequence[RecordedRun]) -> list[Section | None]:
    """All of them."""
    return [
        _table(runs),
        _curves(runs),
        run_sections.cost_section([(run, charts.series_color(n)) for n, run in enumerate(runs)]),
        _differences(runs),
    ]


def _table(runs: Sequence[RecordedRun]) -> Section | None:
    headers = (
        "run",
        "stage",
        "top-1 %",
        "top-5 %",
        "loss",
        "params",
        "MACs",
        "bytes",
        "gzip",
        "ms",
    )
    rows = []
    for run in runs:
        last = run.last
        if last is None:
            rows.append((run.name, "none finished", *[_NONE] * (len(headers) - 2)))
            continue
        counts = (last.params, last.macs, last.bytes, last.gzip_bytes)
        rows.append(
            (
                *(run.name, last.part.name, f"{last.top1:.2f}", f"{last.top5:.2f}"),
                _NONE if last.loss is None else f"{last.loss:.4f}",
                *(_NONE if count is None else f"{count:,}" for count in counts),
                _NONE if last.latency_ms is None else f"{last.latency_ms:.3f}",
            )
        )
    title = "The last finished stage of each run; latency of one image on one thread"
    return section("runs", "Runs", [Table(headers, tuple(rows), title)])


def _curves(runs: Sequence[RecordedRun]) -> Section | None:
    drawn = [
        charts.curves(
            *(name, title, unit),
            [
                Curve(
                    run.name,
                    charts.points(run.histories.values(), figure, scale),
                    charts.series_color(number),
                )
                for number, run in enumerate(runs)
            ],
            least=least,
        )
        for name, figure, title, unit, scale, least in _CURVES
    ]
    return section("curves", "Learning curves", [pictures(drawn)])


def _differences(runs: Sequence[RecordedRun]) -> Section | None:
    differing = recorded_run.differences([run.config for run in runs])
    rows = tuple((difference.field, *difference.values) for difference in differing)
    headers = ("field", *(run.name for run in runs))
    return section("config", "Differences of configs", [Table(headers, rows)] if rows else [])
