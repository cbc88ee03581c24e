"""Importance of channels: functions `(Group, Evidence) -> Scores` and their registry.

To add an importance, write such a function below, decorate it with `@register("name")`, and add the
name to `IMPORTANCES` in `configs/pruning.py`. The function returns one finite number per channel of
the group, float64 `[channels]`; the channels with the smallest numbers are removed first. It reads
weights with `_filters` and `_named_weights`; what the weights do not show (gradients of a loss, a
seed) is in `Evidence`. `tests/compression/pruning/test_importance.py` runs over the registry and
checks a new function without further work: one finite score per channel, equal for equal channels
and independent of their order; `test_channel_pruning.py` checks that the config has its name.

A function that belongs to a user goes straight to `surgery.thin(model, importance=function)`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.compression.pruning.channel.dependency_groups import KERNELS, Group, Member
from mobilenet.errors import UsageError, one_of
from mobilenet.typing import Array, Float64Array


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What an importance function may use besides the weights.

    Attributes:
        gradients: of a loss with respect to weights, by `layer/weight` (see `gradients`); empty
            unless the importance is `taylor`.
        seed: seed of everything random.
    """

    gradients: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    seed: int = 0


Scores: TypeAlias = Float64Array
ImportanceFunction: TypeAlias = Callable[[Group, Evidence], Scores]
UserImportance: TypeAlias = Callable[[Group], npt.ArrayLike]
REGISTRY: dict[str, ImportanceFunction] = {}


def register(name: str) -> Callable[[ImportanceFunction], ImportanceFunction]:
    """Decorator: registers an importance function under the name that the config uses."""

    def add(function: ImportanceFunction) -> ImportanceFunction:
        if name in REGISTRY:
            raise ValueError(f"there is an importance {name} already")
        REGISTRY[name] = function
        return function

    return add


def score_channels(
    group: Group, importance: str | UserImportance, evidence: Evidence | None = None
) -> Scores:
    """The importance of each channel of a group; the least important ones are removed first.

    Args:
        group: whose channels are scored.
        importance: a name of the registry, or a function of your own from a group to `[channels]`.
        evidence: gradients and seed.

    Returns:
        float64 `[channels]`.

    Raises:
        UsageError: no such importance, gradients that it needs are missing, or the function's
            result is no finite vector of that length.
    """
    if isinstance(importance, str):
        function = REGISTRY[one_of("importance", importance, REGISTRY)]
        scores: npt.ArrayLike = function(group, evidence or Evidence())
    else:
        scores = importance(group)
    vector = np.asarray(scores, np.float64)
    if vector.shape != (group.channels,) or not np.isfinite(vector).all():
        raise UsageError(
            f"importance of {group.name}",
            vector.shape,
            f"finite numbers of shape {(group.channels,)}",
        )
    return vector


def gradients(model: Any, loss: Callable[[Any], Any]) -> dict[str, Array]:
    """Gradients of a loss with respect to every trainable weight, by `layer/weight`.

    Args:
        model: a model of tf_keras.
        loss: from the model to a scalar tensor, as in
            `lambda model: cross_entropy(labels, model(images, training=False))`.
    """
    names = {
        f"{layer.name}/{weight.name.split(':')[0].split('/')[-1]}": weight
        for layer in model.layers
        for weight in layer.trainable_weights
    }
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(names.values()))
        value = loss(model)
    by_name = tape.gradient(value, names, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {name: np.asarray(gradient) for name, gradient in by_name.items()}


def _filters(group: Group) -> list[Scores]:
    """Kernels that make or filter the channels, each `[channels, weights]`; not those that read."""
    return [member.weight_rows(name) for member, name in _named_weights(group, KERNELS)]


def _named_weights(group: Group, names: tuple[str, ...]) -> list[tuple[Member, str]]:
    """The weights of these names in the layers that make or transform the channels."""
    members = group.members_on("out", "all")
    return [(member, name) for member in members for name in member.axes() if name in names]


@register("magnitude")
def magnitude(group: Group, evidence: Evidence) -> Scores:
    """Sum of absolute weights over all convolutions of the group (ivclab/Multistage_Pruning)."""
    del evidence
    return np.asarray(sum(np.abs(kernel).sum(1) for kernel in _filters(group)))


@register("l2")
def l2(group: Group, evidence: Evidence) -> Scores:
    """Root of the sum of squares over all convolutions of the group."""
    del evidence
    return np.asarray(np.sqrt(sum(np.square(kernel).sum(1) for kernel in _filters(group))))


@register("batch_norm_scale")
def batch_norm_scale(group: Group, evidence: Evidence) -> Scores:
    """Sum of absolute scales of the group's batch norms (arXiv 1708.06519).

    A group without one (V3's last convolution) is ranked by its kernels.
    """
    scales = _named_weights(group, ("gamma",))
    if not scales:
        return magnitude(group, evidence)
    return np.asarray(sum(np.abs(member.weight_rows(name)).sum(1) for member, name in scales))


@register("taylor")
def taylor(group: Group, evidence: Evidence) -> Scores:
    """Squared first-order change of the loss when the channel is removed (arXiv 1906.10771).

    Summed over the layers where a channel can be switched off: each batch norm of the group, or,
    in a group without batch norm, each convolution.
    """
    norms = _named_weights(group, ("gamma", "beta"))
    change: dict[str, Scores] = {}
    for member, name in norms or _named_weights(group, (*KERNELS, "bias")):
        key = f"{member.layer.name}/{name}"
        if key not in evidence.gradients:
            raise UsageError(
                "importance",
                "taylor",
                f"a gradient for {key}",
                "give gradients=surgery.gradients(model, loss)",
            )
        gradient = member.weight_rows(name, evidence.gradients[key])
        product = (member.weight_rows(name) * gradient).sum(1)
        change[member.layer.name] = change.get(member.layer.name, 0.0) + product
    return np.asarray(sum(np.square(value) for value in change.values()))


@register("geometric_median")
def geometric_median(group: Group, evidence: Evidence) -> Scores:
    """Sum of distances to all other filters of the group: the filter with the least sum can be
    replaced best by the others (arXiv 1811.00250)."""
    del evidence
    filters = np.concatenate(_filters(group), axis=1)
    square = np.square(filters).sum(1)
    distances = square[:, None] + square[None] - 2 * filters @ filters.T
    return np.asarray(np.sqrt(np.maximum(distances, 0)).sum(1))


@register("random")
def random(group: Group, evidence: Evidence) -> Scores:
    """A random order, the same for the same seed and layer: the baseline of all others."""
    rng = np.random.default_rng([evidence.seed, zlib.crc32(group.name.encode())])
    return rng.uniform(size=group.channels)
