"""The runner counts what a process wrote before it ended, crashed or was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuzz import __main__ as runner


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A runner's folder with the input of a case."""
    (tmp_path / "work/case/in").mkdir(parents=True)
    (tmp_path / "work/case/in/file").write_text("damaged")
    (tmp_path / "log.txt").write_text("the last words")
    return tmp_path


def written(folder: Path, *entries: dict[str, Any]) -> Path:
    results = folder / "results.jsonl"
    results.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return results


def ended(number: int, kind: str, peak: int = 100) -> dict[str, Any]:
    return {"number": number, "kind": kind, "text": "", "peak": peak}


def test_a_batch_that_ends_is_counted(folder: Path) -> None:
    tally = runner.Tally("flags")
    cases = {"begins": 5}, ended(5, "accepted"), {"begins": 6}, ended(6, "tracebacks", 300)
    assert runner.counted(tally, (5, 7), written(folder, *cases), folder, 0) == 7
    assert tally.counts == {"accepted": 1, "tracebacks": 1}
    assert tally.peak == 300
    assert [failure[:2] for failure in tally.failures] == [(6, "tracebacks")]


@pytest.mark.parametrize(("end", "kind"), [(-11, "crashes"), ("hangs", "hangs")])
def test_a_process_that_dies_goes_on_after_its_case(
    end: int | str, kind: str, folder: Path
) -> None:
    tally = runner.Tally("flags")
    cases = {"begins": 5}, ended(5, "accepted"), {"begins": 6}
    assert runner.counted(tally, (5, 99), written(folder, *cases), folder, end) == 7
    assert tally.counts == {"accepted": 1, kind: 1}
    assert tally.failures[0][:2] == (6, kind)
    assert "the last words" in tally.failures[0][2]
    assert (folder / "failures/flags-6/file").read_text() == "damaged"


def test_a_process_that_dies_outside_a_case_is_a_fault_of_the_suite(folder: Path) -> None:
    with pytest.raises(SystemExit, match="outside a case\nthe last words"):
        runner.counted(runner.Tally("flags"), (5, 99), written(folder), folder, 1)


def test_a_case_that_takes_too_long_is_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.3)
    monkeypatch.setattr(runner, "START", 0.0)
    args = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(args, start_new_session=True) as process:
        assert runner.hangs(process, written(folder))
        assert process.returncode == -9
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as process:
        monkeypatch.setattr(runner, "PATIENCE", 60.0)
        assert not runner.hangs(process, written(folder))


def test_the_table_has_a_line_a_target(folder: Path) -> None:
    tally = runner.Tally("flags")
    for kind in ("accepted", "accepted", "clean lines", "crashes"):
        tally.add(0, kind, "")
    head, line = runner.table([tally]).splitlines()
    cells = dict(zip(head.split("1 line")[0].split(), line.split(), strict=False))
    assert cells == {"target": "flags", "cases": "4", "accepted": "2"}
    assert len(head) <= 80 and len(line) <= 80
    assert line.split()[3:8] == ["1", "0", "0", "1", "0"]


@pytest.mark.slow
def test_cases_run_in_processes_of_their_own(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "scripts/fuzz.sh", "flags", "--cases", "3", "--output", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "table.txt").read_text().splitlines()[1].split()[:2] == ["flags", "3"]
