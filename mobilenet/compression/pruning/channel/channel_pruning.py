"""Channel pruning: whole channels fall silent while the model trains, and are cut out at the end.

One vector of 0 and 1 stands beside each group. After every optimizer step it multiplies all weights
of the group: those that make the channels, their batch norms, and the slices of what reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.compression.method import Method, StageContext, check_plain, register
from mobilenet.compression.pruning.channel import (
    budget,
    importance,
    reconstruction,
    selection,
    surgery,
)
from mobilenet.compression.pruning.channel.dependency_groups import Group, find
from mobilenet.compression.pruning.channel.slicing import axes
from mobilenet.compression.pruning.schedule import Timing
from mobilenet.configs import recipes
from mobilenet.configs.pruning import ChannelPruning
from mobilenet.errors import UsageError
from mobilenet.models import counting
from mobilenet.models.builder import build, config_of
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import kind
from mobilenet.models.layer_plan import layer_channels

log = logging.getLogger("mobilenet")

_FLAG = "--channel_ratio"
_PROOF_IMAGES = 8
_EXAMPLES = 32  # that the gradients of an importance are taken on
_FULL = 0.5  # what the schedule object ends with; it stands for the whole of a part


class ChannelMasks(tf.Module):
    """Masks by group, float32 `[channels]`: 1 keeps a channel, 0 silences it."""

    def __init__(self, groups: Sequence[Group]) -> None:
        """Takes each mask from the channels that are silent already, so that nothing revives."""
        super().__init__(name="channel_masks")
        self.groups = groups
        self.masks = {
            group.name: variables.state_variable(_audible(group), f"{group.name}_channels")
            for group in groups
        }

    def apply(self) -> None:
        """Zeroes every weight of a silent channel."""
        for group in self.groups:
            for member in group.members:
                named = variables.named(member.layer)
                for weight, axis in axes(member).items():
                    if weight == "moving_variance":  # a square root is taken of it
                        continue
                    shape = [1] * len(named[weight].shape)
                    shape[axis] = -1
                    mask = tf.reshape(tf.tile(self.masks[group.name], [member.repeats]), shape)
                    variables.update(named[weight], _multiply, [mask])

    def kept(self) -> dict[str, npt.NDArray[np.int64]]:
        """Indices of the channels that are not silent, by group."""
        return {name: np.flatnonzero(mask.numpy()) for name, mask in self.masks.items()}

    def narrow(self, group: Group, stay: npt.NDArray[np.int64]) -> bool:
        """Silences all channels of a group but those of `stay`; whether one has sounded."""
        mask = np.zeros(group.channels, np.float32)
        mask[stay] = 1
        before = self.masks[group.name].numpy()
        self.masks[group.name].assign(before * mask)
        return bool((before > mask).any())


@register
class Channel(Method):
    """Silences the least important channels on tfmot's schedules; ends with a smaller model.

    Attributes:
        shares: share of the whole model's channels that goes in the end, by group; saved with the
            stage, since a measured target would come out a little different the next time.
    """

    config_type = ChannelPruning
    config: ChannelPruning

    def __init__(self, config: ChannelPruning, context: StageContext) -> None:
        super().__init__(config, context)
        timing = Timing(config, context.steps - 1)  # what is chosen needs a step to fall silent in
        self.begin, (self.end, self.frequency) = timing.begin, timing.aligned()
        self.schedule = timing.schedule(0.0, _FULL, self.end, self.frequency)
        if config.schedule == "constant":  # all at once: what was chosen needs no second time
            self.end = self.begin
        self.average_restart_step = self.end + 1  # before that it is the average of wider models
        self.groups: tuple[Group, ...] = ()
        self.whole: dict[int, int] = {}
        self.masks: ChannelMasks | None = None
        self.net: Any = None
        self.model_config: Any = None
        self.budget_notes: list[str] = []
        self.momentum: dict[str, float] = {}  # of batch norms, as they were
        self.shares: Any = None

    def check(self, model: Any) -> None:
        check_plain(model)
        groups = find(model)
        shares = selection.ratios(groups, self.config.ratio, _FLAG)
        if self.config.target_macs is not None:
            self._within_macs(model, groups, shares)

    def apply(self, model: Any) -> Any:
        check_plain(model)
        self.net = trained = surgery.copied(model)
        self.model_config = config_of(model)
        self._hurry(trained)
        self.groups = find(trained)
        self.whole = self._whole_counts(self.groups)
        shares = self._final_shares(trained)
        self.masks = ChannelMasks([g for g in self.groups if shares[g.number] > 0])
        listed = np.array([shares[group.number] for group in self.groups], np.float64)
        self.shares = variables.state_variable(listed, "channel_shares")
        return trained

    def before_step(self, step: int) -> bool:
        """Chooses the channels that fall silent behind `step` updates, where some are due."""
        if self.begin <= step <= self.end and (step - self.begin) % self.frequency == 0:
            reached = float(self.schedule(tf.constant(step, tf.int64))[1]) / _FULL
            self._silence(reached)
        return False

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model, step
        assert self.masks is not None
        self.masks.apply()

    def target_reached(self, step: int) -> bool:
        return step > self.end  # what was chosen there falls silent in the next update

    def finalize(self, model: Any) -> Any:
        """Cuts out what is silent, and verifies that the thin model answers as the masked one.

        Raises:
            VerificationError: it does not.
        """
        for layer, momentum in self.momentum.items():
            model.get_layer(layer).momentum = momentum
        thinned = surgery.cut(model, self._kept(), self.model_config)
        surgery.prove(model, thinned, self.context.training_images(_PROOF_IMAGES))
        return thinned.model

    def notes(self, model: Any) -> list[str]:
        kept = self._kept()
        layers = counting.layer_macs(model)
        left = budget.macs(self.groups, layers, {g.number: len(kept[g.name]) for g in self.groups})
        share = left / budget.macs(self.groups, layers, self.whole)
        part, parts = self.context.part, self.context.parts
        return [
            f"{left:,} MACs, {share:.1%} of the whole model's"
            + (f"; part {part} of {parts}" if parts > 1 else ""),
            *self.budget_notes,
            *(
                f"{group.name} ({group.role}): {len(kept[group.name])} of "
                f"{self.whole[group.number]} channels stay, by {self.config.importance}"
                for group in self.groups
            ),
        ]

    def _hurry(self, model: Any) -> None:
        """Statistics that follow within the stage: without its channels it is another model."""
        for layer in model.layers:
            if kind(layer) == "BatchNormalization":
                self.momentum[layer.name] = layer.momentum
                layer.momentum = recipes.batch_norm_decay(self.context.steps, layer.momentum)

    def _whole_counts(self, groups: Sequence[Group]) -> dict[int, int]:
        """Channels of the model that shares are of, by group; of this one where no other is
        known.
        """
        whole = (
            {}
            if self.context.original_config is None
            else layer_channels(self.context.original_config)
        )
        return {group.number: whole.get(group.name, group.channels) for group in groups}

    def _final_shares(self, model: Any) -> dict[int, float]:
        shares = selection.ratios(self.groups, self.config.ratio, _FLAG)
        if self.config.target_macs is not None:
            return self._within_macs(model, self.groups, shares)
        if self.config.target_latency is not None:
            return self._within_latency(model, shares)
        return shares

    def _within_macs(
        self, model: Any, groups: Sequence[Group], shares: dict[int, float]
    ) -> dict[int, float]:
        layers, whole = counting.layer_macs(model), self._whole_counts(groups)
        all_of_it = budget.macs(groups, layers, whole)
        return self._within(
            shares, whole, lambda counts: budget.macs(groups, layers, counts) / all_of_it
        )

    def _within_latency(self, model: Any, shares: dict[int, float]) -> dict[int, float]:
        if self.context.measure_latency is None:
            raise UsageError(
                "--target_latency", self.config.target_latency, "a stage that measures"
            )
        measure = self.context.measure_latency(self._of_widths(model, self.whole))

        def share_of_time(counts: budget.Counts) -> float:
            thin, whole = measure(self._of_widths(model, counts))
            kept = sum(counts.values()) / sum(self.whole.values())
            self.budget_notes.append(
                f"with {kept:.1%} of the channels: {1e3 * thin:.3g} ms of {1e3 * whole:.3g} ms, "
                f"{thin / whole:.1%}"
            )
            return thin / whole

        return self._within(shares, self.whole, share_of_time)

    def _within(
        self,
        shares: dict[int, float],
        whole: dict[int, int],
        cost: Callable[[budget.Counts], float],
    ) -> dict[int, float]:
        """The same share of all groups that lose some, as small as the budget allows."""
        assert self.config.budget is not None
        name, target = self.config.budget
        round_to = self.config.round_to
        lose = {key: count for key, count in whole.items() if shares[key] > 0}
        share = budget.least_share(
            f"--{name}",
            target,
            lambda share: cost({**whole, **budget.counts_at(share, lose, round_to)}),
            budget.shares(lose, round_to),
            f"each group keeps {round_to} channels",
        )
        return {key: share if key in lose else 0.0 for key in whole}

    def _of_widths(self, model: Any, counts: budget.Counts) -> Any:
        """A model with so many channels; what it answers does not matter."""
        if self.model_config is not None:
            widths = {
                member.layer.name: counts[group.number]
                for group in self.groups
                for member in group.on("out")
            }
            config = surgery.thinned_config(self.model_config, widths)
            return build(config, model.input_shape[1:])
        kept = {group.name: np.arange(counts[group.number]) for group in self.groups}
        return surgery.cut(model, kept).model

    def _kept(self) -> dict[str, npt.NDArray[np.int64]]:
        assert self.masks is not None
        every = {group.name: np.arange(group.channels) for group in self.groups}
        return {**every, **self.masks.kept()}

    def _silence(self, reached: float) -> None:
        """Silences channels until the part of the stage is done to a share `reached`."""
        assert self.masks is not None
        masks, config = self.masks, self.config
        evidence = self._evidence()

        def score(group: Group) -> npt.NDArray[np.float64]:
            own = importance.scores(group, config.importance, evidence)
            return np.where(masks.masks[group.name].numpy() > 0, own, np.nan)

        part, parts = self.context.part, self.context.parts
        done = (part - 1 + reached) / parts
        now = dict(zip(self.whole, done * self.shares.numpy(), strict=True))
        shares = {
            group.number: selection.share_of_rest(
                group.channels, self.whole[group.number], now[group.number], config.round_to
            )
            for group in masks.groups
        }
        kept = selection.choose(masks.groups, shares, score, config.round_to, config.scope)
        before = surgery.copied(self.net) if config.reconstruct else None
        fewer = [masks.narrow(group, kept[group.number]) for group in masks.groups]
        masks.apply()
        if before is not None and any(fewer):
            self._reconstruct(before)

    def _reconstruct(self, before: Any) -> None:
        images = (self.context.calibration_images or self.context.training_images)(
            self.config.reconstruct
        )
        left = reconstruction.fit(before, self.net, images)
        if not left:  # none of them has an offset
            return
        log.info(
            "%d layers behind channels that went are fitted on %d images; of their squared error "
            "%.0f %% is left at the median, %0.0f %% at most",
            *(len(left), len(images), 100 * np.median([*left.values()]), 100 * max(left.values())),
        )

    def _evidence(self) -> importance.Evidence:
        if self.config.importance != "taylor" or self.context.labeled_examples is None:
            return importance.Evidence(seed=self.context.seed)
        images, labels = self.context.labeled_examples(_EXAMPLES)

        def loss(model: Any) -> Any:
            logits = tf.cast(model(images, training=False), tf.float32)
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

        return importance.Evidence(importance.gradients(self.net, loss), self.context.seed)


def _audible(group: Group) -> npt.NDArray[np.float32]:
    """0 for channels that nothing makes: their kernels, biases and batch norms are all zero."""
    sound = np.zeros(group.channels, bool)
    for member in group.on("out", "all"):
        named = variables.named(member.layer)
        for weight, axis in axes(member).items():
            if weight.startswith("moving_"):
                continue
            value = np.moveaxis(named[weight].numpy(), axis, 0)
            filled = (value.reshape(len(value), -1) != 0).any(1)
            sound |= filled.reshape(member.repeats, group.channels).any(0)
    sound[0] |= not sound.any()  # a layer needs a channel
    return sound.astype(np.float32)


def _multiply(weight: Any, mask: Any) -> None:
    weight.assign(weight * tf.cast(mask, weight.dtype))
