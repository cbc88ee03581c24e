"""Overrides: values by dotted path into a frozen config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from mobilenet.configs import parameters
from mobilenet.configs.base import Config

C = TypeVar("C", bound=Config)


def apply_overrides(config: C, values: Mapping[str, Any]) -> C:
    """A new config: `config` with values set by dotted path.

    Raises:
        UsageError: no such field, or a value that breaks its rule; named as on the command line.
    """
    flags = {p.path: f"--{p.name}" for p in parameters.parameters_of(type(config))}
    return parameters.apply(
        config, values, lambda path: flags.get(path, f"--override {path}"), noun="flag"
    )
