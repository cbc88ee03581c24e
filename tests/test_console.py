"""Lines that libraries write to file descriptor 2 are captured, and the descriptor is restored."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from mobilenet import console


def test_lines_are_captured_also_in_nested_blocks(capfd: pytest.CaptureFixture[str]) -> None:
    with console.quiet() as outer:
        os.write(2, b"one\n")
        with console.quiet() as inner:
            os.write(2, "two \xe9\n".encode())
            assert inner() == "two \xe9\n"
        os.write(2, b"three\n")
        assert outer() == "one\nthree\n"
    os.write(2, b"four\n")
    assert capfd.readouterr().err == "four\n"


def test_threads_do_not_take_each_others_descriptor(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        for _ in range(50):
            with console.quiet():
                os.write(2, b"noise\n")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_without_a_folder_for_temporary_files_nothing_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:  # pytest's own capture needs the folder afterward
        patch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
        with console.quiet() as written:
            os.write(2, b"noise\n")
            assert written() == ""
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_a_library_without_stderr_keeps_it_closed(closed: str) -> None:
    """Status 7 is that of the last line: the descriptor was captured, then closed again."""
    code = """
import os
from mobilenet import console
with console.quiet() as written:
    os.write(2, b"noise")
    assert written() == "noise"
try:
    os.fstat(2)
except OSError:
    os._exit(7)
"""
    args = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code]
    assert subprocess.run(args, check=False).returncode == 7
