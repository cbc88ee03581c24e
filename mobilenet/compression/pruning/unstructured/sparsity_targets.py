"""Which layer is pruned to which sparsity: by role or by name; the last match decides."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from mobilenet.configs.pruning import LARGE, LARGE_ROLES, ROLES
from mobilenet.errors import UsageError, shorten
from mobilenet.models.graph.roles import Graph


@dataclasses.dataclass(frozen=True)
class Target:
    """A layer with a kernel: its role, its target sparsity (`None`: stays dense) and the reason."""

    layer: str
    role: str
    sparsity: float | None
    reason: str

    def note(self, sparsity: Mapping[str, float]) -> str:
        """A human-readable note; `sparsity` is that of the pruned layers, by name."""
        share = sparsity.get(self.layer)
        now = "dense" if share is None else f"{share:.1%} zeros"
        return f"{self.layer} ({self.role}): {now}, {self.reason}"


def shares_by_role(model: Any, share: float) -> dict[str, float]:
    """One share for the kernels that hold most weights: 1x1, larger and inner dense ones.

    Stem, depthwise, squeeze-excite and classifier kernels hold few weights and lose accuracy first;
    they are pruned only in a model that has no others.
    """
    graph = Graph(model)
    roles = {graph.role(layer) for layer in graph.layers if graph.kernel(layer) is not None}
    return dict.fromkeys(sorted(roles & {*LARGE_ROLES} or roles), share)


def assign_targets(
    model: Any,
    shares: Mapping[str, float],
    obstacle: Callable[[Any], str] = lambda layer: "",
    parameter: str = "final_sparsity",
) -> list[Target]:
    """Returns the target of every layer with a kernel.

    Args:
        model: a plain functional model.
        shares: share of zeros by role, or by a regular expression of whole layer names; `large`
            stands for the roles of `shares_by_role`.
        obstacle: why a layer that a pattern matches cannot be pruned; empty where it can.
        parameter: the config's field that holds the shares, for errors.

    Raises:
        UsageError: a pattern matches no layer or is no regular expression, or none of the matched
            layers can be pruned.
    """
    shares = _with_roles(model, shares)
    graph = Graph(model)
    layers = [layer for layer in graph.layers if graph.kernel(layer) is not None]
    unused = dict.fromkeys(shares)
    targets, refused = [], []
    for layer in layers:
        name, role = layer.name, graph.role(layer)
        hits = [pattern for pattern in shares if _matches(pattern, name, role, parameter)]
        for pattern in hits:
            unused.pop(pattern, None)
        reason = f"matches {hits[-1]}" if hits else "no pattern matches"
        share = shares[hits[-1]] if hits else None
        if share and obstacle(layer):
            refused.append(Target(name, role, None, f"{reason}, but {obstacle(layer)}"))
            targets.append(refused[-1])
        else:
            targets.append(Target(name, role, share, reason))
    if unused:
        raise UsageError(
            parameter,
            shorten(unused),
            f"a role ({', '.join(sorted({t.role for t in targets}))}) or a regular expression that"
            " matches a layer name",
            f"names are {shorten(t.layer for t in targets)}",
        )
    if refused and not any(target.sparsity for target in targets):
        raise UsageError(
            parameter,
            shorten(shares),
            "a layer that can be pruned",
            f"{refused[0].layer} {refused[0].reason}",
        )
    return targets


def _with_roles(model: Any, shares: Mapping[str, float]) -> dict[str, float]:
    """The shares with roles in the place of `large`."""
    named: dict[str, float] = {}
    for pattern, share in shares.items():
        named |= shares_by_role(model, share) if pattern == LARGE else {pattern: share}
    return named


def _matches(pattern: str, name: str, role: str, parameter: str) -> bool:
    if pattern in ROLES:
        return pattern == role
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UsageError(parameter, pattern, f"a role or a regular expression ({error})") from None
