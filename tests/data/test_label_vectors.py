"""Lists in which an image has any number of labels, and each possible fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilenet.data.sources import image_csv
from mobilenet.errors import UsageError


def read(folder: Path, text: str, **options: int) -> image_csv.ImageList:
    for name in "abc":
        (folder / f"{name}.png").touch()
    (folder / "list.csv").write_text(text)
    return image_csv.read_list(folder / "list.csv", **options)


def vectors(listed: image_csv.ImageList, split: str = "test") -> list[object]:
    return [label for _, label in listed.splits[split]]


def test_a_column_is_a_label(tmp_path: Path) -> None:
    text = "File,Rain,wet road,Split\na.png,1,0,train\nb.png,0.0,1.0,val\nc.png,0,0,train\n"
    listed = read(tmp_path, text)
    assert listed.multi_label and listed.labels == ("Rain", "wet road") and listed.num_classes == 2
    assert vectors(listed, "train") == [(1, 0), (0, 0)]
    assert vectors(listed) == [(0, 1)]


@pytest.mark.parametrize("mark", ["|", ";", ","])
def test_one_column_has_all_labels_of_an_image(mark: str, tmp_path: Path) -> None:
    text = f'file,labels\na.png,"sun{mark} sea"\nb.png,sea\nc.png,\n'
    listed = read(tmp_path, text)
    assert listed.multi_label and listed.labels == ("sea", "sun")
    assert vectors(listed) == [(1, 1), (1, 0), (0, 0)]


def test_spreadsheets_divide_columns_by_semicolons(tmp_path: Path) -> None:
    listed = read(tmp_path, "file;labels\na.png;sun,sea\nb.png;sky\n")
    assert listed.labels == ("sea", "sky", "sun") and vectors(listed) == [(1, 0, 1), (0, 1, 0)]
    listed = read(tmp_path, "file;sun;sea\na.png;1,0;0,0\n")
    assert listed.labels == ("sun", "sea") and vectors(listed) == [(1, 0)]


def test_labels_may_be_numbers(tmp_path: Path) -> None:
    listed = read(tmp_path, "file,labels\na.png,1|3\nb.png,2\n", label_offset=1)
    assert listed.labels == ("0", "1", "2") and vectors(listed) == [(1, 0, 1), (0, 1, 0)]


def test_one_class_an_image_stays_that(tmp_path: Path) -> None:
    listed = read(tmp_path, "file,label,other\na.png,0,1\nb.png,1,0\n")
    assert not listed.multi_label and vectors(listed) == [0, 1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "file,rain,sun\na.png,cat,1\n",
            r"line 2: rain: got 'cat', expected 0 or 1, .* column `label`",
        ),
        ("file,rain,sun\na.png,2,1\n", r"line 2: rain: got '2', expected 0 or 1"),
        ("file,rain,rain\na.png,1,0\n", r"column: got 'rain', expected a name of its own"),
        ("file,rain,\na.png,1,0\n", r"column: got '', expected a name of its own"),
        ("file,labels\na.png,1|cat\n", r"labels: got 'cat', expected numbers or names"),
        ("file,labels\na.png,\n", r"labels: expected a label in some row"),
        ("file\na.png\n", r"it has file; add label"),
        ("file,class\na.png,1\n", r"it has file, class; add label"),
    ],
)
def test_a_list_that_cannot_be_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=problem):
        read(tmp_path, text)


def test_an_offset_is_for_numbers(tmp_path: Path) -> None:
    for text in ("file,labels\na.png,sun\n", "file,sun,sea\na.png,1,0\n"):
        with pytest.raises(UsageError, match="label_offset: got 1"):
            read(tmp_path, text, label_offset=1)
