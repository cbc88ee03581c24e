"""Files are whole or absent; what a killed process left is removed by the next write."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mobilenet import files
from mobilenet.errors import UsageError, VerificationError

KILLED = """
import os, sys
from mobilenet import files
with files.replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""
WAITING = """
import sys
from mobilenet import files
with files.replacing(sys.argv[1]) as temporary:
    temporary.write_text("whole")
    print("started", flush=True)
    sys.stdin.read()
"""
BETWEEN = """
import os, sys
from mobilenet import files
replace = os.replace
os.replace = lambda *paths: os.kill(os.getpid(), 9)
with files.replacing(sys.argv[1]) as temporary:
    temporary.mkdir()
    (temporary / "new").touch()
"""


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".writing-*"))


def killed(code: str, path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert len(left(path.parent)) == 1


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    killed(KILLED, tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()
    files.write_text(tmp_path / "b.txt", "b")
    assert left(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_a_folder_that_was_whole_when_its_process_was_killed_remains(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    killed(BETWEEN, target)
    assert not target.exists()
    files.write_text(tmp_path / "other.txt", "")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert left(tmp_path) == []


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    (holder,) = left(tmp_path)
    os.utime(tmp_path / holder, (0, 0))  # for years
    files.write_text(tmp_path / "b.txt", "b")
    process.communicate("")
    assert path.read_text() == "whole"
    assert left(tmp_path) == []


def test_on_another_machine_age_decides(tmp_path: Path) -> None:
    """Its processes cannot be asked for. A folder of the user's own is none of ours."""
    for name in (".writing-00000000-7-abc", ".writing-00000000-8-abc", ".writing-notes"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".writing-00000000-7-abc", (0, time.time() - 25 * 3600))
    os.utime(tmp_path / ".writing-notes", (0, 0))
    files.write_text(tmp_path / "b.txt", "b")
    assert left(tmp_path) == [".writing-00000000-8-abc", ".writing-notes"]


@pytest.mark.parametrize("kind", [UsageError, VerificationError])
def test_errors_name_the_path_that_was_asked_for(kind: type[UsageError], tmp_path: Path) -> None:
    target = tmp_path / "model.tflite"
    with pytest.raises(kind) as caught, files.replacing(target) as temporary:
        raise kind(f"{temporary}: layer", str(temporary), f"no {temporary}", f"see {temporary}")
    assert (
        str(caught.value) == f"{target}: layer: got '{target}', expected no {target}; see {target}"
    )
    with pytest.raises(UsageError) as caught, files.replacing(target) as temporary:
        raise OSError(f"unable to create file (name = '{temporary}', errno = 28)")
    assert f"(name = '{target}', errno = 28)" in str(caught.value)
    with (
        pytest.raises(UsageError, match="No space") as caught,
        files.replacing(target) as temporary,
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))
    assert ".writing-" not in str(caught.value)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("file", {}, "a file has that name"),
        ("file/below", {}, "can be written"),
        ("letters", {"replaces": ("model.keras", "a model")}, "a new folder or one that holds a"),
        ("older", {"replaces": ("model.keras", "a model"), "overwrite": False}, "a new folder;"),
    ],
)
def test_a_target_that_would_lose_files_is_refused(
    name: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for folder, content in (("letters", "one.txt"), ("older", "model.keras")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / content).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="^target: got") as caught:
        files.check_target(tmp_path / name, "target", **options)
    assert str(tmp_path / name) in str(caught.value) and reason in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_target_that_can_be_written_is_accepted_and_not_created(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "older").mkdir()
    (tmp_path / "older/model.keras").write_text("replaced later")
    for name in ("new", "new/below", "empty", "older"):
        files.check_target(tmp_path / name, replaces=("model.keras", "a model"))
    files.check_target(tmp_path / "empty", replaces=("model.keras", "a model"), overwrite=False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "model.keras", "older"]


def test_a_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.bin"
    files.check_file_target(target, overwrite=False)
    assert not target.parent.exists()
    files.write_bytes(target, b"1")
    with pytest.raises(UsageError, match="^path: got .*expected a new file; .*`overwrite`"):
        files.check_file_target(target, overwrite=False)
    files.check_file_target(target)
    for bad, words in ((tmp_path, "a folder has that name"), (target / "b", "can be written")):
        with pytest.raises(UsageError, match=f"^output: got .*{words}"):
            files.check_file_target(bad, "output")
