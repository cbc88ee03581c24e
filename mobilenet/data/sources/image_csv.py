"""Images named in a CSV file with their class indices: columns `file` and `label`, maybe `split`.

Only names are read here, no image is opened; TensorFlow is not needed.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mobilenet.configs.base import MAX_CLASSES
from mobilenet.errors import UsageError, one_of, shorten

COLUMNS = ("file", "label")
LAYOUT = "file,label or file,label,split"
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

Item = tuple[Path, int]


@dataclasses.dataclass(frozen=True)
class ImageList:
    """The images of a list.

    Attributes:
        num_classes: the largest class index plus one; the data may know of more.
        splits: file and class index of each image, in the list's order, for `train`, `validation`
            and `test`. Where one set is held out, validation and test are both that set; `train` is
            absent where no row says so.
    """

    num_classes: int
    splits: Mapping[str, tuple[Item, ...]]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names: the indices."""
        return tuple(map(str, range(self.num_classes)))


def read_list(path: str | os.PathLike[str] | None, label_offset: int = 0) -> ImageList:
    """Reads a list of images.

    Args:
        path: a CSV file with a header. `file` is relative to the folder of the list, `label` a
            whole number, `split` one of train, val, validation and test. Without `split` all
            images are held out.
        label_offset: label in the list minus class index.

    Raises:
        UsageError: the list cannot be read, has no row, lacks a column, names a file that is not
            there, or a label is no class index.
    """
    if not path:
        raise UsageError("data_dir", None, "a CSV file", f"give one with the columns {LAYOUT}")
    path = Path(path)
    if not path.is_file():
        problem = "a CSV file, this is a folder" if path.exists() else "a CSV file that exists"
        raise UsageError("data_dir", str(path), problem, f"give one with the columns {LAYOUT}")
    items_by_split: dict[str, list[Item]] = {}
    missing = []
    for line, row in _rows(path):
        file = path.parent / row["file"]
        label = _label(f"{path} line {line}", row["label"], label_offset)
        split = "test"
        if "split" in row:
            split = _SPLITS[one_of(f"{path} line {line}: split", row["split"], _SPLITS)]
        if not row["file"] or not file.is_file():
            missing.append(f"{row['file'] or 'an empty name'} in line {line}")
        items_by_split.setdefault(split, []).append((file, label))
    if missing:
        raise UsageError(
            str(path),
            None,
            f"files that exist; not there: {shorten(missing)}",
            f"give them relative to {path.parent}",
        )
    if not items_by_split:
        raise UsageError(str(path), None, "at least one image; it has no row below the header")
    return ImageList(
        1 + max(label for items in items_by_split.values() for _, label in items),
        _named(items_by_split),
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells, by column, of each row."""
    columns = f"the columns {' and '.join(COLUMNS)} in its first line"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            lacking = [name for name in COLUMNS if name not in header]
            if lacking:
                has = f"it has {shorten(header)}" if any(header) else "it is empty"
                raise UsageError(str(path), None, f"{columns}; {has}", f"add {shorten(lacking)}")
            for cells in reader:
                if not any(map(str.strip, cells)):
                    continue
                if len(cells) != len(header):
                    what = f"{path} line {reader.line_num}"
                    raise UsageError(what, f"{len(cells)} cells", f"{len(header)}, as its header")
                yield reader.line_num, dict(zip(header, map(str.strip, cells), strict=True))
    except (UnicodeDecodeError, csv.Error):
        raise UsageError(str(path), None, f"a CSV file in UTF-8 with {columns}") from None
    except OSError as error:
        raise UsageError(str(path), None, f"a file that can be read ({error.strerror})") from None


def _label(path: str, text: str, offset: int) -> int:
    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < MAX_CLASSES:
        raise UsageError(
            f"{path}: label",
            text,
            "a class index, a whole number of at least 0 and below a million",
        )
    if label < offset:
        raise UsageError(
            "label_offset", offset, f"at most the lowest label in the list; {path} has {label}"
        )
    return label - offset


def _named(items_by_split: dict[str, list[Item]]) -> dict[str, tuple[Item, ...]]:
    held_out = items_by_split.get("test") or items_by_split.get("validation")
    if held_out:
        items_by_split = {"validation": held_out, "test": held_out, **items_by_split}
    return {
        split: tuple(items_by_split[split])
        for split in ("train", "validation", "test")
        if split in items_by_split
    }
