"""What a channel is worth: small functions from a group to a vector `[channels]`.

The registry finds them by name. What a function cannot see in the weights (gradients, a seed) it
takes from `Evidence`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet.compression.pruning.channel.dependency_groups import Group, Member
from mobilenet.compression.pruning.channel.slicing import KERNELS, axes, rows
from mobilenet.errors import UsageError, one_of

Scores = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known beside the weights.

    Attributes:
        gradients: of a loss by `layer/weight` (see `gradients`).
        seed: of everything random.
    """

    gradients: Mapping[str, npt.NDArray[Any]] = dataclasses.field(default_factory=dict)
    seed: int = 0


Function = Callable[[Group, Evidence], Scores]
REGISTRY: dict[str, Function] = {}


def register(name: str) -> Callable[[Function], Function]:
    """Decorator: files a function under the name that picks it."""

    def file(function: Function) -> Function:
        if name in REGISTRY:
            raise ValueError(f"there is an importance {name} already")
        REGISTRY[name] = function
        return function

    return file


def scores(
    group: Group, importance: str | Callable[[Group], Any], evidence: Evidence | None = None
) -> Scores:
    """What each channel of a group is worth; the least go first.

    Args:
        group: whose channels are scored.
        importance: a name of the registry, or a function of your own.
        evidence: gradients and seed.

    Returns:
        `[channels]`.

    Raises:
        UsageError: no such importance, no gradients where it needs them, or what the function
            gives is no finite vector of that length.
    """
    if isinstance(importance, str):
        found = REGISTRY[one_of("--importance", importance, REGISTRY)](
            group, evidence or Evidence()
        )
    else:
        found = importance(group)
    vector = np.asarray(found, np.float64)
    if vector.shape != (group.channels,) or not np.isfinite(vector).all():
        raise UsageError(
            f"importance of {group.name}",
            vector.shape,
            f"finite numbers of shape {(group.channels,)}",
        )
    return vector


def gradients(model: Any, loss: Callable[[Any], Any]) -> dict[str, npt.NDArray[Any]]:
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
    found = tape.gradient(value, names, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {name: np.asarray(gradient) for name, gradient in found.items()}


def _filters(group: Group) -> list[Scores]:
    """Kernels that make or filter the channels, each `[channels, weights]`; not those that read."""
    return [
        rows(member, weight)
        for member in group.on("out", "all")
        for weight in axes(member)
        if weight in KERNELS
    ]


def _weights(group: Group, names: tuple[str, ...]) -> list[tuple[Member, str]]:
    return [(m, name) for m in group.on("out", "all") for name in axes(m) if name in names]


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
    found = _weights(group, ("gamma",))
    if not found:
        return magnitude(group, evidence)
    return np.asarray(sum(np.abs(rows(member, name)).sum(1) for member, name in found))


@register("taylor")
def taylor(group: Group, evidence: Evidence) -> Scores:
    """The squared change of the loss, to first order, when the channel goes (arXiv 1906.10771).

    Summed over the places that can silence it: each batch norm of the group, and each convolution
    that no batch norm of the group could stand for.
    """
    norms = _weights(group, ("gamma", "beta"))
    found = norms or _weights(group, (*KERNELS, "bias"))
    change: dict[str, Scores] = {}
    for member, name in found:
        key = f"{member.layer.name}/{name}"
        if key not in evidence.gradients:
            raise UsageError(
                "--importance",
                "taylor",
                f"a gradient for {key}",
                "give gradients=surgery.gradients(model, loss)",
            )
        own = (rows(member, name) * rows(member, name, evidence.gradients[key])).sum(1)
        change[member.layer.name] = change.get(member.layer.name, 0.0) + own
    return np.asarray(sum(np.square(value) for value in change.values()))


@register("geometric_median")
def geometric_median(group: Group, evidence: Evidence) -> Scores:
    """Sum of distances to all other filters of the group: the least can be replaced by the others
    (arXiv 1811.00250)."""
    del evidence
    filters = np.concatenate(_filters(group), axis=1)
    square = np.square(filters).sum(1)
    apart = square[:, None] + square[None] - 2 * filters @ filters.T
    return np.asarray(np.sqrt(np.maximum(apart, 0)).sum(1))


@register("random")
def random(group: Group, evidence: Evidence) -> Scores:
    """An order by lot, the same for the same seed and layer: what any other must beat."""
    rng = np.random.default_rng([evidence.seed, zlib.crc32(group.name.encode())])
    return rng.uniform(size=group.channels)
