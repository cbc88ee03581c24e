"""Where the file rounds: which layer's output gets an activation quantizer, read from the graph.

The runtime computes a convolution, its folded batch norm and a ReLU as one operator and rounds once
behind it; the same holds for an addition and the ReLU behind it. One quantizer at the end of each
such chain *is* the file's arithmetic.

For XNNPACK, which has no int8 HARD_SWISH, every inner tensor of a hard-swish has a quantizer of its
own: the operators stay as they are written. For other runtimes there are quantizers on both sides
and none inside, and the converter fuses what is between them into one HARD_SWISH.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mobilenet.configs.quantization import TARGETS
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.models.graph.roles import Graph, kind, unwrap

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
class QuantizerSpec:
    """What is quantized at a layer.

    Attributes:
        weights: `conv`, `depthwise`, `dense`, or `None` for a layer without a kernel.
        output: whether the output is rounded.
        fixed: its range where the arithmetic decides it.
    """

    weights: str | None = None
    output: bool = False
    fixed: tuple[float, float] | None = None


def place_quantizers(
    model: Any, target: str = "xnnpack", keep_float: Sequence[str] = ()
) -> dict[str, QuantizerSpec]:
    """The place of every layer that is quantized, by name.

    Args:
        model: a plain model.
        target: `xnnpack` writes a hard-swish out, `generic` keeps it one operator.
        keep_float: names of layers with a kernel that stay float, or patterns of whole names.

    Raises:
        UsageError: a layer is of a kind whose int8 form is not known, or nothing is called so.
    """
    graph = Graph(model)
    kept = match_float_layers(graph, keep_float)
    floats = expand_float_layers(graph, kept)
    inside = (
        hard_swish_inner_layers(graph) if one_of("--target", target, TARGETS) == "generic" else ()
    )
    specs = {}
    for layer in graph.layers:
        name = kind(layer)
        if name in PASSED or _is_idle_pool(layer):
            continue
        _check_activation(layer)
        if name not in ROUNDED:
            raise UsageError(
                f"layer {layer.name}",
                name,
                "a layer with a known int8 form",
                f"known are {', '.join(ROUNDED)}",
            )
        rounded = not _fused(graph, layer) and layer.name not in inside
        rounded = rounded and not (layer.name in floats and _read_within(graph, layer, floats))
        weights = None if layer.name in kept else WEIGHTS.get(name)
        specs[layer.name] = QuantizerSpec(weights, rounded, _fixed(graph, layer))
    return specs


def _is_idle_pool(layer: Any) -> bool:
    """Whether this is the mean of a map of one place, which the converter leaves out with whatever
    rounds behind it."""
    return kind(layer) == "GlobalAveragePooling2D" and tuple(layer.input_shape[1:3]) == (1, 1)


def match_float_layers(graph: Graph, patterns: Sequence[str]) -> set[str]:
    """Names of the layers with a kernel that the patterns match.

    Raises:
        UsageError: a pattern matches none, or is no regular expression.
    """
    names = [unwrap(layer).name for layer in graph.layers if kind(layer) in WEIGHTS]
    found: set[str] = set()
    for pattern in patterns:
        try:
            matched = {n for n in names if n == pattern or re.fullmatch(pattern, n)}
        except re.error as error:
            raise UsageError("--keep_float", pattern, f"a regular expression ({error})") from None
        if not matched:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
            remedy = f"did you mean {near[0]}?" if near else ""
            raise UsageError(
                "--keep_float",
                pattern,
                f"the name of a layer with a kernel: {shorten(names)}",
                remedy,
            )
        found |= matched
    return found


def expand_float_layers(graph: Graph, kept: set[str]) -> set[str]:
    """Names of all layers that compute in float where those of `kept` do.

    A layer without a kernel does where all that it reads is made in float and read in float alone.
    So the tensors between two layers that are kept are not rounded, a hard-swish behind one is part
    of it, and what leads to a layer of int8 is rounded once, in front of that.
    """
    layers = {unwrap(layer).name: layer for layer in graph.layers}
    free = {n for n, x in layers.items() if kind(x) not in WEIGHTS and graph.producers(x)}
    found = kept | free
    while out := {name for name in found & free if not _stays(graph, layers[name], found)}:
        found -= out
    return found


def _stays(graph: Graph, layer: Any, floats: set[str]) -> bool:
    before = graph.producers(layer)
    if not all(unwrap(p).name in floats and _read_within(graph, p, floats) for p in before):
        return False
    rounds = kind(layer) in ROUNDED and not _is_idle_pool(layer)
    return rounds or _read_within(graph, layer, floats)


def _read_within(graph: Graph, layer: Any, floats: set[str]) -> bool:
    """Whether layers of `floats` alone read a layer's output, which is not the model's."""
    consumers = graph.consumers(layer)
    return bool(consumers) and all(unwrap(consumer).name in floats for consumer in consumers)


@dataclasses.dataclass(frozen=True)
class HardSwish:
    """A tensor times its own hard sigmoid, in layers.

    Attributes:
        source: the layer whose output goes in.
        inside: shift, ReLU6 and scale, in this order.
        product: the layer that multiplies.
    """

    source: Any
    inside: tuple[Any, Any, Any]
    product: Any


def find_hard_swishes(graph: Graph) -> list[HardSwish]:
    """Every hard-swish of a model, in execution order.

    The hard sigmoid of a squeeze-excite gate multiplies another tensor and is not among them.
    """
    found = []
    for product, layer, other in _products(graph):
        chain = [layer]
        while kind(chain[-1]) in ("Rescaling", "ReLU") and len(chain) < 4:
            chain += graph.producers(chain[-1])
        kinds = [kind(x) for x in chain[:3]]
        if (
            len(chain) == 4
            and chain[3] is other
            and kinds == ["Rescaling", "ReLU", "Rescaling"]
            and _is_shift(chain[2])
        ):
            found.append(HardSwish(other, (chain[2], chain[1], chain[0]), product))
    return found


def _products(graph: Graph) -> Iterator[tuple[Any, Any, Any]]:
    """Every product of two tensors with its factors, in both orders."""
    for product in graph.layers:
        factors = graph.producers(product)
        if kind(product) == "Multiply" and len(factors) == 2:
            yield product, factors[0], factors[1]
            yield product, factors[1], factors[0]


@dataclasses.dataclass(frozen=True)
class DepthwiseHardSwish:
    """A tensor times the ReLU6 of its own 1x1 depthwise convolution: a hard-swish with a kernel.

    Attributes:
        source: the layer whose output goes in.
        convolution: the depthwise one, with a bias.
        product: the layer that multiplies.
    """

    source: Any
    convolution: Any
    product: Any


def find_depthwise_hard_swishes(graph: Graph) -> list[DepthwiseHardSwish]:
    """Every gate of a model, in execution order."""
    found = []
    for product, bounded, other in _products(graph):
        before = graph.producers(bounded) if kind(bounded) == "ReLU" else []
        if before and _is_shift_convolution(before[0]) and graph.producers(before[0])[0] is other:
            found.append(DepthwiseHardSwish(other, before[0], product))
    return found


def _is_shift_convolution(layer: Any) -> bool:
    inner = unwrap(layer)
    return (
        kind(layer) == "DepthwiseConv2D"
        and inner.use_bias
        and tuple(inner.kernel_size) == tuple(inner.strides) == (1, 1)
        and inner.depth_multiplier == 1
    )


def hard_swish_inner_layers(graph: Graph) -> set[str]:
    """Names of the layers between a tensor and its product with its own hard sigmoid."""
    return {layer.name for found in find_hard_swishes(graph) for layer in found.inside}


def _check_activation(layer: Any) -> None:
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    if activation == "softmax" or kind(layer) == "Softmax":
        raise UsageError(
            f"layer {layer.name}",
            "softmax",
            "logits: int8 softmax resolves only 1/256",
            "build the model with classifier_activation=None",
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
