"""The next config: values by dotted path into a frozen config, errors under the flags that were
typed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mobilenet.cli.flags import flag_specs
from mobilenet.configs.base import Config
from mobilenet.errors import UsageError, one_of

C = TypeVar("C", bound=Config)


def settle(config: C, settings: Mapping[str, Any]) -> C:
    """The next config: `config` with values set by dotted path.

    Values of one nested config change together, so that rules between its fields see all of them.

    Raises:
        UsageError: no such field, or a value that breaks its rule; named as on the command line.
    """
    names = {spec.path: f"--{spec.name}" for spec in flag_specs(config)}
    return _settle(config, settings, "", names)


def _settle(config: C, settings: Mapping[str, Any], place: str, names: Mapping[str, str]) -> C:
    changes: dict[str, Any] = {}
    deeper: dict[str, dict[str, Any]] = {}
    fields = {f.name: f for f in dataclasses.fields(config)}
    for path, value in settings.items():
        head, _, rest = path.partition(".")
        one_of(f"--override {place}{path}", head, list(fields))
        if rest:
            deeper.setdefault(head, {})[rest] = value
        else:
            changes[head] = value
    for head, value in changes.items():
        if kinds := fields[head].metadata.get("kinds"):
            kind = kinds[one_of(names.get(f"{place}{head}", head), value, kinds)]
            changes[head] = _of_kind(getattr(config, head), kind)
    for head, inner in deeper.items():
        before = changes.get(head, getattr(config, head))
        _check_fields(fields[head], before, inner, f"{place}{head}.", names)
        changes[head] = _settle(before, inner, f"{place}{head}.", names)
    try:
        return config.replace(**changes)
    except UsageError as error:
        raise _named(error, config, changes, place, names) from None


def _of_kind(config: Config, kind: type[Config]) -> Config:
    """A config of another class, with what was set of the fields that both have."""
    if type(config) is kind:
        return config
    plain, shared = type(config)(), _fields(kind) & _fields(config)
    values = {name: getattr(config, name) for name in shared}
    return kind(**{name: x for name, x in values.items() if x != getattr(plain, name)})


def _fields(config: Config | type[Config]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _check_fields(
    holder: dataclasses.Field[Any],
    config: Config,
    paths: Iterable[str],
    place: str,
    names: Mapping[str, str],
) -> None:
    """Tells of a flag that belongs to another class of config than the one that was picked."""
    for path in paths:
        name = path.partition(".")[0]
        kinds = holder.metadata.get("kinds", {})
        able = [choice for choice, kind in kinds.items() if name in _fields(kind)]
        if able and name not in _fields(config):
            chosen = next(choice for choice, kind in kinds.items() if kind is type(config))
            expected = f"--{holder.name} {' or '.join(able)}"
            raise UsageError(names[f"{place}{name}"], None, expected, f"{chosen} has no such thing")


def _named(
    error: UsageError,
    config: Config,
    changes: Mapping[str, Any],
    place: str,
    names: Mapping[str, str],
) -> UsageError:
    """The error under the flag that set the field: `--prune_lr` where the rule says `--lr`."""
    word, _, rest = error.what.partition(" ")
    for field in dataclasses.fields(config):
        if field.name in changes and word.lstrip("-") in (field.name, field.metadata.get("flag")):
            path = f"{place}{field.name}"
            what = f"{names.get(path, f'--override {path}')} {rest}".strip()
            return UsageError(what, error.got, error.expected, error.remedy)
    return error
