"""Lists of images: what is read, and each possible fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilenet.data.sources import image_csv
from mobilenet.errors import UsageError


def written(root: Path, text: str, *images: str, encoding: str = "utf-8") -> Path:
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    path = root / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_files_labels_and_order(tmp_path: Path) -> None:
    """Other columns, their order, blanks, a byte order mark, line endings do not matter."""
    path = written(
        tmp_path,
        'label , file,name\r\n5,b.png,tench\r\n\r\n 0, sub/a b.jpg,\r\n17,../up.webp,"x, y"\r\n',
        "b.png",
        "sub/a b.jpg",
        "../up.webp",
        encoding="utf-8-sig",
    )
    images = image_csv.read_list(path)
    rows = (
        (tmp_path / "b.png", 5),
        (tmp_path / "sub/a b.jpg", 0),
        (tmp_path / "../up.webp", 17),
    )
    assert images.splits == {"validation": rows, "test": rows}
    assert images.num_classes == 18
    assert images.labels == tuple(str(n) for n in range(18))


def test_absolute_paths_and_offset(tmp_path: Path) -> None:
    path = written(tmp_path / "lists", f"file,label\n{tmp_path}/x.png,1000\n", "../x.png")
    images = image_csv.read_list(str(path), label_offset=1)
    assert images.splits["test"] == ((tmp_path / "x.png", 999),)
    assert images.num_classes == 1000


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ("train val", {"train": [0], "validation": [1], "test": [1]}),
        ("train test", {"train": [0], "validation": [1], "test": [1]}),
        ("test validation train", {"train": [2], "validation": [1], "test": [0]}),
        ("train train", {"train": [0, 1]}),
        ("val val", {"validation": [0, 1], "test": [0, 1]}),
    ],
)
def test_splits(tmp_path: Path, splits: str, expected: dict[str, list[int]]) -> None:
    rows = "".join(f"{n}.png,{n},{split}\n" for n, split in enumerate(splits.split()))
    path = written(tmp_path, f"file,label,split\n{rows}", "0.png", "1.png", "2.png")
    images = image_csv.read_list(path)
    assert {k: [label for _, label in v] for k, v in images.splits.items()} == expected
    assert list(images.splits) == list(expected)
    assert images.num_classes == len(splits.split())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["list.csv: expected the columns file and label in its first line", "it is empty"]),
        ("file,class\na.png,1\n", ["it has file, class", "add label"]),
        ("a.png,1\n", ["it has a.png, 1", "add file, label"]),
        ("file,label\n", ["at least one image"]),
        ("file,label\n\n , \n", ["at least one image"]),
        ("file,label\na.png,1\nb.png,2\n", ["files that exist", "b.png in line 3", "relative to"]),
        ("file,label\n,1\n", ["files that exist", "an empty name in line 2"]),
        ("file,label\n.,1\n", ["files that exist", ". in line 2"]),
        ("file,label\na.png,1\n\na.png,cat\n", ["line 4: label: got 'cat'", "as '1' in line 2"]),
        ("file,label\na.png,cat\na.png,1\n", ["line 3: label: got '1'", "a class name, as 'cat'"]),
        ("file,label\nC:\\photos\\b.png,1\n", ["C:\\photos\\b.png in line 2", "without a drive"]),
        ("file,label\na.png,\n", ["line 2: label: got ''"]),
        ("file,label\na.png,1.5\n", ["line 2: label: got '1.5'", "whole number"]),
        ("file,label\na.png,-1\n", ["line 2: label: got '-1'", "at least 0"]),
        ("file,label\na.png,20120101\n", ["line 2: label: got '20120101'", "below a million"]),
        ("file,label\na.png,1\na.png\n", ["line 3: got '1 cells', expected 2"]),
        ("file,label\na.png,1,2\n", ["line 2: got '3 cells', expected 2"]),
        ("file,label,split\na.png,1,tset\n", ["line 2: split: got 'tset'", "did you mean test?"]),
        ("file,label,split\na.png,1,\n", ["line 2: split: got ''"]),
        ('file,label\n"a.png,1\n', ["a CSV file in UTF-8"]),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = written(tmp_path, text, "a.png")
    with pytest.raises(UsageError) as caught:
        image_csv.read_list(path)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file;label\r\nsub\\a.png;0\r\nsub\\b.png;1\r\n", "utf-8"),
        ("sep=;\r\nFile;Label\r\nsub\\a.png;0,0\r\nsub\\b.png;1,0\r\n", "utf-8-sig"),
        ("File\tLabel\r\nsub/a.png\t0\r\nsub/b.png\t1\r\n", "utf-16"),
        ("LABEL,FILE\n0.0,sub/a.png\n1.0,.\\sub\\b.png\n", "utf-8"),
        ('"file","label"\r"sub/a.png","0"\r"sub/b.png","1."\r', "utf-8"),
    ],
)
def test_lists_of_windows_and_spreadsheets(tmp_path: Path, text: str, encoding: str) -> None:
    path = written(tmp_path, text, "sub/a.png", "sub/b.png", encoding=encoding)
    images = image_csv.read_list(path)
    assert [(f.resolve(), n) for f, n in images.splits["test"]] == [
        ((tmp_path / "sub/a.png").resolve(), 0),
        ((tmp_path / "sub/b.png").resolve(), 1),
    ]
    assert images.labels == ("0", "1")


def test_class_names_as_labels(tmp_path: Path) -> None:
    rows = "a.png,tench,Training\nb.png,bus,Valid\na.png,bus,train\n"
    path = written(tmp_path, f"file,label,split\n{rows}", "a.png", "b.png")
    images = image_csv.read_list(path)
    assert images.labels == ("bus", "tench")
    assert [label for _, label in images.splits["train"]] == [1, 0]
    assert [label for _, label in images.splits["validation"]] == [0]
    assert images.assumed == {
        "test": f"{path} has no test images: those of validation are used for both"
    }
    with pytest.raises(UsageError, match="label_offset: got 1, expected 0"):
        image_csv.read_list(path, 1)


def test_names_in_another_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    path = written(tmp_path, f"file,label\n{composed}.png,1\n", f"{decomposed}.png")
    with pytest.raises(UsageError, match=r"its name is NFC, that of the file NFD"):
        image_csv.read_list(path)
    path = written(tmp_path, f"file,label\na.png,{composed}\na.png,{decomposed}\n", "a.png")
    with pytest.raises(UsageError, match=r"class names in one Unicode form"):
        image_csv.read_list(path)


def test_a_list_that_may_start_at_1_is_noted(tmp_path: Path) -> None:
    path = written(tmp_path, "file,label\na.png,1\na.png,2\n", "a.png")
    assert "label_offset of 1" in image_csv.read_list(path).notes[0]
    assert not image_csv.read_list(path, 1).notes


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    for data in (b"\xff\xd8\xff\xe0file,label\n", b"file,label\na\x00.png,\xe9\n"):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="a CSV file in UTF-8"):
            image_csv.read_list(path)


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^data_dir: expected a CSV file; .*file,label"):
        image_csv.read_list(None)
    with pytest.raises(UsageError, match="this is a folder"):
        image_csv.read_list(tmp_path)
    with pytest.raises(UsageError, match="a CSV file that exists"):
        image_csv.read_list(tmp_path / "none.csv")


def test_an_offset_above_a_label(tmp_path: Path) -> None:
    path = written(tmp_path, "file,label\na.png,1\na.png,0\n", "a.png")
    with pytest.raises(UsageError, match=r"^label_offset: got 1.*lowest.*line 3 has 0"):
        image_csv.read_list(path, 1)


def test_many_missing_files_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "file,label\n" + "".join(f"{n}.png,0\n" for n in range(40)))
    with pytest.raises(UsageError, match=r"4\.png in line 6, \.\.\. \(40\)"):
        image_csv.read_list(path)
