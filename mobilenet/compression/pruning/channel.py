"""Channel pruning: whole channels fall silent while the net trains, and are cut out at the end.

One vector of 0 and 1 stands beside each group. After every optimizer step it multiplies all weights
of the group: those that make the channels, their batch norms, and the slices of what reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.compression import variables
from mobilenet.compression.method import Method, Stage, check_plain, register
from mobilenet.compression.pruning import importance, selection, surgery
from mobilenet.compression.pruning.groups import Group, find
from mobilenet.compression.pruning.schedule import Timing
from mobilenet.compression.pruning.slicing import axes
from mobilenet.configs.compression import ChannelPruning
from mobilenet.models.builder import config_of

_FLAG = "--channel_ratio"
_PROOF_IMAGES = 8


class ChannelMasks(tf.Module):
    """Masks by group, float32 `[channels]`: 1 keeps a channel, 0 silences it."""

    def __init__(self, groups: Sequence[Group]) -> None:
        """Takes each mask from the channels that are silent already, so that nothing revives."""
        super().__init__(name="channel_masks")
        self.groups = groups
        self.masks = {
            group.name: tf.Variable(
                _audible(group),
                trainable=False,
                name=f"{group.name}_channels",
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
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

    def narrow(self, group: Group, stay: npt.NDArray[np.int64]) -> None:
        """Silences all channels of a group but those of `stay`."""
        mask = np.zeros(group.channels, np.float32)
        mask[stay] = 1
        self.masks[group.name].assign(self.masks[group.name].numpy() * mask)


@register
class Channel(Method):
    """Silences the least important channels on tfmot's schedules; ends with a smaller net."""

    config_type = ChannelPruning
    config: ChannelPruning

    def __init__(self, config: ChannelPruning, stage: Stage) -> None:
        super().__init__(config, stage)
        timing = Timing(config, stage.steps - 1)  # what is chosen needs a step to fall silent in
        self.end, self.frequency = timing.aligned()
        self.begin = timing.begin + (config.schedule == "constant")
        self.schedules = {
            share: timing.schedule(0.0, share, self.end, self.frequency)
            for share in set(config.ratio.values())
            if share > 0
        }
        self.groups: tuple[Group, ...] = ()
        self.shares: dict[int, float] = {}
        self.masks: ChannelMasks | None = None
        self.net_config: Any = None

    def check(self, model: Any) -> None:
        check_plain(model)
        selection.ratios(find(model), self.config.ratio, _FLAG)

    def apply(self, model: Any) -> Any:
        check_plain(model)
        trained = tf_keras.models.clone_model(model)
        trained.set_weights(model.get_weights())
        self.net_config = config_of(model)
        self.groups = find(trained)
        self.shares = selection.ratios(self.groups, self.config.ratio, _FLAG)
        self.masks = ChannelMasks([g for g in self.groups if self.shares[g.number] > 0])
        return trained

    def enter(self, step: int) -> bool:
        """Chooses the channels that fall silent behind `step` updates, where some are due."""
        if self.begin <= step <= self.end and (step - self.begin) % self.frequency == 0:
            at = tf.constant(step, tf.int64)
            self._silence({share: float(now(at)[1]) for share, now in self.schedules.items()})
        return False

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model, step
        assert self.masks is not None
        self.masks.apply()

    def settled(self, step: int) -> bool:
        return step > self.end  # what was chosen there falls silent in the next update

    def finalize(self, model: Any) -> Any:
        """Cuts out what is silent, and proves that the thin net answers as the masked one.

        Raises:
            FailedProof: it does not.
        """
        thinned = surgery.cut(model, self._kept(), self.net_config)
        surgery.prove(model, thinned, self.stage.images(_PROOF_IMAGES))
        return thinned.model

    def notes(self, model: Any) -> list[str]:
        kept = self._kept()
        return [
            f"{group.name} ({group.role}): {len(kept[group.name])} of {group.channels} channels "
            f"stay, by {self.config.importance}"
            for group in self.groups
        ]

    def _kept(self) -> dict[str, npt.NDArray[np.int64]]:
        assert self.masks is not None
        every = {group.name: np.arange(group.channels) for group in self.groups}
        return {**every, **self.masks.kept()}

    def _silence(self, now: dict[float, float]) -> None:
        assert self.masks is not None
        masks = self.masks

        def score(group: Group) -> npt.NDArray[np.float64]:
            own = importance.scores(group, self.config.importance)
            return np.where(masks.masks[group.name].numpy() > 0, own, np.nan)

        shares = {number: now.get(share, 0.0) for number, share in self.shares.items()}
        kept = selection.choose(
            masks.groups, shares, score, self.config.round_to, self.config.scope
        )
        for group in masks.groups:
            masks.narrow(group, kept[group.number])
        masks.apply()


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
