"""Images sorted by class: `root/<class>/*.jpg` or `root/{train,val,test}/<class>/*.jpg`.

Only names are read here, no image is opened; TensorFlow is not needed.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from mobilenet.errors import UsageError, shorten

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
HELD_OUT = 0.2  # share of each class held out where the folder has no split of its own
LAYOUT = "ROOT/<class>/*.jpg or ROOT/{train,val,test}/<class>/*.jpg"

_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

Item = tuple[Path, int]


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """The classes and images under a root folder.

    Attributes:
        labels: class names by index, in the order of the sorted folder names; the names of
            `classes.csv` (columns `folder,name`) where the root has one.
        splits: file and class index of each image, sorted by path, for `train`, `validation` and
            `test`. Where the folder holds out one set only, validation and test are both that set;
            `train` is absent where there are only held-out images.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, tuple[Item, ...]]


def list_images(root: str | os.PathLike[str] | None) -> ClassFolders:
    """Lists the classes and images under `root`.

    Without splits (or with `train` alone) a fixed fifth of each class is held out, chosen by a hash
    of the file's name relative to the root: the same on every machine. Hidden files and other
    extensions are ignored.

    Raises:
        UsageError: the folder is missing, empty or has no class folders, a class has no image, or
            the splits have different classes.
    """
    if not root:
        raise UsageError(
            "data_dir", None, "a folder of class folders", f"give one laid out as {LAYOUT}"
        )
    base = Path(root)
    if not base.is_dir():
        problem = "a folder, this is a file" if base.exists() else "a folder that exists"
        raise UsageError("data_dir", str(root), problem, f"lay out images as {LAYOUT}")
    folders = _folders(base)
    if not folders:
        state = "holds files but no folder" if any(base.iterdir()) else "is empty"
        raise UsageError(
            "data_dir",
            str(root),
            f"class folders with images; it {state}",
            f"lay out as {LAYOUT}",
        )
    names = [folder.name for folder in folders]
    if "train" in names or all(name in _NAMES for name in names):
        files_by_split, classes = _split_folders(
            base, [folder for folder in folders if folder.name in _NAMES]
        )
    else:
        files_by_split, classes = {"train": _images(base)}, names
    if set(files_by_split) == {"train"}:
        files_by_split = _hold_out(files_by_split["train"])
    held_out = files_by_split.get("test") or files_by_split.get("validation")
    if held_out:
        files_by_split = {"validation": held_out, "test": held_out, **files_by_split}
    index = {name: number for number, name in enumerate(classes)}
    splits: dict[str, tuple[Item, ...]] = {
        split: tuple(
            (path, index[name])
            for name, files in sorted(files_by_split[split].items())
            for path in files
        )
        for split in ("train", "validation", "test")
        if split in files_by_split
    }
    return ClassFolders(_labels(base, classes), splits)


def list_unlabeled_images(root: str | os.PathLike[str]) -> ClassFolders:
    """Lists the images directly in a folder, without classes; all are in `train`.

    Raises:
        UsageError: the folder is missing or has no image.
    """
    base = Path(root)
    if not base.is_dir():
        raise UsageError("data_dir", str(root), "a folder that exists")
    files = _image_files(base)
    if not files:
        kinds = " ".join(EXTENSIONS)
        raise UsageError("data_dir", str(root), f"a folder with images ({kinds}); there is none")
    return ClassFolders(("",), {"train": tuple((path, 0) for path in files)})


def _folders(base: Path) -> list[Path]:
    try:
        return sorted(
            p for p in base.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))
        )
    except OSError as error:
        raise UsageError(
            "data_dir", str(base), f"a folder that can be read ({error.strerror})"
        ) from None


def _images(base: Path) -> dict[str, list[Path]]:
    """Image files by class folder, both sorted."""
    files_by_class = {}
    for folder in _folders(base):
        files_by_class[folder.name] = _image_files(folder)
    empty = [name for name, files in files_by_class.items() if not files]
    if not files_by_class:
        raise UsageError(
            "data_dir", str(base), "class folders in it; there are none", f"lay out as {LAYOUT}"
        )
    if empty:
        raise UsageError(
            "data_dir",
            str(base),
            f"images ({' '.join(EXTENSIONS)}) in every class folder; none in {shorten(empty)}",
            "add images or remove the folder",
        )
    return files_by_class


def _image_files(folder: Path) -> list[Path]:
    """The images in a folder, sorted; no hidden ones."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UsageError(
            "data_dir", str(folder), f"a folder that can be read ({error.strerror})"
        ) from None
    names = [n for n in names if n.lower().endswith(EXTENSIONS) and not n.startswith(".")]
    return [folder / name for name in sorted(names)]


def _split_folders(
    base: Path, folders: list[Path]
) -> tuple[dict[str, dict[str, list[Path]]], list[str]]:
    files_by_split: dict[str, dict[str, list[Path]]] = {}
    for folder in folders:
        if _NAMES[folder.name] in files_by_split:
            raise UsageError(
                "data_dir", str(base), "either val or validation, not both", "remove one"
            )
        files_by_split[_NAMES[folder.name]] = _images(folder)
    first, *others = files_by_split
    for other in others:
        difference = sorted(set(files_by_split[first]) ^ set(files_by_split[other]))
        if difference:
            raise UsageError(
                "data_dir",
                str(base),
                f"the same classes in {first} and {other}; only one has {shorten(difference)}",
                "add the missing class folders or remove the others",
            )
    return files_by_split, sorted(files_by_split[first])


def _hold_out(classes: dict[str, list[Path]]) -> dict[str, dict[str, list[Path]]]:
    train, held_out = {}, {}
    for name, files in classes.items():
        ranked = sorted(
            files, key=lambda path: hashlib.sha256(f"{name}/{path.name}".encode()).digest()
        )
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
    path = base / "classes.csv"
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
