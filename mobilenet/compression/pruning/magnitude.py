"""Magnitude pruning: the smallest weights of each kernel go (Zhu and Gupta, arXiv 1710.01878)."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.compression import variables
from mobilenet.compression.method import Method, Stage, register
from mobilenet.compression.pruning import targets
from mobilenet.compression.pruning.masks import Masks, keep_largest
from mobilenet.configs.compression import MagnitudePruning
from mobilenet.errors import UsageError


@register
class Magnitude(Method):
    """Masks of the smallest magnitudes, refreshed on tfmot's schedules and at their end step."""

    config_type = MagnitudePruning
    config: MagnitudePruning

    def __init__(self, config: MagnitudePruning, stage: Stage) -> None:
        super().__init__(config, stage)
        self.begin = round(config.begin * stage.steps)
        self.end = max(round(config.end * stage.steps), self.begin + 1)
        if self.end > stage.steps:
            raise UsageError(
                "--prune_epochs",
                None,
                f"a stage longer than {stage.steps} steps",
                "train for at least two steps",
            )
        self.masks: Masks | None = None
        self.targets: list[targets.Target] = []
        self.schedules: dict[str, Any] = {}

    def check(self, model: Any) -> None:
        targets.assign(model, self.config.final_sparsity)

    def apply(self, model: Any) -> Any:
        trained = tf_keras.models.clone_model(model)
        trained.set_weights(model.get_weights())
        self.targets = targets.assign(trained, self.config.final_sparsity)
        chosen = {t.layer: t.sparsity for t in self.targets if t.sparsity}
        self.masks = Masks({name: variables.kernel(trained.get_layer(name)) for name in chosen})
        start = self.masks.sparsity()
        self.schedules = {
            name: self._schedule(start[name], share)
            for name, share in chosen.items()
            if start[name] < 1  # nothing is left to remove; tfmot's schedules refuse 1
        }
        return trained

    def _schedule(self, start: float, final: float) -> Any:
        """tfmot's schedule object; a start that is sparser than the target stays where it is."""
        from tensorflow_model_optimization.sparsity import keras as sparsity

        final = max(start, final)
        if self.config.schedule == "constant":
            return sparsity.ConstantSparsity(final, self.begin + 1, self.end, self.config.frequency)
        return sparsity.PolynomialDecay(
            start, final, self.begin, self.end, self.config.power, self.config.frequency
        )

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model
        assert self.masks is not None
        for name, schedule in self.schedules.items():
            due, share = schedule(step)
            due = due | tf.equal(step, self.end)
            self.masks.refresh(name, due, functools.partial(_smallest, share=share))
        self.masks.apply()

    def finalize(self, model: Any) -> Any:
        return model

    def notes(self, model: Any) -> list[str]:
        assert self.masks is not None
        reached = self.masks.sparsity()
        return [
            f"{t.layer} ({t.role}): {reached[t.layer]:.1%} zeros, {t.reason}"
            if t.layer in reached
            else f"{t.layer} ({t.role}): dense, {t.reason}"
            for t in self.targets
        ]


def _smallest(kernel: tf.Tensor, mask: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """The rule; the optimizer has just moved masked weights too, so the mask comes first."""
    return keep_largest(kernel * mask, share)
