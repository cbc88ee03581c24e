"""Dynamic network surgery: weights go and come back while the model trains (arXiv 1608.04493).

The model holds masked kernels, so that gradients are taken there; a dense twin of each kernel takes
the same updates. Behind the optimizer a kept weight is what the optimizer made of it; a removed one
was 0 before, so that what the kernel holds is the update, which the twin adds to what it had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.compression.method import Method, StageContext, check_plain, register
from mobilenet.compression.pruning.schedule import Timing
from mobilenet.compression.pruning.unstructured import sparsity_targets
from mobilenet.compression.pruning.unstructured.masks import Masks, keep_largest, magnitude_at
from mobilenet.configs.pruning import DnsPruning
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph, kind

_FLAG = "--dns_sparsity"


class Surgery(tf.Module):
    """Masks with what they need to be undone, all by layer name.

    Attributes:
        masks: 0 and 1; the kernels are under them behind every step.
        dense: the weights without masks, float32 and of the kernel's shape.
        thresholds: magnitudes, scalars; 0 until the first one is taken, and nothing changes then.
        flips: int64 `[3]`: weights removed, weights that came back, replacements of the mask.
        course: int64 `[refreshes, 2]`: weights removed and weights that came back, of all kernels,
            from one refresh of the thresholds to the next.
    """

    def __init__(self, masks: Masks, refreshes: int) -> None:
        super().__init__(name="surgery")
        self.masks = masks
        self.dense = {
            n: variables.state_variable(tf.cast(k, tf.float32), f"{n}_dense")
            for n, k in masks.kernels.items()
        }
        self.thresholds = {
            n: variables.state_variable(tf.zeros([]), f"{n}_threshold") for n in masks.kernels
        }
        self.flips = {
            n: variables.state_variable(tf.zeros([3], tf.int64), f"{n}_flips")
            for n in masks.kernels
        }

        self.course = variables.state_variable(tf.zeros([refreshes, 2], tf.int64), "course")

    def counted(self) -> dict[str, tuple[int, int, int]]:
        """Weights removed, weights that came back and replacements so far."""
        found = {name: flips.numpy() for name, flips in self.flips.items()}
        return {name: (int(f[0]), int(f[1]), int(f[2])) for name, f in found.items()}


@register
class DynamicSurgery(Method):
    """Prunes below a band around a percentile and splices above it, by chance."""

    config_type = DnsPruning
    config: DnsPruning

    def __init__(self, config: DnsPruning, context: StageContext) -> None:
        super().__init__(config, context)
        self.timing = Timing(config, context.steps)
        self.last = max(round(config.last * context.steps), self.timing.end)
        self.average_restart_step = self.last - 1  # before that it is the average of other masks
        self.targets: list[sparsity_targets.Target] = []
        self.schedules: dict[str, Any] = {}
        self.shares: dict[str, float] = {}
        self.surgery: Surgery | None = None
        self.held: variables.FrozenVariables | None = None

    def check(self, model: Any) -> None:
        check_plain(model)
        self._assign(model)

    def apply(self, model: Any) -> Any:
        check_plain(model)
        trained = tf_keras.models.clone_model(model)
        trained.set_weights(model.get_weights())
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
        self.surgery = Surgery(masks, self.context.steps // self.config.frequency + 1)
        self.held = variables.FrozenVariables(
            _others(trained) if self.config.train == "kernels" else ()
        )
        return trained

    def _assign(self, model: Any) -> list[sparsity_targets.Target]:
        """Targets by the size of the kernel, but where the config names another."""
        config = self.config
        found = sparsity_targets.assign(model, config.sparsity, flag=_FLAG)
        sizes = {
            target.layer: math.prod(Graph.kernel(model.get_layer(target.layer)).shape)
            for target in found
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

        return [by_size(target) for target in found]

    def probability(self, step: tf.Tensor) -> tf.Tensor:
        """The chance that a mask is replaced behind the update number `step`."""
        edges = [edge * self.context.steps for edge in self.config.boundaries]
        passed = tf.reduce_sum(tf.cast(tf.cast(step, tf.float64) > edges, tf.int32))
        return tf.gather(tf.constant(self.config.probabilities, tf.float32), passed)

    def draws(self, step: tf.Tensor) -> tf.Tensor:
        """A number in [0, 1) for each kernel, by seed and step alone."""
        key = tf.stack([tf.constant(self.context.seed, tf.int64), tf.cast(step, tf.int64)])
        return tf.random.stateless_uniform([max(len(self.schedules), 1)], key)

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model
        assert self.surgery is not None and self.held is not None
        self.held.apply()
        begin, end = self.timing.begin, self.timing.end
        regular = (step >= begin) & tf.equal((step - begin) % self.config.frequency, 0)
        due = (regular | tf.equal(step, end)) & (step < self.last)
        replaced = (self.draws(step) <= self.probability(step)) & (step < self.last)
        flips = [
            self._operate(name, step, due, replaced[place])
            for place, name in enumerate(self.schedules)
        ]
        if flips:
            refresh = tf.maximum(step - begin, 0) // self.config.frequency
            variables.update(self.surgery.course, _add_to, [refresh, tf.add_n(flips)[:2]])
        if len(self.schedules) < len(self.surgery.masks.kernels):
            self.surgery.masks.apply()  # kernels of zeros

    def _operate(
        self, name: str, step: tf.Tensor, due: tf.Tensor, replaced: tf.Tensor
    ) -> tf.Tensor:
        """The update of one kernel: its twin, its threshold, its mask and itself; its flips."""
        assert self.surgery is not None
        surgery = self.surgery
        kernel = surgery.masks.kernels[name]
        mask = tf.convert_to_tensor(surgery.masks.masks[name])
        threshold = tf.convert_to_tensor(surgery.thresholds[name])
        dense = tf.cast(kernel, tf.float32) + surgery.dense[name] * (1.0 - mask)
        share = self.schedules[name](step)[1]
        threshold = tf.cond(due, lambda: magnitude_at(dense, share), lambda: threshold)
        exact = tf.equal(step, self.last)
        changed = tf.cond(replaced, lambda: self.replacement(dense, mask, threshold), lambda: mask)
        changed = tf.cond(exact, lambda: keep_largest(dense, self.shares[name]), lambda: changed)
        flips = tf.stack(
            [
                tf.math.count_nonzero(mask > changed),
                tf.math.count_nonzero(mask < changed),
                tf.cast(replaced | exact, tf.int64),
            ]
        )
        variables.update(surgery.dense[name], _assign, [dense])
        variables.update(surgery.thresholds[name], _assign, [threshold])
        variables.update(surgery.flips[name], _add, [flips])
        variables.update(surgery.masks.masks[name], _assign, [changed])
        variables.update(kernel, _assign, [variables.apply_mask(dense, changed > 0)])
        return flips

    def replacement(self, dense: tf.Tensor, mask: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
        """The mask behind a surgery: 0 below the band, 1 above it, as before inside."""
        magnitude = tf.abs(dense)
        spliced = (magnitude >= self.config.upper * threshold) & (threshold > 0)
        kept = tf.where(magnitude <= self.config.lower * threshold, 0.0, mask)
        return tf.where(spliced, 1.0, kept)

    def statistics_frozen(self, step: int) -> bool:
        del step
        return not self.config.statistics

    def target_reached(self, step: int) -> bool:
        return step >= self.last

    def finalize(self, model: Any) -> Any:
        return model

    def report(self) -> Mapping[str, Any]:
        """`flips`: first step of a refresh, weights removed and come back until the next one."""
        assert self.surgery is not None
        begin, frequency = self.timing.begin, self.config.frequency
        course = self.surgery.course.numpy().tolist()
        return {"flips": [[begin + frequency * n, *row] for n, row in enumerate(course)]}

    def notes(self, model: Any) -> list[str]:
        del model
        assert self.surgery is not None
        reached, counted = self.surgery.masks.sparsity(), self.surgery.counted()

        def told(target: sparsity_targets.Target) -> str:
            line = target.told(reached)
            if target.layer not in counted:
                return line
            removed, back, times = counted[target.layer]
            return f"{line}; {removed:,} removed, {back:,} came back in {times:,} changes"

        return [told(target) for target in self.targets]


def _is_matrix(layer: Any) -> bool:
    """Whether the kernel is 1x1 or dense."""
    if kind(layer) == "Dense":
        return True
    return kind(layer) == "Conv2D" and tuple(layer.kernel_size) == (1, 1)


def _others(model: Any) -> list[tf.Variable]:
    """What trains in a model besides its kernels."""
    kernels = {id(variables.kernel(layer)) for layer in model.layers}
    return [variable for variable in model.trainable_variables if id(variable) not in kernels]


def _assign(variable: Any, value: Any) -> None:
    variable.assign(tf.cast(value, variable.dtype))


def _add(variable: Any, value: Any) -> None:
    variable.assign_add(value)


def _add_to(variable: Any, row: Any, value: Any) -> None:
    variable.scatter_nd_add([[row]], [value])
