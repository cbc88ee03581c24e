"""Quantizer placement: which layers get quantizers for kernel and output, read from the graph.

The runtime computes a convolution, its folded batch norm and a ReLU as one operator and rounds the
result once; likewise an addition and the ReLU after it. One quantizer at the end of each such
sequence reproduces the file's arithmetic.

For XNNPACK, which has no int8 HARD_SWISH, every inner tensor of a hard-swish has a quantizer of its
own, and its operators stay separate. For other runtimes there are quantizers before and after it
and none inside, and the converter fuses the layers between them into one HARD_SWISH.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mobilenet.configs.quantization import TARGETS
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.models.graph.roles import Graph, kind, unwrap

WEIGHTS = {"Conv2D": "conv", "DepthwiseConv2D": "depthwise", "Dense": "dense"}
PASS_THROUGH = (
    "InputLayer",
    "Flatten",
    "Reshape",
    "Dropout",
    "ZeroPadding2D",
    "AveragePooling2D",
    "MaxPooling2D",
)
QUANTIZED = (
    *WEIGHTS,
    *("BatchNormalization", "ReLU", "Activation", "Add", "Multiply"),
    *("GlobalAveragePooling2D", "Rescaling"),
)
_OTHER_FORMATS = (
    "build the model of these, or convert it with `number_format=dynamic_range`, which computes "
    "the others in float"
)


@dataclasses.dataclass(frozen=True)
class QuantizerSpec:
    """What is quantized at a layer.

    Attributes:
        weights: kind of the kernel, `conv`, `depthwise` or `dense`; `None` without one, or where
            it stays float.
        output: whether the output is quantized.
        fixed: its range, where the arithmetic fixes it.
    """

    weights: str | None = None
    output: bool = False
    fixed: tuple[float, float] | None = None


def place_quantizers(
    model: Any, target: str = "xnnpack", keep_float: Sequence[str] = ()
) -> dict[str, QuantizerSpec]:
    """The quantizers of a model, by layer name.

    Args:
        model: a plain model.
        target: `xnnpack` writes a hard-swish as separate operators, `generic` as one.
        keep_float: names of layers with a kernel that stay float, or regular expressions of names.

    Raises:
        UsageError: a layer is of a kind whose int8 form is not known, or a pattern matches no
            layer.
    """
    graph = Graph(model)
    float_kernels = match_float_layers(graph, keep_float)
    floats = expand_float_layers(graph, float_kernels)
    inside = (
        hard_swish_inner_layers(graph) if one_of("target", target, TARGETS) == "generic" else ()
    )
    specs = {}
    _check_layers(graph)
    for layer in graph.layers:
        name = kind(layer)
        if name in PASS_THROUGH or _is_trivial_pool(layer):
            continue
        output = not _is_fused(graph, layer) and layer.name not in inside
        output = output and not (layer.name in floats and _is_read_by(graph, layer, floats))
        weights = None if layer.name in float_kernels else WEIGHTS.get(name)
        specs[layer.name] = QuantizerSpec(weights, output, _fixed_range(graph, layer))
    return specs


def _is_trivial_pool(layer: Any) -> bool:
    """Whether this is the mean of a 1x1 map, which the converter removes with its quantizer.

    It does so only where the mean keeps the shape; otherwise a MEAN stays in the file.
    """
    is_single = kind(layer) == "GlobalAveragePooling2D" and tuple(layer.input_shape[1:3]) == (1, 1)
    return is_single and bool(unwrap(layer).keepdims)


def match_float_layers(graph: Graph, patterns: Sequence[str]) -> set[str]:
    """The layers with a kernel that match one of the patterns, by name.

    Raises:
        UsageError: a pattern matches none, or is no regular expression.
    """
    names = [unwrap(layer).name for layer in graph.layers if kind(layer) in WEIGHTS]
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            matched = {n for n in names if n == pattern or re.fullmatch(pattern, n)}
        except re.error as error:
            raise UsageError("keep_float", pattern, f"a regular expression ({error})") from None
        if not matched:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
            remedy = f"did you mean {near[0]}?" if near else ""
            raise UsageError(
                "keep_float",
                pattern,
                f"the name of a layer with a kernel: {shorten(names)}",
                remedy,
            )
        chosen |= matched
    return chosen


def expand_float_layers(graph: Graph, with_kernel: set[str]) -> set[str]:
    """Names of all layers that compute in float if those of `with_kernel` do.

    A layer without a kernel does if all its inputs are computed in float and read only by float
    layers. So tensors between two float layers are not quantized, a hard-swish after one is part of
    it, and the input of an int8 layer is quantized once, right before that layer.
    """
    layers = graph.by_name
    candidates = {n for n, x in layers.items() if kind(x) not in WEIGHTS and graph.producers(x)}
    floats = with_kernel | candidates
    while removed := {n for n in floats & candidates if not _is_float(graph, layers[n], floats)}:
        floats -= removed
    return floats


def _is_float(graph: Graph, layer: Any, floats: set[str]) -> bool:
    """Whether a layer without a kernel can be one of `floats`."""
    inputs = graph.producers(layer)
    if not all(unwrap(p).name in floats and _is_read_by(graph, p, floats) for p in inputs):
        return False
    has_quantizer = kind(layer) in QUANTIZED and not _is_trivial_pool(layer)
    return has_quantizer or _is_read_by(graph, layer, floats)


def _is_read_by(graph: Graph, layer: Any, floats: set[str]) -> bool:
    """Whether only layers of `floats` read a layer's output, and it is not the model's output."""
    consumers = graph.consumers(layer)
    return bool(consumers) and all(unwrap(consumer).name in floats for consumer in consumers)


@dataclasses.dataclass(frozen=True)
class HardSwish:
    """A tensor times its own hard sigmoid, in layers.

    Attributes:
        source: the layer whose output is the input.
        inside: shift, ReLU6 and scale, in this order.
        product: the layer that multiplies.
    """

    source: Any
    inside: tuple[Any, Any, Any]
    product: Any


def find_hard_swishes(graph: Graph) -> list[HardSwish]:
    """Every hard-swish of a model, in execution order.

    The hard sigmoid of a squeeze-excite block multiplies another tensor and is not among them.
    """
    hard_swishes = []
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
            hard_swishes.append(HardSwish(other, (chain[2], chain[1], chain[0]), product))
    return hard_swishes


def _products(graph: Graph) -> Iterator[tuple[Any, Any, Any]]:
    """Every product of two tensors, with its factors in both orders."""
    for product in graph.layers:
        factors = graph.producers(product)
        if kind(product) == "Multiply" and len(factors) == 2:
            yield product, factors[0], factors[1]
            yield product, factors[1], factors[0]


@dataclasses.dataclass(frozen=True)
class DepthwiseHardSwish:
    """A tensor times the ReLU6 of its own 1x1 depthwise convolution: a hard-swish with a kernel.

    Attributes:
        source: the layer whose output is the input.
        convolution: the depthwise one, with a bias.
        product: the layer that multiplies.
    """

    source: Any
    convolution: Any
    product: Any


def find_depthwise_hard_swishes(graph: Graph) -> list[DepthwiseHardSwish]:
    """Every hard-swish with a kernel of a model, in execution order."""
    hard_swishes = []
    for product, bounded, other in _products(graph):
        before = graph.producers(bounded) if kind(bounded) == "ReLU" else []
        if before and _is_shift_convolution(before[0]) and graph.producers(before[0])[0] is other:
            hard_swishes.append(DepthwiseHardSwish(other, before[0], product))
    return hard_swishes


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
    return {layer.name for one in find_hard_swishes(graph) for layer in one.inside}


def _check_layers(graph: Graph) -> None:
    """Checks that the int8 form of each layer is known.

    Raises:
        UsageError: names all layers with the first activation or class that has none.
    """
    faults = [(layer.name, fault) for layer in graph.layers if (fault := _fault_of(layer))]
    if faults:
        names = [name for name, fault in faults if fault == faults[0][1]]
        what = f"layer{'s' if len(names) > 1 else ''} {shorten(names)}"
        raise UsageError(what, *faults[0][1])


def _fault_of(layer: Any) -> tuple[str, str, str] | None:
    """What has no int8 form in a layer, what does, and the remedy; `None` if nothing has none."""
    name = kind(layer)
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    if name in PASS_THROUGH or _is_trivial_pool(layer):
        return None
    if activation == "softmax" or name == "Softmax":
        expected = "logits: int8 softmax resolves only 1/256"
        return "softmax", expected, "build the model with classifier_activation=None"
    if activation not in ("relu", "relu6", "linear"):
        return activation, "no activation, relu, relu6 or hard_swish", _OTHER_FORMATS
    if name not in QUANTIZED:
        known = (*QUANTIZED, *(kind for kind in PASS_THROUGH if kind != "InputLayer"))
        return name, f"a layer with a known int8 form ({', '.join(known)})", _OTHER_FORMATS
    return None


def _is_fused(graph: Graph, layer: Any) -> bool:
    """Whether the layer is computed in one operator with its only consumer."""
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

    A convolution without a bias has nothing that `repair_layers` could change, so nothing is folded
    there.
    """
    consumers = graph.consumers(layer)
    if len(consumers) != 1 or not _is_shift(consumers[0]) or not unwrap(layer).use_bias:
        return 0.0
    return float(unwrap(consumers[0]).offset)


def _is_shift(layer: Any) -> bool:
    """Whether the layer adds one constant to its input."""
    inner = unwrap(layer)
    is_scalar = kind(layer) == "Rescaling" and np.size(inner.scale) == np.size(inner.offset) == 1
    return is_scalar and float(inner.scale) == 1.0


def _fixed_range(graph: Graph, layer: Any) -> tuple[float, float] | None:
    """0..6 for the ReLU6 of a hard sigmoid, 0..1 for its division by 6."""
    producers = graph.producers(layer)
    if (
        kind(layer) == "ReLU"
        and layer.max_value is not None
        and any(_is_shift(p) for p in producers)
    ):
        return 0.0, float(layer.max_value)
    if kind(layer) == "Rescaling" and not _is_shift(layer):
        inner = _fixed_range(graph, producers[0])
        if inner is not None and np.size(layer.scale) == 1 and layer.offset == 0.0:
            high = inner[1] * float(layer.scale)
            return 0.0, 1.0 if abs(high - 1.0) < 1e-3 else high
    return None
