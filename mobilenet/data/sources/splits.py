"""The names of splits in folders and lists, and what stands in for a split that is not there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TypeVar

SPLITS = ("train", "validation", "test")
NAMES = MappingProxyType(
    {
        **dict.fromkeys(("train", "training"), "train"),
        **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "validation"),
        **dict.fromkeys(("test", "testing"), "test"),
    }
)
HELD_OUT = ("validation", "test")

T = TypeVar("T")


def split_of(name: str) -> str | None:
    """The split that a name in any case stands for; `None` for another name."""
    return NAMES.get(name.lower())


def with_shared(own: Mapping[str, T]) -> dict[str, T]:
    """The splits in their order; where only one set is held out, validation and test are it."""
    held_out = own.get("test") or own.get("validation")
    shared = {"validation": held_out, "test": held_out} if held_out else {}
    splits = {**shared, **own}
    return {split: splits[split] for split in SPLITS if split in splits}


def assumptions(own: Collection[str], source: str) -> dict[str, str]:
    """What is assumed about validation or test images that are not there, in a line, by split.

    Args:
        own: the splits that the data have.
        source: the data, for the line.
    """
    missing = [split for split in HELD_OUT if split not in own]
    if len(missing) != 1:
        return {}
    (other,) = set(HELD_OUT) - set(missing)
    return {missing[0]: f"{source} has no {missing[0]} images: those of {other} are used for both"}
