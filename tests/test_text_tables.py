"""Tables and help fit the terminal, and lose nothing of what they hold."""

from __future__ import annotations

import contextlib
import importlib
import random

import pytest

from mobilenet import __main__ as commands
from mobilenet import cli, text_tables
from mobilenet.configs import released_models

HEADERS = ("layer", "params", "cause")


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch, wide_terminal: None) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def longest(text: str) -> int:
    return max(map(len, text.splitlines()))


def squeezed(text: str) -> str:
    """Without white space, which is all that folding may add."""
    return "".join(text.split())


def test_the_width_is_that_of_the_terminal_and_80_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "123")
    assert text_tables.width() == 123
    monkeypatch.delenv("COLUMNS")
    assert text_tables.width() == 80  # the output of tests is no terminal


def test_a_table_is_plain_text_with_numbers_to_the_right() -> None:
    lines = cli.table(["stage", "top-1", "what"], [["train", 98.5, "a b"], ["[red]é", None, ""]])
    head, rule, first, second = lines.splitlines()
    assert head.split() == ["stage", "top-1", "what"]
    assert set(rule) == {"-"}
    assert first.split() == ["train", "98.5", "a", "b"]
    assert second.split() == ["[red]é", "-"]
    assert first.index("98.5") + 4 == head.index("top-1") + 5 == second.rindex("-") + 1


def test_text_is_wrapped_between_words_and_numbers_stay_whole() -> None:
    words = " ".join(f"word{n}" for n in range(40))
    text = cli.table(HEADERS, [["Conv2d_0", "12,345,678", words], ["Logits", "7", "short"]])
    assert longest(text) <= 80
    lines = text.splitlines()
    assert "12,345,678" in lines[2]
    assert " ".join(line[lines[0].index("cause") :] for line in lines[2:-1]) == words


def test_a_word_that_is_too_long_is_folded_not_cut() -> None:
    path = "/a/" + "x" * 200
    text = cli.table(["what", "value"], [["folder", path]])
    assert longest(text) <= 80
    assert squeezed(text).endswith(f"folder{path}")


def test_columns_that_do_not_fit_follow_below_with_the_first_column_again() -> None:
    headers = ["layer", *(f"count {n}" for n in range(12))]
    rows = [[f"layer_{r}", *(f"{10**8 + 100 * r + c:,}" for c in range(12))] for r in range(3)]
    text = cli.table(headers, rows)
    assert longest(text) <= 80
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert len(blocks) == 3
    values = {f"layer_{r}": [] for r in range(3)}
    for block in blocks:
        for line in block[-3:]:
            name, *cells = line.split()
            values[name] += cells
    assert [[name, *cells] for name, cells in values.items()] == rows


def test_rows_of_equal_names_are_numbered_in_every_table() -> None:
    rows = [["same", *["9" * 15] * 6] for _ in range(2)]
    text = cli.table(["name", *"abcdef"], rows)
    for block in text.split("\n\n"):
        assert [line.split()[0] for line in block.splitlines()[2:]] == ["1", "2"]


@pytest.mark.parametrize("seed", range(20))
def test_any_table_fits_and_holds_every_value(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    limit = draw.choice([60, 80, 132])
    monkeypatch.setenv("COLUMNS", str(limit))
    count = draw.randint(1, 14)
    cells = [
        [
            draw.choice([str(draw.randint(0, 10**9)), "x" * draw.randint(1, 90), "two words", ""])
            for _ in range(count)
        ]
        for _ in range(4)
    ]
    text = cli.table([f"column {n}" for n in range(count)], cells)
    assert longest(text) <= limit
    characters = squeezed(text)
    for cell in (cell for row in cells for cell in row if cell.isdigit()):
        assert cell in text  # numbers are never folded
    for mark in "x":
        assert characters.count(mark) >= sum(cell.count(mark) for row in cells for cell in row)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["", *commands.COMMANDS])
def test_help_fits(name: str, full: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        commands.run([*([name] if name else []), "--helpfull" if full else "--help"])
    text = capsys.readouterr().out
    assert longest(text) <= 80
    assert longest(text) > 60 or not name
    module = importlib.import_module(commands.COMMANDS.get(name, "mobilenet.__main__"))
    if not hasattr(module, "COMMAND"):
        module = importlib.import_module(f"{module.__name__}.__main__")
    for spec in module.COMMAND.flags():
        if full or spec.main:
            assert f"--{spec.name}" in text or f"--[no]{spec.name}" in text
            assert squeezed(spec.help) in squeezed(text)


def test_the_lists_of_commands_and_released_models_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands.run([])
    assert longest(capsys.readouterr().out) <= 80
    commands.run(["tf1-loader", "--list"])
    text = capsys.readouterr().out
    assert longest(text) <= 80
    for release in released_models.ALL:
        base, _, file = release.archive.rpartition("/")
        assert f"{base}/" in text and file in text


def test_a_command_runs_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.run(["predict", "--version"])
    assert capsys.readouterr().out == "mobilenet 0.1.0\n"
    with pytest.raises(cli.UsageError, match="command: got 'trainr'.*did you mean trainer"):
        commands.run(["trainr"])


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/x/mobilenet/trainer.py", "python -m mobilenet.trainer"),
        ("/x/mobilenet/__main__.py", "python -m mobilenet trainer"),
        ("/x/bin/mobilenet", "mobilenet trainer"),
        ("/x/bin/mobilenet-trainer", "mobilenet-trainer"),
        ("/x/bin/pytest", "python -m mobilenet.trainer"),
    ],
)
def test_the_usage_line_reads_as_typed(
    program: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    assert cli.typed_name("mobilenet.trainer") == expected
    monkeypatch.setattr("sys.argv", ["/x/bin/mobilenet-tf1-loader"])
    assert cli.typed_name("mobilenet.tf1_loader") == "mobilenet-tf1-loader"
