"""What the parts of a report page consist of: pictures, tables, images and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import PurePath
from typing import ClassVar, TypeAlias

from mobilenet.reporting.themed_svg import Picture


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the head of the page.

    Attributes:
        label: what it is.
        value: with its unit.
        note: what it compares with.
    """

    label: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures next to each other.

    Attributes:
        pictures: in order.
        size: `normal`, `small` of many, `wide` of one, or `stacked` below each other.
        title: above them.
    """

    kind: ClassVar[str] = "pictures"
    pictures: tuple[Picture, ...]
    size: str = "normal"
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; columns of numbers are aligned to the right.

    Attributes:
        headers: of the columns.
        rows: cells as text.
        title: above it.
        is_folded: shown when asked for.
        names: how many of the first columns are names, which may be numbers.
    """

    kind: ClassVar[str] = "table"
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    is_folded: bool = False
    names: int = 1

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column is one of numbers."""
        return tuple(
            number >= self.names and all(map(_is_number, column))
            for number, column in enumerate(zip(*self.rows, strict=True))
        )


def _is_number(cell: str) -> bool:
    digits = cell.translate(str.maketrans("", "", ",.+-−×% "))
    return not digits or digits.isdigit() or cell == "–"


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A small image with its caption.

    Attributes:
        uri: of the image.
        label: the class of the image.
        prediction: what it was taken for; empty without.
        note: after the prediction, such as its probability.
        path: of its file; empty if it is none.
        is_wrong: the prediction is.
        is_small: has so few pixels that they are to be seen.
    """

    uri: str
    label: str
    prediction: str = ""
    note: str = ""
    path: str = ""
    is_wrong: bool = False
    is_small: bool = False

    @property
    def file(self) -> str:
        """The name of its file without folders."""
        return PurePath(self.path).name


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images next to each other.

    Attributes:
        title: above them.
        images: in order.
    """

    kind: ClassVar[str] = "gallery"
    title: str
    images: tuple[Thumbnail, ...]


@dataclasses.dataclass(frozen=True)
class Code:
    """Text as it is, such as commands.

    Attributes:
        text: its lines.
        title: above it.
        is_folded: shown when asked for.
    """

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""
    is_folded: bool = False


@dataclasses.dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str


Block: TypeAlias = Pictures | Table | Gallery | Code | Note


@dataclasses.dataclass(frozen=True)
class Columns:
    """Two blocks next to each other where there is room."""

    kind: ClassVar[str] = "columns"
    blocks: tuple[Block, Block]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: its anchor.
        title: its heading.
        blocks: in order.
    """

    name: str
    title: str
    blocks: tuple[Block | Columns, ...]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures in it."""
        flat = [
            b
            for block in self.blocks
            for b in (block.blocks if isinstance(block, Columns) else (block,))
        ]
        return [p for block in flat if isinstance(block, Pictures) for p in block.pictures]


def section(name: str, title: str, blocks: Sequence[Block | Columns | None]) -> Section | None:
    """A section of the blocks that there are; `None` without one."""
    present = tuple(block for block in blocks if block is not None)
    has_content = any(not isinstance(block, Note) for block in present)
    return Section(name, title, present) if has_content else None


def pictures(
    every: Sequence[Picture | None], size: str = "normal", title: str = ""
) -> Pictures | None:
    """The pictures that there are; `None` without one."""
    drawn = tuple(picture for picture in every if picture is not None)
    return Pictures(drawn, size, title) if drawn else None


def columns(left: Block | None, right: Block | None) -> Block | Columns | None:
    """Two blocks next to each other; one alone if the other is missing."""
    if left is None or right is None:
        return left or right
    return Columns((left, right))
