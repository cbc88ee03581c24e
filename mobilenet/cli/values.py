"""Text from the command line as values of config fields, read by the fields' types."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from pathlib import Path
from typing import Any

from mobilenet.configs.base import Config
from mobilenet.errors import UsageError


def paths(kind: type[Config], place: str = "") -> dict[str, Any]:
    """Type by dotted path of every field that one value can set."""
    found: dict[str, Any] = {}
    kinds = {f.name: f.metadata.get("kinds", {}) for f in dataclasses.fields(kind)}
    for name, hint in field_kinds(kind).items():
        if kinds.get(name):
            found[f"{place}{name}"] = str
            for inner in kinds[name].values():
                found |= paths(inner, f"{place}{name}.")
        elif isinstance(hint, type) and issubclass(hint, Config):
            found |= paths(hint, f"{place}{name}.")
        elif not name.startswith("_") and not _holds_configs(hint):
            found[f"{place}{name}"] = hint
    return found


def field_kinds(kind: type[Config]) -> dict[str, Any]:
    """What `convert` reads a field's text as: its annotation, or `Path` where it may be a path."""
    hints = typing.get_type_hints(kind)
    paths = {f.name for f in dataclasses.fields(kind) if f.metadata.get("path")}
    return {
        name: (Path if hint is str else Path | None) if name in paths else hint
        for name, hint in hints.items()
    }


def _holds_configs(hint: Any) -> bool:
    return any(isinstance(t, type) and issubclass(t, Config) for t in typing.get_args(hint))


_TRUTH = {
    "true": True,
    "t": True,
    "1": True,
    "yes": True,
    "false": False,
    "f": False,
    "0": False,
    "no": False,
}
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}


def convert(what: str, kind: Any, text: str) -> Any:
    """Reads text as a value of a type: scalars, `X | None`, `tuple[X, ...]` and `dict[str, X]`.

    Lists are split at commas, entries of a dictionary at their last `=`; a lone number for a
    dictionary is kept under the empty name, for the caller to place. The text `none` is `None`
    where the type allows it. `Path` gives text too, in which a leading `~` is the home folder.

    Raises:
        UsageError: names `what`, the text and the type.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none":
            return None
        return convert(what, next(option for option in inner if option is not type(None)), text)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if origin is tuple:
        items = tuple(convert(what, inner[0], word) for word in words)
        if inner[-1] is not Ellipsis and len(items) != len(inner):
            raise UsageError(what, text, f"{len(inner)} values, split by commas")
        return items
    if origin is dict:
        pairs = [word.rpartition("=") for word in words]
        return {name.strip(): convert(what, inner[1], value) for name, _, value in pairs}
    if kind is Path:
        return os.path.expanduser(text)
    try:
        return _TRUTH[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise UsageError(what, text, _EXPECTED.get(kind, f"a {kind.__name__}")) from None
