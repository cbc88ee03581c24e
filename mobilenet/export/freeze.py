"""A model as one constant graph, which the TFLite converter reads fastest.

A frozen concrete function converts V1 at 224 px in about 2 s where `from_keras_model` takes 16 s.
Its batch is fixed, which keeps SHAPE, STRIDED_SLICE and PACK out of the file.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow.python.framework.convert_to_constants import (  # no public alias
    convert_variables_to_constants_v2,
)

from mobilenet import console
from mobilenet.configs.card import SOFTMAX
from mobilenet.errors import UsageError
from mobilenet.models.graph import final_activation, flatten
from mobilenet.models.graph.variables import check_finite

PROBABILITIES = "probabilities"  # name of the layer that `with_activation` adds


def float32_copy(model: tf_keras.Model, logits: bool = True) -> tf_keras.Model:
    """Builds the same model again, flat, in float32 and outside any distribution strategy.

    The graph of a model trained under a strategy holds collective operators, that of a model
    trained in mixed precision holds 16-bit ones; the converter takes neither. Every worker must
    call this, since reading distributed weights is itself a collective operation.

    Args:
        model: a functional or Sequential model of any number of inputs; nested models are
            flattened, and layers that do nothing in inference left out.
        logits: leave out a softmax or sigmoid at the end; in int8 it resolves only 1/256.

    Returns:
        A model with layers and variables of its own and the same weights.

    Raises:
        UsageError: the model is not functional, or is already wrapped for pruning or quantization.
        RuntimeError: a strategy scope is open.
    """
    if tf.distribute.has_strategy():
        raise RuntimeError(
            "float32_copy was called inside a strategy scope; call it after the scope has closed"
        )
    flatten.check_functional(model)
    flatten.check_unwrapped(model)
    calls = flatten.inline_calls(model)
    if logits:
        final_activation.cut_final_activation(calls)
    return calls.build("float32", distributed=False)


def with_activation(model: tf_keras.Model, activation: str | None) -> tf_keras.Model:
    """The model, sharing its layers, with an activation after its logits.

    Args:
        model: from images to logits.
        activation: `softmax`, `sigmoid`, or `None` for the model as it is.

    Raises:
        UsageError: its output is not `[batch, classes]`.
    """
    if activation is None:
        return model
    _check_one_image(model)
    if len(model.output_shape) != 2:
        raise UsageError(
            "output_activation",
            activation,
            f"none, as the outputs of the model are no logits but {model.output_shape[1:]}",
        )
    if activation == SOFTMAX:
        layer = tf_keras.layers.Softmax(name=PROBABILITIES)
    else:
        layer = tf_keras.layers.Activation(activation, name=PROBABILITIES)
    return tf_keras.Model(model.inputs, layer(model.output), name=model.name)


def freeze(
    model: tf_keras.Model,
    batch: int | None = 1,
    input_shape: tuple[int, ...] | None = None,
) -> Any:
    """Turns a model in inference mode into a concrete function whose variables are constants.

    Args:
        model: a model in float32 outside any strategy: `float32_copy` of a float model, or a model
            with fake-quant operators as its quantization method returns it.
        batch: images per call; `None` leaves it open (the file then has to be resized by its user).
        input_shape: `[height, width, channels]` where the model leaves its size open.

    Returns:
        A `ConcreteFunction` of one float32 input `[batch, height, width, channels]` named `input`.

    Raises:
        UsageError: the size is open, there is not one input and one output, or a weight is not
            finite.
    """
    _check_one_image(model)
    shape = _fixed_shape(model, input_shape)
    check_finite(model)

    def infer(inputs: tf.Tensor) -> tf.Tensor:
        return model(inputs, training=False)

    spec = tf.TensorSpec((batch, *shape), tf.float32, name="input")
    with quiet():
        return convert_variables_to_constants_v2(tf.function(infer).get_concrete_function(spec))


def fake_quant_count(frozen: Any) -> int:
    """Counts the fake-quant operators in a frozen function."""
    return sum(op.type.startswith("FakeQuant") for op in frozen.graph.get_operations())


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Captures what TensorFlow's C++ code writes to standard error; silences Python's warnings.

    Yields:
        A list that holds the lines once the block has ended; see `console.quiet`.
    """
    lines: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in ("absl", "tensorflow"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        written = stack.enter_context(console.quiet())
        try:
            yield lines
        finally:
            lines.extend(written().splitlines())


def _check_one_image(model: Any) -> None:
    flatten.check_functional(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        counts = f"{len(model.inputs)} inputs and {len(model.outputs)} outputs"
        raise UsageError("model", counts, "one input and one output")


def _fixed_shape(model: tf_keras.Model, requested: tuple[int, ...] | None) -> tuple[int, ...]:
    own = tuple(model.inputs[0].shape[1:])
    shape = own if requested is None else tuple(requested)
    if None in shape:
        raise UsageError(
            "input shape",
            own,
            "a fixed height, width and channel count",
            "give `image_size`, or build the model with the size it will run at",
        )
    if len(own) != len(shape) or any(a not in (None, b) for a, b in zip(own, shape, strict=True)):
        raise UsageError("input shape", shape, f"one that the model takes, {own}")
    return shape
