"""The fields of a config as parameters: of a function by keyword, of a command as flags.

Each has a name of its own (`lr`, `prune_lr`) and a dotted path into the config (`train.lr`,
`prune.lr`); fields without a help have a path alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mobilenet.errors import UsageError, one_of, rename_parameters

from .base import Config, Rule, fitted

C = TypeVar("C", bound=Config)
_DROPOUT = Rule(least=0, below=1, remedy="0.2 is the published recipes'")  # of `dropout_rate`


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One field of a config, or of a config nested in it.

    Attributes:
        name: unique among the parameters of the config.
        path: dotted path of the field.
        type: of the value; `Path` marks text that may be a path.
        help: one sentence.
        default: of the field; a recipe may have another.
        rule: which values are legal; `None` where the type alone decides.
    """

    name: str
    path: str
    type: Any
    help: str
    default: Any = None
    rule: Rule | None = None


def parameters_of(config: type[Config]) -> list[Parameter]:
    """The parameters of a config: every field that has a `help`, through all nested configs."""
    parameters = list(_walk(config, "", "", None))
    for index, parameter in enumerate(parameters):
        if parameter.path == "model.weight_decay":  # next to the other fields of the seeds' table
            help = "share dropped before the logits: 1 - model.dropout_keep_prob"
            dropout = Parameter(
                *("dropout_rate", "model.dropout_keep_prob", float, help, 0.0, _DROPOUT)
            )
            parameters.insert(index, dropout)
            break
    return parameters


def _walk(
    config: type[Config], parent: str, prefix: str, only: tuple[str, ...] | None
) -> Iterator[Parameter]:
    hints = _field_types(config)
    for field in dataclasses.fields(config):
        path = f"{parent}{field.name}"
        if "prefix" in field.metadata:
            classes, seen = field.metadata["classes"], set()
            if classes:
                names = ", ".join(classes)
                help = f"{field.metadata['help']}: {names}"
                chosen = _name_of(classes, field.default)
                yield Parameter(field.name, path, str, help, chosen, Rule(choices=tuple(classes)))
            for inner in classes.values() or (field.metadata["flags_of"] or hints[field.name],):
                for found in _walk(
                    inner, f"{path}.", field.metadata["prefix"], field.metadata["only"]
                ):
                    if found.path not in seen:
                        seen.add(found.path)
                        yield found
        elif "help" in field.metadata and (only is None or field.name in only):
            name = prefix + (field.metadata["flag"] or field.name)
            stage = f" ({parent.rstrip('.')} stage)" if prefix else ""
            help = field.metadata["help"] + stage
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            rule = field.metadata["rule"]
            yield Parameter(name, path, hints[field.name], help, default, rule)


def _name_of(classes: Mapping[str, type[Config]], config: Any) -> str | None:
    return next((name for name, kind in classes.items() if type(config) is kind), None)


def value_of(parameter: Parameter, config: Config) -> Any:
    """The value that a parameter has in a config; its default where the config's classes have no
    such field.
    """
    value: Any = config
    classes: Mapping[str, type[Config]] = {}
    for name in parameter.path.split("."):
        fields = {field.name: field for field in dataclasses.fields(value)}
        if name not in fields:
            return parameter.default
        value, classes = getattr(value, name), fields[name].metadata.get("classes", {})
    if parameter.rule is _DROPOUT:
        return round(1.0 - value, 12)
    return _name_of(classes, value) if classes else value


def field_types(config: type[Config], parent: str = "") -> dict[str, Any]:
    """Type by dotted path of every field that one value can set."""
    types_by_path: dict[str, Any] = {}
    classes = {f.name: f.metadata.get("classes", {}) for f in dataclasses.fields(config)}
    inner_types = {f.name: f.metadata.get("flags_of") for f in dataclasses.fields(config)}
    for name, hint in _field_types(config).items():
        hint = inner_types.get(name) or hint
        if classes.get(name):
            types_by_path[f"{parent}{name}"] = str
            for inner in classes[name].values():
                types_by_path |= field_types(inner, f"{parent}{name}.")
        elif isinstance(hint, type) and issubclass(hint, Config):
            types_by_path |= field_types(hint, f"{parent}{name}.")
        elif not name.startswith("_") and not _holds_configs(hint):
            types_by_path[f"{parent}{name}"] = hint
    return types_by_path


def _field_types(config: type[Config]) -> dict[str, Any]:
    """The type of each field's values: its annotation, or `Path`."""
    hints = typing.get_type_hints(config)
    paths = {f.name for f in dataclasses.fields(config) if f.metadata.get("path")}
    return {
        name: (Path if hint is str else Path | None) if name in paths else hint
        for name, hint in hints.items()
    }


def _holds_configs(hint: Any) -> bool:
    return any(isinstance(t, type) and issubclass(t, Config) for t in typing.get_args(hint))


def settings_of(config: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted path, for `apply`, of values by name or path.

    Args:
        config: which they are of.
        values: plain ones, checked for their types; or whole configs for the fields that hold one.

    Raises:
        UsageError: there is no such field (the nearest is offered), or a value is of another type.
    """
    paths = {parameter.name: parameter.path for parameter in parameters_of(config)}
    known, nested = field_types(config), typing.get_type_hints(config)
    settings = {}
    for name, value in values.items():
        path = paths.get(name, name)
        if path in nested and isinstance(value, Config):
            settings[path] = fitted(name, nested[path], value)
        elif path in known:
            settings[path] = value_of_field(name, path, known[path], value)
        else:
            near = [other for other, path in paths.items() if path.endswith(f".{name}")]
            near += difflib.get_close_matches(name, [*paths, *known], n=1, cutoff=0.0)
            expected = f"a field of {config.__name__}"
            raise UsageError(name, None, expected, f"did you mean {near[0]}?")
    return settings


def value_of_field(name: str, path: str, hint: Any, value: Any) -> Any:
    """The value of the field at `path`, which has the type `hint`, for that of a parameter.

    Raises:
        UsageError: it is of another type or not legal; `name` is named.
    """
    return stored(name, path, _checked(name, path, hint, value))


def _checked(name: str, path: str, hint: Any, value: Any) -> Any:
    if hint in (Path, Path | None):
        if isinstance(value, (str, os.PathLike)):
            return os.path.expanduser(os.fspath(value))
        return fitted(name, str if hint is Path else str | None, value)
    if _lone_key(path) and isinstance(value, (int, float)):
        value = {"": value}
    return fitted(name, hint, value)


_LONE = {  # what a number without a name is of
    "final_sparsity": "pointwise",
    "sparsity": "pointwise",
    "ratio": "all",
}


def _lone_key(path: str) -> str | None:
    return _LONE.get(path.rpartition(".")[2])


def stored(name: str, path: str, value: Any) -> Any:
    """The value of the field at `path`, where the parameter means something else.

    Raises:
        UsageError: the value is not legal; `name` is named.
    """
    if path == "model.dropout_keep_prob" and name != path:  # the parameter `dropout_rate`
        _DROPOUT.check(name, value)
        return round(1.0 - value, 12)
    lone = _lone_key(path)
    if lone is not None and isinstance(value, dict):
        return {key or lone: share for key, share in value.items()}
    return value


def text_of(value: Any) -> str:
    """The text that a flag or `--override` takes for a value."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}={text_of(item)}" for name, item in value.items())
    if isinstance(value, (tuple, list)):
        return ",".join(map(text_of, value))
    return repr(value) if isinstance(value, float) else str(value)


def apply(
    config: C,
    values: Mapping[str, Any],
    name_of: Callable[[str], str] | None = None,
    noun: str = "field",
) -> C:
    """A new config: `config` with values set by dotted path.

    Values of one nested config change together, so that rules between its fields see all of them.

    Args:
        config: to start from.
        values: by path.
        name_of: gives the name that errors have for a path; that of the parameter by default.
        noun: what errors call a field.

    Raises:
        UsageError: no such field, or a value that breaks its rule.
    """
    if name_of is None:
        names = {parameter.path: parameter.name for parameter in parameters_of(type(config))}
        return _apply(config, values, "", lambda path: names.get(path, path), noun)
    return _apply(config, values, "", name_of, noun)


def _apply(
    config: C, values: Mapping[str, Any], parent: str, name_of: Callable[[str], str], noun: str
) -> C:
    """`apply` for the config at the path `parent`, which ends with a dot."""
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    fields = {f.name: f for f in dataclasses.fields(config)}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        one_of(name_of(f"{parent}{path}"), name, list(fields))
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    for name, value in changes.items():
        classes = fields[name].metadata.get("classes")
        if classes and not isinstance(value, Config):
            chosen = classes[one_of(name_of(f"{parent}{name}"), value, classes)]
            changes[name] = _of_class(getattr(config, name), chosen)
    for name, inner_values in inner.items():
        before = changes.get(name, getattr(config, name))
        problem = _foreign_field(fields[name], before, inner_values)
        if problem is not None:
            path, users, chosen_name = problem
            expected = f"{name_of(f'{parent}{name}')} {' or '.join(users)}"
            remedy = f"{chosen_name} has no such {noun}"
            raise UsageError(name_of(f"{parent}{name}.{path}"), None, expected, remedy)
        changes[name] = _apply(before, inner_values, f"{parent}{name}.", name_of, noun)
    try:
        return config.replace(**changes)
    except UsageError as error:
        known = {name: name_of(f"{parent}{name}") for name in fields}
        raise rename_parameters(error, known.get) from None


def _of_class(config: Config, chosen: type[Config]) -> Config:
    """A config of another class, with what was set of the fields that both have."""
    if type(config) is chosen:
        return config
    default, shared = type(config)(), _field_names(chosen) & _field_names(config)
    values = {name: getattr(config, name) for name in shared}
    return chosen(**{name: x for name, x in values.items() if x != getattr(default, name)})


def _field_names(config: Config | type[Config]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _foreign_field(
    holder: dataclasses.Field[Any], config: Config, paths: Iterable[str]
) -> tuple[str, list[str], str] | None:
    """The first path that belongs to another class of config than the one that was selected.

    Returns:
        It, the names of the classes that it belongs to, and the selected one's.
    """
    classes = holder.metadata.get("classes", {})
    for path in paths:
        name = path.partition(".")[0]
        users = [choice for choice, other in classes.items() if name in _field_names(other)]
        if users and name not in _field_names(config):
            return path, users, next(c for c, other in classes.items() if other is type(config))
    return None
