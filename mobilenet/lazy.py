"""Names of a package that load their modules when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attributes(package: str, sources: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: its dotted name.
        sources: by public name the module that defines it, `module:name` where the name differs
            there, or the module itself where it is followed by a colon alone.
    """

    def load(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, colon, attribute = sources[name].partition(":")
        value = importlib.import_module(module)
        if attribute or not colon:
            value = getattr(value, attribute or name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    return load
