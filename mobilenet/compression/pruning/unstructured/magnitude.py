"""Magnitude pruning: removes the smallest weights (Zhu and Gupta, arXiv 1710.01878)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mobilenet.compression.method import Method, Sparsity, StageContext, check_plain, register
from mobilenet.compression.pruning.schedule import Timing
from mobilenet.compression.pruning.unstructured import sparsity_patterns, sparsity_targets
from mobilenet.compression.pruning.unstructured.masks import Masks
from mobilenet.configs.pruning import MagnitudePruning
from mobilenet.models.graph import rebuild, variables
from mobilenet.models.graph.roles import Graph, kind


@register
class MagnitudePruner(Method):
    """Masks of the smallest magnitudes, refreshed on tfmot's schedules and at their end step."""

    config_type = MagnitudePruning
    config: MagnitudePruning

    def __init__(self, config: MagnitudePruning, context: StageContext) -> None:
        super().__init__(config, context)
        self.timing = Timing(config, context.steps)
        self.rule = sparsity_patterns.mask_rule(config)
        self.masks: Masks | None = None
        self.targets: list[sparsity_targets.Target] = []
        self.schedules: dict[str, Any] = {}

    def check(self, model: Any) -> None:
        check_plain(model)
        self._assign(model)

    def _assign(self, model: Any) -> list[sparsity_targets.Target]:
        def obstacle(layer: Any) -> str:
            depthwise = kind(layer) == "DepthwiseConv2D"
            return sparsity_patterns.obstacle(self.config, Graph.kernel(layer).shape, depthwise)

        return sparsity_targets.assign_targets(model, self.config.final_sparsity, obstacle)

    def apply(self, model: Any) -> Any:
        check_plain(model)
        trained = rebuild.copy(model)
        self.targets = self._assign(trained)
        chosen = {t.layer: t.sparsity for t in self.targets if t.sparsity}
        self.masks = Masks({name: variables.kernel(trained.get_layer(name)) for name in chosen})
        start = self.masks.sparsity()
        lowest = sparsity_patterns.min_sparsity(self.config)
        self.schedules = {
            name: self.timing.schedule(
                start[name], max(share, lowest), self.timing.end, self.config.frequency
            )
            for name, share in chosen.items()
            if start[name] < 1  # nothing is left to remove; tfmot's schedules refuse 1
        }
        return trained

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model
        assert self.masks is not None
        if self.schedules:  # the same steps are due in all of them
            due, _ = next(iter(self.schedules.values()))(step)
            self.masks.refresh(
                due | tf.equal(step, self.timing.end),
                {name: self._rule_at(step, schedule) for name, schedule in self.schedules.items()},
            )
        self.masks.apply()

    def _rule_at(self, step: tf.Tensor, schedule: Any) -> Callable[[tf.Tensor], tf.Tensor]:
        return lambda kernel: self.rule(kernel, schedule(step)[1])

    def sparsity(self, step: int) -> Sparsity | None:
        assert self.masks is not None
        return self.masks.overall(step, self.schedules)

    def target_reached(self, step: int) -> bool:
        return step >= self.timing.end

    def finalize(self, model: Any) -> Any:
        return model

    def notes(self, model: Any) -> list[str]:
        assert self.masks is not None
        sparsity = self.masks.sparsity()
        return [target.note(sparsity) for target in self.targets]
