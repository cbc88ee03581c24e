"""A layer's variables, wrapped or not: finding, checking, freezing and writing them on every
replica.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mobilenet.errors import UsageError

_KERNELS = ("kernel", "depthwise_kernel")


def named(layer: Any) -> dict[str, tf.Variable]:
    """Variables of a layer by their short name (`kernel`, `gamma`, ...).

    Reads the outer layer's `weights`: a quantization wrapper replaces `layer.kernel` by a tensor
    and owns the variable itself.
    """
    return {v.name.split(":")[0].split("/")[-1]: v for v in layer.weights}


def kernel(layer: Any) -> tf.Variable | None:
    """The kernel of a convolution or dense layer, depthwise too; `None` for any other layer."""
    variables = named(layer)
    return next((variables[name] for name in _KERNELS if name in variables), None)


def check_finite(model: Any) -> None:
    """Refuses a model with NaN or infinity among its weights.

    Raises:
        UsageError: names the weight.
    """
    for weight, value in zip(model.weights, model.get_weights(), strict=True):
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise UsageError(
                f"weight {weight.name}", "NaN or infinity", "finite values", "train the model again"
            )


def state_variable(value: Any, name: str) -> tf.Variable:
    """A variable of a method's own state: not trainable, the same on all replicas."""
    return tf.Variable(
        value,
        trainable=False,
        name=name,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def apply_mask(values: Any, mask: Any) -> tf.Tensor:
    """The values where `mask` is true, and 0 elsewhere.

    Multiplying by a mask turns negative values into -0.0, whose bits differ from those of 0.0.
    """
    return tf.where(mask, values, tf.zeros([], values.dtype))


def are_plain() -> bool:
    """Whether variables may be assigned to anywhere, in branches of `tf.cond` too.

    Those of a strategy, also of one with a single replica, are assigned to in merge calls, which
    TensorFlow refuses in branches.
    """
    return tf.distribute.in_cross_replica_context() or not tf.distribute.has_strategy()


def _is_single_replica() -> bool:
    context = tf.distribute.get_replica_context()
    return context is None or context.num_replicas_in_sync == 1


def update(variable: tf.Variable, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Runs `function(variable, *arguments)` on each replica's copy of `variable`.

    Inside a strategy's train step this is a merge call, as assigning to a mirrored variable
    requires; without a strategy it is a plain call.
    """
    if are_plain():
        function(variable, *arguments)
        return

    def update_replicas(strategy: Any, target: Any, *values: Any) -> None:
        strategy.extended.update(target, function, args=values, group=False)

    tf.distribute.get_replica_context().merge_call(update_replicas, args=(variable, *arguments))


def per_replica(model: Any) -> list[Any]:
    """Weights of which each replica has its own value, such as statistics of batch norms."""
    on_read = tf.VariableSynchronization.ON_READ
    return [weight for weight in model.weights if weight.synchronization == on_read]


def average(weights: Sequence[Any]) -> None:
    """Gives all replicas the mean of each of their float weights, in one collective operation.

    Called after each update, so that whatever is computed from the weights, and a state that is
    saved at any step, is the same on all replicas.
    """
    if _is_single_replica() or not weights:
        return
    own = tf.concat([tf.reshape(tf.cast(weight, tf.float32), [-1]) for weight in weights], 0)
    mean = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, own)
    values = tf.split(mean, [weight.shape.num_elements() for weight in weights])
    for weight, value in zip(weights, values, strict=True):
        weight.assign(tf.cast(tf.reshape(value, weight.shape), weight.dtype))


def max_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """The highest of the values of all replicas, scalars; each calls it with its own."""
    if _is_single_replica():
        return value
    every = tf.distribute.get_replica_context().all_gather(value[None], axis=0)
    return tf.reduce_max(every)


class FrozenVariables(tf.Module):
    """Variables that keep their values although the optimizer updates them.

    `apply` writes their copies back after each optimizer step; the copies are part of the
    checkpoints. Setting `trainable = False` would not do: a batch norm that is not trainable runs
    in inference mode, while this freezes its gain and offset and lets its statistics move.
    """

    def __init__(self, frozen: Iterable[tf.Variable]) -> None:
        super().__init__(name="frozen_variables")
        self.frozen = list(frozen)
        self.copies = [
            state_variable(tf.convert_to_tensor(v), f"{v.name.split(':')[0]}_frozen")
            for v in self.frozen
        ]

    def apply(self) -> None:
        """Restores every variable to its frozen value."""
        for variable, copy in zip(self.frozen, self.copies, strict=True):
            update(variable, _assign, [copy])


def _assign(variable: Any, value: Any) -> None:
    variable.assign(value)
