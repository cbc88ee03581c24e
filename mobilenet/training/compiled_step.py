"""Keras' train step, compiled by XLA without what a model does after it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.errors import UsageError, shorten
from mobilenet.models.graph import variables

_NO_KERNEL = re.compile(r"(\w+) \(No registered")
_COLLECTIVE = "merge_call"  # in the message of an operation of all replicas in a nested function
_REMEDY = "leave it out"


def train_step(model: Any, keras_step: Callable[[Any], Any], data: Any) -> dict[str, Any]:
    """One update of the weights and metrics, compiled; call it while a train step is traced.

    Keras' own `compile(jit_compile=True)` compiles all of a train step. A step that also computes
    the masks of a pruning method, compiled as a whole, was seen to hang on a CPU.

    Args:
        model: a compiled tf_keras model.
        keras_step: `train_step` of `tf_keras.Model`, bound to `model`.
        data: a batch, as `train_step` gets it.

    Returns:
        The metrics by name.
    """
    if variables.are_plain():
        return dict(tf.function(keras_step, jit_compile=True)(data))
    # The optimizer of several replicas waits for all of them, which compiled code cannot do.
    images, labels, weights = tf_keras.utils.unpack_x_y_sample_weight(data)

    def differentiate(images: Any, labels: Any, weights: Any) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            loss = model.compute_loss(images, labels, outputs, weights)
        pairs = model.optimizer.compute_gradients(loss, model.trainable_variables, tape)
        return outputs, [gradient for gradient, _ in pairs]

    compiled = tf.function(differentiate, jit_compile=True)
    outputs, gradients = compiled(images, labels, weights)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return dict(model.compute_metrics(images, labels, outputs, weights))


@contextlib.contextmanager
def explained_errors() -> Iterator[None]:
    """Makes one line of what XLA says of a train step that it cannot compile.

    Raises:
        UsageError: the model has operators that XLA does not know, or that wait for the other
            replicas.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        operators = dict.fromkeys(_NO_KERNEL.findall(error.message))
        if not operators:
            raise
        expected = f"operators that XLA compiles, which {shorten(list(operators))} is not"
        raise UsageError("jit_compile", True, expected, _REMEDY) from None
    except RuntimeError as error:
        if _COLLECTIVE not in str(error):
            raise
        expected = "layers that need no values of other replicas, or one device"
        raise UsageError("jit_compile", True, expected, _REMEDY) from None
