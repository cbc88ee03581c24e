"""A sweep as a YAML file or a mapping."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mobilenet import files
from mobilenet.configs.sweep import SweepConfig
from mobilenet.errors import UsageError

_MOST_BYTES = 1 << 20
_NUMBER = re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+")  # YAML 1.1 takes 1e-3 for a text


class _Loader(yaml.SafeLoader):
    """As YAML's safe loader, without repeated keys and aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):  # nested, they take any amount of memory
            raise yaml.YAMLError(f"an alias {self.peek_event().start_mark}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.YAMLError(f"the key {key} twice {node.value[number][0].start_mark}")
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789"))


def read(sweep: object) -> SweepConfig:
    """A sweep from the path of its file, a mapping as the file has it, or itself.

    Raises:
        UsageError: it is no sweep; what is wrong is named.
    """
    if isinstance(sweep, SweepConfig):
        return sweep
    if isinstance(sweep, Mapping):
        return _from_mapping(sweep)
    if not isinstance(sweep, (str, os.PathLike)):
        expected = "the path of a YAML file, a mapping or a SweepConfig"
        raise UsageError("sweep", type(sweep).__name__, expected)
    files.check_local(sweep, "sweep")
    try:
        return _from_mapping(_content(Path(sweep).expanduser()))
    except UsageError as error:
        raise error if error.what == "sweep" else error.within(os.fspath(sweep)) from None


def _content(path: Path) -> Any:
    if not path.is_file():
        raise UsageError("sweep", str(path), "a YAML file; there is none")
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise yaml.YAMLError(f"more than {_MOST_BYTES} bytes")
        return yaml.load(text, _Loader)
    except OSError as error:
        expected = f"a file that can be read ({error.strerror})"
        raise UsageError("sweep", str(path), expected) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UsageError("sweep", str(path), f"a YAML file ({error})") from None


def _from_mapping(content: Any) -> SweepConfig:
    example = "as in {parameters: {train.lr: [0.001, 0.01]}}"
    if not isinstance(content, Mapping):
        raise UsageError("content", content, "a mapping", example)
    try:
        return SweepConfig.from_json({str(key): _plain(item) for key, item in content.items()})
    except UsageError as error:
        what = error.what.replace("SweepConfig field", "key").removeprefix("SweepConfig ")
        raise UsageError(what, error.got, error.expected, error.remedy) from None


def _plain(value: Any) -> Any:
    """Tuples, which Python has and files lack, as lists; mappings as dictionaries."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
