"""The report of a run as one HTML file that needs no network, and its pictures as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from mobilenet import files
from mobilenet.errors import UsageError
from mobilenet.reporting import comparison_sections, recorded_run, run_sections
from mobilenet.reporting.recorded_run import RecordedRun
from mobilenet.reporting.sections import Figure, Section
from mobilenet.training import stage_data, workers
from mobilenet.training.training_run import TrainingRun

PAGE, PLOTS = "report.html", "plots"
COMPARISON = "comparison"  # folder of a report of several runs
MOST_RUNS = 50


def write(
    runs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None
) -> Path:
    """Writes `report.html` and `plots/`.

    Args:
        runs: folders of runs, finished or not; of several the page compares them.
        output: the folder of both; that of the run, or `comparison` for several, when left out.

    Returns:
        The path of the page.

    Raises:
        UsageError: a folder is no run or a file of it is damaged, or the page cannot be written.
    """
    unique = list(dict.fromkeys(os.fspath(run) for run in runs))
    if not 0 < len(unique) <= MOST_RUNS:
        raise UsageError("runs", f"{len(unique)} folders", f"1 to {MOST_RUNS} folders of runs")
    opened = [recorded_run.read(run) for run in unique]
    return _write(opened, Path(output or (unique[0] if len(unique) == 1 else COMPARISON)))


def write_comparison(
    runs: Sequence[str | os.PathLike[str]], folder: Path, first: Sequence[Section]
) -> Path:
    """Writes the page that compares runs, also of one, in a folder that is named as they are.

    Args:
        runs: folders of runs.
        folder: of the page.
        first: sections before those of the comparison.

    Raises:
        UsageError: as `write`.
    """
    opened = [recorded_run.read(run) for run in runs]
    return _write_sections(opened, folder, [*first, *_of_several(opened)], folder.resolve().name)


def _write(opened: Sequence[RecordedRun], folder: Path) -> Path:
    sections = _of_run(opened[0]) if len(opened) == 1 else _of_several(opened)
    return _write_sections(opened, folder, sections)


def _write_sections(
    opened: Sequence[RecordedRun], folder: Path, sections: Sequence[Section], title: str = ""
) -> Path:
    for section in sections:
        for picture in section.pictures:
            files.write_text(folder / PLOTS / f"{picture.name}.svg", picture.svg)
    files.write_text(folder / PAGE, _render(opened, sections, title))
    return folder / PAGE


def write_after_run(run: TrainingRun) -> Path | None:
    """Writes the page of a run that has just ended, once.

    Returns:
        Its path; `None` if that failed, which is a line of the log, and on workers other than the
        chief.
    """
    path = run.folder / PAGE
    if run.is_unchanged and path.is_file():
        return path
    if not workers.this_worker(run.config.distribution_strategy).is_chief:
        return None
    written: list[Path] = []
    with stage_data.optional("the page"):
        written.append(_write([recorded_run.read(run.folder, run.location)], run.folder))
    return written[0] if written else None


def _of_run(run: RecordedRun) -> list[Section]:
    sections = []
    for build in run_sections.ALL:
        with stage_data.optional(f"{run.folder}: {build.__name__.replace('_', ' ')}"):
            section = build(run)
            if section is not None:
                sections.append(section)
    return sections


def _of_several(runs: Sequence[RecordedRun]) -> list[Section]:
    return [section for section in comparison_sections.all_sections(runs) if section is not None]


def _render(runs: Sequence[RecordedRun], sections: Sequence[Section], title: str) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mobilenet.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures: list[Figure] = []
    subtitle = ", ".join(run.name for run in runs)
    if len(runs) == 1 and not title:
        title, subtitle = runs[0].name, run_sections.subtitle(runs[0])
        figures = run_sections.figures(runs[0])
    return environment.get_template("report.html").render(
        title=title or f"{len(runs)} runs",
        subtitle=subtitle,
        figures=figures,
        sections=sections,
        version=metadata.version("mobilenet"),
    )
