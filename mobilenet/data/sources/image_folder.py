"""Images sorted by class: `root/<class>/*.jpg` or `root/{train,val,test}/<class>/*.jpg`.

Only names are read here, no image is opened; TensorFlow is not needed.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.data.sources import file_items, index_cache
from mobilenet.data.sources import splits as split_names
from mobilenet.data.sources.file_items import FileItems
from mobilenet.data.sources.unicode_forms import explain_forms
from mobilenet.errors import UsageError, shorten
from mobilenet.files import check_local

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp")
HELD_OUT = 0.2  # share of each class held out where the folder has no split of its own
LAYOUT = "ROOT/<class>/*.jpg or ROOT/{train,val,test}/<class>/*.jpg"
NAMES_FILE = "classes.csv"
_KIND = "images"

FilesByClass = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """The classes and images under a root folder.

    Attributes:
        labels: class names by index, in the order of the sorted folder names; the names of
            `classes.csv` (columns `folder,name`) where the root has one.
        splits: file and class index of each image, sorted by path, for `train`, `validation` and
            `test`. Where the folder holds out one set only, validation and test are both that set;
            `train` is absent where there are only held-out images.
        notes: what is left out of the folder or was decided by its names, a line each.
        assumed: by split, what stands in for images that the folder does not have, in a line.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, FileItems]
    notes: tuple[str, ...] = ()
    assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Listing:
    """What was read under a root, and the files and folders that no image of a class is from."""

    root: Path
    files: list[Path] = dataclasses.field(default_factory=list)
    folders: list[Path] = dataclasses.field(default_factory=list)
    stamps: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def read(self, folder: Path) -> None:
        """Notes the time of modification of a folder before it is listed."""
        with contextlib.suppress(OSError):  # listing it says so
            name = folder.relative_to(self.root).as_posix()
            self.stamps[name] = index_cache.LOCAL.stamp(str(folder))

    def notes(self) -> list[str]:
        """Their numbers and names, in a line for files and one for folders."""
        return [note for note in (self._of_files(), self._of_folders()) if note]

    def _of_files(self) -> str:
        if not self.files:
            return ""
        kinds = collections.Counter(path.suffix.lower() or "no extension" for path in self.files)
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        first = self.files[0].relative_to(self.root).as_posix()
        verb = "files are" if len(self.files) > 1 else "file is"
        return f"{self.root}: {len(self.files)} {verb} left out ({counted}), first {first}"

    def _of_folders(self) -> str:
        if not self.folders:
            return ""
        named = shorten(
            f"{folder.relative_to(self.root).as_posix()} with {_count_images(folder)} images"
            for folder in self.folders
        )
        verb = "folders are" if len(self.folders) > 1 else "folder is"
        return f"{self.root}: {len(self.folders)} {verb} left out: {named}"


def list_images(root: str | os.PathLike[str] | None) -> ClassFolders:
    """Lists the classes and images under `root`.

    A folder is a split if it has the name of one (`splits.NAMES`, in any case) and holds folders of
    images; one of that name which holds images itself is a class where there are other classes.
    Without splits (or with `train` alone) a fixed fifth of each class is held out, chosen by a hash
    of the file's name relative to the root: the same on every machine. Hidden files are ignored;
    everything else that is left out is counted in `notes`.

    Raises:
        UsageError: the folder is missing, empty or has no class folders, a class has no image, or
            the splits have different classes.
    """
    base = _root(root)
    folders, files = _children(base)
    key = json.dumps([[f.name for f in folders], [f.name for f in files]])
    stored = index_cache.load(str(base), _KIND, key)
    if stored is not None:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            own, facts = file_items.from_arrays(str(base), stored)
            if all(items.labels.max() < len(facts["classes"]) for items in own.values()):
                return _with_names(base, own, **facts)
    listing = _Listing(base, [path for path in files if path.name != NAMES_FILE])
    own, facts = _list(base, folders, bool(files), listing)
    if sum(map(len, own.values())) > index_cache.LEAST:
        names, stamped = list(listing.stamps), np.array(list(listing.stamps.values()), np.int64)
        arrays = file_items.to_arrays(own, **facts)
        index_cache.save(str(base), _KIND, key, names, stamped, arrays)
    return _with_names(base, own, **facts)


def _with_names(
    base: Path,
    own: dict[str, FileItems],
    classes: list[str],
    notes: list[str],
    assumed: dict[str, str],
) -> ClassFolders:
    return ClassFolders(_labels(base, classes), split_names.with_shared(own), tuple(notes), assumed)


def _list(
    base: Path, folders: list[Path], has_files: bool, listing: _Listing
) -> tuple[dict[str, FileItems], dict[str, Any]]:
    """The images of each split that the root has, and the other arguments of `_with_names`."""
    if not folders:
        state = "holds files but no folder" if has_files else "is empty"
        expected = f"class folders with images; it {state}"
        raise UsageError("data_dir", str(base), expected, f"lay out as {LAYOUT}")
    notes: list[str] = []
    layout = _split_folders(base, folders)
    if layout:
        listing.folders += [folder for folder in folders if folder not in layout.values()]
        own = {split: _images(folder, listing) for split, folder in layout.items()}
        _check_same_classes(base, own)
    else:
        notes += _classes_named_as_splits(base, folders)
        own = {"train": _images(base, listing, folders)}
    classes = sorted(next(iter(own.values())))
    explain_forms(classes, "class folders", str(base))
    assumed = split_names.assumptions(own, str(base))
    if set(own) == {"train"}:
        own = _hold_out(own["train"])
        count = sum(map(len, own["validation"].values()))
        line = f"{base} has no validation and test images: {count} images, a fixed fifth of each "
        assumed = dict.fromkeys(split_names.HELD_OUT, f"{line}class, are held out for both")
    listed = {
        split: _items(base, layout.get(split, layout.get("train", base)), by_class)
        for split, by_class in own.items()
    }
    notes += listing.notes()
    return listed, {"classes": classes, "notes": notes, "assumed": assumed}


def _root(root: str | os.PathLike[str] | None) -> Path:
    if not root:
        expected, remedy = "a folder of class folders", f"give one laid out as {LAYOUT}"
        raise UsageError("data_dir", None, expected, remedy)
    check_local(root, "data_dir", file_items.LOCAL)
    base = Path(root)
    if not base.is_dir():
        problem = "a folder, this is a file" if base.exists() else "a folder that exists"
        raise UsageError("data_dir", str(root), problem, f"lay out images as {LAYOUT}")
    return base


def _items(base: Path, parent: Path, by_class: FilesByClass) -> FileItems:
    """The images of the classes in a folder, sorted by path."""
    above = "" if parent == base else f"{parent.name}/"
    ordered = sorted(by_class.items())
    names = [f"{above}{name}/{file}" for name, files in ordered for file in files]
    counts = [len(files) for _, files in ordered]
    return FileItems.create(str(base), names, np.repeat(np.arange(len(counts)), counts))


def list_unlabeled_images(root: str | os.PathLike[str]) -> ClassFolders:
    """Lists the images directly in a folder, without classes; all are in `train`.

    Raises:
        UsageError: the folder is missing or has no image.
    """
    check_local(root, "data_dir", file_items.LOCAL)
    base = Path(root)
    if not base.is_dir():
        raise UsageError("data_dir", str(root), "a folder that exists")
    listing = _Listing(base)
    files = _image_files(base, listing)
    if not files:
        kinds = " ".join(EXTENSIONS)
        raise UsageError("data_dir", str(root), f"a folder with images ({kinds}); there is none")
    items = FileItems.create(str(base), files, np.zeros(len(files), np.int32))
    return ClassFolders(("",), {"train": items}, tuple(listing.notes()))


def _children(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, sorted; no hidden ones."""
    try:
        with os.scandir(folder) as entries:
            kinds = {e.name: e.is_dir() for e in entries if not e.name.startswith((".", "__"))}
    except OSError as error:
        expected = f"a folder that can be read ({error.strerror})"
        raise UsageError("data_dir", str(folder), expected) from None
    names = sorted(kinds)
    return [folder / n for n in names if kinds[n]], [folder / n for n in names if not kinds[n]]


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(EXTENSIONS)


def _count_images(folder: Path) -> int:
    return sum(1 for _, _, names in os.walk(folder) for name in names if _is_image(Path(name)))


def _has_class_folders(folder: Path) -> bool:
    return any(any(map(_is_image, _children(inner)[1])) for inner in _children(folder)[0])


def _split_folders(base: Path, folders: list[Path]) -> dict[str, Path]:
    """The folder of each split; none where the folders are classes.

    Raises:
        UsageError: two folders are the same split, or the folders may be splits or classes.
    """
    layout: dict[str, Path] = {}
    named = [folder for folder in folders if split_names.split_of(folder.name)]
    for folder in named:
        if not _has_class_folders(folder):
            continue
        split = split_names.split_of(folder.name) or ""
        if split in layout:
            both = f"either {layout[split].name} or {folder.name}, not both"
            raise UsageError("data_dir", str(base), both, "remove or rename one")
        layout[split] = folder
    if layout and "train" not in layout:
        classes = [
            p.name for p in folders if p not in named and any(map(_is_image, _children(p)[1]))
        ]
        if classes:
            given = f"{shorten(classes)} next to {next(iter(layout.values())).name}"
            expected = "class folders or folders of splits"
            raise UsageError("data_dir", given, expected, f"move the classes into {base / 'train'}")
    if not layout and len(named) == len(folders):
        expected = f"class folders in {named[0].name}; there are none with images"
        raise UsageError("data_dir", str(base), expected, f"lay out as {LAYOUT}")
    return layout


def _classes_named_as_splits(base: Path, folders: list[Path]) -> list[str]:
    names = [folder.name for folder in folders if split_names.split_of(folder.name)]
    if not names:
        return []
    verb = "is taken as a class: it holds" if len(names) == 1 else "are classes: they hold"
    return [f"{base}: {shorten(names)} {verb} images and no class folders"]


def _images(base: Path, listing: _Listing, folders: list[Path] | None = None) -> FilesByClass:
    """Image files by class folder, both sorted.

    Args:
        base: the folder of the classes.
        listing: what is not used is added to it.
        folders: those in `base`; files next to them are left out already.
    """
    if folders is None:
        listing.read(base)
        folders, files = _children(base)
        listing.files += files
    files_by_class = {folder.name: _image_files(folder, listing) for folder in folders}
    empty = [name for name, files in files_by_class.items() if not files]
    if not files_by_class:
        expected = "class folders in it; there are none"
        raise UsageError("data_dir", str(base), expected, f"lay out as {LAYOUT}")
    if empty:
        inner = [f"{name}/{p.name}" for name in empty for p in _children(base / name)[0]]
        nested = f" (there are folders in them, {shorten(inner)})" if inner else ""
        kinds = " ".join(EXTENSIONS)
        raise UsageError(
            "data_dir",
            str(base),
            f"images ({kinds}) in every class folder; none in {shorten(empty)}{nested}",
            "add images or remove the folder",
        )
    return files_by_class


def _image_files(folder: Path, listing: _Listing) -> list[str]:
    """The names of the images in a folder, sorted; no hidden ones."""
    listing.read(folder)
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        expected = f"a folder that can be read ({error.strerror})"
        raise UsageError("data_dir", str(folder), expected) from None
    images = []
    for name in names:
        if name.lower().endswith(EXTENSIONS):
            images.append(name)
        else:
            path = folder / name
            (listing.folders if path.is_dir() else listing.files).append(path)
    return images


def _check_same_classes(base: Path, own: Mapping[str, FilesByClass]) -> None:
    first, *others = own
    for other in others:
        difference = sorted(set(own[first]) ^ set(own[other]))
        if difference:
            explain_forms(difference, f"the same classes in {first} and {other}", str(base))
            raise UsageError(
                "data_dir",
                str(base),
                f"the same classes in {first} and {other}; only one has {shorten(difference)}",
                "add the missing class folders or remove the others",
            )


def _hold_out(classes: FilesByClass) -> dict[str, FilesByClass]:
    train, held_out = {}, {}
    for name, files in classes.items():
        ranked = sorted(files, key=lambda file: hashlib.sha256(f"{name}/{file}".encode()).digest())
        count = max(1, round(HELD_OUT * len(files)))
        if len(files) < 2:
            raise UsageError(
                f"class {name!r}",
                len(files),
                "at least 2 images, so that one can be held out",
                "add images, or lay out ROOT/train and ROOT/val yourself",
            )
        held_out[name], train[name] = sorted(ranked[:count]), sorted(ranked[count:])
    return {"train": train, "validation": held_out}


def _labels(base: Path, classes: list[str]) -> tuple[str, ...]:
    path = base / NAMES_FILE
    if not path.is_file():
        return tuple(classes)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            names = {row["folder"]: row["name"] for row in csv.DictReader(file)}
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise UsageError(
            str(path), None, "UTF-8 text with the columns folder,name", "mend or remove it"
        ) from None
    return tuple(names.get(name) or name for name in classes)
