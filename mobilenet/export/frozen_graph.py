"""A model as `frozen_graph.pb`: one GraphDef whose variables are constants, verified as it is read.

Its ends are the nodes `input` (float32 images, preprocessed) and `output`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from google.protobuf.message import DecodeError

from mobilenet import files
from mobilenet.configs.card import Card, Edge
from mobilenet.errors import UsageError, VerificationError, shorten
from mobilenet.export import bundle, freeze
from mobilenet.models import safe_loading, saving

GRAPH, INPUT, OUTPUT = "frozen_graph.pb", "input", "output"
TOLERANCE = 1e-5  # of the largest output
# What a graph may claim: constants of one repeated value cost nearly nothing, so some are free.
_FREE_CONSTANTS = 1 << 22
_CONSTANTS_PER_BYTE = 1 << 4
_BATCH = 32
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


def serialise(
    model: Any,
    batch: int | None = 1,
    input_shape: tuple[int, ...] | None = None,
    softmax: bool = False,
) -> bytes:
    """The bytes of a frozen graph.

    Args:
        model: a functional model of plain layers; mixed precision and strategies are undone.
        batch: images a call; `None` leaves it open.
        input_shape: `[height, width, channels]` where the model leaves its size open.
        softmax: probabilities out instead of logits.

    Raises:
        UsageError: see `freeze.float32_copy` and `freeze.freeze`.
    """
    frozen = freeze.freeze(reference(model, softmax), batch, input_shape)
    graph = frozen.graph.as_graph_def()
    last = frozen.outputs[0].op.name
    for node in graph.node:
        if node.name == last:  # nothing reads it
            node.name = OUTPUT
    return bytes(graph.SerializeToString(deterministic=True))


def reference(model: Any, softmax: bool = False) -> Any:
    """The model that a frozen graph must answer like: float32, with logits or a softmax."""
    plain = freeze.float32_copy(model)
    return freeze.with_softmax(plain) if softmax else plain


class Runner:
    """A frozen graph behind the calls that scoring and prediction make of a Keras model.

    Attributes:
        input_shape: `(batch, height, width, channels)`; an open batch is `None`.
        output_shape: `(batch, classes)`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads and checks the file.

        Raises:
            UsageError: it is absent, no frozen graph of a classifier, or holds other operators.
        """
        graph = _read(Path(path))
        try:
            with freeze.quiet():
                self._call = tf.compat.v1.wrap_function(
                    lambda: tf.compat.v1.import_graph_def(graph, name=""), []
                ).prune(f"{INPUT}:0", f"{OUTPUT}:0")
        except Exception as error:  # whatever TensorFlow makes of a damaged graph
            raise _misfit(path, " ".join(str(error).split())[:200]) from None
        for operation in self._call.graph.get_operations():
            for tensor in operation.outputs:
                sides = [] if tensor.shape.rank is None else tensor.shape.as_list()[1:]
                if None not in sides and math.prod(sides) > safe_loading.MAX_ACTIVATION:
                    raise _misfit(path, f"an output of {sides}")
        shapes = self._call.inputs[0].shape, self._call.outputs[0].shape
        if [shape.rank for shape in shapes] != [4, 2] or None in shapes[0][1:]:
            raise _misfit(path, f"ends of {shapes[0]} and {shapes[1]}")
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
        full = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
        blocks = tf.reshape(full, (-1, *self.input_shape))
        found = tf.map_fn(self._call, blocks)
        return tf.reshape(found, (-1, self.output_shape[-1]))[:count]


def load(path: str | os.PathLike[str]) -> saving.LoadedModel:
    """Reads a `.pb` file, or the folder that holds `frozen_graph.pb`, with its card.

    Raises:
        UsageError: see `Runner`; or the card is of another model.
    """
    place = find(path)
    runner = Runner(place)
    shape = runner.input_shape[1:]
    beside = place.with_name(saving.CARD)
    card = Card.from_file(beside) if beside.is_file() else Card(input_shape=shape)
    if card.input_shape != shape:
        expected = f"{list(shape)}, the input of {place.name}"
        raise UsageError(f"{beside} input_shape", list(card.input_shape), expected)
    return saving.LoadedModel(runner, card)


def find(path: str | os.PathLike[str]) -> Path:
    """The file meant by `path`: itself, or `frozen_graph.pb` in that folder."""
    given = Path(path)
    return given / GRAPH if given.is_dir() else given


def is_one(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is meant as a frozen graph: a `.pb` file or a folder that holds one."""
    return Path(path).suffix == ".pb" or (Path(path) / GRAPH).is_file()


def check_target(target: str | os.PathLike[str]) -> None:
    """Refuses a folder that cannot be written, or holds other files; see `files.check_target`."""
    files.check_target(target, "target", replaces=(GRAPH, "a frozen graph"))


def write(
    target: str | os.PathLike[str],
    data: bytes,
    card: Card,
    model: Any,
    images: npt.NDArray[np.float32],
) -> tuple[Path, float]:
    """Writes `frozen_graph.pb`, `card.json` and `labels.txt`, once the file has verified itself.

    Args:
        target: the folder; an older export of this kind is replaced.
        data: from `serialize`.
        card: of the model, `outputs` as the file has them.
        model: from `reference`.
        images: `[n, height, width, channels]`, preprocessed.

    Returns:
        The file, and the largest difference of an output over the largest output.

    Raises:
        VerificationError: the file as written answers otherwise; nothing is left.
        UsageError: the folder cannot be written or holds other things, or labels and classes
            differ in number.
    """
    check_target(target)
    with files.replacing(target) as temporary:
        temporary.mkdir()
        (temporary / GRAPH).write_bytes(data)
        runner = Runner(temporary / GRAPH)
        apart = _apart(runner, model, images)
        if not apart <= TOLERANCE:
            expected = f"outputs within {TOLERANCE:g} of the model's"
            raise VerificationError(
                str(Path(target) / GRAPH), apart, expected, "it was not written"
            )
        card = bundle.file_card(card, runner.output_shape[-1], quantized=False)
        ends = f"frozen graph: input {INPUT}:0, output {OUTPUT}:0"
        card = card.replace(
            input_shape=runner.input_shape[1:],
            stage="convert",
            input=Edge(),
            output=Edge(),
            notes=(*card.notes, ends),
        )
        files.write_json(temporary / bundle.CARD, card.to_json())
        labels = "".join(f"{label}\n" for label in card.labels)
        files.write_text(temporary / bundle.LABELS, labels)
    return Path(target) / GRAPH, apart


def _apart(runner: Runner, model: Any, images: npt.NDArray[np.float32]) -> float:
    worst, largest = np.float64(0.0), np.float64(0.0)
    for start in range(0, len(images), _BATCH):
        block = tf.constant(images[start : start + _BATCH])
        wanted, found = model(block, training=False).numpy(), runner(block).numpy()
        worst = np.maximum(worst, np.abs(found - wanted).max())  # a NaN stays one
        largest = np.maximum(largest, np.abs(wanted).max())
    return float(worst / (largest or 1.0))


def _read(path: Path) -> tf.compat.v1.GraphDef:
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(path.read_bytes())
    except OSError as error:
        expected = f"a {GRAPH} that can be read ({error.strerror})"
        raise UsageError(str(path), None, expected) from None
    except DecodeError:
        raise _misfit(path, "no GraphDef") from None
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    odd = sorted({node.op for node in nodes} - _OPERATORS)
    if odd:
        raise _misfit(path, f"operators {shorten(odd)}")
    constants = sum(_constant_values(node) for node in nodes if node.op == "Const")
    if constants > _FREE_CONSTANTS + _CONSTANTS_PER_BYTE * path.stat().st_size:
        raise _misfit(path, f"constants of {constants} values")
    missing = {INPUT, OUTPUT} - {node.name for node in graph.node}
    if missing:
        raise _misfit(path, f"no node {' and none '.join(sorted(missing))}")
    return graph


def _constant_values(node: Any) -> int:
    """How many values a constant declares; it may store one that is repeated."""
    return math.prod(max(dim.size, 0) for dim in node.attr["value"].tensor.tensor_shape.dim)


def _misfit(path: str | os.PathLike[str], found: str) -> UsageError:
    expected = f"the frozen graph of a classifier (found: {found})"
    remedy = "python -m mobilenet.converter --format frozen_graph makes one"
    return UsageError(str(path), None, expected, remedy)
