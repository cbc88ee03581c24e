"""Ways to prune: what goes, how much of it by role, and when."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType

from mobilenet.errors import UsageError

from .base import Config, flag, number, one_of

ALL_GROUPS = "all"  # of channels, but the squeezes of squeeze-excites
IMPORTANCES = ("magnitude", "l2", "batch_norm_scale", "taylor", "geometric_median", "random")
SCOPES = ("group", "global")
ROLES = ("stem", "depthwise", "pointwise", "fused", "squeeze_excite", "classifier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruning(Config):
    """What all ways to prune share: when how much goes.

    Attributes:
        schedule: `polynomial` (Zhu and Gupta, arXiv 1710.01878) or `constant` from the first
            update on.
        begin: share of the stage's steps before the first update.
        end: share of the stage's steps at which the target stands; the rest is for recovery.
        frequency: steps between two updates.
        power: exponent of the polynomial; 3 as in the paper.
    """

    schedule: str = flag("polynomial", "polynomial or constant", "pruning_schedule")
    begin: float = flag(0.0, "share of the pruning stage before the first update", "pruning_begin")
    end: float = flag(0.6, "share of the pruning stage at which the target stands", "pruning_end")
    frequency: int = flag(8, "steps between two mask updates", "pruning_frequency")
    power: float = flag(3.0, "exponent of the polynomial schedule", "pruning_power")

    def __post_init__(self) -> None:
        one_of("--pruning_schedule", self.schedule, ("polynomial", "constant"))
        number("--pruning_begin", self.begin, least=0, below=1)
        number("--pruning_end", self.end, above=0, most=1)
        number("--pruning_frequency", self.frequency, least=1, integer=True)
        number("--pruning_power", self.power, above=0)
        if self.end <= self.begin:
            raise UsageError(
                "--pruning_end", self.end, f"a share above --pruning_begin ({self.begin})"
            )


@dataclasses.dataclass(frozen=True)
class ScheduledPruning(Pruning):
    """What the ways to remove single weights share: from which layers how many go.

    Attributes:
        final_sparsity: share of zeros by role, or by a regular expression that matches whole layer
            names; the last entry that matches a layer decides. Layers that nothing matches are
            left alone. The stem and the depthwise kernels hold few weights and lose accuracy
            first, so only pointwise is on.
    """

    final_sparsity: dict[str, float] = flag(
        MappingProxyType({"pointwise": 0.5}),
        "share of zeros: one number for the pointwise kernels, or role=share,regex=share",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given: object = self.final_sparsity
        if not isinstance(given, Mapping):
            remedy = "as in {'pointwise': 0.5}"
            raise UsageError("--final_sparsity", given, "shares by role", remedy)
        object.__setattr__(self, "final_sparsity", dict(self.final_sparsity))
        _check_shares("--final_sparsity", self.final_sparsity, "0.5 keeps half of the weights")


@dataclasses.dataclass(frozen=True)
class MagnitudePruning(ScheduledPruning):
    """Zeroes the smallest weights of each kernel, more and more of them, and lets the rest adapt.

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
    block_size: str = flag("4x1", "input x output channels of a block of --sparsity_pattern block")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern not in ("unstructured", "block"):
            kept, every = _pair("--sparsity_pattern", self.pattern, ":", _PATTERN_RULE)
            if not 0 < kept < every <= _LARGEST_GROUP:
                raise UsageError("--sparsity_pattern", self.pattern, _PATTERN_RULE)
        rows, columns = _pair("--block_size", self.block_size, "x", _BLOCK_RULE)
        if not rows * columns > 1:
            raise UsageError("--block_size", self.block_size, _BLOCK_RULE)

    @property
    def group(self) -> tuple[int, int] | None:
        """(weights that stay, input channels in a group) of an N:M pattern."""
        if ":" not in self.pattern:
            return None
        return _pair("--sparsity_pattern", self.pattern, ":", _PATTERN_RULE)

    @property
    def block(self) -> tuple[int, int] | None:
        """(input channels, output channels) of a block, where whole blocks go."""
        if self.pattern != "block":
            return None
        return _pair("--block_size", self.block_size, "x", _BLOCK_RULE)


def _check_shares(what: str, shares: Mapping[str, float], remedy: str = "") -> None:
    for pattern, share in shares.items():
        number(f"{what} {pattern}", share, least=0, below=1, remedy=remedy)


_LARGEST_GROUP = 16
_PATTERN_RULE = f"unstructured, block, or N:M with 0 < N < M <= {_LARGEST_GROUP}, as in 2:4"
_BLOCK_RULE = "INPUTSxOUTPUTS, more than one weight, as in 4x1"


def _pair(what: str, text: object, mark: str, rule: str) -> tuple[int, int]:
    found = re.fullmatch(rf"(\d+){mark}(\d+)", text) if isinstance(text, str) else None
    if found is None:
        raise UsageError(what, text, rule)
    return int(found[1]), int(found[2])


@dataclasses.dataclass(frozen=True)
class TfmotPruning(ScheduledPruning):
    """tfmot's own `prune_low_magnitude`, for those who want it.

    It prunes no depthwise kernel, sorts a kernel for each update, and does not train under mixed
    precision; `MagnitudePruning` does. The end step is moved to its last update.
    """


@dataclasses.dataclass(frozen=True)
class ChannelPruning(Pruning):
    """Silences whole channels, more and more of them, and cuts them out at the end.

    Channels that hang together go together: what a convolution makes, its depthwise and batch
    norms, and all projections that are added up. The stage ends with a smaller model, whose config
    has its `channels`.

    Attributes:
        schedule: all at once by default, in front of the first step, since `reconstruct` gives more
            than slow pruning does; with `polynomial` each update is fitted, which takes its time.
        ratio: share of channels that goes, by role of the layer that makes them, by a regular
            expression that matches its whole name, or of `all` groups but the squeezes; the last
            entry that matches a group decides.
        importance: which channels go first: those of the least sum of magnitudes as in
            ivclab/Multistage_Pruning, or by another function of the registry.
        scope: `group` takes the share from every group, `global` ranks all channels together.
        round_to: channel counts are multiples of it. Kernels work in tiles of 16 in int8 files and
            of 32 in float ones; what does not fill a tile costs as much as what does.
        stages: the stage is run so many times, each time with all of its epochs, a fresh optimizer
            and schedule, and an equal part of the ratio; each ends with a thin model of its own,
            from whose weights the next one starts (ivclab/Multistage_Pruning).
        stage_epochs: of the stages in front of the last, so that most of the time is left for the
            model that stays; as many as the last by default, as in that repository.
        reconstruct: the layers that read channels that go are fitted again to what they gave
            before (He et al., arXiv 1707.06168), on so many images of the training split.
        target_macs, target_latency: in place of a ratio, the share of the MACs, or of the time of
            the float file on this machine, that may be left. All groups that `ratio` names lose
            the same share of their channels, the least that will do.
    """

    ratio: dict[str, float] = flag(
        MappingProxyType({ALL_GROUPS: 0.5}),
        "share of channels that goes: one number for all groups, or role=share,regex=share",
        "channel_ratio",
    )
    importance: str = flag("magnitude", "which channels go first: " + ", ".join(IMPORTANCES))
    scope: str = flag("group", "rank channels by group or global", "channel_scope")
    round_to: int = flag(
        16, "channel counts are multiples of it: 16 for int8 files, 32 for float ones, 1 exact"
    )
    stages: int = flag(
        1, "prune in so many stages, each with the epochs of one and a thin model", "channel_stages"
    )
    stage_epochs: int | None = flag(None, "epochs of each stage in front of the last one")
    reconstruct: int = flag(
        512, "images on which what reads channels that go is fitted anew by least squares; 0: not"
    )
    target_macs: float | None = flag(None, "share of the MACs that may be left, for a ratio")
    target_latency: float | None = flag(
        None, "share of the float file's time that may be left, for a ratio; measured here"
    )
    _: dataclasses.KW_ONLY
    schedule: str = flag("constant", "polynomial or constant", "pruning_schedule")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ratio", dict(self.ratio))
        _check_shares("--channel_ratio", self.ratio, "0.5 removes half of the channels")
        one_of("--importance", self.importance, IMPORTANCES)
        one_of("--channel_scope", self.scope, SCOPES)
        number("--round_to", self.round_to, least=1, integer=True)
        number("--channel_stages", self.stages, least=1, integer=True)
        number("--reconstruct", self.reconstruct, least=0, integer=True)
        if self.stage_epochs is not None:
            number("--stage_epochs", self.stage_epochs, least=1, integer=True)
        for name in ("target_macs", "target_latency"):
            if getattr(self, name) is not None:
                number(f"--{name}", getattr(self, name), above=0, below=1)
        if self.budget is not None and self.scope == "global":
            raise UsageError(
                "--channel_scope", self.scope, f"group, with --{self.budget[0]}", "or give a ratio"
            )
        if self.target_macs is not None and self.target_latency is not None:
            raise UsageError("--target_latency", self.target_latency, "one of the two targets")

    @property
    def budget(self) -> tuple[str, float] | None:
        """(field, share that may be left), where a budget stands in place of the ratio."""
        for name in ("target_macs", "target_latency"):
            if getattr(self, name) is not None:
                return name, getattr(self, name)
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DnsPruning(Pruning):
    """Dynamic network surgery: what was removed goes on learning and may come back (Guo et al.,
    arXiv 1608.04493), with the rules of wendazhou/nnet-compression-generalization `nnet/pruning`.

    A threshold is the percentile of a kernel's dense magnitudes at the share that the schedule asks
    for. It is taken every `frequency` steps. The target stands at `end`; that repository has 2/3,
    but a short stage ends with the better model where masks stand still sooner.

    Attributes:
        sparsity: share of zeros by role, or by a regular expression that matches whole layer names,
            in place of what `base` and `slope` give.
        base, slope: a 1x1 or dense kernel loses `base + slope * size / largest`, where `largest` is
            the size of the model's largest such kernel. All other kernels stay dense.
        lower, upper: of the threshold: up to the one a weight goes, from the other on it comes
            back, in between nothing changes.
        boundaries: shares of the stage up to which each of `probabilities` holds, but the last.
        probabilities: chance, by step and kernel, that its mask is replaced.
        last: share of the stage at which every mask is taken a last time, at exactly the target and
            without the band; then they stand still.
        train: `kernels` holds all other weights where they are, `all` trains them too.
        statistics: batch-norm statistics move; without it, steps run in inference mode.
    """

    sparsity: dict[str, float] = flag(
        MappingProxyType({}),
        "share of zeros in place of what the size gives: role=share,regex=share",
        "dns_sparsity",
    )
    base: float = flag(0.6, "share of zeros of the smallest 1x1 kernels", "dns_base")
    slope: float = flag(0.15, "what the largest 1x1 kernel loses on top", "dns_slope")
    lower: float = flag(0.9, "part of the threshold up to which weights go", "dns_lower")
    upper: float = flag(1.1, "part of the threshold from which weights come back", "dns_upper")
    boundaries: tuple[float, ...] = flag(
        (1 / 60, 0.05, 0.1, 1 / 6), "shares of the stage where the chance changes", "dns_boundaries"
    )
    probabilities: tuple[float, ...] = flag(
        (1.0, 0.5, 0.25, 0.1, 0.05),
        "chance of a mask to be replaced in a step",
        "dns_probabilities",
    )
    end: float = flag(0.4, "share of the pruning stage at which the target stands", "pruning_end")
    last: float = flag(0.45, "share of the stage behind which masks stand still", "dns_last")
    train: str = flag("kernels", "kernels or all: which weights train", "dns_train")
    statistics: bool = flag(True, "let batch-norm statistics move", "dns_statistics")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sparsity", dict(self.sparsity))
        _check_shares("--dns_sparsity", self.sparsity)
        number("--dns_base", self.base, least=0, below=1)
        number("--dns_slope", self.slope, least=0, below=1 - self.base)
        number("--dns_lower", self.lower, least=0, most=1)
        number("--dns_upper", self.upper, least=1)
        number("--dns_last", self.last, most=1)
        if self.last < self.end:
            raise UsageError(
                "--dns_last", self.last, f"a share of at least --pruning_end ({self.end})"
            )
        one_of("--dns_train", self.train, ("kernels", "all"))
        for chance in self.probabilities:
            number("--dns_probabilities", chance, least=0, most=1)
        edges = self.boundaries
        for edge in edges:
            number("--dns_boundaries", edge, above=0, below=1)
        if list(edges) != sorted(set(edges)) or len(edges) + 1 != len(self.probabilities):
            raise UsageError(
                "--dns_boundaries",
                ",".join(f"{edge:g}" for edge in edges),
                f"{max(len(self.probabilities) - 1, 0)} shares in rising order, one fewer than"
                " --dns_probabilities",
            )


PRUNING = MappingProxyType(
    {
        "magnitude": MagnitudePruning,
        "channel": ChannelPruning,
        "dns": DnsPruning,
        "tfmot": TfmotPruning,
    }
)
