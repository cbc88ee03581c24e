"""The role of each layer and its connections, read from the graph and never from names.

Works on any functional model, of tf_keras or of Keras 3: our models, keras.applications, wrapped
ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

ROLES = ("stem", "depthwise", "pointwise", "fused", "squeeze_excite", "classifier", "other")

Layer = Any
Model = Any

_AFTER_CLASSIFIER = frozenset(
    {"Flatten", "Reshape", "Softmax", "Activation", "Dropout", "QuantizeLayer"}
)
_FINAL_ACTIVATIONS = frozenset({"softmax", "sigmoid", "linear"})
_GLOBAL_POOLS = frozenset({"GlobalAveragePooling2D", "GlobalMaxPooling2D"})


class Graph:
    """The layers of a functional model and their connections.

    Attributes:
        layers: in an order in which they can be executed.

    Examples:
        >>> graph = Graph(build(archs.MobileNetV1Config(), (32, 32, 3)))
        >>> [graph.role(layer) for layer in graph.layers if graph.kernel(layer) is not None][:3]
        ['stem', 'depthwise', 'pointwise']
    """

    def __init__(self, model: Model) -> None:
        self.layers: list[Layer] = []
        self._inputs: dict[int, list[Any]] = {}
        self._producers: dict[int, list[Layer]] = {}
        self._consumers: dict[int, list[Layer]] = {}
        self._outputs: dict[int, Any] = {}
        for layer, inputs, outputs in _nodes(model):
            if id(layer) not in self._outputs:
                self.layers.append(layer)
            self._outputs[id(layer)] = outputs
            self._inputs.setdefault(id(layer), []).extend(inputs)
            for tensor in inputs:
                source = _source(tensor)
                _add(self._producers.setdefault(id(layer), []), source)
                _add(self._consumers.setdefault(id(source), []), layer)
        self._order = {id(layer): index for index, layer in enumerate(self.layers)}
        self._roles = self._find_roles()

    @property
    def by_name(self) -> dict[str, Layer]:
        """The layers by name; a wrapped one by that of the layer inside."""
        return {unwrap(layer).name: layer for layer in self.layers}

    def producers(self, layer: Layer) -> list[Layer]:
        """The layers whose outputs `layer` takes, in the order of its inputs."""
        return list(self._producers.get(id(layer), ()))

    def consumers(self, layer: Layer) -> list[Layer]:
        """The layers that take the output of `layer`."""
        return list(self._consumers.get(id(layer), ()))

    def role(self, layer: Layer) -> str:
        """One of `ROLES`; layers without a kernel are `other`."""
        return self._roles.get(id(layer), "other")

    def output(self, layer: Layer) -> Any:
        """The symbolic output of `layer` in this model."""
        return self._outputs[id(layer)]

    def inputs(self, layer: Layer) -> list[Any]:
        """The symbolic inputs of `layer` in this model."""
        return list(self._inputs.get(id(layer), ()))

    @staticmethod
    def kernel(layer: Layer) -> Any:
        """The kernel variable of a convolution or dense layer (wrapped ones too), else `None`."""
        layer = unwrap(layer)
        for attribute in ("depthwise_kernel", "kernel"):
            value = getattr(layer, attribute, None)
            if value is not None and kind(layer) in ("Conv2D", "DepthwiseConv2D", "Dense"):
                return value
        return None

    def kernels(self) -> Iterator[tuple[Layer, str, npt.NDArray[np.float32]]]:
        """Layer, role and kernel of every convolution and dense layer, in the execution order."""
        for layer in self.layers:
            kernel = self.kernel(layer)
            if kernel is not None:
                yield layer, self.role(layer), np.asarray(kernel)

    def ancestors(self, layer: Layer) -> list[Layer]:
        """All layers that `layer` depends on, in execution order."""
        return self._reach(layer, self.producers)

    def descendants(self, layer: Layer) -> list[Layer]:
        """All layers that depend on `layer`, in execution order."""
        return self._reach(layer, self.consumers)

    def _reach(self, layer: Layer, step: Callable[[Layer], list[Layer]]) -> list[Layer]:
        reached: dict[int, Layer] = {}
        waiting = step(layer)
        while waiting:
            other = waiting.pop()
            if id(other) not in reached:
                reached[id(other)] = other
                waiting.extend(step(other))
        return sorted(reached.values(), key=lambda other: self._order[id(other)])

    def _find_roles(self) -> dict[int, str]:
        kernels = [layer for layer in self.layers if self.kernel(layer) is not None]
        gates = self._gates()
        before = self._with_kernel_before()
        after = self._with_kernel_after()
        roles: dict[int, str] = {}
        for layer in kernels:
            roles[id(layer)] = self._role_of(
                layer, id(layer) in gates, id(layer) in before, id(layer) in after
            )
        return roles

    def _role_of(self, layer: Layer, gate: bool, has_before: bool, has_after: bool) -> str:
        inner = unwrap(layer)
        if gate:
            return "squeeze_excite"
        if kind(layer) == "DepthwiseConv2D":
            return "depthwise"
        if kind(layer) == "Dense":
            return "classifier" if not has_after and self._is_last(layer) else "other"
        single = tuple(inner.kernel_size) == (1, 1)
        groups = getattr(inner, "groups", 1)
        if groups > 1:
            return "depthwise" if self.kernel(layer).shape[2] == 1 else "other"
        if single and has_before and not has_after and self._is_last(layer):
            return "classifier"
        if not has_before:
            return "stem"
        return "pointwise" if single else "fused"

    def _is_last(self, layer: Layer) -> bool:
        """Whether nothing but a reshape or a final activation follows."""
        own = getattr(unwrap(layer), "activation", None)
        if own is not None and _name(own) not in _FINAL_ACTIVATIONS:
            return False
        for other in self.descendants(layer):
            if kind(other) not in _AFTER_CLASSIFIER:
                return False
            if (
                kind(other) == "Activation"
                and _name(unwrap(other).activation) not in _FINAL_ACTIVATIONS
            ):
                return False
        return True

    def _with_kernel_before(self) -> set[int]:
        """Layers that have a kernel before them."""
        ids: set[int] = set()
        for layer in self.layers:
            if any(id(p) in ids or self.kernel(p) is not None for p in self.producers(layer)):
                ids.add(id(layer))
        return ids

    def _with_kernel_after(self) -> set[int]:
        ids: set[int] = set()
        for layer in reversed(self.layers):
            if any(id(c) in ids or self.kernel(c) is not None for c in self.consumers(layer)):
                ids.add(id(layer))
        return ids

    def _gates(self) -> set[int]:
        """Layers between a global pool of a tensor and the product with that same tensor."""
        ids: set[int] = set()
        for product in self.layers:
            if kind(product) != "Multiply" or len(self.producers(product)) != 2:
                continue
            first, second = self.producers(product)
            for gated, gate in ((first, second), (second, first)):
                path = self._path_to_pool(gate, gated)
                ids.update(path or ())
        return ids

    def _path_to_pool(self, gate: Layer, gated: Layer) -> set[int] | None:
        """Layers from `gate` back to global pools of `gated`; `None` when a path leads
        elsewhere.
        """
        seen: set[int] = set()
        waiting, pooled = [gate], False
        while waiting:
            layer = waiting.pop()
            if id(layer) in seen:
                continue
            if kind(layer) in _GLOBAL_POOLS:
                if all(producer is not gated for producer in self.producers(layer)):
                    return None
                pooled = True
                continue
            producers = self.producers(layer)
            if layer is gated or not producers:
                return None
            seen.add(id(layer))
            waiting.extend(producers)
        return seen if pooled else None


def empty_outputs(layer: Layer, kernel: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether the weights of each output channel of a layer are all zero, `[channels]`.

    Args:
        layer: of the kernel.
        kernel: its values; of a depthwise layer `[height, width, channels, filters a channel]`.
    """
    *_, inputs, outputs = kernel.shape
    count = inputs * outputs if kind(layer) == "DepthwiseConv2D" else outputs
    return np.logical_not(kernel.reshape(-1, count).any(axis=0))


def unwrap(layer: Layer) -> Layer:
    """The layer inside wrappers, such as tfmot's."""
    while is_wrapper(layer):
        layer = layer.layer
    return layer


def is_wrapper(layer: Layer) -> bool:
    return any(base.__name__ == "Wrapper" for base in type(layer).__mro__) and hasattr(
        layer, "layer"
    )


def is_quantization_layer(layer: Layer) -> bool:
    """Whether the layer is one of tfmot's quantization layers or wrappers."""
    return type(layer).__name__.startswith("Quantize")


def is_quantized(model: Model) -> bool:
    """Whether the model is under quantization (tfmot's layers simulate it)."""
    return any(is_quantization_layer(layer) for layer in model.layers)


def kind(layer: Layer) -> str:
    """Name of the stock class that the layer (or the one it wraps) is or derives from."""
    return type(unwrap(layer)).__name__


def stride(layer: Layer) -> int:
    """By how much the layer makes a map smaller (1 for most)."""
    strides = getattr(unwrap(layer), "strides", 1)
    return int(math.prod(strides[:1])) if isinstance(strides, (tuple, list)) else int(strides or 1)


def _nodes(model: Model) -> list[tuple[Layer, list[Any], Any]]:
    """(layer, input tensors, output tensor) of every call inside the model, in execution order."""
    calls = []
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if hasattr(node, "operation"):  # Keras 3
                calls.append(
                    (node.operation, list(node.input_tensors), _single(list(node.output_tensors)))
                )
            else:
                inputs = [] if node.is_input else list(node.keras_inputs)
                calls.append((node.layer, inputs, node.outputs))
    return calls


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _source(tensor: Any) -> Layer:
    history = tensor._keras_history
    return history.operation if hasattr(history, "operation") else history.layer


def _add(layers: list[Layer], layer: Layer) -> None:
    if all(other is not layer for other in layers):
        layers.append(layer)


def _name(activation: Any) -> str:
    return str(getattr(activation, "__name__", activation))
