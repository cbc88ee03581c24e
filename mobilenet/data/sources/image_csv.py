"""Images named in a CSV file with their labels: columns `file` and `label`, maybe `split`; of
several labels an image a column for each, or one column `labels`.

Lists as spreadsheets on Windows write them are read too. Only names are read here, no image is
opened; TensorFlow is not needed.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.configs.base import MAX_CLASSES
from mobilenet.data.sources import file_items, index_cache, label_vectors
from mobilenet.data.sources import splits as split_names
from mobilenet.data.sources.file_items import FileItems
from mobilenet.data.sources.unicode_forms import explain_forms, form_of
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.files import check_local

_FILE, _LABEL, _SPLIT = "file", "label", "split"
COLUMNS = (_FILE, _LABEL)
_KNOWN = (*COLUMNS, label_vectors.COLUMN, _SPLIT)
LAYOUT = "file,label or file,label,split"
DELIMITERS = (",", ";", "\t")
_DELIMITER_LINE = re.compile(r"sep=.", re.IGNORECASE)  # how Excel notes the delimiter
_WHOLE = re.compile(r"[+]?([0-9]+)([.,]0*)?")  # spreadsheets write 3 as 3.0 or 3,0
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclasses.dataclass(frozen=True)
class ImageList:
    """The images of a list.

    Attributes:
        labels: class names by index: the sorted names in the list, or the indices up to the largest
            one; the data may know of more.
        splits: file and class index of each image, in the list's order, for `train`, `validation`
            and `test`; with `multi_label` a 0 or 1 for each label instead of the index. Where one
            set is held out, validation and test are both that set; `train` is absent where no row
            says so.
        notes: what may not be meant, a line each.
        assumed: by split, what stands in for images that the list does not have, in a line.
        multi_label: an image may have any number of labels.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, FileItems]
    notes: tuple[str, ...] = ()
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    multi_label: bool = False

    @property
    def num_classes(self) -> int:
        """Classes, with those below the largest index that have no image."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    line: int
    file: str
    split: str
    cells: Mapping[str, str]

    @property
    def label(self) -> str:
        return self.cells[_LABEL]


def read_list(path: str | os.PathLike[str] | None, label_offset: int = 0) -> ImageList:
    """Reads a list of images.

    The columns are divided by commas, semicolons or tabs; the text is UTF-8, or UTF-16 with a byte
    order mark. A backslash divides folders where there is no file with one in its name.

    Args:
        path: a CSV file with a header. `file` is relative to the folder of the list, `label` a
            whole number in each row or a name in each row, `split` the name of a split
            (`splits.NAMES`, in any case). Without `split` all images are held out. Instead of
            `label` there may be `labels`, any number of them divided by `|`, `;` or `,`; or a
            column of 0 and 1 for each of at least two labels, which it names.
        label_offset: label in the list minus class index.

    Raises:
        UsageError: the list cannot be read, has no row, lacks a column, names a file that is not
            there, or a label is no class index.
    """
    if not path:
        raise UsageError("data_dir", None, "a CSV file", f"give one with the columns {LAYOUT}")
    check_local(path, "data_dir", file_items.LOCAL)
    path = Path(path)
    if not path.is_file():
        problem = "a CSV file, this is a folder" if path.exists() else "a CSV file that exists"
        raise UsageError("data_dir", str(path), problem, f"give one with the columns {LAYOUT}")
    folder, kind, key = str(path.parent), f"list-{path.name}", json.dumps(label_offset)
    stored = index_cache.load(folder, kind, key)
    if stored is not None:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return _image_list(path, *file_items.from_arrays(folder, stored))
    stamped = index_cache.LOCAL.stamps(folder, [path.name])
    listed, facts = _read(path, label_offset)
    if sum(map(len, listed.values())) > index_cache.LEAST:
        _save(path, kind, key, stamped, listed, facts)
    return _image_list(path, listed, facts)


def _save(
    path: Path,
    kind: str,
    key: str,
    stamped: npt.NDArray[np.int64],
    listed: Mapping[str, FileItems],
    facts: Mapping[str, Any],
) -> None:
    """Writes the index of a list, valid while the list and the folders of its images stay.

    The folder of the list itself is left out: the index may be written to it.
    """
    every = {os.path.dirname(name) for items in listed.values() for name in items.relative_names()}
    names = sorted(every - {""})
    with contextlib.suppress(OSError):
        stamps = index_cache.LOCAL.stamps(str(path.parent), names)
        stamps = np.concatenate([stamped, stamps])
        arrays = file_items.to_arrays(listed, **facts)
        index_cache.save(str(path.parent), kind, key, [path.name, *names], stamps, arrays)


def _image_list(path: Path, listed: Mapping[str, FileItems], facts: Mapping[str, Any]) -> ImageList:
    return ImageList(
        tuple(facts["labels"]),
        split_names.with_shared(listed),
        tuple(facts["notes"]),
        split_names.assumptions(listed, str(path)) if "train" in listed else {},
        facts["multi_label"],
    )


def _read(path: Path, label_offset: int) -> tuple[dict[str, FileItems], dict[str, Any]]:
    """The images of the splits that a list names, and other facts of `_image_list`."""
    rows = list(_rows(path))
    if not rows:
        raise UsageError(str(path), None, "at least one image; it has no row below the header")
    labels, indices = _labels(path, rows, label_offset)
    files = _files(path, rows)
    values = np.array(indices, np.int32)
    numbers: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault(row.split, []).append(number)
    root = "" if any(map(os.path.isabs, files)) else str(path.parent)
    if not root:
        files = [os.path.join(path.parent, file) for file in files]
    listed = {
        split: FileItems.create(root, [files[n] for n in own], values[own])
        for split, own in numbers.items()
    }
    notes = []
    multi_label = _LABEL not in rows[0].cells
    if not multi_label and values.min() == 1 and "train" not in listed and not label_offset:
        notes.append(
            f"{path}: no image has label 0; lists that start at 1 take a label_offset of 1"
        )
    return listed, {"labels": labels, "notes": notes, "multi_label": multi_label}


def _rows(path: Path) -> Iterator[_Row]:
    text = _text(path)
    lines = io.StringIO(text, newline="")
    before = 0
    if _DELIMITER_LINE.fullmatch(text.partition("\n")[0].strip()):
        before = 1
        next(lines)
    try:
        header, delimiter = _header(path, next(lines, ""))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        for cells in reader:
            if not any(map(str.strip, cells)):
                continue
            line = before + 1 + reader.line_num
            what = f"{path} line {line}"
            if len(cells) != len(header):
                raise UsageError(what, f"{len(cells)} cells", f"{len(header)}, as its header")
            row = dict(zip(header, map(str.strip, cells), strict=True))
            yield _Row(line, row.pop(_FILE), _split(what, row.pop(_SPLIT, None)), row)
    except csv.Error:
        raise _no_list(path) from None


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(str(path), None, f"a file that can be read ({error.strerror})") from None
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise _no_list(path) from None
    if "\0" in text:
        raise _no_list(path)
    return text


def _no_list(path: Path) -> UsageError:
    columns = f"the columns {' and '.join(COLUMNS)} in its first line"
    remedy = "save it as `CSV UTF-8`" if path.suffix.lower() in (".csv", ".txt", ".tsv") else ""
    return UsageError(str(path), None, f"a CSV file in UTF-8 with {columns}", remedy)


def _header(path: Path, line: str) -> tuple[list[str], str]:
    """The columns, known ones in small letters, and what divides them."""
    candidates = [
        ([_column(name) for name in next(csv.reader([line], delimiter=mark), [])], mark)
        for mark in DELIMITERS
    ]
    for required, least in ((COLUMNS, 1), ((_FILE, label_vectors.COLUMN), 1), ((_FILE,), 2)):
        for header, mark in candidates:
            others = [name for name in header if name not in (_FILE, _SPLIT)]
            if len(others) >= least and all(name in header for name in required):
                _check_labels(path, header)
                return header, mark
    header = max((names for names, _ in candidates), key=len)
    lacking = [name for name in COLUMNS if name not in header]
    has = f"it has {shorten(header)}" if any(header) else "it is empty"
    expected = f"the columns {' and '.join(COLUMNS)} in its first line; {has}"
    raise UsageError(str(path), None, expected, f"add {shorten(lacking)}")


def _column(name: str) -> str:
    known = name.strip().lower()
    return known if known in _KNOWN else name.strip()


def _check_labels(path: Path, header: Sequence[str]) -> None:
    """Refuses a list with a column for each label that has one without a name, or one twice."""
    if {_LABEL, label_vectors.COLUMN}.intersection(header):
        return
    names = [name for name in header if name not in (_FILE, _SPLIT)]
    wrong = next((name for name in names if not name or names.count(name) > 1), None)
    if wrong is not None:
        raise UsageError(f"{path}: column", wrong, "a name of its own for each label")


def _split(what: str, text: str | None) -> str:
    if text is None:
        return "test"
    split = split_names.split_of(text)
    return split or split_names.NAMES[one_of(f"{what}: split", text, split_names.NAMES)]


def _files(path: Path, rows: Sequence[_Row]) -> list[str]:
    """The file of each row, relative to the folder of the list.

    Raises:
        UsageError: names those that are not there, and what may be the reason.
    """
    files = [_file(str(path.parent), row.file) for row in rows]
    missing = [
        f"{row.file or 'an empty name'} in line {row.line}{_other_form(str(path.parent), row.file)}"
        for row, file in zip(rows, files, strict=True)
        if file is None
    ]
    if missing:
        remedy = f"give them relative to {path.parent}"
        if any(_DRIVE.match(row.file) for row in rows):
            remedy += ", without a drive"
        expected = f"files that exist; not there: {shorten(missing)}"
        raise UsageError(str(path), None, expected, remedy)
    return [file for file in files if file is not None]


def _file(folder: str, name: str) -> str | None:
    for text in (name, name.replace("\\", "/")):
        if text and os.path.isfile(os.path.join(folder, text)):
            return text
    return None


def _other_form(folder: str, name: str) -> str:
    """Says that there is a file of the same name in another Unicode form."""
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, name)
        if other != name and _file(folder, other) is not None:
            return f" (its name is {form_of(name)}, that of the file {form})"
    return ""


def _labels(
    path: Path, rows: Sequence[_Row], offset: int
) -> tuple[tuple[str, ...], list[int] | list[label_vectors.Vector]]:
    """Names of classes or labels by index, and the class index or labels of each row."""
    columns = rows[0].cells
    if _LABEL in columns:
        return _classes(path, rows, offset)
    if label_vectors.COLUMN in columns:
        cells = [(row.line, row.cells[label_vectors.COLUMN]) for row in rows]
        return label_vectors.read_cells(str(path), cells, offset)
    if offset:
        raise UsageError("label_offset", offset, f"0, as {path} has a column for each label")
    names = tuple(columns)
    flags = [(row.line, [row.cells[name] for name in names]) for row in rows]
    return names, label_vectors.read_columns(str(path), names, flags)


def _classes(path: Path, rows: Sequence[_Row], offset: int) -> tuple[tuple[str, ...], list[int]]:
    """Class names by index, and the class index of each row."""
    is_number = [_is_number(row.label) for row in rows]
    for row, kind in zip(rows, is_number, strict=True):
        what = f"{path} line {row.line}: label"
        if not row.label:
            raise UsageError(what, row.label, "a class index or a class name")
        if kind != is_number[0]:
            first = f"{rows[0].label!r} in line {rows[0].line}"
            expected = f"{'a class index' if is_number[0] else 'a class name'}, as {first}"
            raise UsageError(what, row.label, expected, "write numbers or names in every row")
    if is_number[0]:
        indices = [_index(f"{path} line {row.line}", row.label, offset) for row in rows]
        return tuple(map(str, range(1 + max(indices)))), indices
    if offset:
        raise UsageError("label_offset", offset, f"0, as {path} has class names")
    names = sorted({row.label for row in rows})
    explain_forms(names, "class names", str(path))
    by_name = {name: index for index, name in enumerate(names)}
    return tuple(names), [by_name[row.label] for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


def _index(path: str, text: str, offset: int) -> int:
    whole = _WHOLE.fullmatch(text)
    label = int(whole[1]) if whole and len(whole[1]) < 10 else -1
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
