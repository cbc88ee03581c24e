"""Labels of a list in which an image has any number of them: a column of 0 and 1 for each label, or
one column `labels` of names or numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mobilenet.configs.base import MAX_CLASSES
from mobilenet.errors import UsageError

COLUMN = "labels"
_SEPARATORS = re.compile(r"[|;,]")
_FLAG = re.compile(r"([01])([.,]0*)?")  # spreadsheets write 1 as 1.0
_WHOLE = re.compile(r"([0-9]{1,9})([.,]0*)?")

Vector = tuple[int, ...]


def read_columns(
    path: str, names: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]]
) -> list[Vector]:
    """The labels of each row that has a cell for each label.

    Args:
        path: of the list, for messages.
        names: of the columns.
        rows: number of the line, and the cells of these columns.

    Raises:
        UsageError: a cell is neither 0 nor 1.
    """
    vectors = []
    for line, cells in rows:
        flags = [_FLAG.fullmatch(cell) for cell in cells]
        if not all(flags):
            wrong = flags.index(None)
            raise UsageError(
                f"{path} line {line}: {names[wrong]}",
                cells[wrong],
                "0 or 1, as a column that is not file, label, labels or split is a label",
                f"one class an image goes into a column `label`, several into `{COLUMN}`",
            )
        vectors.append(tuple(int(flag[1]) for flag in flags if flag is not None))
    return vectors


def read_cells(
    path: str, rows: Sequence[tuple[int, str]], offset: int = 0
) -> tuple[tuple[str, ...], list[Vector]]:
    """The labels of each row that has all of an image in one cell, divided by `|`, `;` or `,`.

    Args:
        path: of the list, for messages.
        rows: number of the line, and the cell; an empty one has no label.
        offset: number in the list minus index of the label.

    Returns:
        The names, sorted, or the numbers up to the largest one; and a vector of 0 and 1 a row.

    Raises:
        UsageError: there are numbers and names, a number is below the offset, or there is no label.
    """
    listed = [[text.strip() for text in _SEPARATORS.split(cell)] for _, cell in rows]
    found = {text for texts in listed for text in texts if text}
    if not found:
        raise UsageError(f"{path}: {COLUMN}", None, "a label in some row")
    numbers = {text: _WHOLE.fullmatch(text) for text in found}
    indices = {text: int(whole[1]) - offset for text, whole in numbers.items() if whole}
    if indices and len(indices) < len(found):
        first = min(found - set(indices))
        expected = f"numbers or names in every row, as {min(indices)!r} is a number"
        raise UsageError(f"{path}: {COLUMN}", first, expected)
    if not indices:
        if offset:
            raise UsageError("label_offset", offset, f"0, as {path} has names")
        indices = {name: index for index, name in enumerate(sorted(found))}
        names = tuple(sorted(found))
    else:
        if min(indices.values()) < 0 or max(indices.values()) >= MAX_CLASSES:
            lowest = min(indices.values()) + offset
            expected = f"at most the lowest label in the list; {path} has {lowest}"
            raise UsageError("label_offset", offset, expected)
        names = tuple(map(str, range(1 + max(indices.values()))))
    vectors = []
    for texts in listed:
        own = {indices[text] for text in texts if text}
        vectors.append(tuple(int(index in own) for index in range(len(names))))
    return names, vectors
