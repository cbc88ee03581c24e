"""Image files in a table, and the index of class folders and lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from data_sets import write_class_folders

from mobilenet import data
from mobilenet.configs import dataset as datasets
from mobilenet.data.sources import image_csv, image_folder, index_cache
from mobilenet.data.sources.file_items import FileItems
from mobilenet.errors import UsageError


def test_items_are_paths_and_labels() -> None:
    names = ["a/ä 1.jpg", "b.png", os.fsdecode(b"\xff.jpg")]
    items = FileItems.create("root", names, [0, 2, 1])
    assert list(items) == [
        (Path("root", name), n) for name, n in zip(names, (0, 2, 1), strict=True)
    ]
    assert items[-1] == (Path("root", names[2]), 1) and items[1:] == tuple(items)[1:]
    assert items.select([2, 0]) == (items[2], items[0])
    assert not FileItems.create("", [], [])
    vectors = FileItems.create("", ["/x/y.jpg"], [[0, 1]])
    assert vectors == ((Path("/x/y.jpg"), (0, 1)),) and vectors != ()


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A word for each time that a set of more than three images is listed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST", 3)
    monkeypatch.setattr(index_cache, "_FRESH_NS", 0)
    every: list[str] = []
    for module, name in ((image_folder, "_list"), (image_csv, "_read")):
        function = getattr(module, name)

        def counted(*arguments: object, function: object = function) -> object:
            every.append("listed")
            return function(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(module, name, counted)
    return every


@pytest.mark.parametrize("layout", ["splits", "classes"])
def test_class_folders_are_listed_once(tmp_path: Path, listings: list[str], layout: str) -> None:
    root = write_class_folders(tmp_path / "f")
    classes = root / "train" if layout == "classes" else root
    first = image_folder.list_images(classes)
    assert image_folder.list_images(classes) == first and len(listings) == 1
    inner = (classes if layout == "classes" else root / "train") / "a"
    (inner / "99.jpg").write_bytes((inner / "00.jpg").read_bytes())
    more = image_folder.list_images(classes)
    assert sum(map(len, more.splits.values())) > sum(map(len, first.splits.values()))
    (inner / "00.jpg").unlink()
    image_folder.list_images(classes)
    (classes / "classes.csv").write_text("folder,name\na,apple\n")  # names are read each time
    assert image_folder.list_images(classes).labels == ("apple", "b")
    (classes / "note.txt").touch()
    assert "note.txt" in image_folder.list_images(classes).notes[0]
    for damaged in (b"", b"text"):
        next(classes.glob(".mobilenet*")).write_bytes(damaged)
        count = len(listings)
        assert image_folder.list_images(classes).labels == ("apple", "b")
        assert len(listings) == count + 1


def test_a_list_is_read_once(tmp_path: Path, listings: list[str]) -> None:
    root = write_class_folders(tmp_path / "f")
    rows = [f"train/{c}/{n:02d}.jpg,{c},train" for c in "ab" for n in range(7)]
    rows += [f"val/{c}/{n:02d}.jpg,{c},val" for c in "ab" for n in range(3)]
    path = root / "list.csv"
    path.write_text("\n".join(["file,label,split", *rows]))
    config = datasets.get("image_list").replace(data_dir=str(path))
    info = data.describe(config)
    assert data.describe(config) == info and len(listings) == 1
    labels = [
        int(n) for _, batch in data.load(config, "train", image_size=8, batch_size=5) for n in batch
    ]
    assert labels == [0] * 7 + [1] * 7 and len(listings) == 1
    path.write_text("\n".join(["file,label,split", *rows[1:]]))
    assert data.describe(config).sizes["train"] == 13 and len(listings) == 2
    (root / "val/a/00.jpg").unlink()
    with pytest.raises(UsageError, match=r"not there: val/a/00\.jpg"):
        data.describe(config)


def test_small_sets_have_no_index(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "f")
    image_folder.list_images(root)
    assert not list(root.glob(".*"))
