"""Which layers a stage trains: those that `freeze` leaves, at first the classifier alone.

A frozen layer is one with `trainable = False`: the optimizer does not see its weights, no gradient
is computed for them, and its batch norm runs in inference mode.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mobilenet.configs.training import BACKBONE, NO_FREEZE, STRIDE, TrainConfig
from mobilenet.errors import UsageError, shorten
from mobilenet.models import end_points
from mobilenet.models.graph import flatten
from mobilenet.models.graph.roles import Graph, kind

Layer = Any


class Freezing:
    """The layers that each step of a stage leaves as they are.

    Args:
        model: that is trained, wrapped or plain.
        config: of the stage.
        steps_per_epoch: optimizer steps an epoch.

    Attributes:
        head_steps: the first steps of the stage, which train the classifier alone.

    Raises:
        UsageError: names `freeze` or `head_epochs`: the model has no such layer or no classifier,
            or nothing would be trained.
    """

    def __init__(self, model: Any, config: TrainConfig, steps_per_epoch: int) -> None:
        self.head_steps = config.head_epochs * steps_per_epoch
        self._trainable = [x for x in flatten.innermost_layers(model) if x.weights and x.trainable]
        frozen = self._later = self._first = _variables_of(_frozen_layers(model, config))
        if self.head_steps:
            backbone = _before_classifier(model, "head_epochs", config.head_epochs)
            self._first = frozen | _variables_of(backbone)
        if frozen and frozen >= {id(variable) for variable in model.trainable_variables}:
            expected = "layers after which others are trained"
            raise UsageError("freeze", config.freeze, expected, f"{BACKBONE} leaves the classifier")

    def frozen_at(self, step: int) -> frozenset[int]:
        """Ids of the variables that the update after `step` updates leaves as they are; the same
        object for all steps of a phase.
        """
        return self._first if step < self.head_steps else self._later

    def apply(self, frozen: frozenset[int]) -> None:
        """Freezes the layers of these variables, and no others.

        Whoever trains leaves out the variables too: a wrapper of tfmot counts its kernel among its
        trainable weights even if it is not trainable.
        """
        for layer in self._trainable:
            layer.trainable = frozen.isdisjoint(map(id, layer.weights))

    def undo(self) -> None:
        """Makes every layer trainable that was before."""
        for layer in self._trainable:
            layer.trainable = True


def check(model: Any, config: TrainConfig) -> None:
    """Checks a stage's `freeze` and `head_epochs` on the model before training.

    Raises:
        UsageError: see `Freezing`.
    """
    if config.freeze != NO_FREEZE or config.head_epochs:
        Freezing(model, config, 1)


def _frozen_layers(model: Any, config: TrainConfig) -> list[Layer]:
    """The layers that are frozen in all epochs."""
    frozen = _up_to(model, config.freeze)
    if config.freeze_batch_norm:
        frozen += [x for x in flatten.innermost_layers(model) if kind(x) == "BatchNormalization"]
    return frozen


def _up_to(model: Any, freeze: str) -> list[Layer]:
    if freeze == NO_FREEZE:
        return []
    if freeze == BACKBONE:
        return _before_classifier(model, "freeze", freeze)
    graph = Graph(model)
    if freeze.startswith(STRIDE):
        maps = {
            f"{STRIDE}{stride}": tensor for stride, tensor in end_points.of_graph(graph).items()
        }
        if freeze not in maps:
            raise UsageError("freeze", freeze, f"a stride of this model: {', '.join(maps)}")
        last = next(x for x in graph.layers if graph.output(x) is maps[freeze])
    else:
        names = graph.by_name
        if freeze not in names:
            expected = f"{BACKBONE}, {STRIDE}8, or one of the layers {shorten(list(names))}"
            raise UsageError("freeze", freeze, expected)
        last = names[freeze]
    return [*graph.ancestors(last), last]


def _before_classifier(model: Any, parameter: str, value: object) -> list[Layer]:
    graph = Graph(model)
    heads = [layer for layer in graph.layers if graph.role(layer) == "classifier"]
    if not heads:
        expected = "a model that ends with a dense layer or a 1x1 convolution"
        raise UsageError(parameter, value, expected, "give the name of a layer as `freeze`")
    return [layer for head in heads for layer in graph.ancestors(head)]


def _variables_of(layers: Iterable[Layer]) -> frozenset[int]:
    return frozenset(id(variable) for layer in layers for variable in layer.weights)
