"""A griffe extension: names of a docstring that share a description each get it."""

from __future__ import annotations

import re
from typing import Any

import griffe

# An entry of a section: its indent, its names, and its description with the lines that go on.
_ENTRY = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)$", re.MULTILINE)


def separated(docstring: str) -> str:
    """The docstring in which each entry has one name, as griffe reads them."""
    return _ENTRY.sub(
        lambda entry: "\n".join(f"{entry[1]}{name}: {entry[3]}" for name in entry[2].split(", ")),
        docstring,
    )


class SharedDescriptions(griffe.Extension):
    """Separates the entries of every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = separated(obj.docstring.value)
