"""The image files of a split and their labels in few bytes: there may be millions of them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from mobilenet.data.sources.label_vectors import Vector

LOCAL = "of object storage records are read; `python -m mobilenet.data` writes them"
Item = tuple[Path, int | Vector]
Int64 = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]


class FileItems(Sequence[Item]):
    """File and class index, or a 0 or 1 for each label, of each image of a split.

    Attributes:
        root: the folder that names are relative to; empty if they are not.
        names: of all files, one after the other, as the file system has them.
        bounds: where in `names` each begins, and the end, `[files + 1]`.
        labels: `[files]`, or `[files, labels]` of 0 and 1.
    """

    def __init__(self, root: str, names: bytes, bounds: Int64, labels: Labels) -> None:
        self.root, self.names, self.bounds, self.labels = root, names, bounds, labels

    @classmethod
    def create(cls, root: str, names: Iterable[str], labels: Sequence[Any] | Labels) -> FileItems:
        """The items with these names and labels."""
        encoded = [os.fsencode(name) for name in names]
        bounds = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(name) for name in encoded], out=bounds[1:])
        return cls(root, b"".join(encoded), bounds, np.asarray(labels, np.int32))

    @property
    def prefix(self) -> str:
        """What stands before each name in a path."""
        return os.path.join(self.root, "") if self.root else ""

    def name(self, number: int) -> str:
        """The name of the file with this number, as it is stored."""
        begin, end = self.bounds[number : number + 2]
        return os.fsdecode(self.names[begin:end])

    def path(self, number: int) -> Path:
        """The file with this number."""
        return Path(self.root, self.name(number))

    def paths(self) -> Iterator[str]:
        """All files."""
        return (str(Path(self.root, name)) for name in self.relative_names())

    def relative_names(self) -> Iterator[str]:
        """The names of all files, as they are stored."""
        pairs = itertools.pairwise(self.bounds.tolist())
        return (os.fsdecode(self.names[begin:end]) for begin, end in pairs)

    def select(self, numbers: Sequence[int] | Int64) -> FileItems:
        """The items with these numbers."""
        every = list(self.relative_names())
        names = [every[number] for number in numbers]
        return FileItems.create(self.root, names, self.labels[list(numbers)])

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, number: int) -> Item: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, number: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(number, slice):
            return tuple(self[n] for n in range(*number.indices(len(self))))
        number = range(len(self))[number]
        label = self.labels[number].tolist()
        return self.path(number), tuple(label) if isinstance(label, list) else label

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


def to_arrays(splits: Mapping[str, FileItems], **facts: Any) -> dict[str, npt.NDArray[Any]]:
    """Splits, and facts that JSON holds, as arrays for an index."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for split, items in splits.items():
        arrays[f"names {split}"] = np.frombuffer(items.names, np.uint8)
        arrays[f"bounds {split}"] = items.bounds
        arrays[f"labels {split}"] = items.labels
    header = json.dumps({"splits": list(splits), **facts})
    return {**arrays, "facts": np.frombuffer(header.encode(), np.uint8)}


def from_arrays(
    root: str, arrays: Mapping[str, npt.NDArray[Any]]
) -> tuple[dict[str, FileItems], dict[str, Any]]:
    """The splits and facts of `to_arrays`.

    Raises:
        KeyError, ValueError: these are not its arrays.
    """
    facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
    splits = {}
    for split in facts.pop("splits"):
        names, bounds, labels = (arrays[f"{n} {split}"] for n in ("names", "bounds", "labels"))
        fits = len(bounds) == len(labels) + 1 and bounds[0] == 0 and bounds[-1] == len(names)
        if not fits or (np.diff(bounds) < 1).any() or labels.min() < 0:
            raise ValueError(split)
        splits[split] = FileItems(root, names.tobytes(), bounds, labels)
    return splits, facts
