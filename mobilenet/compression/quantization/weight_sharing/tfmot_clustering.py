"""tfmot's weight clustering as a compression method."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mobilenet.compression.method import Method, StageContext, check_plain, register
from mobilenet.compression.quantization.weight_sharing.base import (
    kernel_kind,
    summarize_kernel,
    with_momentum,
)
from mobilenet.configs.weight_sharing import TfmotClustering
from mobilenet.errors import UsageError
from mobilenet.models.graph import variables
from mobilenet.models.graph.roles import Graph, kind


@register
class Cluster(Method):
    """Clusters 1x1 and dense kernels and the stem with tfmot's `cluster_weights`."""

    config_type = TfmotClustering
    config: TfmotClustering

    def __init__(self, config: TfmotClustering, context: StageContext) -> None:
        super().__init__(config, context)
        self._plain: Any = None
        self._bits: dict[str, int] = {}
        self._skipped: list[str] = []

    def check(self, model: Any) -> None:
        check_plain(model)
        for layer in model.layers:
            if Graph.kernel(layer) is not None and layer.compute_dtype != "float32":
                raise UsageError(
                    "`quantization=cluster`",
                    f"a model of {layer.compute_dtype}",
                    "`mixed_precision=float32`",
                    "`quantization=codebook` works under mixed precision",
                )
        if not any(kind(layer) in ("Conv2D", "Dense") for layer in model.layers):
            raise UsageError("model", model.name, "a model with convolutions or dense layers")

    def apply(self, model: Any) -> Any:
        from tensorflow_model_optimization.clustering import keras as clustering

        self.check(model)
        self._plain = model
        graph = Graph(model)
        kinds = {layer.name: kernel_kind(graph, layer) for layer in graph.layers}

        def clustered(layer: Any) -> Any:
            copy = with_momentum(layer, self.config.momentum)
            own_kind = kinds[layer.name]
            if own_kind is None:
                return copy
            values = Graph.kernel(layer).numpy()
            if kind(layer) == "DepthwiseConv2D":
                self._skipped.append(f"{layer.name}: tfmot does not cluster it")
                return copy
            bits = self.config.bits(own_kind)
            if len(np.unique(values)) <= 2**bits:
                self._skipped.append(
                    f"{layer.name}: has at most {2**bits} distinct weights already"
                )
                return copy
            self._bits[layer.name] = bits
            copy.build(layer.input_shape)  # the wrapper reads the weights when it is created
            copy.set_weights(layer.get_weights())
            return clustering.cluster_weights(
                copy,
                number_of_clusters=2**bits,
                preserve_sparsity=bool(np.any(values == 0)),
            )

        trained = tf_keras.models.clone_model(model, clone_function=clustered)
        for layer in model.layers:
            if layer.name not in self._bits:
                trained.get_layer(layer.name).set_weights(layer.get_weights())
        return trained

    def after_step(self, model: Any, step: tf.Tensor) -> None:
        """Nothing is left to do: tfmot's wrappers assign the clusters in their forward pass."""

    def finalize(self, model: Any) -> Any:
        from tensorflow_model_optimization.clustering import keras as clustering

        stripped = clustering.strip_clustering(model)
        plain = tf_keras.models.clone_model(self._plain)
        for layer in plain.layers:
            layer.set_weights(stripped.get_layer(layer.name).get_weights())
            if layer.name in self._bits:
                kernel = Graph.kernel(layer)
                kernel.assign(variables.apply_mask(kernel, tf.not_equal(kernel, 0)))
        return plain

    def notes(self, model: Any) -> list[str]:
        plain = self.finalize(model)
        lines = [
            summarize_kernel(name, bits, Graph.kernel(plain.get_layer(name)).numpy())
            for name, bits in self._bits.items()
        ]
        return [*lines, *self._skipped]
