"""What every config has: it is frozen, checked, JSON both ways; a field with a `help` is a flag."""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from mobilenet import strict_json
from mobilenet.errors import UsageError, one_of, shorten

C = TypeVar("C", bound="Config")
MAX_CLASSES = 1_000_000  # class indices end here: a larger label is a code of another kind
MAX_SIDE = 1 << 14  # of an image
MAX_BATCH = 1 << 13  # images at once; beyond 2^31 values kernels end the process
_MAX_INTEGER = 2**63 - 1  # what TensorFlow can hold


def flag(default: Any, help: str, name: str | None = None, path: bool = False) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        default: the field's default.
        help: one sentence for `--help`.
        name: the flag's name where it differs from the field's (the seeds' names).
        path: its text may be the path of a file or folder.
    """
    metadata = {"help": help, "flag": name, "path": path}
    if isinstance(default, Mapping):  # every config gets its own; a hash cannot cover it
        return dataclasses.field(
            default_factory=lambda: dict(default), hash=False, metadata=metadata
        )
    return dataclasses.field(default=default, metadata=metadata)


def nested(
    default: Any,
    prefix: str = "",
    only: tuple[str, ...] | None = None,
    kinds: Mapping[str, type[Config]] | None = None,
    help: str = "",
) -> Any:
    """A field that holds a config whose flags appear on the command line too.

    Args:
        default: the inner config.
        prefix: put in front of the inner flags' names (`prune_` gives `--prune_epochs`).
        only: the inner fields that become flags; all that have a `help` when `None`.
        kinds: the classes that the inner config may have, by the name that picks one: the flag of
            the field's own name.
        help: what that flag says; the names follow.
    """
    metadata = {"prefix": prefix, "only": only, "kinds": kinds or {}, "help": help}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of all configs: JSON both ways, `replace`, and a registry of classes by name."""

    _classes: ClassVar[dict[str, type[Config]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Config._classes[cls.__name__] = cls

    def replace(self: C, **changes: Any) -> C:
        """The next config: this one with `changes`, checked again."""
        _known(type(self), changes)
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values; `type` names the class."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"type": type(self).__name__, **fields}

    @classmethod
    def from_json(cls: type[C], value: dict[str, Any]) -> C:
        """Builds the config that `to_json` described.

        Raises:
            UsageError: the value is no dictionary, the class is not `cls` or one derived from it,
                a key is unknown, or a value is not legal.
        """
        kind, data = _class_of((cls,), value)
        _known(kind, data)
        hints = typing.get_type_hints(kind)
        values = {key: _typed(hints[key], item) for key, item in data.items()}
        for key, item in values.items():
            if not _fits(hints[key], item):
                wanted = (
                    getattr(hints[key], "__name__", "") if _plain_class(hints[key]) else hints[key]
                )
                raise UsageError(f"{kind.__name__} {key}", item, f"a value of type {wanted}")
        try:
            return kind(**values)
        except UsageError:
            raise
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise UsageError(kind.__name__, None, f"fields that fit each other ({error})") from None

    @classmethod
    def from_file(cls: type[C], path: str | os.PathLike[str]) -> C:
        """Reads a config from a JSON file.

        Raises:
            UsageError: the file is absent, no JSON (see `strict_json.loads`) or no such config;
                the path is named.
        """
        value = strict_json.read_object(path, f"a {cls.__name__}")
        try:
            return cls.from_json(value)
        except UsageError as error:
            raise error.within(str(path)) from None


def _class_of(able: tuple[type[C], ...], value: object) -> tuple[type[C], dict[str, Any]]:
    """The class that a dictionary names, one of `able` or derived from one, and the rest of it."""
    if not isinstance(value, dict):
        raise UsageError(able[0].__name__, value, "a JSON object")
    data = dict(value)
    name = data.pop("type", able[0].__name__)
    names = sorted(name for name, kind in Config._classes.items() if issubclass(kind, able))
    if isinstance(name, str) and name in Config._classes and name not in names:
        expected = " or ".join(kind.__name__ for kind in able)
        raise UsageError("type", name, f"{expected} or a config derived from it")
    return typing.cast(type[C], Config._classes[one_of("type", name, names)]), data


def _of_class(able: tuple[type[Config], ...], value: dict[str, Any]) -> Any:
    """The config in a field of these classes; one of another class stays what it is in JSON."""
    name = value.get("type")
    if isinstance(name, str) and not issubclass(Config._classes.get(name, able[0]), able):
        return value
    return _class_of(able, value)[0].from_json(value)


def _known(kind: type[Config], names: typing.Iterable[str]) -> None:
    fields = [f.name for f in dataclasses.fields(kind)]
    for name in names:
        one_of(f"{kind.__name__} field", name, fields)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_json()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _typed(hint: Any, value: Any) -> Any:
    """Turns JSON into what the field's type wants: lists into tuples, dictionaries into configs."""
    if typing.get_origin(hint) is dict:
        return value
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    able = tuple(o for o in options if isinstance(o, type) and issubclass(o, Config))
    if able and isinstance(value, dict):
        return _of_class(able, value)
    for option in options:
        if typing.get_origin(option) is tuple and isinstance(value, list):
            inner = typing.get_args(option)[0]
            return tuple(_typed(inner, item) for item in value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and float in options and int not in options:
        return float(value) if abs(value) <= _MAX_INTEGER else value
    return value


def _plain_class(hint: Any) -> bool:
    return isinstance(hint, type) and not typing.get_args(hint)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value read from JSON is of the field's type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(option, value) for option in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        return len(kinds) == len(value) and all(map(_fits, kinds, value))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(inner[1], item) for item in value.values())
    if isinstance(value, bool) and hint is not bool:
        return False
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def number(
    what: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    integer: bool = False,
    remedy: str = "",
) -> None:
    """Checks that `value` is a finite number inside the given bounds.

    Raises:
        UsageError: states the whole rule, not just the part that failed.
    """
    kind = "a whole number" if integer else "a number"
    bounds = (("above", above), ("at least", least), ("below", below), ("at most", most))
    limits = [f"{word} {bound}" for word, bound in bounds if bound is not None]
    rule = f"{kind} {' and '.join(limits)}".strip()
    wanted = (int,) if integer else (int, float)
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise UsageError(what, value, f"{rule} of at most 63 bits", remedy)
    ok = isinstance(value, wanted) and not isinstance(value, bool) and math.isfinite(value)
    if ok:
        assert isinstance(value, (int, float))
        ok = (
            (above is None or value > above)
            and (least is None or value >= least)
            and (below is None or value < below)
            and (most is None or value <= most)
        )
    if not ok:
        raise UsageError(what, value, rule, remedy)


__all__ = [
    "MAX_BATCH",
    "MAX_CLASSES",
    "MAX_SIDE",
    "Config",
    "flag",
    "nested",
    "number",
    "one_of",
    "shorten",
]
