"""Pruning methods: what is removed, how much of it by role, and when."""

from __future__ import annotations

import dataclasses
import re
from types import MappingProxyType
from typing import Any

from mobilenet.errors import UsageError

from .base import Config, check_number, flag

ALL_GROUPS = "all"  # of channels, except the squeezes of squeeze-excites
IMPORTANCES = ("magnitude", "l2", "batch_norm_scale", "taylor", "geometric_median", "random")
SCOPES = ("group", "global")
SCHEDULES = ("polynomial", "constant")
ROLES = ("stem", "depthwise", "pointwise", "fused", "squeeze_excite", "classifier", "other")
LARGE_ROLES = ("pointwise", "fused", "other")  # hold most weights, and lose accuracy last
LARGE = "large"  # stands for them; for all roles in a model that has none of these


def _end(default: float) -> Any:
    help = "share of the pruning stage at which the target is reached"
    return flag(default, help, "pruning_end", above=0, most=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruning(Config):
    """What all pruning methods share: the schedule.

    Attributes:
        schedule: `polynomial` (Zhu and Gupta, arXiv 1710.01878) or `constant` from the first
            update on.
        begin: share of the stage's steps before the first update.
        end: share of the stage's steps at which the target is reached; the rest is for recovery.
        frequency: steps between two updates.
        power: exponent of the polynomial; 3 as in the paper.
    """

    schedule: str = flag(
        "polynomial", " or ".join(SCHEDULES), "pruning_schedule", choices=SCHEDULES
    )
    begin: float = flag(
        0.0,
        "share of the pruning stage before the first update",
        "pruning_begin",
        least=0,
        below=1,
    )
    end: float = _end(0.6)
    frequency: int = flag(
        8, "steps between two mask updates", "pruning_frequency", least=1, integer=True
    )
    power: float = flag(3.0, "exponent of the polynomial schedule", "pruning_power", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end <= self.begin:
            raise UsageError("end", self.end, f"a share above `begin` ({self.begin})")


@dataclasses.dataclass(frozen=True)
class ScheduledPruning(Pruning):
    """What the methods that remove single weights share: the target sparsity by layer.

    Attributes:
        final_sparsity: share of zeros by role, or by a regular expression that matches whole layer
            names; the last entry that matches a layer decides. Layers that nothing matches stay
            dense. The stem and the depthwise kernels hold few weights and lose accuracy
            first, so only pointwise is on.
    """

    final_sparsity: dict[str, float] = flag(
        MappingProxyType({"pointwise": 0.5}),
        "share of zeros: one number for the pointwise kernels, or role=share,regex=share",
        least=0,
        below=1,
        remedy="0.5 keeps half of the weights",
    )


@dataclasses.dataclass(frozen=True)
class MagnitudePruning(ScheduledPruning):
    """Zeroes the smallest weights of each kernel, more and more of them, while the rest trains.

    An update is forced at the end step, whatever the frequency.

    Attributes:
        pattern: where zeros may lie. `unstructured`: anywhere. `N:M`: at most N weights of every M
            neighbouring input channels stay (2:4 is what sparse tensor cores read; arXiv
            2104.08378). While the share grows, it is the share of groups that have the pattern,
            those first that lose the least magnitude; at the end all have it. A larger
            `final_sparsity` removes more on top, a smaller one is raised to the pattern's.
            `block`: whole blocks of 1x1 kernels, those with the least sum of magnitudes.
        block_size: input channels x output channels of a block.
    """

    pattern: str = flag(
        "unstructured",
        "unstructured, block, or N:M (as 2:4: 2 weights of every 4 input channels stay)",
        "sparsity_pattern",
    )
    block_size: str = flag("4x1", "input x output channels of a block of sparsity_pattern block")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern not in ("unstructured", "block"):
            remaining, size = _pair("pattern", self.pattern, ":", _PATTERN_RULE)
            if not 0 < remaining < size <= _LARGEST_GROUP:
                raise UsageError("pattern", self.pattern, _PATTERN_RULE)
        rows, columns = _pair("block_size", self.block_size, "x", _BLOCK_RULE)
        if not rows * columns > 1:
            raise UsageError("block_size", self.block_size, _BLOCK_RULE)

    @property
    def group(self) -> tuple[int, int] | None:
        """(weights that stay, input channels in a group) of an N:M pattern."""
        if ":" not in self.pattern:
            return None
        return _pair("pattern", self.pattern, ":", _PATTERN_RULE)

    @property
    def block(self) -> tuple[int, int] | None:
        """(input channels, output channels) of a block, where whole blocks go."""
        if self.pattern != "block":
            return None
        return _pair("block_size", self.block_size, "x", _BLOCK_RULE)


_LARGEST_GROUP = 16
_PATTERN_RULE = f"unstructured, block, or N:M with 0 < N < M <= {_LARGEST_GROUP}, as in 2:4"
_BLOCK_RULE = "INPUTSxOUTPUTS, more than one weight, as in 4x1"


def _pair(name: str, text: object, mark: str, rule: str) -> tuple[int, int]:
    match = re.fullmatch(rf"(\d+){mark}(\d+)", text) if isinstance(text, str) else None
    if match is None:
        raise UsageError(name, text, rule)
    return int(match[1]), int(match[2])


@dataclasses.dataclass(frozen=True)
class TfmotPruning(ScheduledPruning):
    """tfmot's own `prune_low_magnitude`, for comparison.

    It prunes no depthwise kernel, sorts a kernel for each update, and does not train under mixed
    precision; `MagnitudePruning` does. The end step is moved to its last update.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelPruning(Pruning):
    """Masks whole channels, more and more of them, and removes them from the model at the end.

    Channels that depend on each other are pruned together: the outputs of a convolution, its
    depthwise and batch norms, and all projections that are added up. The stage ends with a smaller
    model, whose config has its `channels`.

    Attributes:
        schedule: all at once by default, before the first step, since `reconstruct` gives more than
            slow pruning does; with `polynomial` the consumers are reconstructed at each update,
            which is slow.
        ratio: share of channels that is removed, by role of the producing layer, by a regular
            expression that matches its whole name, or of `all` groups but the squeezes; the last
            entry that matches a group decides.
        importance: which channels are removed first: those of the least sum of magnitudes as in
            ivclab/Multistage_Pruning, or by another function of the registry.
        scope: `group` takes the share from every group, `global` ranks all channels together.
        round_to: channel counts are multiples of it. Kernels work in tiles of 16 in int8 files and
            of 32 in float ones; a partly filled tile costs as much as a full one.
        stages: the stage is run so many times, each time with all of its epochs, a fresh optimizer
            and schedule, and an equal part of the ratio; each ends with a thin model of its own,
            from whose weights the next one starts (ivclab/Multistage_Pruning).
        stage_epochs: of the stages before the last, so that most of the time is left for the final
            model; as many as the last by default, as in that repository.
        reconstruct: images of the training split on which the consuming layers are fitted again to
            their former outputs by least squares (He et al., arXiv 1707.06168); 0 disables it.
        target_macs, target_latency: instead of a ratio, the share of the MACs, or of the time of
            the float file on this machine, that may be left. All groups that `ratio` names lose
            the same share of their channels, the least that suffices.
    """

    ratio: dict[str, float] = flag(
        MappingProxyType({ALL_GROUPS: 0.5}),
        "share of channels to remove: one number for all groups, or role=share,regex=share",
        "channel_ratio",
        least=0,
        below=1,
        remedy="0.5 removes half of the channels",
    )
    importance: str = flag(
        "magnitude", "which channels go first: " + ", ".join(IMPORTANCES), choices=IMPORTANCES
    )
    scope: str = flag("group", "rank channels by group or global", "channel_scope", choices=SCOPES)
    round_to: int = flag(
        16,
        "channel counts are multiples of it: 16 for int8 files, 32 for float ones, 1 exact",
        least=1,
        integer=True,
    )
    stages: int = flag(
        1,
        "prune in so many stages, each with the epochs of one and a thin model",
        "channel_stages",
        least=1,
        integer=True,
    )
    stage_epochs: int | None = flag(
        None, "epochs of each stage before the last one", least=1, integer=True
    )
    reconstruct: int = flag(
        512,
        "images for least-squares reconstruction of the consuming layers; 0 disables it",
        least=0,
        integer=True,
    )
    target_macs: float | None = flag(
        None, "share of the MACs that may be left, for a ratio", above=0, below=1
    )
    target_latency: float | None = flag(
        None,
        "share of the float file's time that may be left, for a ratio; measured here",
        above=0,
        below=1,
    )
    schedule: str = flag("constant", " or ".join(SCHEDULES), "pruning_schedule", choices=SCHEDULES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None and self.scope == "global":
            raise UsageError(
                "scope", self.scope, f"group, with `{self.budget[0]}`", "or give a ratio"
            )
        if self.target_macs is not None and self.target_latency is not None:
            raise UsageError("target_latency", self.target_latency, "one of the two targets")

    @property
    def budget(self) -> tuple[str, float] | None:
        """(field, share that may be left), where a budget replaces the ratio."""
        for name in ("target_macs", "target_latency"):
            if getattr(self, name) is not None:
                return name, getattr(self, name)
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DnsPruning(Pruning):
    """Dynamic network surgery: removed weights keep training and may be regrown (Guo et al., arXiv
    1608.04493), with the rules of wendazhou/nnet-compression-generalization `nnet/pruning`.

    A threshold is the percentile of a kernel's dense magnitudes at the sparsity that the schedule
    asks for. It is taken every `frequency` steps. The target is reached at `end`; that repository
    has 2/3, but a short stage ends with the better model where masks are frozen sooner.

    Attributes:
        sparsity: share of zeros by role, or by a regular expression that matches whole layer names,
            instead of that of `base` and `slope`.
        base, slope: a 1x1 or dense kernel loses `base + slope * size / largest`, where `largest` is
            the size of the model's largest such kernel. All other kernels stay dense.
        lower, upper: factors of the threshold: weights up to the lower one are removed, weights
            from the upper one on are regrown, in between nothing changes.
        boundaries: shares of the stage up to which each of `probabilities` holds, but the last.
        probabilities: chance, by step and kernel, that its mask is replaced.
        last: share of the stage at which every mask is taken a last time, at exactly the target and
            without the band; then they are frozen.
        train: `kernels` freezes all other weights, `all` trains them too.
        statistics: batch-norm statistics are updated; without it, steps run in inference mode.
    """

    sparsity: dict[str, float] = flag(
        MappingProxyType({}),
        "share of zeros instead of that by size: role=share,regex=share",
        "dns_sparsity",
        least=0,
        below=1,
    )
    base: float = flag(
        0.6, "share of zeros of the smallest 1x1 kernels", "dns_base", least=0, below=1
    )
    slope: float = flag(0.15, "what the largest 1x1 kernel loses on top", "dns_slope")
    lower: float = flag(
        0.9, "part of the threshold up to which weights are removed", "dns_lower", least=0, most=1
    )
    upper: float = flag(
        1.1, "part of the threshold from which weights are regrown", "dns_upper", least=1
    )
    boundaries: tuple[float, ...] = flag(
        (1 / 60, 0.05, 0.1, 1 / 6),
        "shares of the stage where the chance changes",
        "dns_boundaries",
        above=0,
        below=1,
    )
    probabilities: tuple[float, ...] = flag(
        (1.0, 0.5, 0.25, 0.1, 0.05),
        "chance of a mask to be replaced in a step",
        "dns_probabilities",
        least=0,
        most=1,
    )
    end: float = _end(0.4)
    last: float = flag(0.45, "share of the stage after which masks are frozen", "dns_last", most=1)
    train: str = flag(
        "kernels",
        "kernels or all: which weights train",
        "dns_train",
        choices=("kernels", "all"),
    )
    statistics: bool = flag(True, "update batch-norm statistics", "dns_statistics")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("slope", self.slope, least=0, below=1 - self.base)
        if self.last < self.end:
            raise UsageError("last", self.last, f"a share of at least `end` ({self.end})")
        shares = self.boundaries
        if list(shares) != sorted(set(shares)) or len(shares) + 1 != len(self.probabilities):
            raise UsageError(
                "boundaries",
                ",".join(f"{share:g}" for share in shares),
                f"{max(len(self.probabilities) - 1, 0)} shares in rising order, one fewer than"
                " `probabilities`",
            )


PRUNING = MappingProxyType(
    {
        "magnitude": MagnitudePruning,
        "channel": ChannelPruning,
        "dns": DnsPruning,
        "tfmot": TfmotPruning,
    }
)
