"""The data set that a path or name stands for."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mobilenet import files
from mobilenet.configs import dataset as datasets
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.errors import UsageError

_RECORDS = ("train", "val", "test")  # how the names of record files begin
_NAME = re.compile(r"\w+(/[\w.-]+)?(:[\w.*]+)?")  # of TFDS: name/config:version
_EXPECTED = "class folders, a CSV list of images, a folder of records or the name of a data set"


def find_dataset(
    data: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> DatasetConfig:
    """The config of a data set by its path or name.

    Args:
        data: a folder of class folders, a CSV list, a folder of records, which may lie on object
            storage; or a name, one of `configs.dataset.KNOWN` or of TFDS. A name that is known is
            never taken for a path.
        data_dir: where a data set that is named lies.

    Raises:
        UsageError: a path that does not exist or holds something else, or a path and `data_dir`.
    """
    text = os.fspath(data)
    is_name = isinstance(data, str) and text in datasets.KNOWN
    if not is_name and data_dir is None and files.is_remote(text):
        return datasets.RECORDS.replace(data_dir=text)
    path = Path(text).expanduser()
    if not is_name and path.exists():
        if data_dir is not None:
            expected = f"nothing, as `data` is a path ({text})"
            raise UsageError("data_dir", str(data_dir), expected)
        return datasets.get(_kind(path)).replace(data_dir=str(path))
    if not is_name and (not isinstance(data, str) or not _NAME.fullmatch(text)):
        raise UsageError("data", text, f"{_EXPECTED}; there is no such path")
    config = datasets.get(text)
    return config if data_dir is None else config.replace(data_dir=os.fspath(data_dir))


@contextlib.contextmanager
def naming_data(data_dir: str | os.PathLike[str] | None) -> Iterator[None]:
    """Errors of the readers, which name fields of `DatasetConfig`, name the parameter `data`."""
    try:
        yield
    except UsageError as error:
        fields = ("dataset_name", "data_dir") if data_dir is None else ("dataset_name",)
        if error.what not in fields:
            raise
        raise type(error)("data", error.got, error.expected, error.remedy) from None


def _kind(path: Path) -> str:
    """The name of the data set that lies at an existing path."""
    if not path.is_dir():
        return datasets.LIST.name
    children = [child for child in path.iterdir() if not child.name.startswith((".", "__"))]
    if any(child.is_dir() for child in children):
        return datasets.FOLDER.name
    if any(child.name.startswith(_RECORDS) for child in children):
        return datasets.RECORDS.name
    raise UsageError("data", str(path), f"{_EXPECTED}; this folder holds none of these")
