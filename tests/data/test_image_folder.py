"""Folders of images by class: layouts, the held-out fifth, and each possible mistake."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from mobilenet.data.sources import image_folder
from mobilenet.errors import UsageError


def touch(root: Path, names: Iterable[str]) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_split_layout_keeps_its_splits(tmp_path: Path) -> None:
    touch(
        tmp_path,
        ["train/b/2.JPG", "train/b/1.jpeg", "train/a/x.png", "val/a/y.webp", "val/b/z.bmp"],
    )
    touch(tmp_path, ["train/a/._x.png", "train/a/notes.txt", ".cache/q/1.jpg", "readme.txt"])
    images = image_folder.list_images(tmp_path)
    assert images.labels == ("a", "b")
    names = {
        k: [(p.relative_to(tmp_path).as_posix(), n) for p, n in v] for k, v in images.splits.items()
    }
    held_out = [("val/a/y.webp", 0), ("val/b/z.bmp", 1)]
    assert names == {
        "train": [("train/a/x.png", 0), ("train/b/1.jpeg", 1), ("train/b/2.JPG", 1)],
        "validation": held_out,
        "test": held_out,
    }


def test_three_splits_are_distinguished(tmp_path: Path) -> None:
    touch(
        tmp_path,
        [f"{split}/{name}/1.jpg" for split in ("train", "validation", "test") for name in "ab"],
    )
    splits = image_folder.list_images(tmp_path).splits
    assert {k: v[0][0].parent.parent.name for k, v in splits.items()} == {
        "train": "train",
        "validation": "validation",
        "test": "test",
    }


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_a_folder_without_split_holds_out_a_fixed_fifth_of_each_class(
    tmp_path: Path, prefix: str
) -> None:
    touch(
        tmp_path,
        [f"{prefix}cat/{n}.jpg" for n in range(20)] + [f"{prefix}dog/{n}.jpg" for n in range(7)],
    )
    splits = image_folder.list_images(tmp_path).splits
    assert Counter(label for _, label in splits["train"]) == {0: 16, 1: 6}
    assert Counter(label for _, label in splits["test"]) == {0: 4, 1: 1}
    assert splits["test"] == splits["validation"]
    assert not {p for p, _ in splits["train"]} & {p for p, _ in splits["test"]}
    ranked = sorted(range(20), key=lambda n: hashlib.sha256(f"cat/{n}.jpg".encode()).hexdigest())
    assert {p.stem for p, n in splits["test"] if n == 0} == {str(n) for n in ranked[:4]}


def test_names_come_from_classes_csv(tmp_path: Path) -> None:
    touch(tmp_path, ["val/n01/1.jpg", "val/n02/1.jpg", "val/n03/1.jpg"])
    (tmp_path / "classes.csv").write_text("folder,name\nn02,dog\nn01,cat\n")
    images = image_folder.list_images(tmp_path)
    assert images.labels == ("cat", "dog", "n03")
    assert "train" not in images.splits
    (tmp_path / "classes.csv").write_text("id;label\nn02;dog\n")
    with pytest.raises(UsageError, match="folder,name"):
        image_folder.list_images(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "it is empty"),
        (["1.jpg"], "it holds files but no folder"),
        (["a/1.jpg", "a/2.jpg", "b/1.txt"], "none in b"),
        (["a/1.jpg", "b/1.jpg", "b/2.jpg"], "at least 2 images"),
        (["train/1.jpg", "val/1.jpg"], "class folders in it"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg"], "only one has b, c"),
        (["train/a/1.jpg", "val/a/1.jpg", "validation/a/1.jpg"], "not both"),
    ],
)
def test_faults_are_reported(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, files)
    with pytest.raises(UsageError, match=message) as caught:
        image_folder.list_images(tmp_path)
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder that exists"):
        image_folder.list_images(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="^data_dir: expected a folder"):
        image_folder.list_images(None)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="this is a file"):
        image_folder.list_images(tmp_path / "file")


def test_photos10(shared_data: Path) -> None:
    images = image_folder.list_images(shared_data / "photos10")
    assert images.labels[:2] == ("tench", "english_springer") and len(images.labels) == 10
    assert {name: len(items) for name, items in images.splits.items()} == {
        "train": 650,
        "validation": 250,
        "test": 250,
    }
