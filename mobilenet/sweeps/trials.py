"""A setting of a sweep and its runs: their names, and the words of the trainer that they are."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from mobilenet.configs.parameters import text_of

_LONGEST_NAME = 120  # of a folder
_FOREIGN = re.compile(r"[^\w.+=-]+", re.ASCII)  # characters that a name of a folder should not have


@dataclasses.dataclass(frozen=True)
class Trial:
    """A setting.

    Attributes:
        settings: value by path of a field.
        seeds: of its runs.
    """

    settings: Mapping[str, Any]
    seeds: tuple[int, ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """As flags of the trainer."""
        return tuple(f"--override={path}={text_of(x)}" for path, x in self.settings.items())

    @property
    def runs(self) -> list[Run]:
        return [Run(self, seed) for seed in self.seeds]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training of a setting with one seed."""

    trial: Trial
    seed: int

    @property
    def words(self) -> tuple[str, ...]:
        """As flags of the trainer."""
        return (*self.trial.overrides, f"--seed={self.seed}")

    @property
    def name(self) -> str:
        """The name of its folder: a function of settings and seed alone."""
        settings = self.trial.settings
        names = short_names(settings)
        exact = ",".join(f"{names[path]}={text_of(value)}" for path, value in settings.items())
        name = _FOREIGN.sub("_", exact.replace(",", "_"))
        if len(name) > _LONGEST_NAME or _FOREIGN.search(exact.replace(",", "_")):
            digest = hashlib.sha256(exact.encode()).hexdigest()[:8]
            name = f"{name[:_LONGEST_NAME]}_{digest}"
        return f"{name}_seed={self.seed}"


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The name of each field where it differs from all others, else its path."""
    paths = list(paths)
    last = [PurePath(path.replace(".", "/")).name for path in paths]
    return {
        path: name if last.count(name) == 1 else path
        for path, name in zip(paths, last, strict=True)
    }
