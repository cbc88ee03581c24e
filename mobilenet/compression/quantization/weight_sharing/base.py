"""Kernels made of few trained parameters: a wrapper that computes them, and the method around it.

The optimizer sees those parameters alone, so that any of its rules is applied to them and not to
the weights. In the end the weights that they make are written into stock layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mobilenet.compression.method import Method, StageContext, check_plain
from mobilenet.configs.weight_sharing import FewValues
from mobilenet.errors import UsageError
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph, kind

_FLOAT = tf.float32


class Parametrization:
    """How a kernel is made of few parameters.

    Attributes:
        parameters: initial values of what trains, float32, by name.
        fixed: what else belongs to the state, by name.
    """

    parameters: dict[str, npt.NDArray[np.float32]]
    fixed: Mapping[str, npt.NDArray[Any]] = MappingProxyType({})

    def weights(self, kernel: Any, parameters: Mapping[str, Any]) -> tf.Tensor:
        """The kernel, float32, that the parameters and what is fixed make of the dense one."""
        raise NotImplementedError

    def constrain(self, parameters: Mapping[str, Any]) -> None:
        """Restores behind an optimizer step what must hold of the parameters."""


class ParametrizedLayer(tf_keras.layers.Wrapper):
    """A layer that computes with a coded kernel; its own weights do not train."""

    def __init__(self, layer: Any, parametrization: Parametrization, **options: Any) -> None:
        super().__init__(layer, **options)
        self.parametrization = parametrization
        self.parameters: dict[str, Any] = {}
        self.fixed: dict[str, Any] = {}
        layer.trainable = False

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        for name, value in self.parametrization.parameters.items():
            self.parameters[name] = self.add_weight(
                name=name,
                shape=value.shape,
                dtype=_FLOAT,
                initializer=tf_keras.initializers.Constant(value),
                experimental_autocast=False,  # ends and values of 16 bits would move by whole steps
            )
        for name, value in self.parametrization.fixed.items():
            self.fixed[name] = self.add_weight(
                name=name,
                shape=value.shape,
                dtype=value.dtype,
                initializer=tf_keras.initializers.Constant(value),
                trainable=False,
            )

    def coded(self) -> tf.Tensor:
        """The kernel as it is now, float32."""
        kernel = variables.kernel(self.layer)
        return self.parametrization.weights(
            tf.cast(kernel, _FLOAT), {**self.parameters, **self.fixed}
        )

    def call(self, inputs: Any) -> Any:
        own: Any = vars(self.layer)
        place = next(name for name in ("depthwise_kernel", "kernel") if name in own)
        variable = own[place]
        own[place] = tf.cast(self.coded(), self.compute_dtype)  # no attribute: Keras would track it
        try:
            return self.layer.call(tf.cast(inputs, self.compute_dtype))
        finally:
            own[place] = variable

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)


class WeightSharingMethod(Method):
    """Codes every kernel; biases and the gains of batch norms stand still."""

    config: FewValues

    def __init__(self, config: FewValues, context: StageContext) -> None:
        super().__init__(config, context)
        self.coded: dict[str, ParametrizedLayer] = {}
        self.held: variables.FrozenVariables | None = None
        self._plain: Any = None
        self._bits: dict[str, int] = {}

    def code(self, kernel: npt.NDArray[np.float32], bits: int, matrix: bool) -> Parametrization:
        """The code of a kernel that is 1x1 or dense (`matrix`) or is not."""
        raise NotImplementedError

    def check(self, model: Any) -> None:
        check_plain(model)
        check_kernels(model)

    def apply(self, model: Any) -> Any:
        self.check(model)
        self._plain = model
        graph = Graph(model)
        kinds = {layer.name: kind_of(graph, layer) for layer in graph.layers}

        def coded(layer: Any) -> Any:
            copy = with_momentum(layer, self.config.momentum)
            found = kinds[layer.name]
            if found is None:
                return copy
            self._bits[layer.name] = self.config.bits(found)
            values = Graph.kernel(layer).numpy().astype(np.float32)
            code = self.code(values, self._bits[layer.name], found != "depthwise")
            self.coded[layer.name] = ParametrizedLayer(
                copy, code, name=f"coded_{layer.name}", dtype=copy.dtype_policy
            )
            return self.coded[layer.name]

        trained = tf_keras.models.clone_model(model, clone_function=coded)
        for layer in model.layers:
            wrapper = self.coded.get(layer.name)
            copy = wrapper.layer if wrapper is not None else trained.get_layer(layer.name)
            copy.set_weights(layer.get_weights())
        parameters = {id(v) for w in self.coded.values() for v in w.parameters.values()}
        self.held = variables.FrozenVariables(
            v for v in trained.trainable_variables if id(v) not in parameters
        )
        return trained

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model, step
        assert self.held is not None
        self.held.apply()
        for wrapper in self.coded.values():
            wrapper.parametrization.constrain(wrapper.parameters)

    def finalize(self, model: Any) -> Any:
        plain = tf_keras.models.clone_model(self._plain)
        for layer in plain.layers:
            if layer.name in self.coded:
                wrapper = self.coded[layer.name]
                layer.set_weights(wrapper.layer.get_weights())
                coded = wrapper.coded()
                Graph.kernel(layer).assign(variables.apply_mask(coded, tf.not_equal(coded, 0)))
            else:
                layer.set_weights(model.get_layer(layer.name).get_weights())
        return plain

    def notes(self, model: Any) -> list[str]:
        del model
        return [
            told(name, self._bits[name], wrapper.coded().numpy())
            for name, wrapper in self.coded.items()
        ]


def told(name: str, bits: int, kernel: npt.NDArray[Any]) -> str:
    """A line on a kernel for a person."""
    zeros = float(np.mean(kernel == 0))
    return f"{name}: {bits} bits, {len(np.unique(kernel))} distinct weights, {zeros:.1%} zeros"


def kind_of(graph: Graph, layer: Any) -> str | None:
    """`dense`, `pointwise` or `depthwise`: whose bits a layer takes; `None` without a kernel."""
    if graph.kernel(layer) is None:
        return None
    if graph.role(layer) == "classifier" or kind(layer) == "Dense":
        return "dense"
    single = kind(layer) == "Conv2D" and tuple(layer.kernel_size) == (1, 1)
    return "pointwise" if single else "depthwise"


def with_momentum(layer: Any, momentum: float | None) -> Any:
    """A new layer of the same config, with another momentum where it is a batch norm."""
    config = layer.get_config()
    if momentum is not None and kind(layer) == "BatchNormalization":
        config["momentum"] = momentum
    return type(layer).from_config(config)


def check_kernels(model: Any) -> None:
    """Checks that there is something to quantize.

    Raises:
        UsageError: no layer has a kernel.
    """
    if all(Graph.kernel(layer) is None for layer in model.layers):
        raise UsageError("model", model.name, "a model with convolutions or dense layers")
