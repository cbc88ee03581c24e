"""Dynamic network surgery: weights are pruned and regrown while the model trains.

The method is that of arXiv 1608.04493. The model holds masked kernels, so that gradients are taken
there; a dense copy of each kernel receives the same updates. After the optimizer step an active
weight is copied to the dense kernel. A pruned weight was 0 before the step, so its value now is the
update, which is added to the dense kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from mobilenet.compression.method import Method, Sparsity, StageContext, check_plain, register
from mobilenet.compression.pruning.schedule import Timing
from mobilenet.compression.pruning.unstructured import sparsity_targets
from mobilenet.compression.pruning.unstructured.masks import Masks, keep_largest, magnitude_at
from mobilenet.configs.pruning import DnsPruning
from mobilenet.models.graph import rebuild, variables
from mobilenet.models.graph.roles import Graph, kind


class SurgeryState(tf.Module):
    """Masks, the dense kernels and counts of changes, all by layer name.

    Attributes:
        masks: 0 and 1; the kernels are masked after every step.
        dense: the weights without masks, float32 and of the kernel's shape.
        thresholds: magnitudes, scalars; 0 until the first one is computed, and no mask changes
            before.
        mask_changes: int64 `[3]`: weights removed, weights regrown, replacements of the mask.
        history: int64 `[refreshes, 2]`: weights removed and weights regrown, of all kernels, from
            one refresh of the thresholds to the next.
    """

    def __init__(self, masks: Masks, refreshes: int) -> None:
        super().__init__(name="surgery")
        self.masks = masks
        self.dense = {
            name: variables.state_variable(tf.cast(kernel, tf.float32), f"{name}_dense")
            for name, kernel in masks.kernels.items()
        }
        self.thresholds = {
            name: variables.state_variable(tf.zeros([]), f"{name}_threshold")
            for name in masks.kernels
        }
        self.mask_changes = {
            name: variables.state_variable(tf.zeros([3], tf.int64), f"{name}_mask_changes")
            for name in masks.kernels
        }
        self.history = variables.state_variable(tf.zeros([refreshes, 2], tf.int64), "history")

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Weights removed, weights regrown and replacements of the mask so far, by layer."""
        changes = {name: variable.numpy() for name, variable in self.mask_changes.items()}
        return {name: (int(c[0]), int(c[1]), int(c[2])) for name, c in changes.items()}


@register
class DynamicSurgery(Method):
    """Prunes weights below a band around a percentile, and regrows (splices) those above it."""

    config_type = DnsPruning
    config: DnsPruning

    def __init__(self, config: DnsPruning, context: StageContext) -> None:
        super().__init__(config, context)
        self.timing = Timing(config, context.steps)
        self.last = max(round(config.last * context.steps), self.timing.end)
        self.average_restart_step = self.last - 1  # before it, the average is of other masks
        self.targets: list[sparsity_targets.Target] = []
        self.schedules: dict[str, Any] = {}
        self.shares: dict[str, float] = {}
        self.surgery: SurgeryState | None = None
        self.frozen: variables.FrozenVariables | None = None

    def check(self, model: Any) -> None:
        check_plain(model)
        self._assign(model)

    def apply(self, model: Any) -> Any:
        check_plain(model)
        trained = rebuild.copy(model)
        self.targets = self._assign(trained)
        chosen = {t.layer: t.sparsity for t in self.targets if t.sparsity}
        masks = Masks({name: variables.kernel(trained.get_layer(name)) for name in chosen})
        start = masks.sparsity()
        self.shares = {name: max(share, start[name]) for name, share in chosen.items()}
        self.schedules = {
            name: self.timing.schedule(start[name], share, self.timing.end, self.config.frequency)
            for name, share in chosen.items()
            if start[name] < 1  # nothing is left to remove; tfmot's schedules refuse 1
        }
        self.surgery = SurgeryState(masks, self.context.steps // self.config.frequency + 1)
        self.frozen = variables.FrozenVariables(
            _without_kernels(trained) if self.config.train == "kernels" else ()
        )
        return trained

    def _assign(self, model: Any) -> list[sparsity_targets.Target]:
        """Targets by the size of the kernel, except where the config names a share."""
        config = self.config
        targets = sparsity_targets.assign_targets(model, config.sparsity, parameter="sparsity")
        sizes = {
            target.layer: math.prod(Graph.kernel(model.get_layer(target.layer)).shape)
            for target in targets
            if _is_matrix(model.get_layer(target.layer))
        }
        largest = max(sizes.values(), default=1)

        def by_size(target: sparsity_targets.Target) -> sparsity_targets.Target:
            if target.sparsity is not None:
                return target
            if target.layer not in sizes:
                return sparsity_targets.Target(target.layer, target.role, None, "not a 1x1 kernel")
            size = sizes[target.layer]
            reason = f"{config.base:g} + {config.slope:g} * {size:,} / {largest:,}"
            share = config.base + config.slope * size / largest
            return sparsity_targets.Target(target.layer, target.role, share, reason)

        return [by_size(target) for target in targets]

    def probability(self, step: tf.Tensor) -> tf.Tensor:
        """The probability that a mask is replaced after update number `step`."""
        boundaries = [share * self.context.steps for share in self.config.boundaries]
        passed = tf.reduce_sum(tf.cast(tf.cast(step, tf.float64) > boundaries, tf.int32))
        return tf.gather(tf.constant(self.config.probabilities, tf.float32), passed)

    def draws(self, step: tf.Tensor) -> tf.Tensor:
        """A random number in [0, 1) for each kernel; depends on seed and step only."""
        key = tf.stack([tf.constant(self.context.seed, tf.int64), tf.cast(step, tf.int64)])
        return tf.random.stateless_uniform([max(len(self.schedules), 1)], key)

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model
        assert self.surgery is not None and self.frozen is not None
        self.frozen.apply()
        begin, end = self.timing.begin, self.timing.end
        regular = (step >= begin) & tf.equal((step - begin) % self.config.frequency, 0)
        due = (regular | tf.equal(step, end)) & (step < self.last)
        replaced = (self.draws(step) <= self.probability(step)) & (step < self.last)
        changes = [
            self._update_kernel(name, step, due, replaced[index])
            for index, name in enumerate(self.schedules)
        ]
        if changes:
            refresh = tf.maximum(step - begin, 0) // self.config.frequency
            variables.update(self.surgery.history, _add_to_row, [refresh, tf.add_n(changes)[:2]])
        if len(self.schedules) < len(self.surgery.masks.kernels):
            self.surgery.masks.apply()  # kernels that are all zero have no schedule

    def _update_kernel(
        self, name: str, step: tf.Tensor, due: tf.Tensor, replaced: tf.Tensor
    ) -> tf.Tensor:
        """Updates a kernel, its dense copy, threshold and mask; returns the changes of the mask."""
        assert self.surgery is not None
        surgery = self.surgery
        kernel = surgery.masks.kernels[name]
        mask = tf.convert_to_tensor(surgery.masks.masks[name])
        threshold = tf.convert_to_tensor(surgery.thresholds[name])
        dense = tf.cast(kernel, tf.float32) + surgery.dense[name] * (1.0 - mask)
        share = self.schedules[name](step)[1]
        threshold = tf.cond(due, lambda: magnitude_at(dense, share), lambda: threshold)
        exact = tf.equal(step, self.last)
        new = tf.cond(replaced, lambda: self.new_mask(dense, mask, threshold), lambda: mask)
        new = tf.cond(exact, lambda: keep_largest(dense, self.shares[name]), lambda: new)
        changes = tf.stack(
            [
                tf.math.count_nonzero(mask > new),
                tf.math.count_nonzero(mask < new),
                tf.cast(replaced | exact, tf.int64),
            ]
        )
        variables.update(surgery.dense[name], _assign, [dense])
        variables.update(surgery.thresholds[name], _assign, [threshold])
        variables.update(surgery.mask_changes[name], _add, [changes])
        variables.update(surgery.masks.masks[name], _assign, [new])
        variables.update(kernel, _assign, [variables.apply_mask(dense, new > 0)])
        return changes

    def new_mask(self, dense: tf.Tensor, mask: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
        """The mask after surgery: 0 below the band, 1 above it, unchanged inside."""
        magnitude = tf.abs(dense)
        regrown = (magnitude >= self.config.upper * threshold) & (threshold > 0)
        pruned = tf.where(magnitude <= self.config.lower * threshold, 0.0, mask)
        return tf.where(regrown, 1.0, pruned)

    def statistics_frozen(self, step: int) -> bool:
        del step
        return not self.config.statistics

    def sparsity(self, step: int) -> Sparsity | None:
        assert self.surgery is not None
        return self.surgery.masks.overall(step, self.schedules)

    def target_reached(self, step: int) -> bool:
        return step >= self.last

    def finalize(self, model: Any) -> Any:
        return model

    def report(self) -> Mapping[str, Any]:
        """`mask_changes`: step of a refresh, weights removed and regrown until the next one."""
        assert self.surgery is not None
        begin, frequency = self.timing.begin, self.config.frequency
        history = self.surgery.history.numpy().tolist()
        return {"mask_changes": [[begin + frequency * n, *row] for n, row in enumerate(history)]}

    def notes(self, model: Any) -> list[str]:
        del model
        assert self.surgery is not None
        sparsity, counts = self.surgery.masks.sparsity(), self.surgery.counts()

        def note(target: sparsity_targets.Target) -> str:
            text = target.note(sparsity)
            if target.layer not in counts:
                return text
            removed, regrown, times = counts[target.layer]
            return f"{text}; {removed:,} removed, {regrown:,} regrown in {times:,} changes"

        return [note(target) for target in self.targets]


def _is_matrix(layer: Any) -> bool:
    """Whether the kernel is 1x1 or dense."""
    if kind(layer) == "Dense":
        return True
    return kind(layer) == "Conv2D" and tuple(layer.kernel_size) == (1, 1)


def _without_kernels(model: Any) -> list[tf.Variable]:
    """The trainable variables of a model but its kernels."""
    kernels = {id(variables.kernel(layer)) for layer in model.layers}
    return [variable for variable in model.trainable_variables if id(variable) not in kernels]


def _assign(variable: Any, value: Any) -> None:
    variable.assign(tf.cast(value, variable.dtype))


def _add(variable: Any, value: Any) -> None:
    variable.assign_add(value)


def _add_to_row(variable: Any, row: Any, value: Any) -> None:
    variable.scatter_nd_add([[row]], [value])
