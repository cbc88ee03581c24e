"""Reads and runs a frozen graph: one GraphDef whose variables are constants (`frozen_graph.pb`).

Its input is the node `input` (float32 images, preprocessed), its output the node `output`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from mobilenet import console
from mobilenet.configs.card import CARD, CROP, SCALING, Card
from mobilenet.errors import UsageError, shorten
from mobilenet.models import safe_loading, saving

GRAPH, INPUT, OUTPUT = "frozen_graph.pb", "input", "output"
# What a graph may claim: constants of one repeated value cost nearly nothing, so some are free.
_FREE_CONSTANTS = 1 << 22
_CONSTANTS_PER_BYTE = 1 << 4
# All that a classifier computes. A graph of strangers could also read and write files.
_OPERATORS = frozenset(
    {
        *("Add", "AddV2", "AvgPool", "BiasAdd", "Cast", "Const", "Conv2D", "ConcatV2"),
        *("DepthwiseConv2dNative", "ExpandDims", "FakeQuantWithMinMaxVars"),
        *("FakeQuantWithMinMaxVarsPerChannel", "FusedBatchNorm", "FusedBatchNormV3", "Identity"),
        *("LeakyRelu", "MatMul", "Max", "MaxPool", "Maximum", "Mean", "Minimum", "Mul", "NoOp"),
        *("Pack", "Pad", "PadV2", "Placeholder", "Prod", "RealDiv", "Relu", "Relu6", "Reshape"),
        *("Rsqrt", "Shape", "Sigmoid", "Softmax", "Squeeze", "StridedSlice", "Sub", "Tanh"),
    }
)


class FrozenGraph:
    """A frozen graph that is called like a Keras model in inference mode.

    Attributes:
        input_shape: `(batch, height, width, channels)`; an open batch is `None`.
        output_shape: `(batch, classes)`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads and checks the file.

        Raises:
            UsageError: it is absent, no frozen graph of a classifier, or holds other operators.
        """
        graph = _read_graph(Path(path))
        try:
            with console.quiet():
                self._call = tf.compat.v1.wrap_function(
                    lambda: tf.compat.v1.import_graph_def(graph, name=""), []
                ).prune(f"{INPUT}:0", f"{OUTPUT}:0")
        except Exception as error:  # whatever TensorFlow makes of a damaged graph
            raise _invalid_graph(path, " ".join(str(error).split())[:200]) from None
        for operation in self._call.graph.get_operations():
            for tensor in operation.outputs:
                sides = [] if tensor.shape.rank is None else tensor.shape.as_list()[1:]
                if None not in sides and math.prod(sides) > safe_loading.MAX_ACTIVATION:
                    raise _invalid_graph(path, f"an output of {sides}")
        shapes = self._call.inputs[0].shape, self._call.outputs[0].shape
        if [shape.rank for shape in shapes] != [4, 2] or None in shapes[0][1:]:
            raise _invalid_graph(path, f"input of {shapes[0]} and output of {shapes[1]}")
        self.input_shape, self.output_shape = (tuple(shape) for shape in shapes)

    def __call__(self, images: Any, training: bool = False) -> tf.Tensor:
        """Outputs `[n, classes]` of any number of images, in calls of the graph's own batch."""
        del training
        images = tf.convert_to_tensor(images, tf.float32)
        batch = self.input_shape[0]
        if batch is None:
            return self._call(images)
        count = tf.shape(images)[0]
        missing = tf.math.floormod(-count, batch)
        padded = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
        outputs = tf.map_fn(self._call, tf.reshape(padded, (-1, *self.input_shape)))
        return tf.reshape(outputs, (-1, self.output_shape[-1]))[:count]


def load(path: str | os.PathLike[str]) -> saving.LoadedModel:
    """Reads a `.pb` file, or the folder that holds `frozen_graph.pb`, with its card.

    Raises:
        UsageError: see `FrozenGraph`; or the card is of another model.
    """
    file = Path(path) / GRAPH if Path(path).is_dir() else Path(path)
    graph = FrozenGraph(file)
    shape = graph.input_shape[1:]
    card_file = file.with_name(CARD)
    has_card = card_file.is_file()
    unknown = Card(input_shape=shape, assumed=(SCALING, CROP))
    card = Card.from_file(card_file) if has_card else unknown
    if card.input_shape != shape:
        expected = f"{list(shape)}, the input of {file.name}"
        raise UsageError(f"{card_file} input_shape", list(card.input_shape), expected)
    return saving.LoadedModel(graph, card)


def is_frozen_graph(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names a frozen graph: a `.pb` file or a folder that holds one."""
    return Path(path).suffix == ".pb" or (Path(path) / GRAPH).is_file()


def _read_graph(path: Path) -> tf.compat.v1.GraphDef:
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(path.read_bytes())
    except OSError as error:
        expected = f"a {GRAPH} that can be read ({error.strerror})"
        raise UsageError(str(path), None, expected) from None
    except DecodeError:
        raise _invalid_graph(path, "no GraphDef") from None
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    unknown = sorted({node.op for node in nodes} - _OPERATORS)
    if unknown:
        raise _invalid_graph(path, f"operators {shorten(unknown)}")
    constants = sum(_constant_values(node) for node in nodes if node.op == "Const")
    if constants > _FREE_CONSTANTS + _CONSTANTS_PER_BYTE * path.stat().st_size:
        raise _invalid_graph(path, f"constants of {constants} values")
    missing = {INPUT, OUTPUT} - {node.name for node in graph.node}
    if missing:
        raise _invalid_graph(path, f"no node {' and none '.join(sorted(missing))}")
    return graph


def _constant_values(node: Any) -> int:
    """The number of values that a constant declares; it may store one that is repeated."""
    return math.prod(max(dim.size, 0) for dim in node.attr["value"].tensor.tensor_shape.dim)


def _invalid_graph(path: str | os.PathLike[str], reason: str) -> UsageError:
    expected = f"the frozen graph of a classifier (found: {reason})"
    remedy = "python -m mobilenet.converter --format frozen_graph makes one"
    return UsageError(str(path), None, expected, remedy)
