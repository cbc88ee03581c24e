"""A damaged report.json or config.json of a run folder is one line that names the file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mobilenet.configs import recipes
from mobilenet.configs.run import Part
from mobilenet.errors import UsageError
from mobilenet.training import run_folder
from mobilenet.training.stage_report import StageReport

CONFIG = recipes.get("mobilenet_v1", "digits")
ENTRY: dict[str, Any] = {
    "stage": "train",
    "top1": 90.5,
    "top5": 99,
    "loss": 0.25,
    "params": 7,
    "macs": 90,
    "nonzero_weights": 5,
    "bytes": 900,
    "gzip_bytes": 400,
    "latency_ms": 0.1234,
    "history": [{"epoch": 1, "loss": 1.0}],
    "minutes": 0.5,
}
ROW = [0, 12, 3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with one finished stage."""
    with run_folder.opened(tmp_path / "run", CONFIG) as run:
        run.begin()
        report = StageReport.from_json(ENTRY)
        run.folder(report.part).mkdir()
        run.record(report)
    return tmp_path / "run"


def entries(folder: Path) -> list[dict[str, Any]]:
    with run_folder.opened(folder, CONFIG) as run:
        return [report.to_json() for report in run.reports]


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as error:
        entries(folder)
    return str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY,
        {"stage": "train", "top1": 1, "top5": 2, "history": []},
        {**ENTRY, "stage": "prune_2", "mask_changes": [ROW, ROW]},
    ],
)
def test_what_a_stage_records_is_read_again(entry: dict[str, Any], folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps({"stages": [entry]}))
    assert entries(folder) == [entry]


def test_a_report_has_every_metric_of_its_entry() -> None:
    entry = {**ENTRY, "stage": "convert", "agreement": 99.5, "verification": {"clear": 1.0}}
    del entry["history"]
    report = StageReport.from_json(entry)
    assert (report.part, report.top1, report.macs) == (Part("convert"), 90.5, 90)
    assert report.details == {"agreement": 99.5, "verification": {"clear": 1.0}}
    assert report.to_json() == entry
    surgery = StageReport.from_json({**ENTRY, "stage": "prune_1", "mask_changes": [ROW, ROW]})
    assert (surgery.part, surgery.mask_changes) == (Part("prune", 1), (tuple(ROW), tuple(ROW)))
    assert StageReport.from_json({**ENTRY, "stage": "prune_1", "flips": [ROW, ROW]}) == surgery


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"stages": None},
        {"stages": {"train": ENTRY}},
        {"stages": ["train"]},
        {"stages": [{"top1": 1, "top5": 1}]},
        {"stages": [{**ENTRY, "stage": "trian"}]},
        {"stages": [{**ENTRY, "stage": "prune_x"}]},
        {"stages": [{**ENTRY, "stage": "prune_\u00b2"}]},
        {"stages": [{**ENTRY, "top1": "90"}]},
        {"stages": [{**ENTRY, "params": "90"}]},
        {"stages": [{**ENTRY, "latency_ms": None}]},
        {"stages": [{**ENTRY, "top5": None}]},
        {"stages": [{**ENTRY, "top5": 2**62}]},
        {"stages": [{**ENTRY, "history": {"loss": 1}}]},
        {"stages": [{**ENTRY, "history": [1]}]},
        {"stages": [{**ENTRY, "mask_changes": []}]},
        {"stages": [{**ENTRY, "mask_changes": [[1, 2]]}]},
        {"stages": [{**ENTRY, "mask_changes": [[1, 2, "3"]]}]},
    ],
)
def test_a_damaged_report_is_one_line(value: dict[str, Any], folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(value))
    line = refusal(folder)
    assert str(folder / "report.json") in line and "`overwrite`" in line


def test_a_long_difference_of_configs_is_cut(folder: Path) -> None:
    value = json.loads((folder / "config.json").read_text())
    value["model"]["name"] = "x" * 100_000
    (folder / "config.json").write_text(json.dumps(value))
    line = refusal(folder)
    assert "there model.name is 'xxx" in line
    assert len(line) < 500


def test_the_file_of_the_log_is_full_whatever_is_shown_of_it(tmp_path: Path) -> None:
    """Python shows warnings alone where a program configures nothing."""
    log = logging.getLogger("mobilenet")
    before = log.getEffectiveLevel(), log.propagate, list(log.handlers)
    with run_folder.opened(tmp_path / "run", CONFIG) as run:
        run.begin()
        log.info("an epoch")
        log.warning("a warning")
    lines = (tmp_path / "run/log.txt").read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["an epoch", "a warning"]
    assert (log.getEffectiveLevel(), log.propagate, list(log.handlers)) == before


def test_a_program_that_shows_warnings_gets_them_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("mobilenet")
    with run_folder.opened(tmp_path / "run", CONFIG):
        log.info("an epoch")
        log.warning("a warning")
    assert caplog.messages == ["a warning"]
    caplog.clear()
    caplog.set_level(logging.INFO)
    with run_folder.opened(tmp_path / "other", CONFIG):
        log.info("an epoch")
    assert caplog.messages == ["an epoch"]
