"""tfmot's own pruning wrapper as a method, for comparison; `magnitude` is the default.

Three faults of the wrapper are worked around from outside: it applies its masks in the next forward
pass only (here after the optimizer step as well), it misses an end step between two updates, and
kernels that are sparser than the target regrow. It does not work under mixed precision, which
`check` refuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mobilenet.compression.method import Method, Sparsity, StageContext, check_plain, register
from mobilenet.compression.pruning.schedule import Timing
from mobilenet.compression.pruning.unstructured import sparsity_targets
from mobilenet.compression.pruning.unstructured.masks import overall_sparsity
from mobilenet.configs.pruning import TfmotPruning
from mobilenet.errors import UsageError
from mobilenet.models.graph import variables


@register
class TfmotPruner(Method):
    """Wraps the layers to prune in `prune_low_magnitude`, and strips the wrappers at the end."""

    config_type = TfmotPruning
    config: TfmotPruning

    def __init__(self, config: TfmotPruning, context: StageContext) -> None:
        super().__init__(config, context)
        self.timing = Timing(config, context.steps)
        self.targets: list[sparsity_targets.Target] = []
        self.wrappers: dict[str, Any] = {}
        self._plain: Any = None

    def check(self, model: Any) -> None:
        check_plain(model)
        for target in self._assign(model):
            layer = model.get_layer(target.layer)
            if not target.sparsity:
                continue
            if layer.compute_dtype != "float32":
                raise UsageError(
                    "`pruning=tfmot`",
                    f"a model of {layer.compute_dtype}",
                    "`mixed_precision=float32` (its wrapper rounds the weights to 16 bits)",
                    "`pruning=magnitude` works under mixed precision",
                )
            if not np.any(np.asarray(variables.kernel(layer))):
                raise UsageError(
                    "`pruning=tfmot`",
                    f"{layer.name}, whose weights are all zero",
                    "a kernel with nonzero weights (an all-zero one would regrow)",
                    "`pruning=magnitude` leaves it at zero",
                )

    def _assign(self, model: Any) -> list[sparsity_targets.Target]:
        from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry

        registry = prune_registry.PruneRegistry

        def obstacle(layer: Any) -> str:
            if registry.supports(layer) and registry._weight_names(layer):
                return ""
            return f"tfmot does not prune {type(layer).__name__}"

        return sparsity_targets.assign_targets(model, self.config.final_sparsity, obstacle)

    def apply(self, model: Any) -> Any:
        from tensorflow_model_optimization.sparsity import keras as sparsity

        self.check(model)
        self._plain = model
        self.targets = self._assign(model)
        chosen = {t.layer: t.sparsity for t in self.targets if t.sparsity}
        end, frequency = self.timing.aligned()

        def wrap(layer: Any) -> Any:
            copy = type(layer).from_config(layer.get_config())
            if layer.name not in chosen:
                return copy
            start = _initial_sparsity(variables.kernel(layer))
            schedule = self.timing.schedule(start, chosen[layer.name], end, frequency)
            self.wrappers[layer.name] = sparsity.prune_low_magnitude(copy, schedule)
            return self.wrappers[layer.name]

        trained = tf_keras.models.clone_model(model, clone_function=wrap)
        for layer in model.layers:
            copy = self.wrappers.get(layer.name) or trained.get_layer(layer.name)
            copy.set_weights(layer.get_weights())
        for wrapper in self.wrappers.values():
            wrapper.pruning_step.assign(0)  # as UpdatePruningStep does before the first batch
            for weight, mask, _ in wrapper.pruning_vars:
                mask.assign(tf.cast(tf.not_equal(weight, 0), mask.dtype))
        return trained

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        """Applies the masks, as UpdatePruningStep does at the end of an epoch."""
        del model, step
        for wrapper in self.wrappers.values():
            wrapper.pruning_obj.weight_mask_op()

    def sparsity(self, step: int) -> Sparsity | None:
        kernels = {name: wrapper.pruning_vars[0][0] for name, wrapper in self.wrappers.items()}
        return overall_sparsity(
            {name: kernel.shape.num_elements() for name, kernel in kernels.items()},
            self._zeros(),
            {
                name: float(wrapper.pruning_schedule(step)[1])
                for name, wrapper in self.wrappers.items()
            },
        )

    def target_reached(self, step: int) -> bool:
        return step >= self.timing.aligned()[0]

    def finalize(self, model: Any) -> Any:
        from tensorflow_model_optimization.sparsity import keras as sparsity

        stripped = sparsity.strip_pruning(model)  # shares its layers with `model`
        plain = tf_keras.models.clone_model(self._plain)
        for layer in plain.layers:
            layer.set_weights(stripped.get_layer(layer.name).get_weights())
        return plain

    def notes(self, model: Any) -> list[str]:
        del model
        sparsity = self._zeros()
        return [target.note(sparsity) for target in self.targets]

    def _zeros(self) -> dict[str, float]:
        """The share of zeros by layer name."""
        return {
            name: float(np.mean(wrapper.pruning_vars[0][0].numpy() == 0))
            for name, wrapper in self.wrappers.items()
        }


def _initial_sparsity(kernel: Any) -> float:
    """An initial sparsity at which tfmot preserves the zeros of a kernel.

    If it rounds to one weight less than there are zeros, its threshold is 0 and all of them regrow.
    """
    zeros = int(np.sum(kernel.numpy() == 0))
    return (zeros + 0.5) / kernel.shape.num_elements() if zeros else 0.0
