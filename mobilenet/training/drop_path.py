"""Stochastic depth (arXiv 1603.09382): training leaves out residual branches of some images.

It is in the forward pass of training alone. The model has no layer of it, so that weights, counts,
methods and files are those of a model that was trained without.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.configs.training import TrainConfig
from mobilenet.errors import UsageError
from mobilenet.models.graph.calls import CallList
from mobilenet.models.graph.roles import Graph, kind

_PARAMETER = "drop_path_rate"


class DropPath:
    """The forward pass of a model in which residual branches are dropped, image by image.

    Of L residual sums the n-th drops its branch with probability n / L of the rate, and scales it
    by 1 / (1 - probability) where it stays.

    Args:
        model: functional, plain or with the layers that a method wraps; it is left as it is.
        rate: of the last residual sum.

    Attributes:
        layers: one `Dropout` a residual sum, in execution order.

    Raises:
        UsageError: names `drop_path_rate`: the model has no residual sum.
    """

    def __init__(self, model: Any, rate: float) -> None:
        branches = _residual_branches(model)
        if not branches:
            expected = f"0 for {model.name}, which has no residual sum"
            raise UsageError(_PARAMETER, rate, expected, "leave it out")
        self._calls = CallList(model, allow_shared=True)
        self.layers = [
            tf_keras.layers.Dropout(
                rate * (index + 1) / len(branches), noise_shape=(None, 1, 1, 1), name=f"drop_{name}"
            )
            for index, name in enumerate(branches)
        ]
        pairs = zip(branches.items(), self.layers, strict=True)
        self._dropped = {name: (branch, layer) for (name, branch), layer in pairs}

    def __call__(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        """The output of the model."""

        def inputs_of(layer: Any, values: list[Any]) -> list[Any]:
            if layer.name not in self._dropped:
                return values
            branch, dropout = self._dropped[layer.name]
            dropped = dropout(values[branch], training=training)
            return [dropped if i == branch else value for i, value in enumerate(values)]

        return self._calls.execute(images, training, inputs_of)


def of_stage(model: Any, config: TrainConfig) -> DropPath | None:
    """The forward pass of a stage; `None` is that of the model."""
    return DropPath(model, config.drop_path_rate) if config.drop_path_rate else None


def _residual_branches(model: Any) -> dict[str, int]:
    """Which input of each residual sum is its branch, by the name of the sum, in execution order.

    The branch is the input that is computed from the other one.
    """
    graph = Graph(model)
    branches: dict[str, int] = {}
    for layer in graph.layers:
        inputs = graph.producers(layer)
        if kind(layer) != "Add" or len(inputs) != 2:
            continue
        for index, (branch, shortcut) in enumerate((inputs, inputs[::-1])):
            if any(other is shortcut for other in graph.ancestors(branch)):
                branches[layer.name] = index
    return branches
