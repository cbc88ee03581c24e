"""Measured times of the layers of a model on this machine, as one-layer flatbuffers.

A model is split into pieces: a layer with its batch norm and activation, a pool, a sum. Each
distinct piece is converted and timed once, whatever its weights are. The times do not add up to
that of the model: measure the whole file along with them to see the difference.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.models import counting
from mobilenet.models.graph.roles import Graph, kind
from mobilenet.runtime import interpreter

ROUNDS, INVOKES = 30, 2
_IDLE = "idle"  # a file that computes next to nothing: the overhead in every measured time
_JOINING = ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract")
# Of a layer's config, what changes nothing in its time.
_IDLE_SETTINGS = ("name", "dtype", "trainable", "batch_input_shape", "momentum", "epsilon", "rate")
_IDLE_ENDINGS = ("_initializer", "_regularizer", "_constraint")
_WIDTHS = {"Conv2D": "filters", "Dense": "units"}
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is timed as one. Pieces that are equal take the same time.

    Attributes:
        inputs: shape of each input, without the batch: `[height, width, channels]`. The first is
            an input of the file; the others are constants in it.
        parts: its layers in the order of execution, each the JSON of `[class, config, sources]`. A
            source is the number of a part, or -1 for the first input, -2 for the second.
    """

    inputs: tuple[Shape, ...]
    parts: tuple[str, ...]

    def narrowed(self, inputs: int, outputs: int) -> Piece:
        """The same layers with other numbers of channels, for the cost of a thinner model.

        Args:
            inputs: channels of every input.
            outputs: of a convolution or dense layer; the outputs of others have `inputs` channels.
        """
        parts = []
        for part in self.parts:
            name, config, sources = json.loads(part)
            if name in _WIDTHS:
                config[_WIDTHS[name]] = outputs
            parts.append(_text(name, config, sources))
        return Piece(tuple((*shape[:-1], inputs) for shape in self.inputs), tuple(parts))

    def build(self) -> Any:
        """A model of these layers alone, with initial weights."""
        source = tf_keras.Input(self.inputs[0])
        inputs = [source, *(_Constant(shape)(source) for shape in self.inputs[1:])]
        outputs: list[Any] = []
        for part in self.parts:
            name, config, sources = json.loads(part)
            layer = getattr(tf_keras.layers, name).from_config(config)
            tensors = [inputs[-1 - n] if n < 0 else outputs[n] for n in sources]
            outputs.append(layer(tensors if name in _JOINING else tensors[0]))
        return tf_keras.Model(source, outputs[-1])


@dataclasses.dataclass(frozen=True)
class Span:
    """The layers of a model that are one piece; the first one leads."""

    layers: tuple[Any, ...]
    piece: Piece


class LayerTimes:
    """Seconds of one image by piece, on one thread of this machine.

    Attributes:
        seconds: measured so far, by piece.
        refused: pieces that the converter or the runtime rejects, with the reason.

    Examples:
        >>> times = LayerTimes()
        >>> parts = spans(model)
        >>> whole = times.measure((s.piece for s in parts), {"model": float_flatbuffer(model)})
        >>> sum(times.seconds[s.piece] for s in parts), whole["model"]  # doctest: +SKIP
        (0.0049, 0.0051)
    """

    def __init__(self) -> None:
        self.seconds: dict[Piece, float] = {}
        self.refused: dict[Piece, str] = {}

    def measure(
        self,
        pieces: Iterable[Piece],
        files: Mapping[str, bytes] | None = None,
        rounds: int = ROUNDS,
        invokes: int = INVOKES,
    ) -> dict[str, float]:
        """Measures new pieces, interleaved in one process.

        Args:
            pieces: of one model or of several; equal ones are measured once.
            files: whole models by name, measured in the same rounds.
            rounds, invokes: see `interpreter.latency`.

        Returns:
            Seconds of one invocation of each of `files`.
        """
        timed: dict[str, bytes] = {_IDLE: tflite_converter.float_flatbuffer(_idle())}
        names: dict[str, Piece] = {}
        for piece in dict.fromkeys(pieces):
            if piece in self.seconds or piece in self.refused:
                continue
            try:
                timed[f"piece {len(names)}"] = tflite_converter.float_flatbuffer(piece.build())
            except (RuntimeError, TypeError, ValueError, AttributeError) as error:
                self.refused[piece] = str(error)
            else:
                names[f"piece {len(names)}"] = piece
        whole = {f"whole {name}": data for name, data in (files or {}).items()}
        seconds = interpreter.latency({**timed, **whole}, rounds, invokes)
        for name, piece in names.items():
            self.seconds[piece] = max(seconds[name] - seconds[_IDLE], 0.0)
        return {name.removeprefix("whole "): seconds[name] for name in whole}


def spans(model: Any, input_shape: Sequence[int] | None = None) -> list[Span]:
    """The pieces of a model, in the order of execution; every layer but the input is in one of
    them.

    A layer with a kernel, a pool and a layer that joins several pieces lead one; what follows and
    takes nothing but that piece belongs to it (batch norm, activation, both branches of a
    hard-swish).

    Args:
        model: a functional model of tf_keras.
        input_shape: `[height, width, channels]` where the model leaves its size open.

    Raises:
        UsageError: a size is open, or a layer is used twice.
    """
    graph = Graph(model)
    shapes = counting.output_shapes(graph, input_shape)
    members: list[list[Any]] = []
    owner: dict[int, int] = {}
    for layer in graph.layers:
        if kind(layer) == "InputLayer":
            continue
        owners = {owner.get(id(producer)) for producer in graph.producers(layer)}
        index = owners.pop() if len(owners) == 1 else None
        if index is None or graph.kernel(layer) is not None or "Pooling" in kind(layer):
            index = len(members)
            members.append([])
        members[index].append(layer)
        owner[id(layer)] = index
    return [Span(tuple(layers), _described(graph, layers, shapes)) for layers in members]


def _described(graph: Graph, layers: list[Any], shapes: Mapping[int, Any]) -> Piece:
    numbers = {id(layer): number for number, layer in enumerate(layers)}
    outside: dict[int, int] = {}
    inputs: list[Shape] = []
    parts = []
    for layer in layers:
        taken = [tensor._keras_history.layer for tensor in graph.inputs(layer)]
        if len(taken) > 1 and kind(layer) not in (*_JOINING, "TFOpLambda"):
            raise UsageError(f"layer {layer.name}", type(layer).__name__, "a layer used once")
        sources = []
        for producer in taken:
            key = id(producer)
            if key not in numbers and key not in outside:
                outside[key] = -1 - len(inputs)
                inputs.append(_fixed(shapes[key][1:]))
            sources.append(numbers[key] if key in numbers else outside[key])
        parts.append(_text(kind(layer), layer.get_config(), sources))
    return Piece(tuple(inputs), tuple(parts))


def _text(name: str, config: Mapping[str, Any], sources: Sequence[int]) -> str:
    settings = {
        key: value
        for key, value in config.items()
        if key not in _IDLE_SETTINGS and not key.endswith(_IDLE_ENDINGS)
    }
    if name == "Dropout":
        settings["rate"] = 0.0
    return json.dumps([name, settings, list(sources)], sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """numpy's numbers, as Keras keeps some, as Python's."""
    return np.asarray(value).tolist()


def _fixed(shape: Sequence[int | None]) -> Shape:
    sides = tuple(int(side) for side in shape if side is not None)
    if len(sides) < len(shape):
        raise UsageError(
            "input_shape", None, "[height, width, channels] for a model without a fixed image size"
        )
    return sides


def _idle() -> Any:
    source = tf_keras.Input((1, 1, 1))
    return tf_keras.Model(source, tf_keras.layers.ReLU()(source))


class _Constant(tf_keras.layers.Layer):
    """A tensor that does not depend on the input, for the other sides of a sum or product."""

    def __init__(self, shape: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        del inputs
        values = np.random.default_rng(0).uniform(0.5, 1.5, (1, *self.shape))
        return tf.constant(values, tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shape": self.shape}
