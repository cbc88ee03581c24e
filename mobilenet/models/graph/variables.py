"""Finding a layer's variables, wrapped or not, and writing them on every replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

_KERNELS = ("kernel", "depthwise_kernel")


def inner(layer: Any) -> Any:
    """The layer itself, or the one that a quantization wrapper holds."""
    return layer.layer if type(layer).__name__ == "QuantizeWrapperV2" else layer


def named(layer: Any) -> dict[str, tf.Variable]:
    """Variables of a layer by their short name (`kernel`, `gamma`, ...).

    Reads the outer layer's `weights`: a quantization wrapper replaces `layer.kernel` by a tensor
    and keeps the variable to itself.
    """
    return {v.name.split(":")[0].split("/")[-1]: v for v in layer.weights}


def kernel(layer: Any) -> tf.Variable | None:
    """The kernel of a convolution or dense layer, depthwise too; `None` for any other layer."""
    variables = named(layer)
    return next((variables[name] for name in _KERNELS if name in variables), None)


def beside(value: Any, name: str) -> tf.Variable:
    """A variable that keeps `value` beside a model: not trained, one value for all replicas."""
    return tf.Variable(
        value,
        trainable=False,
        name=name,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def kept(values: Any, is_kept: Any) -> tf.Tensor:
    """The values where `is_kept` is true, and 0 elsewhere.

    A product with a mask leaves -0.0 of what was negative, which is another value to whoever looks
    at bits.
    """
    return tf.where(is_kept, values, tf.zeros([], values.dtype))


def is_alone() -> bool:
    """Whether a variable is one copy, which the code that runs may write."""
    context = tf.distribute.get_replica_context()
    return context is None or context.num_replicas_in_sync == 1


def update(variable: tf.Variable, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Runs `function(variable, *arguments)` on each replica's copy of `variable`.

    Inside a train step this crosses from the replica to all of them, as assigning to a mirrored
    variable must; with one replica it is a plain call.
    """
    if is_alone():
        function(variable, *arguments)
        return

    def everywhere(strategy: Any, target: Any, *values: Any) -> None:
        strategy.extended.update(target, function, args=values, group=False)

    tf.distribute.get_replica_context().merge_call(everywhere, args=(variable, *arguments))
