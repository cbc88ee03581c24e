"""Base of the configs: frozen, JSON both ways; a field states its help as a flag, and its legal
values.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, TypeAlias, TypeVar

from mobilenet import strict_json
from mobilenet.errors import UsageError, one_of, shorten

C = TypeVar("C", bound="Config")
ImageSize: TypeAlias = int | tuple[int, int]  # side of a square, or height and width, in pixels
MAX_CLASSES = 1_000_000  # class indices end here: a larger label is a code of another kind
MAX_SIDE = 1 << 14  # of an image
MAX_BATCH = 1 << 13  # images at once; beyond 2^31 values kernels end the process
_LEAST_PERCENTAGE = 2  # 1.5 is rather a share that is too high
_MAX_INTEGER = 2**63 - 1  # what TensorFlow can hold


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which values a field may have; checked for each item of a tuple and each value of a mapping.

    Attributes:
        above, least: lower bound, without and with the bound itself.
        below, most: upper bound, without and with the bound itself.
        integer: only whole numbers.
        choices: the legal values; then the field is no number.
        remedy: what to do about an illegal value; may be empty.
    """

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    integer: bool = False
    choices: Collection[Any] = ()
    remedy: str = ""

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        bounds = (
            ("above", self.above),
            ("at least", self.least),
            ("below", self.below),
            ("at most", self.most),
        )
        limits = [f"{word} {bound}" for word, bound in bounds if bound is not None]
        kind = "a whole number" if self.integer else "a number"
        return f"{kind} {' and '.join(limits)}".strip()

    def check(self, name: str, value: object) -> None:
        """Checks a value.

        Args:
            name: the parameter.
            value: a number or one of the choices, or a tuple or mapping of such.

        Raises:
            UsageError: the value breaks the rule; it states the whole rule.
        """
        if isinstance(value, Mapping):
            for key, item in value.items():
                self.check(f"`{name}` {key}", item)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.check(name, item)
        elif self.choices:
            if isinstance(value, str):
                one_of(name, value, self.choices)
            elif value not in tuple(self.choices):
                raise UsageError(name, value, f"one of {self.choices}", self.remedy)
        else:
            self._check_number(name, value)

    def _check_number(self, name: str, value: object) -> None:
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise UsageError(name, value, f"{self.expected} of at most 63 bits", self.remedy)
        types = (int,) if self.integer else (int, float)
        if (
            not isinstance(value, types)
            or isinstance(value, bool)
            or not math.isfinite(value)
            or (self.above is not None and value <= self.above)
            or (self.least is not None and value < self.least)
            or (self.below is not None and value >= self.below)
            or (self.most is not None and value > self.most)
        ):
            raise UsageError(name, value, self.expected, self._share(value) or self.remedy)

    def _share(self, value: object) -> str:
        """The share that a percentage seems to mean where only shares are legal."""
        is_of_shares = 0 in (self.above, self.least) and 1 in (self.below, self.most)
        if not (is_of_shares and isinstance(value, (int, float))):
            return ""
        return f"did you mean {value / 100:g}?" if _LEAST_PERCENTAGE <= value <= 100 else ""


def check_number(name: str, value: object, **rule: Any) -> None:
    """Checks that `value` is a finite number inside the bounds of `Rule(**rule)`.

    Raises:
        UsageError: it is not.
    """
    Rule(**rule).check(name, value)


def sides(size: ImageSize) -> tuple[int, int]:
    """Height and width of an image size.

    Raises:
        UsageError: names `image_size`: it is neither a number nor a pair of numbers.
    """
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise UsageError("image_size", list(pair), "one number, or height and width")
    height, width = pair
    return height, width


def checked(default: Any, **rule: Any) -> Any:
    """A dataclass field that is no flag, whose values follow `Rule(**rule)`."""
    return _field(default, rule=Rule(**rule))


def flag(default: Any, help: str, name: str | None = None, path: bool = False, **rule: Any) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        default: the field's default.
        help: one sentence for `--help`.
        name: the flag's name where it differs from the field's.
        path: its text may be the path of a file or folder.
        rule: which values are legal, see `Rule`; any when left out.
    """
    metadata = {"help": help, "flag": name, "path": path}
    return _field(default, rule=Rule(**rule) if rule else None, **metadata)


def _field(default: Any, **metadata: Any) -> Any:
    if isinstance(default, Mapping):  # every config gets its own; a hash cannot cover it
        return dataclasses.field(
            default_factory=lambda: dict(default), hash=False, metadata=metadata
        )
    return dataclasses.field(default=default, metadata=metadata)


def nested(
    default: Any,
    prefix: str = "",
    only: tuple[str, ...] | None = None,
    classes: Mapping[str, type[Config]] | None = None,
    help: str = "",
    flags_of: type[Config] | None = None,
) -> Any:
    """A field that holds a config whose flags appear on the command line too.

    Args:
        default: the inner config.
        prefix: of the inner flags' names (`prune_` gives `--prune_epochs`).
        only: the inner fields that become flags; all that have a `help` when `None`.
        classes: the classes that the inner config may have, by the name that selects one: the flag
            of the field's own name.
        help: what that flag says; the names follow.
        flags_of: the class whose fields are the inner flags, where the field holds several and no
            flag selects one; that of the field's type when left out.
    """
    metadata: dict[str, Any] = {"prefix": prefix, "only": only, "classes": classes or {}}
    metadata |= {"help": help, "flags_of": flags_of}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of all configs: JSON both ways, `replace`, and a registry of classes by name."""

    _classes: ClassVar[dict[str, type[Config]]] = {}
    _former_names: ClassVar[Mapping[str, str]] = {}  # of fields, as older JSON has them

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Config._classes[cls.__name__] = cls

    def __post_init__(self) -> None:
        """Checks every field that has a rule; `None` is legal where the field's type says so.

        Raises:
            UsageError: a value breaks its rule; the field is named.
        """
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata.get("rule")
            if field.default_factory is not dataclasses.MISSING:
                if not isinstance(value, Mapping):
                    example = f", as in {field.default_factory()}"
                    raise UsageError(field.name, value, f"a dictionary{example}")
                object.__setattr__(self, field.name, dict(value))  # its own copy
            optional = "None" in str(field.type)
            if rule is not None and not (value is None and optional):
                rule.check(field.name, value)

    def replace(self: C, **changes: Any) -> C:
        """The next config: this one with `changes`, checked again."""
        _known(type(self), changes)
        return dataclasses.replace(self, **changes)

    def with_values(self: C, values: Mapping[str, Any]) -> C:
        """As `replace`, with values of any origin: their types are checked, lists become tuples.

        Raises:
            UsageError: there is no such field, or a value is not legal; the field is named.
        """
        _known(type(self), values)
        hints = typing.get_type_hints(type(self))
        return self.replace(**{name: fitted(name, hints[name], x) for name, x in values.items()})

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
        data = {kind._former_names.get(key, key): item for key, item in data.items()}
        _known(kind, data)
        hints = typing.get_type_hints(kind)
        values = {
            key: fitted(f"{kind.__name__} {key}", hints[key], item) for key, item in data.items()
        }
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


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config's JSON by dotted path; an empty object is a value."""
    pairs: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            pairs |= flat(value, f"{prefix}{name}.")
        else:
            pairs[prefix + name] = value
    return pairs


def fitted(name: str, hint: Any, value: Any) -> Any:
    """A value as a field of that type holds it: lists become tuples, dictionaries configs.

    Raises:
        UsageError: it is of another type; `name` says of what.
    """
    item = _typed(hint, value)
    if not _fits(hint, item):
        kind = getattr(hint, "__name__", "") if _plain_class(hint) else hint
        raise UsageError(name, item, f"a value of type {kind}")
    return item


def _class_of(accepted: tuple[type[C], ...], value: object) -> tuple[type[C], dict[str, Any]]:
    """The class that a dictionary names, one of `able` or derived from one, and the rest of it."""
    if not isinstance(value, dict):
        raise UsageError(accepted[0].__name__, value, "a JSON object")
    data = dict(value)
    name = data.pop("type", accepted[0].__name__)
    names = sorted(name for name, kind in Config._classes.items() if issubclass(kind, accepted))
    if isinstance(name, str) and name in Config._classes and name not in names:
        expected = " or ".join(kind.__name__ for kind in accepted)
        raise UsageError("type", name, f"{expected} or a config derived from it")
    return typing.cast(type[C], Config._classes[one_of("type", name, names)]), data


def _of_class(accepted: tuple[type[Config], ...], value: dict[str, Any]) -> Any:
    """The config in a field of these classes; one of another class stays what it is in JSON."""
    name = value.get("type")
    if isinstance(name, str) and not issubclass(Config._classes.get(name, accepted[0]), accepted):
        return value
    return _class_of(accepted, value)[0].from_json(value)


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
    accepted = tuple(o for o in options if isinstance(o, type) and issubclass(o, Config))
    if accepted and isinstance(value, dict):
        return _of_class(accepted, value)
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


__all__ = [
    "MAX_BATCH",
    "MAX_CLASSES",
    "MAX_SIDE",
    "Config",
    "ImageSize",
    "Rule",
    "check_number",
    "checked",
    "fitted",
    "flag",
    "nested",
    "one_of",
    "shorten",
    "sides",
]
