"""The results of a sweep as files: for programs, and as a page of the best runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mobilenet import files
from mobilenet.errors import UsageError
from mobilenet.reporting import page
from mobilenet.reporting.sections import Code, Note, Section, Table
from mobilenet.sweeps import record, results
from mobilenet.sweeps.results import FINISHED, SweepResult
from mobilenet.training import stage_data

_MOST_RUNS = 8  # in curves and tables of configs


def sweep_of(folders: Sequence[object], output: object = None) -> SweepResult | None:
    """The sweep whose folder is the only one; `None` where it is none.

    Raises:
        UsageError: its record is damaged, or its page is to be elsewhere.
    """
    if len(folders) != 1 or not isinstance(folders[0], (str, os.PathLike)):
        return None
    folder = Path(folders[0])
    if files.is_remote(str(folders[0])) or not record.is_sweep(folder):
        return None
    if output is not None:
        raise UsageError("output", str(output), "none for a sweep, whose page is in its folder")
    return results.collect(folder, record.read(folder))


def write(result: SweepResult) -> Path | None:
    """Writes `results.json`, `results.csv` and `report.html`.

    Returns:
        The path of the page; `None` if no run is finished, or if the page cannot be written, which
        is a line of the log.
    """
    result.save()
    best = [next((r for r in t.runs if r.state == FINISHED), None) for t in result.trials]
    folders = [run.folder for run in best if run is not None][:_MOST_RUNS]
    if not folders:
        return None
    written: list[Path] = []
    with stage_data.optional("the page"):
        written.append(page.write_comparison(folders, result.folder, [_section(result, folders)]))
    return written[0] if written else None


def _section(result: SweepResult, folders: list[Path]) -> Section:
    headers, rows = result.table()
    cells = tuple(tuple("–" if cell is None else cell for cell in row) for row in rows)
    names = 1 + len(result.config.parameters)
    metric = result.config.metric
    goal = "highest" if metric.is_maximized else "lowest"
    title = f"The mean of {metric.name} over n seeds, the {goal} first; std of n - 1"
    blocks: list[Table | Code | Note] = [Table(tuple(headers), cells, title, names=names)]
    if result.best is not None:
        blocks.append(Code(result.command_of(result.best), "The best setting"))
    if result.failed:
        lines = "\n".join(f"{run.run.name}: {run.error}" for run in result.failed)
        blocks.append(Code(lines, "Failed runs", is_folded=len(result.failed) > _MOST_RUNS))
    if len(result.runs) > len(folders):
        blocks.append(Note(f"Below: a run of each of the {len(folders)} best settings."))
    return Section("sweep", "Settings", tuple(blocks))
