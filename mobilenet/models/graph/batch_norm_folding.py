"""A convolution and the batch norm after it, which the converter fuses into one operator.

Equalization, bias correction, tuning and converter workarounds change such a pair channel by
channel. If there is a batch norm, its gamma and beta are changed and its statistics are not, so
that training can continue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mobilenet.models.graph import batch_norm_statistics, variables
from mobilenet.models.graph.roles import Graph, kind, unwrap
from mobilenet.typing import Float64Array


class Folded:
    """One layer with a kernel, wrapped or not, as an affine map of each output channel.

    Attributes:
        layer: the layer with the kernel.
        name: its name.
        output: the layer with the output of the pair: the batch norm, or the layer itself.
        kernel: its kernel, a variable.
        own, norm: variables by short name of the layer and of its batch norm (`None` without).
        epsilon: of the batch norm.
        depthwise: the kernel is `[height, width, channels, multiplier]`.
        channels: of the output.
    """

    def __init__(self, graph: Graph, layer: Any) -> None:
        self.layer = layer
        self.name: str = unwrap(layer).name
        self.depthwise = kind(layer) == "DepthwiseConv2D"
        kernel = variables.kernel(layer)
        assert kernel is not None
        self.kernel: Any = kernel
        self.own = variables.named(layer)
        shape = kernel.shape
        self.channels = int(shape[-2] * shape[-1] if self.depthwise else shape[-1])
        norms = _norms(graph, layer)
        self.output = norms[0] if norms else layer
        self.norm = variables.named(norms[0]) if norms else None
        self.epsilon = float(unwrap(norms[0]).epsilon) if norms else 0.0

    def read(self, named: Mapping[str, Any], name: str, neutral: float) -> Float64Array:
        """A variable of one value a channel; `neutral` if the layer has none of that name."""
        if name not in named:
            return np.full(self.channels, neutral)
        return np.asarray(named[name], np.float64)

    def affine(self) -> tuple[Float64Array, Float64Array]:
        """Multiplier of the kernel and bias of each channel once the batch norm is folded in."""
        plain = self.read(self.own, "bias", 0.0)
        if self.norm is None:
            return np.ones(self.channels), plain
        sigma = np.sqrt(self.read(self.norm, "moving_variance", 1.0) + self.epsilon)
        multiplier = self.read(self.norm, "gamma", 1.0) / sigma
        mean = self.read(self.norm, "moving_mean", 0.0)
        return multiplier, self.read(self.norm, "beta", 0.0) + (plain - mean) * multiplier

    @property
    def can_scale(self) -> bool:
        """Whether the output can be multiplied without touching statistics."""
        return self.norm is None or "gamma" in self.norm

    @property
    def offset(self) -> Any:
        """The variable that is added to the output last, or `None`: beta, or a bias."""
        return (self.own if self.norm is None else self.norm).get(
            "bias" if self.norm is None else "beta"
        )

    def scale(self, factors: Float64Array) -> None:
        """Multiplies each output channel, `[channels]`."""
        if self.norm is None:
            shape = self.kernel.shape[-2:] if self.depthwise else (-1,)
            self.kernel.assign(np.asarray(self.kernel, np.float64) * factors.reshape(shape))
            changed = [self.own.get("bias")]
        else:
            changed = [self.norm["gamma"], self.norm.get("beta")]
        for variable in changed:
            if variable is not None:
                variable.assign(np.asarray(variable, np.float64) * factors)

    def shift(self, amounts: Float64Array) -> None:
        """Adds to each output channel, `[channels]`; the layer must have an `offset`."""
        self.offset.assign(np.asarray(self.offset, np.float64) + amounts)

    def replace_statistics(self, mean: Float64Array, variance: Float64Array) -> None:
        """Sets the statistics of the batch norm, `[channels]`; its outputs are unchanged.

        The batch norm must have gamma and beta.
        """
        batch_norm_statistics.replace_statistics(self.output, mean, variance)

    def scale_inputs(self, factors: Float64Array) -> None:
        """Multiplies the kernel along its input channels, `[input channels]`."""
        self.kernel.assign(np.asarray(self.kernel, np.float64) * factors.reshape((-1, 1)))

    def input_norms(self) -> Float64Array:
        """The Euclidean norm of the weights of each input channel, in units of the output."""
        multiplier, _ = self.affine()
        kernel = np.asarray(self.kernel, np.float64)
        shape = kernel.shape[-2:] if self.depthwise else (-1,)
        squares = np.square(kernel * multiplier.reshape(shape))
        norms: Float64Array = np.sqrt(squares.sum(axis=(*range(kernel.ndim - 2), kernel.ndim - 1)))
        return norms


def _norms(graph: Graph, layer: Any) -> list[Any]:
    """The batch norm directly after the kernel, in a list; empty without one."""
    activation = getattr(unwrap(layer).activation, "__name__", "linear")
    consumers = graph.consumers(layer)
    alone = len(consumers) == 1 and activation in ("linear", "NoOpActivation")
    return [c for c in consumers if alone and kind(c) == "BatchNormalization"]
