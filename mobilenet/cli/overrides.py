"""Overrides: values by dotted path into a frozen config."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mobilenet.cli.flags import flag_specs
from mobilenet.configs.base import Config
from mobilenet.errors import UsageError, one_of, rename_parameters

C = TypeVar("C", bound=Config)


def apply_overrides(config: C, values: Mapping[str, Any]) -> C:
    """A new config: `config` with values set by dotted path.

    Values of one nested config change together, so that rules between its fields see all of them.

    Raises:
        UsageError: no such field, or a value that breaks its rule; named as on the command line.
    """
    flags = {spec.path: f"--{spec.name}" for spec in flag_specs(config)}
    return _apply(config, values, "", flags)


def _apply(config: C, values: Mapping[str, Any], parent: str, flags: Mapping[str, str]) -> C:
    """`apply_overrides` for the config at the path `parent`, which ends with a dot."""
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    fields = {f.name: f for f in dataclasses.fields(config)}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        one_of(f"--override {parent}{path}", name, list(fields))
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    for name, value in changes.items():
        if classes := fields[name].metadata.get("classes"):
            chosen = classes[one_of(flags.get(f"{parent}{name}", name), value, classes)]
            changes[name] = _of_class(getattr(config, name), chosen)
    for name, inner_values in inner.items():
        before = changes.get(name, getattr(config, name))
        _check_fields(fields[name], before, inner_values, f"{parent}{name}.", flags)
        changes[name] = _apply(before, inner_values, f"{parent}{name}.", flags)

    def flag_of(name: str) -> str | None:
        path = f"{parent}{name}"
        return flags.get(path, f"--override {path}") if name in fields else None

    try:
        return config.replace(**changes)
    except UsageError as error:
        raise rename_parameters(error, flag_of) from None


def _of_class(config: Config, chosen: type[Config]) -> Config:
    """A config of another class, with what was set of the fields that both have."""
    if type(config) is chosen:
        return config
    default, shared = type(config)(), _field_names(chosen) & _field_names(config)
    values = {name: getattr(config, name) for name in shared}
    return chosen(**{name: x for name, x in values.items() if x != getattr(default, name)})


def _field_names(config: Config | type[Config]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _check_fields(
    holder: dataclasses.Field[Any],
    config: Config,
    paths: Iterable[str],
    parent: str,
    flags: Mapping[str, str],
) -> None:
    """Refuses a flag that belongs to another class of config than the one that was selected."""
    for path in paths:
        name = path.partition(".")[0]
        classes = holder.metadata.get("classes", {})
        users = [choice for choice, other in classes.items() if name in _field_names(other)]
        if users and name not in _field_names(config):
            chosen = next(choice for choice, other in classes.items() if other is type(config))
            expected = f"--{holder.name} {' or '.join(users)}"
            raise UsageError(flags[f"{parent}{name}"], None, expected, f"{chosen} has no such flag")
