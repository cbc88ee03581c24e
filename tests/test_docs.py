"""What README and docs show, runs: Python blocks are executed, commands are parsed."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(python|bash)\n(.*?)```", re.DOTALL)
NEEDS_RUN = "runs/mobilenet_v1_digits"


def blocks(kind: str) -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{number}", text)
        for page in PAGES
        for number, (found, text) in enumerate(BLOCK.findall(page.read_text()))
        if found == kind
    ]


def python_blocks(needs_run: bool) -> list[object]:
    return [
        pytest.param(text, id=name)
        for name, text in blocks("python")
        if (NEEDS_RUN in text) == needs_run
    ]


@pytest.mark.parametrize("text", python_blocks(needs_run=False))
def test_python_runs(text: str) -> None:
    exec(compile(text, "block", "exec"), {})  # noqa: S102


def test_every_page_starts_with_its_command() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert re.match(r"# .+\n\n```bash\n", page.read_text()), page.name


def commands() -> list[object]:
    lines = []
    for name, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            line = line.split("   #")[0].strip()
            if line.startswith("python -m mobilenet."):
                lines.append(pytest.param(line, id=f"{name}: {line[:40]}"))
    return lines


@pytest.mark.parametrize("line", commands())
def test_commands_take_their_flags(line: str) -> None:
    _, _, module, *argv = shlex.split(line)
    parsed = importlib.import_module(module).COMMAND.parse(argv)
    assert parsed.given


def test_scripts_that_pages_name_exist() -> None:
    for page in PAGES:
        for script in re.findall(r"scripts/\w+\.sh", page.read_text()):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"
