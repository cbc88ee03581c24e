"""Where the file rounds: which layer's output gets an activation quantizer, read from the graph.

The runtime computes a convolution, its folded batch norm and a ReLU as one operator and rounds once
behind it; the same holds for an addition and the ReLU behind it. One quantizer at the end of each
such chain *is* the file's arithmetic. Every inner tensor of a written-out hard-swish has its own,
or the converter would fuse the operators back or leave an island of float.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mobilenet.errors import UsageError
from mobilenet.models.roles import Graph, kind, unwrap

WEIGHTS = {"Conv2D": "conv", "DepthwiseConv2D": "depthwise", "Dense": "dense"}
PASSED = (
    "InputLayer",
    "Flatten",
    "Reshape",
    "Dropout",
    "ZeroPadding2D",
    "AveragePooling2D",
    "MaxPooling2D",
)
ROUNDED = (
    *WEIGHTS,
    *("BatchNormalization", "ReLU", "Activation", "Add", "Multiply"),
    *("GlobalAveragePooling2D", "Rescaling"),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """What is quantized at a layer.

    Attributes:
        weights: `conv`, `depthwise`, `dense`, or `None` for a layer without a kernel.
        output: whether the output is rounded.
        fixed: its range where the arithmetic decides it.
    """

    weights: str | None = None
    output: bool = False
    fixed: tuple[float, float] | None = None


def place(model: Any) -> dict[str, Place]:
    """The place of every layer that is quantized, by name.

    Raises:
        UsageError: a layer is of a kind whose int8 form is not known.
    """
    graph = Graph(model)
    places = {}
    for layer in graph.layers:
        name = kind(layer)
        if name in PASSED:
            continue
        _check_activation(layer)
        if name not in ROUNDED:
            raise UsageError(
                f"layer {layer.name}",
                name,
                "a layer with a known int8 form",
                f"known are {', '.join(ROUNDED)}",
            )
        places[layer.name] = Place(
            WEIGHTS.get(name), not _fused(graph, layer), _fixed(graph, layer)
        )
    return places


def _check_activation(layer: Any) -> None:
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    if activation == "softmax" or kind(layer) == "Softmax":
        raise UsageError(
            f"layer {layer.name}",
            "softmax",
            "logits: int8 softmax resolves only 1/256",
            "build the net with classifier_activation=None",
        )
    if activation not in ("relu", "relu6", "linear"):
        raise UsageError(f"layer {layer.name}", activation, "no activation, relu or relu6")


def _fused(graph: Graph, layer: Any) -> bool:
    """Whether the operator that this layer belongs to goes on with its one consumer."""
    consumers = graph.consumers(layer)
    if len(consumers) != 1:
        return False
    own, following = kind(layer), kind(consumers[0])
    if own in WEIGHTS:
        if folded_shift(graph, layer):
            return True
        return following in ("BatchNormalization", "ReLU", "Activation")
    return own in ("BatchNormalization", "Add", "Rescaling") and following in ("ReLU", "Activation")


def folded_shift(graph: Graph, layer: Any) -> float:
    """The constant that the converter folds into the bias of a convolution: a hard sigmoid's 3.

    A convolution without bias has no entry that `repair` could move, so nothing is folded there.
    """
    consumers = graph.consumers(layer)
    if len(consumers) != 1 or not _is_shift(consumers[0]) or not unwrap(layer).use_bias:
        return 0.0
    return float(unwrap(consumers[0]).offset)


def _is_shift(layer: Any) -> bool:
    return kind(layer) == "Rescaling" and float(unwrap(layer).scale) == 1.0


def _fixed(graph: Graph, layer: Any) -> tuple[float, float] | None:
    """0..6 for the ReLU6 of a hard sigmoid, 0..1 for what is left of it after the division."""
    producers = graph.producers(layer)
    if (
        kind(layer) == "ReLU"
        and layer.max_value is not None
        and any(_is_shift(p) for p in producers)
    ):
        return 0.0, float(layer.max_value)
    if kind(layer) == "Rescaling" and not _is_shift(layer):
        inner = _fixed(graph, producers[0])
        if inner is not None and float(layer.offset) == 0.0:
            high = inner[1] * float(layer.scale)
            return 0.0, 1.0 if abs(high - 1.0) < 1e-3 else high
    return None
