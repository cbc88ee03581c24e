"""Text that fits the terminal: tables, and wrapped lines of two columns."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_WIDE_GAP, _GAP = 3, 2  # spaces between columns
_NARROWEST = 20  # of a column of text that is wrapped
_WIDEST_TERM = 24  # of the first of two columns, before its text stands on a line of its own


def width() -> int:
    """Columns of the terminal; 80 without one."""
    return shutil.get_terminal_size((80, 24)).columns


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in plain text that is as wide as the terminal at most.

    Text is wrapped, numbers never are. Columns for which there is no room follow in further tables
    below, each with the first column again, or with numbers of the rows if that is not unique. No
    cell is cut.

    Args:
        headers: of the columns.
        rows: cells by row; `None` is shown as `-`. Columns of numbers are aligned to the right.
    """
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    columns = [
        _Column(header, [row[index] for row in cells]) for index, header in enumerate(headers)
    ]
    limit = width()
    if _fits([column.natural for column in columns], limit, _WIDE_GAP):
        return _drawn([(column, column.natural) for column in columns], _WIDE_GAP)
    return "\n\n".join(_drawn(block, _GAP) for block in _blocks(columns, limit))


def one_line(text: str, most: int) -> str:
    """Text in one line of at most so many characters."""
    words = " ".join(text.split())
    return words if len(words) <= most else f"{words[: most - 1]}…"


def milliseconds(value: float) -> str:
    """A time in milliseconds as all tables show it: to the microsecond."""
    return f"{value:,.3f}"


def definitions(items: Iterable[tuple[str, str]], indent: int = 2) -> list[str]:
    """Lines of terms and their wrapped explanations, as wide as the terminal at most.

    An explanation begins below its term if that is long.
    """
    items = list(items)
    longest = max((len(term) for term, _ in items if len(term) <= _WIDEST_TERM), default=0)
    column = indent + longest + _GAP
    lines = []
    for term, text in items:
        wrapped = wrap(text, width() - column) or [""]
        start = " " * indent + term
        if len(term) > longest:
            lines.append(start)
        else:
            lines.append(f"{start:{column}}{wrapped.pop(0)}".rstrip())
        lines += [" " * column + line for line in wrapped]
    return lines


def wrap(text: str, columns: int | None = None) -> list[str]:
    """Lines of at most `columns` characters, broken between words; longer lists after commas."""
    limit = max(columns or width(), 20)
    words = (word if len(word) <= limit else word.replace(",", ", ") for word in text.split())
    return textwrap.wrap(" ".join(words), limit, break_long_words=False, break_on_hyphens=False)


class _Column:
    """A column of a table.

    Attributes:
        header: its name.
        cells: its texts.
        numeric: all of them are numbers.
        natural: its width without wrapping.
        least: its width if text is wrapped between words, and still readable.
    """

    def __init__(self, header: str, cells: list[str]) -> None:
        from rich import cells as rich_cells

        def longest(texts: Iterable[str]) -> int:
            return max((rich_cells.cell_len(text) for text in texts), default=0)

        self.header, self.cells = header, cells
        self.numeric = bool(cells) and all(map(_is_numeric, cells))
        self.natural = longest([header, *cells])
        words = longest(header.split())
        readable = 0 if self.numeric else min(_NARROWEST, longest(cells))
        inside = longest(
            cells if self.numeric else (word for cell in cells for word in cell.split())
        )
        self.least = max(words, inside, readable, 1)


def _is_numeric(cell: str) -> bool:
    digits = cell.replace(",", "").rstrip("%x").strip().lstrip("+-").replace(".", "", 1)
    return cell == "-" or digits.isdigit()


def _blocks(columns: list[_Column], limit: int) -> Iterator[list[tuple[_Column, int]]]:
    """The columns of each table, with their widths."""
    if len(columns) == 1 or _fits([column.least for column in columns], limit):
        yield _spread(columns, limit)
        return
    if len(set(columns[0].cells)) < len(columns[0].cells):
        numbers = [str(number) for number in range(1, len(columns[0].cells) + 1)]
        columns = [_Column("#", numbers), *columns]
    key, rest = columns[0], columns[1:]
    key_width = min(key.natural, max(limit // 2, 1))
    while rest:
        count = 1
        while count < len(rest) and _fits(
            [key_width, *(column.least for column in rest[: count + 1])], limit
        ):
            count += 1
        yield [(key, key_width), *_spread(rest[:count], limit - key_width - _GAP)]
        rest = rest[count:]


def _fits(widths: Sequence[int], limit: int, gap: int = _GAP) -> bool:
    return sum(widths) + gap * (len(widths) - 1) <= limit


def _spread(columns: list[_Column], limit: int) -> list[tuple[_Column, int]]:
    """Widths of columns that share `limit`: the least ones, and what is left for those of text."""
    room = limit - _GAP * (len(columns) - 1)
    widths = [min(column.least, room) for column in columns]
    while sum(widths) < room:
        short = [i for i, column in enumerate(columns) if widths[i] < column.natural]
        if not short:
            break
        widths[min(short, key=lambda i: widths[i])] += 1
    return list(zip(columns, widths, strict=True))


def _drawn(columns: list[tuple[_Column, int]], gap: int) -> str:
    from rich import box, console, text
    from rich import table as rich_table

    padding = (0, 1, 0, gap - 2)  # to the right and left, and one of the box between
    drawn = rich_table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    for column, size in columns:
        drawn.add_column(
            text.Text(column.header),
            justify="right" if column.numeric else "left",
            width=size,
            overflow="fold",
        )
    for cells in zip(*(column.cells for column, _ in columns), strict=True):
        drawn.add_row(*(text.Text(cell) for cell in cells))
    terminal = console.Console(width=100_000, color_system=None, force_terminal=False)
    with terminal.capture() as capture:
        terminal.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().replace("─", "-").splitlines())
