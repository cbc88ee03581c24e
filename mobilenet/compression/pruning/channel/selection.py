"""Which channels go: how many of each group, and the least important ones among them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mobilenet.compression.pruning.channel.dependency_groups import Group
from mobilenet.configs.base import number
from mobilenet.configs.pruning import ALL_GROUPS, ROLES, SCOPES
from mobilenet.errors import UsageError, one_of, shorten

Indices = npt.NDArray[np.int64]
Score = Callable[[Group], npt.NDArray[np.float64]]
OPTIONAL = ("squeeze_excite",)  # thinned only where a ratio names them


def ratios(
    groups: Sequence[Group], ratio: float | Mapping[str, float], what: str = "--ratio"
) -> dict[int, float]:
    """The share of channels that goes, by the group's number.

    Args:
        groups: those that may lose channels.
        ratio: one number for every group but the squeezes, as the papers have it (stem, expansions
            and projections alike); or a number by role, or by a regular expression that matches
            the whole name of a layer that makes the channels, or for `all` groups but the squeezes.
            The last entry that matches decides.
        what: the flag, for errors.

    Raises:
        UsageError: a number outside [0, 1), or a pattern that matches no layer.
    """
    if not isinstance(ratio, Mapping):
        number(what, ratio, least=0, below=1, remedy="0.5 removes half of the channels")
        ratio = {ALL_GROUPS: ratio}
    shares = dict.fromkeys((group.number for group in groups), 0.0)
    for pattern, share in ratio.items():
        number(f"{what} {pattern}", share, least=0, below=1)
        hits = [group for group in groups if _matches(pattern, group, what)]
        if not hits:
            raise UsageError(
                what,
                pattern,
                f"a role ({', '.join(sorted({group.role for group in groups}))}) or a regular"
                " expression that matches a layer name",
                f"names are {shorten(group.name for group in groups)}",
            )
        shares.update(dict.fromkeys((group.number for group in hits), float(share)))
    return shares


def _matches(pattern: str, group: Group, what: str) -> bool:
    if pattern == ALL_GROUPS:
        return group.role not in OPTIONAL
    if pattern in ROLES:
        return pattern == group.role
    try:
        return any(re.fullmatch(pattern, member.layer.name) for member in group.on("out"))
    except re.error as error:
        raise UsageError("--ratio", pattern, f"a role or a regular expression ({error})") from None


def kept_count(channels: int, ratio: float, round_to: int = 1) -> int:
    """How many channels stay: the multiple of `round_to` nearest to the share, ties up.

    At least `round_to` stay, or all where there are fewer. A ratio of 0 keeps all, whatever their
    number.
    """
    if ratio == 0:
        return channels
    lots = math.floor(round(channels * (1 - ratio) / round_to, 9) + 0.5)
    return min(channels, max(lots, 1) * round_to)


def share_of_rest(channels: int, whole: int, share: float, round_to: int = 1) -> float:
    """The share of the channels that are left which goes, when a share of the whole is to go."""
    return max(0.0, 1 - kept_count(whole, share, round_to) / channels)


def choose(
    groups: Sequence[Group],
    shares: Mapping[int, float],
    score: Score,
    round_to: int = 1,
    scope: str = "group",
) -> dict[int, Indices]:
    """The channels that stay, by the group's number, in rising order.

    Args:
        groups: those that may lose channels.
        shares: from `ratios`.
        score: what each channel of a group is worth. Of equals the first ones stay; NaN says that
            a channel has gone before, and goes again.
        round_to: counts are multiples of it: 16 for int8 files, 32 for float ones, 1 for exact
            ratios.
        scope: `group` takes its share from every group; `global` ranks the channels of all groups
            with a share together, after dividing each group's scores by their mean.
    """
    number("--round_to", round_to, least=1, integer=True, remedy="16 for int8, 32 for float, 1")
    one_of("scope", scope, SCOPES)
    worth = {group.number: score(group) for group in groups if shares[group.number] > 0}
    worth = {key: np.where(np.isnan(own), -np.inf, own) for key, own in worth.items()}
    if scope == "group":
        counts = {g.number: kept_count(g.channels, shares[g.number], round_to) for g in groups}
    else:
        counts = _global_counts(groups, shares, worth, round_to)
    kept = {}
    for group in groups:
        count = counts[group.number]
        order = np.argsort(-worth[group.number], kind="stable") if group.number in worth else None
        kept[group.number] = np.arange(group.channels) if order is None else np.sort(order[:count])
    return kept


def _global_counts(
    groups: Sequence[Group],
    shares: Mapping[int, float],
    worth: Mapping[int, npt.NDArray[np.float64]],
    round_to: int,
) -> dict[int, int]:
    """How many channels of each group are among those that stay of all."""
    counts = {group.number: group.channels for group in groups}
    values, owners = [np.zeros(0)], [np.zeros(0, np.int64)]
    for key, own in worth.items():
        mean = np.abs(own[np.isfinite(own)]).mean() if np.isfinite(own).any() else 0.0
        ranked = np.sort(own / mean if mean > 0 else own)[: -min(round_to, own.size)]
        values.append(ranked)  # the best ones are out of the contest: they stay
        owners.append(np.full(ranked.size, key))
    budget = round(sum(shares[key] * counts[key] for key in worth))
    order = np.argsort(np.concatenate(values), kind="stable")[:budget]
    cut = np.concatenate(owners)[order]
    for key in worth:
        lost = int((cut == key).sum()) / counts[key]
        counts[key] = kept_count(counts[key], lost, round_to)
    return counts
