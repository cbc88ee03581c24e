"""Which layer is pruned to which sparsity: by role or by name, the last match deciding."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mobilenet.configs.compression import ROLES
from mobilenet.errors import UsageError, shorten
from mobilenet.models.roles import Graph


@dataclasses.dataclass(frozen=True)
class Target:
    """A layer with a kernel: its role, its sparsity (`None` leaves it dense) and the reason."""

    layer: str
    role: str
    sparsity: float | None
    reason: str


def assign(model: Any, shares: Mapping[str, float]) -> list[Target]:
    """Gives every layer with a kernel its target.

    Args:
        model: a plain functional net.
        shares: share of zeros by role, or by a regular expression of whole layer names.

    Raises:
        UsageError: a pattern matches no layer, or is no regular expression.
    """
    graph = Graph(model)
    layers = [
        (layer.name, graph.role(layer)) for layer in graph.layers if graph.kernel(layer) is not None
    ]
    unused = dict.fromkeys(shares)
    targets = []
    for name, role in layers:
        hits = [pattern for pattern in shares if _matches(pattern, name, role)]
        for pattern in hits:
            unused.pop(pattern, None)
        if hits:
            targets.append(Target(name, role, shares[hits[-1]], f"matches {hits[-1]}"))
        else:
            targets.append(Target(name, role, None, "no pattern matches"))
    if unused:
        roles = sorted({role for _, role in layers})
        raise UsageError(
            "--final_sparsity",
            shorten(unused),
            f"a role ({', '.join(roles)}) or a regular expression that matches a layer name",
            f"names are {shorten(name for name, _ in layers)}",
        )
    return targets


def _matches(pattern: str, name: str, role: str) -> bool:
    if pattern in ROLES:
        return pattern == role
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UsageError(
            "--final_sparsity", pattern, f"a role or a regular expression ({error})"
        ) from None
