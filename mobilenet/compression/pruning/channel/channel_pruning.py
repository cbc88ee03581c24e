"""Channel pruning: channels are masked while the model trains, and cut out at the end.

Each dependency group has one vector of 0 and 1. After every optimizer step it multiplies all
weights of the group: those of the layers that make the channels, of their batch norms, and the
slices of the layers that read them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.compression.method import Method, Sparsity, StageContext, check_plain, register
from mobilenet.compression.pruning.channel import (
    budget,
    importance,
    reconstruction,
    selection,
    surgery,
)
from mobilenet.compression.pruning.channel.dependency_groups import ChannelGraph, Group
from mobilenet.compression.pruning.schedule import Timing
from mobilenet.configs.pruning import ChannelPruning
from mobilenet.errors import UsageError
from mobilenet.models import counting
from mobilenet.models.builder import build, config_of
from mobilenet.models.graph import batch_norm_statistics, rebuild, variables
from mobilenet.models.graph.roles import Graph
from mobilenet.typing import Float32Array, Float64Array

log = logging.getLogger("mobilenet")

_VERIFICATION_IMAGES = 8
_EXAMPLES = 32  # on which the gradients of an importance are taken
# tfmot's schedules refuse a final sparsity of 1. They run to this value instead, and dividing by it
# gives the share of this part's pruning that is due.
_FINAL = 0.5


class ChannelMasks(tf.Module):
    """Masks by group, float32 `[channels]`: 1 for an active channel, 0 for a pruned one."""

    def __init__(self, groups: Sequence[Group]) -> None:
        """Starts from the channels that are pruned already, so that none of them regrows."""
        super().__init__(name="channel_masks")
        self.groups = groups
        self.masks = {
            group.name: variables.state_variable(_active(group), f"{group.name}_channels")
            for group in groups
        }

    def apply(self) -> None:
        """Zeroes every weight of a pruned channel."""
        for group in self.groups:
            for member in group.members:
                named = variables.named(member.layer)
                for weight, axis in member.axes().items():
                    if weight == "moving_variance":  # batch norm divides by its square root
                        continue
                    shape = [1] * len(named[weight].shape)
                    shape[axis] = -1
                    mask = tf.reshape(tf.tile(self.masks[group.name], [member.repeats]), shape)
                    variables.update(named[weight], _multiply, [mask])

    def active(self) -> dict[str, npt.NDArray[np.int64]]:
        """Indices of the active channels, by group."""
        return {name: np.flatnonzero(mask.numpy()) for name, mask in self.masks.items()}

    def prune(self, group: Group, remaining: npt.NDArray[np.int64]) -> bool:
        """Prunes all channels of a group but `remaining`; returns whether any was still active."""
        mask = np.zeros(group.channels, np.float32)
        mask[remaining] = 1
        before = self.masks[group.name].numpy()
        self.masks[group.name].assign(before * mask)
        return bool((before > mask).any())


@register
class ChannelPruner(Method):
    """Masks the least important channels on tfmot's schedules; ends with a smaller model.

    Attributes:
        shares: share of the original model's channels to remove in the end, by group; saved with
            the stage, since a measured latency target would give slightly other shares next time.
    """

    config_type = ChannelPruning
    needs_images = True
    config: ChannelPruning

    def __init__(self, config: ChannelPruning, context: StageContext) -> None:
        super().__init__(config, context)
        timing = Timing(config, context.steps - 1)  # the last choice takes effect one step later
        self.begin, (self.end, self.frequency) = timing.begin, timing.aligned()
        self.schedule = timing.schedule(0.0, _FINAL, self.end, self.frequency)
        if config.schedule == "constant":  # one choice, at the begin
            self.end = self.begin
        self.average_restart_step = self.end + 1  # before it, the average is of wider models
        self.channel_graph: ChannelGraph | None = None
        self.groups: tuple[Group, ...] = ()
        self.original_counts: dict[int, int] = {}
        self.masks: ChannelMasks | None = None
        self.model_config: Any = None
        self.budget_notes: list[str] = []
        self.momentum: dict[str, float] = {}  # of batch norms, before `apply`
        self.shares: Any = None

    def check(self, model: Any) -> None:
        check_plain(model)
        groups = ChannelGraph(model).groups
        shares = selection.ratios_by_group(groups, self.config.ratio)
        if self.config.target_macs is not None:
            self._shares_within_macs(model, groups, shares)

    def apply(self, model: Any) -> Any:
        check_plain(model)
        trained = rebuild.copy(model)
        self.model_config = config_of(model)
        # Statistics become those of a thin model within the stage.
        self.momentum = batch_norm_statistics.shorten_momentum(trained, self.context.steps)
        self.channel_graph = ChannelGraph(trained)
        self.groups = self.channel_graph.groups
        self.original_counts = self._original_counts(self.groups)
        shares = self._final_shares()
        self.masks = ChannelMasks([g for g in self.groups if shares[g.number] > 0])
        listed = np.array([shares[group.number] for group in self.groups], np.float64)
        self.shares = variables.state_variable(listed, "channel_shares")
        return trained

    def before_step(self, step: int) -> bool:
        """Chooses the channels to prune after `step` updates, where an update of masks is due."""
        if self.begin <= step <= self.end and (step - self.begin) % self.frequency == 0:
            progress = float(self.schedule(tf.constant(step, tf.int64))[1]) / _FINAL
            self._prune_channels(progress)
        return False

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model, step
        assert self.masks is not None
        self.masks.apply()

    def sparsity(self, step: int) -> Sparsity | None:
        """Of the original model's channels."""
        total = sum(self.original_counts.values())
        remaining = sum(len(channels) for channels in self._remaining().values())
        progress = float(self.schedule(tf.constant(step, tf.int64))[1]) / _FINAL
        done = (self.context.part - 1 + progress) / self.context.parts
        counts = list(self.original_counts.values())
        removed = done * float(np.dot(self.shares.numpy(), counts))
        return Sparsity(1 - remaining / total, removed / total) if total else None

    def target_reached(self, step: int) -> bool:
        return step > self.end  # the channels chosen at the end are masked by the next update

    def finalize(self, model: Any) -> Any:
        """Cuts out the pruned channels, and verifies the thin model against the masked one.

        Raises:
            VerificationError: their outputs differ.
        """
        assert self.channel_graph is not None and self.channel_graph.model is model
        for layer, momentum in self.momentum.items():
            model.get_layer(layer).momentum = momentum
        thinned = surgery.cut_channels(self.channel_graph, self._remaining(), self.model_config)
        thinned.verify(self.context.training_images(_VERIFICATION_IMAGES))
        return thinned.model

    def notes(self, model: Any) -> list[str]:
        remaining = self._remaining()
        layers = counting.layer_macs(model)
        counts = {group.number: len(remaining[group.name]) for group in self.groups}
        macs = budget.count_macs(self.groups, layers, counts)
        share = macs / budget.count_macs(self.groups, layers, self.original_counts)
        part, parts = self.context.part, self.context.parts
        return [
            f"{macs:,} MACs, {share:.1%} of the original model's"
            + (f"; part {part} of {parts}" if parts > 1 else ""),
            *self.budget_notes,
            *(
                f"{group.name} ({group.role}): {len(remaining[group.name])} of "
                f"{self.original_counts[group.number]} channels remain, by {self.config.importance}"
                for group in self.groups
            ),
        ]

    def _original_counts(self, groups: Sequence[Group]) -> dict[int, int]:
        """Channels of the model before any pruning, by group; of this one if that is unknown."""
        counts = self.context.original_channels or {}
        return {group.number: counts.get(group.name, group.channels) for group in groups}

    def _final_shares(self) -> dict[int, float]:
        assert self.channel_graph is not None
        shares = selection.ratios_by_group(self.groups, self.config.ratio)
        if self.config.target_macs is not None:
            return self._shares_within_macs(self.channel_graph.model, self.groups, shares)
        if self.config.target_latency is not None:
            return self._shares_within_latency(self.channel_graph, shares)
        return shares

    def _shares_within_macs(
        self, model: Any, groups: Sequence[Group], shares: dict[int, float]
    ) -> dict[int, float]:
        layers, original = counting.layer_macs(model), self._original_counts(groups)
        original_macs = budget.count_macs(groups, layers, original)
        return self._shares_within_budget(
            shares,
            original,
            lambda counts: budget.count_macs(groups, layers, counts) / original_macs,
        )

    def _shares_within_latency(
        self, channel_graph: ChannelGraph, shares: dict[int, float]
    ) -> dict[int, float]:
        if self.context.measure_latency is None:
            raise UsageError("target_latency", self.config.target_latency, "a stage that measures")
        original = self.original_counts
        measure = self.context.measure_latency(self._model_of_widths(channel_graph, original))

        def share_of_latency(counts: budget.Counts) -> float:
            thin, full = measure(self._model_of_widths(channel_graph, counts))
            remaining = sum(counts.values()) / sum(original.values())
            self.budget_notes.append(
                f"with {remaining:.1%} of the channels: {1e3 * thin:.3g} ms of {1e3 * full:.3g} ms,"
                f" {thin / full:.1%}"
            )
            return thin / full

        return self._shares_within_budget(shares, original, share_of_latency)

    def _shares_within_budget(
        self,
        shares: dict[int, float],
        original: dict[int, int],
        cost: Callable[[budget.Counts], float],
    ) -> dict[int, float]:
        """The same share of all groups that lose some, as small as the budget allows."""
        assert self.config.budget is not None
        name, target = self.config.budget
        round_to = self.config.round_to
        prunable = {key: count for key, count in original.items() if shares[key] > 0}
        share = budget.smallest_share(
            name,
            target,
            lambda share: cost({**original, **budget.counts_at_share(share, prunable, round_to)}),
            budget.candidate_shares(prunable, round_to),
            f"each group keeps {round_to} channels",
        )
        return {key: share if key in prunable else 0.0 for key in original}

    def _model_of_widths(self, channel_graph: ChannelGraph, counts: budget.Counts) -> Any:
        """A model with so many channels, for measuring its latency; its weights do not matter."""
        if self.model_config is not None:
            widths = {
                member.layer.name: counts[group.number]
                for group in channel_graph.groups
                for member in group.members_on("out")
            }
            config = surgery.thinned_config(self.model_config, widths)
            return build(config, channel_graph.model.input_shape[1:])
        first = {group.name: np.arange(counts[group.number]) for group in channel_graph.groups}
        return surgery.cut_channels(channel_graph, first).model

    def _remaining(self) -> dict[str, npt.NDArray[np.int64]]:
        assert self.masks is not None
        every = {group.name: np.arange(group.channels) for group in self.groups}
        return {**every, **self.masks.active()}

    def _prune_channels(self, progress: float) -> None:
        """Masks channels until a share `progress` of this part's pruning is done."""
        assert self.masks is not None and self.channel_graph is not None
        masks, config, model = self.masks, self.config, self.channel_graph.model
        evidence = self._evidence(model)

        def score(group: Group) -> Float64Array:
            scores = importance.score_channels(group, config.importance, evidence)
            return np.where(masks.masks[group.name].numpy() > 0, scores, np.nan)

        done = (self.context.part - 1 + progress) / self.context.parts
        ratios = dict(zip(self.original_counts, done * self.shares.numpy(), strict=True))
        shares = {
            group.number: selection.ratio_of_remaining(
                group.channels,
                self.original_counts[group.number],
                ratios[group.number],
                config.round_to,
            )
            for group in masks.groups
        }
        remaining = selection.choose_channels(
            masks.groups, shares, score, config.round_to, config.scope
        )
        before = Graph(rebuild.copy(model)) if config.reconstruct else None
        pruned = [masks.prune(group, remaining[group.number]) for group in masks.groups]
        masks.apply()
        if before is not None and any(pruned):
            self._reconstruct(before, self.channel_graph.graph)

    def _reconstruct(self, before: Graph, masked: Graph) -> None:
        source = self.context.calibration_images or self.context.training_images
        images = source(self.config.reconstruct)
        errors = reconstruction.reconstruct_consumers(before, masked, images)
        if not errors:  # no consumer has a bias or batch norm offset
            return
        log.info(
            "reconstructed %d layers on %d images; residual error %.0f %% (median), %.0f %% (max)",
            *(len(errors), len(images), 100 * np.median([*errors.values()])),
            100 * max(errors.values()),
        )

    def _evidence(self, model: Any) -> importance.Evidence:
        if self.config.importance != "taylor" or self.context.labeled_examples is None:
            return importance.Evidence(seed=self.context.seed)
        images, labels = self.context.labeled_examples(_EXAMPLES)

        def loss(model: Any) -> Any:
            logits = tf.cast(model(images, training=False), tf.float32)
            if labels.ndim == 2 or logits.shape[-1] == 1:  # of a sigmoid
                targets = tf.reshape(tf.cast(labels, tf.float32), logits.shape)
                return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits))
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

        return importance.Evidence(importance.gradients(model, loss), self.context.seed)


def _active(group: Group) -> Float32Array:
    """0 for channels that no layer makes: their kernels, biases and batch norms are all zero."""
    active = np.zeros(group.channels, bool)
    for member in group.members_on("out", "all"):
        named = variables.named(member.layer)
        for weight, axis in member.axes().items():
            if weight.startswith("moving_"):
                continue
            value = np.moveaxis(named[weight].numpy(), axis, 0)
            nonzero = (value.reshape(len(value), -1) != 0).any(1)
            active |= nonzero.reshape(member.repeats, group.channels).any(0)
    active[0] |= not active.any()  # a layer needs a channel
    return active.astype(np.float32)


def _multiply(weight: Any, mask: Any) -> None:
    weight.assign(weight * tf.cast(mask, weight.dtype))
