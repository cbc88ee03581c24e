"""Which channels are removed: how many of each group, and the least important ones of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mobilenet.compression.pruning.channel.dependency_groups import Group
from mobilenet.configs.base import check_number
from mobilenet.configs.pruning import ALL_GROUPS, ROLES, SCOPES
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.typing import Float64Array

Indices: TypeAlias = npt.NDArray[np.int64]
ScoreFunction: TypeAlias = Callable[[Group], Float64Array]
OPTIONAL_ROLES = ("squeeze_excite",)  # pruned only where a ratio names them


def ratios_by_group(
    groups: Sequence[Group], ratio: float | Mapping[str, float]
) -> dict[int, float]:
    """The share of channels to remove, by the group's number.

    Args:
        groups: those that may lose channels.
        ratio: one number for every group but the squeezes, as the papers have it (stem, expansions
            and projections alike); or a number by role, or by a regular expression that matches
            the whole name of a layer that makes the channels, or for `all` groups but the squeezes.
            The last entry that matches decides.

    Raises:
        UsageError: a number outside [0, 1), or a pattern that matches no layer.
    """
    if not isinstance(ratio, Mapping):
        check_number("ratio", ratio, least=0, below=1, remedy="0.5 removes half of the channels")
        ratio = {ALL_GROUPS: ratio}
    shares = dict.fromkeys((group.number for group in groups), 0.0)
    for pattern, share in ratio.items():
        check_number(f"`ratio` {pattern}", share, least=0, below=1)
        hits = [group for group in groups if _matches(pattern, group)]
        if not hits:
            raise UsageError(
                "ratio",
                pattern,
                f"a role ({', '.join(sorted({group.role for group in groups}))}) or a regular"
                " expression that matches a layer name",
                f"names are {shorten(group.name for group in groups)}",
            )
        shares.update(dict.fromkeys((group.number for group in hits), float(share)))
    return shares


def _matches(pattern: str, group: Group) -> bool:
    if pattern == ALL_GROUPS:
        return group.role not in OPTIONAL_ROLES
    if pattern in ROLES:
        return pattern == group.role
    try:
        return any(re.fullmatch(pattern, member.layer.name) for member in group.members_on("out"))
    except re.error as error:
        raise UsageError("ratio", pattern, f"a role or a regular expression ({error})") from None


def remaining_count(channels: int, ratio: float, round_to: int = 1) -> int:
    """How many channels remain: the multiple of `round_to` nearest to the share, ties up.

    At least `round_to` remain, or all where there are fewer. A ratio of 0 removes none, whatever
    their number.
    """
    if ratio == 0:
        return channels
    blocks = math.floor(round(channels * (1 - ratio) / round_to, 9) + 0.5)
    return min(channels, max(blocks, 1) * round_to)


def ratio_of_remaining(channels: int, original: int, ratio: float, round_to: int = 1) -> float:
    """The ratio for a group already pruned to `channels` that makes `ratio` of `original`."""
    return max(0.0, 1 - remaining_count(original, ratio, round_to) / channels)


def choose_channels(
    groups: Sequence[Group],
    shares: Mapping[int, float],
    score: ScoreFunction,
    round_to: int = 1,
    scope: str = "group",
) -> dict[int, Indices]:
    """The channels that remain, by the group's number, in rising order.

    Args:
        groups: those that may lose channels.
        shares: from `ratios_by_group`.
        score: importance of each channel of a group. Of equals the first ones remain; NaN marks a
            channel that is pruned already and stays so.
        round_to: counts are multiples of it: 16 for int8 files, 32 for float ones, 1 for exact
            ratios.
        scope: `group` takes its share from every group; `global` ranks the channels of all groups
            with a share together, after dividing each group's scores by their mean.
    """
    check_number("round_to", round_to, least=1, integer=True, remedy="16 for int8, 32 for float, 1")
    one_of("scope", scope, SCOPES)
    scores = {group.number: score(group) for group in groups if shares[group.number] > 0}
    scores = {key: np.where(np.isnan(own), -np.inf, own) for key, own in scores.items()}
    if scope == "group":
        counts = {g.number: remaining_count(g.channels, shares[g.number], round_to) for g in groups}
    else:
        counts = _global_counts(groups, shares, scores, round_to)
    remaining = {}
    for group in groups:
        if group.number in scores:
            order = np.argsort(-scores[group.number], kind="stable")
            remaining[group.number] = np.sort(order[: counts[group.number]])
        else:
            remaining[group.number] = np.arange(group.channels)
    return remaining


def _global_counts(
    groups: Sequence[Group],
    shares: Mapping[int, float],
    scores: Mapping[int, Float64Array],
    round_to: int,
) -> dict[int, int]:
    """How many channels of each group remain when all groups are ranked together."""
    counts = {group.number: group.channels for group in groups}
    values: list[Float64Array] = [np.zeros(0)]
    owners = [np.zeros(0, np.int64)]
    for key, own in scores.items():
        mean = np.abs(own[np.isfinite(own)]).mean() if np.isfinite(own).any() else 0.0
        # The best `round_to` channels of a group remain in any case and are not ranked.
        ranked = np.sort(own / mean if mean > 0 else own)[: -min(round_to, own.size)]
        values.append(ranked)
        owners.append(np.full(ranked.size, key))
    budget = round(sum(shares[key] * counts[key] for key in scores))
    order = np.argsort(np.concatenate(values), kind="stable")[:budget]
    removed = np.concatenate(owners)[order]
    for key in scores:
        lost = int((removed == key).sum()) / counts[key]
        counts[key] = remaining_count(counts[key], lost, round_to)
    return counts
