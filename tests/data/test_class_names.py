"""Names of classes from a text file, class folders and a list."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_sets import write_class_folders

from mobilenet.data.sources import class_names
from mobilenet.errors import UsageError


def test_a_file_has_a_name_a_line(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffant\r\n big  bee \r\nKäfer\r\n\r\n".encode())
    assert class_names.read_names(file) == ("ant", "big bee", "Käfer")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "it is empty"), (b"a\n\nb\n", "one is empty"), (b"\xff\xfe", "not UTF-8"), (None, "No")],
)
def test_a_file_without_names_is_refused(
    content: bytes | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "labels.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=problem) as caught:
        class_names.read_names(file)
    assert caught.value.what == "labels"


def test_class_folders_have_names(tmp_path: Path) -> None:
    assert class_names.find_names(write_class_folders(tmp_path, classes="ba")) == ("a", "b")
