"""How large a share of channels has to go so that a model fits a budget of MACs or of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from mobilenet.compression.pruning.channel.dependency_groups import Group
from mobilenet.compression.pruning.channel.selection import kept_count
from mobilenet.errors import UsageError

Counts = Mapping[int, int]  # channels that stay, by the group's number


def macs(groups: Sequence[Group], layer_macs: Mapping[str, int], counts: Counts) -> int:
    """MACs of a model whose groups have other numbers of channels.

    Args:
        groups: all that may lose channels.
        layer_macs: of the model as it is, by layer name (`counting.layer_macs`).
        counts: channels, by the group's number; may be more than there are.
    """
    found = dict(layer_macs)
    for group in groups:
        for member in group.on("out", "in", "all"):
            name = member.layer.name
            if name in found:
                found[name] = found[name] * counts[group.number] // group.channels
    return sum(found.values())


def shares(whole: Counts, round_to: int) -> list[float]:
    """The shares at which one more lot of channels goes from some group, rising.

    Where no group can lose any, one share that takes none.
    """
    found: set[float] = set()
    for channels in whole.values():
        lots = math.ceil(channels / round_to)
        found.update(1 - (lot - 0.5) * round_to / channels for lot in range(2, lots + 1))
    # A hair above the point itself, where ties still keep the lot.
    return sorted(share + 1e-6 for share in found if 0 < share < 1 - 1e-6) or [0.5]


def counts_at(share: float, whole: Counts, round_to: int) -> dict[int, int]:
    """Channels that stay when the same share goes from each group."""
    return {key: kept_count(channels, share, round_to) for key, channels in whole.items()}


def least_share(
    what: str,
    target: float,
    cost: Callable[[float], float],
    candidates: Sequence[float],
    told: str,
) -> float:
    """The least share of channels whose loss brings the cost down to a target, by bisection.

    Args:
        what: the flag, for errors.
        target: share of the whole model's cost that may be left.
        cost: of a share of channels, as a share of the whole model's; it does not rise.
        candidates: shares, rising.
        told: what is left of a group at the end of them, for errors.

    Raises:
        UsageError: even the last candidate costs more.
    """
    least = cost(candidates[-1])
    if least > target:
        raise UsageError(what, target, f"at least {least:.4f}, what is left when {told}")
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if cost(candidates[middle]) <= target:
            high = middle
        else:
            low = middle + 1
    return candidates[high]
