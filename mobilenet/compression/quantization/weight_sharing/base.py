"""Kernels computed from few trained parameters: the layer wrapper and the method around it.

Only those parameters are visible to the optimizer, so that every rule of the optimizer is applied
to them and not to the weights. In the end the resulting weights are written into stock layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mobilenet.compression.method import Method, StageContext, check_plain
from mobilenet.configs.weight_sharing import FewValues
from mobilenet.errors import UsageError
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph, kind
from mobilenet.typing import Array, Float32Array

_FLOAT = tf.float32


class Parametrization:
    """How a kernel is computed from few parameters.

    Attributes:
        parameters: initial values of the trained parameters, float32, by name.
        fixed: further, frozen values, by name.
    """

    parameters: dict[str, Float32Array]
    fixed: Mapping[str, Array] = MappingProxyType({})

    def weights(self, kernel: Any, parameters: Mapping[str, Any]) -> tf.Tensor:
        """The kernel, float32, computed from the dense one and `parameters` with `fixed`."""
        raise NotImplementedError

    def constrain(self, parameters: Mapping[str, Any]) -> None:
        """Restores the constraints on the parameters after an optimizer step."""


class ParametrizedLayer(tf_keras.layers.Wrapper):
    """A layer that computes with a parametrized kernel; its own weights are frozen."""

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
                experimental_autocast=False,  # in 16 bits the kernel would change by whole steps
            )
        for name, value in self.parametrization.fixed.items():
            self.fixed[name] = self.add_weight(
                name=name,
                shape=value.shape,
                dtype=value.dtype,
                initializer=tf_keras.initializers.Constant(value),
                trainable=False,
            )

    def effective_kernel(self) -> tf.Tensor:
        """The kernel with the current parameters, float32."""
        kernel = variables.kernel(self.layer)
        return self.parametrization.weights(
            tf.cast(kernel, _FLOAT), {**self.parameters, **self.fixed}
        )

    def call(self, inputs: Any) -> Any:
        attributes: Any = vars(self.layer)
        name = next(name for name in ("depthwise_kernel", "kernel") if name in attributes)
        variable = attributes[name]
        # Not with setattr: Keras would track the tensor.
        attributes[name] = tf.cast(self.effective_kernel(), self.compute_dtype)
        try:
            return self.layer.call(tf.cast(inputs, self.compute_dtype))
        finally:
            attributes[name] = variable

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)


class WeightSharingMethod(Method):
    """Parametrizes every kernel; biases and the gains of batch norms are frozen."""

    config: FewValues

    def __init__(self, config: FewValues, context: StageContext) -> None:
        super().__init__(config, context)
        self.layers: dict[str, ParametrizedLayer] = {}
        self.frozen: variables.FrozenVariables | None = None
        self._plain: Any = None
        self._bits: dict[str, int] = {}

    def parametrize(self, kernel: Float32Array, bits: int, matrix: bool) -> Parametrization:
        """The parametrization of a kernel that is 1x1 or dense (`matrix`) or is not."""
        raise NotImplementedError

    def check(self, model: Any) -> None:
        check_plain(model)
        check_kernels(model)

    def apply(self, model: Any) -> Any:
        self.check(model)
        self._plain = model
        graph = Graph(model)
        kinds = {layer.name: kernel_kind(graph, layer) for layer in graph.layers}

        def wrap(layer: Any) -> Any:
            copy = with_momentum(layer, self.config.momentum)
            own_kind = kinds[layer.name]
            if own_kind is None:
                return copy
            self._bits[layer.name] = self.config.bits(own_kind)
            values = Graph.kernel(layer).numpy().astype(np.float32)
            parametrization = self.parametrize(
                values, self._bits[layer.name], own_kind != "depthwise"
            )
            self.layers[layer.name] = ParametrizedLayer(
                copy, parametrization, name=f"coded_{layer.name}", dtype=copy.dtype_policy
            )
            return self.layers[layer.name]

        trained = tf_keras.models.clone_model(model, clone_function=wrap)
        for layer in model.layers:
            wrapper = self.layers.get(layer.name)
            copy = wrapper.layer if wrapper is not None else trained.get_layer(layer.name)
            copy.set_weights(layer.get_weights())
        parameters = {id(v) for w in self.layers.values() for v in w.parameters.values()}
        self.frozen = variables.FrozenVariables(
            v for v in trained.trainable_variables if id(v) not in parameters
        )
        return trained

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        del model, step
        assert self.frozen is not None
        self.frozen.apply()
        for wrapper in self.layers.values():
            wrapper.parametrization.constrain(wrapper.parameters)

    def finalize(self, model: Any) -> Any:
        plain = tf_keras.models.clone_model(self._plain)
        for layer in plain.layers:
            if layer.name in self.layers:
                wrapper = self.layers[layer.name]
                layer.set_weights(wrapper.layer.get_weights())
                kernel = wrapper.effective_kernel()
                Graph.kernel(layer).assign(variables.apply_mask(kernel, tf.not_equal(kernel, 0)))
            else:
                layer.set_weights(model.get_layer(layer.name).get_weights())
        return plain

    def notes(self, model: Any) -> list[str]:
        del model
        return [
            summarize_kernel(name, self._bits[name], wrapper.effective_kernel().numpy())
            for name, wrapper in self.layers.items()
        ]


def summarize_kernel(name: str, bits: int, kernel: Array) -> str:
    """A human-readable note on a kernel."""
    zeros = float(np.mean(kernel == 0))
    return f"{name}: {bits} bits, {len(np.unique(kernel))} distinct weights, {zeros:.1%} zeros"


def kernel_kind(graph: Graph, layer: Any) -> str | None:
    """`dense`, `pointwise` or `depthwise`, which decides the bits; `None` without a kernel."""
    if graph.kernel(layer) is None:
        return None
    if graph.role(layer) == "classifier" or kind(layer) == "Dense":
        return "dense"
    single = kind(layer) == "Conv2D" and tuple(layer.kernel_size) == (1, 1)
    return "pointwise" if single else "depthwise"


def with_momentum(layer: Any, momentum: float | None) -> Any:
    """A new layer of the same config, with another momentum if it is a batch norm."""
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
