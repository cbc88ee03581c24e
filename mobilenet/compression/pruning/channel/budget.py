"""The smallest share of channels to remove so that a model fits a budget of MACs or latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from mobilenet.compression.pruning.channel.dependency_groups import Group
from mobilenet.compression.pruning.channel.selection import remaining_count
from mobilenet.errors import UsageError

Counts = Mapping[int, int]  # remaining channels, by the group's number


def count_macs(groups: Sequence[Group], layer_macs: Mapping[str, int], counts: Counts) -> int:
    """MACs of a model whose groups have other numbers of channels.

    Args:
        groups: all that may lose channels.
        layer_macs: of the model as it is, by layer name (`counting.layer_macs`).
        counts: channels, by the group's number; may be more than there are.
    """
    macs = dict(layer_macs)
    for group in groups:
        for member in group.members_on("out", "in", "all"):
            name = member.layer.name
            if name in macs:
                macs[name] = macs[name] * counts[group.number] // group.channels
    return sum(macs.values())


def candidate_shares(original: Counts, round_to: int) -> list[float]:
    """The shares at which one more block of `round_to` channels of some group is removed, rising.

    Where no group can lose any, one share that removes none.
    """
    shares: set[float] = set()
    for channels in original.values():
        blocks = math.ceil(channels / round_to)
        shares.update(1 - (block - 0.5) * round_to / channels for block in range(2, blocks + 1))
    # A hair above the point itself, where ties still keep the block.
    return sorted(share + 1e-6 for share in shares if 0 < share < 1 - 1e-6) or [0.5]


def counts_at_share(share: float, original: Counts, round_to: int) -> dict[int, int]:
    """Channels that remain when the same share is removed from each group."""
    return {key: remaining_count(channels, share, round_to) for key, channels in original.items()}


def smallest_share(
    what: str,
    target: float,
    cost: Callable[[float], float],
    candidates: Sequence[float],
    limit: str,
) -> float:
    """The smallest share of channels whose removal brings the cost down to a target, by bisection.

    Args:
        what: name of the argument, for errors.
        target: share of the original model's cost that may remain.
        cost: of a share of removed channels, as a share of the original model's; it does not rise.
        candidates: shares, rising.
        limit: state of the model at the last candidate, for errors.

    Raises:
        UsageError: even the last candidate costs more.
    """
    least = cost(candidates[-1])
    if least > target:
        raise UsageError(what, target, f"at least {least:.4f}, what is left when {limit}")
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if cost(candidates[middle]) <= target:
            high = middle
        else:
            low = middle + 1
    return candidates[high]
