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
    assert images.notes == (f"{tmp_path}: 2 files are left out (2 .txt), first readme.txt",)
    assert images.assumed == {
        "test": f"{tmp_path} has no test images: those of validation are used for both"
    }
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
    assumed = image_folder.list_images(tmp_path).assumed
    assert set(assumed) == {"validation", "test"}
    assert all("5 images, a fixed fifth of each class, are held out" in v for v in assumed.values())
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
        (["train/1.jpg", "val/1.jpg"], "class folders in train; there are none with images"),
        (["train/a/b/1.jpg", "train/c/d/1.jpg"], "class folders in train"),
        (["a/1.jpg", "a/2.jpg", "b/c/1.jpg"], r"none in b \(there are folders in them, b/c\)"),
        (["cat/1.jpg", "dog/1.jpg", "Test/cat/1.jpg"], "cat, dog next to Test.*move the classes"),
        (["Train/a/1.jpg", "training/a/1.jpg"], "either Train or training, not both"),
        (["train/a/1.jpg", "dev/a/1.jpg", "eval/a/1.jpg"], "either dev or eval, not both"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg"], "only one has b, c"),
        (["train/a/1.jpg", "val/a/1.jpg", "validation/a/1.jpg"], "not both"),
    ],
)
def test_faults_are_reported(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, files)
    with pytest.raises(UsageError, match=message) as caught:
        image_folder.list_images(tmp_path)
    assert caught.value.remedy and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "valid", "test"),
        ("training", "validation", "testing"),
        ("Train", "Val", "Test"),
        ("TRAIN", "dev", "Testing"),
        ("train", "eval", "test"),
    ],
)
def test_split_folders_have_many_names(tmp_path: Path, folders: tuple[str, ...]) -> None:
    touch(tmp_path, [f"{folder}/{name}/1.jpg" for folder in folders for name in "ab"])
    images = image_folder.list_images(tmp_path)
    assert {k: v[0][0].parent.parent.name for k, v in images.splits.items()} == dict(
        zip(("train", "validation", "test"), folders, strict=True)
    )
    assert not images.notes and not images.assumed


def test_test_images_in_place_of_validation_are_announced(tmp_path: Path) -> None:
    touch(tmp_path, [f"{split}/{name}/1.jpg" for split in ("train", "test") for name in "ab"])
    images = image_folder.list_images(tmp_path)
    assert images.splits["validation"] == images.splits["test"]
    assert list(images.assumed) == ["validation"]
    assert images.assumed["validation"].endswith(
        "has no validation images: those of test are used for both"
    )


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    touch(tmp_path, [f"train/{name}/{n}.jpg" for name in "ab" for n in range(5)])
    touch(tmp_path, ["train/a/x.tif", "train/b/y.TIF", "train/b/z.heic", "train/stray.jpg"])
    touch(tmp_path, ["train/a/more/1.jpg", "train/a/more/2.jpg", "notes/readme.md", "list"])
    touch(tmp_path, [f"test/{n}.jpg" for n in range(7)])
    touch(tmp_path, [f"val/{name}/1.jfif" for name in "ab"])
    images = image_folder.list_images(tmp_path)
    assert {k: len(v) for k, v in images.splits.items()} == {
        "train": 10,
        "validation": 2,
        "test": 2,
    }
    assert images.notes == (
        f"{tmp_path}: 5 files are left out (1 .heic, 1 .jpg, 2 .tif, 1 no extension), first list",
        f"{tmp_path}: 3 folders are left out: notes with 0 images, test with 7 images, "
        "train/a/more with 2 images",
    )


def test_one_file_and_one_folder_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, [f"{split}/{name}/1.jpg" for split in ("train", "val") for name in "ab"])
    touch(tmp_path, ["train/a/2.tif", "test/1.jpg"])
    assert image_folder.list_images(tmp_path).notes == (
        f"{tmp_path}: 1 file is left out (1 .tif), first train/a/2.tif",
        f"{tmp_path}: 1 folder is left out: test with 1 images",
    )


def test_classes_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    touch(tmp_path, [f"{name}/{n}.jpg" for name in ("bus", "test", "train") for n in range(5)])
    images = image_folder.list_images(tmp_path)
    assert images.labels == ("bus", "test", "train")
    assert images.notes == (
        f"{tmp_path}: test, train are classes: they hold images and no class folders",
    )
    touch(tmp_path / "nested", [f"train/{name}/{n}.jpg" for name in ("train", "bus") for n in "12"])
    images = image_folder.list_images(tmp_path / "nested")
    assert images.labels == ("bus", "train") and not images.notes


def test_names_in_two_unicode_forms_are_told_apart(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    touch(tmp_path, [f"train/{composed}/1.jpg", "train/b/1.jpg"])
    touch(tmp_path, [f"val/{decomposed}/1.jpg", "val/b/1.jpg"])
    with pytest.raises(UsageError, match=r"'cafe\\u0301' \(NFD\) and 'caf\\xe9' \(NFC\)"):
        image_folder.list_images(tmp_path)


def test_all_extensions_of_formats_that_are_read(tmp_path: Path) -> None:
    names = ["1.jpg", "2.jpeg", "3.jpe", "4.jfif", "5.png", "6.bmp", "7.gif", "8.webp", "9.JPG"]
    touch(tmp_path, [f"val/{name}/{file}" for name in "ab" for file in names])
    assert len(image_folder.list_images(tmp_path).splits["test"]) == 18


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
