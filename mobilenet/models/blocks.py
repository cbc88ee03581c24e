"""The blocks of all models, from stock Keras layers: no Lambda, no operator on tensors, no custom
class.

Every block works with `tf_keras` and with Keras 3; an attribute selects the package.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mobilenet.configs.archs import (
    NEW_BATCH_NORM_DECAY,
    MobileNetConfig,
    UniversalBottleneckConfig,
)
from mobilenet.models.layer_plan import Row

Tensor = Any  # a symbolic tensor of either Keras, [batch, height, width, channels]
_MOST_GROUPS = 32


@dataclasses.dataclass(frozen=True)
class BlockBuilder:
    """Adds layers to a model; each call makes fresh layers with fresh initializers.

    Attributes:
        config: its fields for the whole model.
        keras: the package of the layers.
    """

    config: MobileNetConfig
    keras: Any

    def block(self, x: Tensor, row: Row) -> Tensor:
        """One row of the table."""
        kind = row.block.block_type
        if kind == "GlobalPooling":
            return self.pool(x)
        if kind == "Conv":
            return self.conv(
                x,
                row.name,
                row.filters,
                kernel=row.block.kernel,
                stride=row.stride,
                rate=row.rate,
                bias=row.block.use_bias,
                normalization=row.block.normalization,
                activation=row.block.activation_name,
            )
        if kind == "DepSepConv":
            x = self.row_depthwise(x, row)
            return self.conv(
                x, f"{row.name}_pointwise", row.filters, activation=row.block.activation_name
            )
        if isinstance(row.block, UniversalBottleneckConfig):
            return self.universal_bottleneck(x, row, row.block)
        return self.inverted_residual(x, row)

    def inverted_residual(self, x: Tensor, row: Row) -> Tensor:
        """Expand (fused: by a k x k convolution), convolve each channel, gate, project, add."""
        block, shortcut = row.block, x
        spatial: dict[str, Any] = {"kernel": block.kernel, "stride": row.stride, "rate": row.rate}
        if row.expanded:
            fused = {} if block.depthwise else spatial
            x = self.conv(
                x,
                f"{row.name}_expand",
                row.expanded,
                groups=row.groups,
                activation=block.activation_name,
                **fused,
            )
        if block.depthwise:
            x = self.row_depthwise(x, row)
        if row.squeezed:
            x = self.squeeze_excite(x, f"{row.name}_squeeze_excite", row.squeezed)
        stride = 1 if block.depthwise or row.expanded else row.stride
        x = self.conv(x, f"{row.name}_project", row.filters, stride=stride)
        return self._add(shortcut, x, row)

    def universal_bottleneck(self, x: Tensor, row: Row, block: UniversalBottleneckConfig) -> Tensor:
        """Convolve each channel, expand, convolve each channel, project, add (arXiv 2404.10518).

        The last depthwise convolution has the stride, so that with both the first works on the
        larger map.
        """
        shortcut, has_middle = x, block.middle_kernel is not None
        if block.start_kernel is not None:
            stride = 1 if has_middle else row.stride
            x = self.depthwise(
                x, f"{row.name}_start_depthwise", block.start_kernel, stride, row.rate
            )
        if row.expanded:
            x = self.conv(x, f"{row.name}_expand", row.expanded, activation=block.activation_name)
        if block.middle_kernel is not None:
            x = self.depthwise(
                x,
                f"{row.name}_depthwise",
                block.middle_kernel,
                row.stride,
                row.rate,
                block.activation_name,
            )
        has_depthwise = has_middle or block.start_kernel is not None
        x = self.conv(
            x, f"{row.name}_project", row.filters, stride=1 if has_depthwise else row.stride
        )
        return self._add(shortcut, x, row)

    def conv(
        self,
        x: Tensor,
        name: str,
        filters: int,
        *,
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
        rate: int = 1,
        groups: int = 1,
        bias: bool = False,
        normalization: bool = True,
        activation: str | None = None,
    ) -> Tensor:
        """Convolution, normalization, activation."""
        rate = 1 if tuple(kernel) == (1, 1) else rate
        x, padding = self._pad(x, name, kernel, rate)
        x = self.keras.layers.Conv2D(
            filters,
            kernel,
            strides=stride,
            padding=padding,
            dilation_rate=rate,
            groups=groups,
            use_bias=bias,
            kernel_initializer=self._initializer(),
            kernel_regularizer=self._regularizer(),
            name=name,
        )(x)
        return self._finish(x, name, normalization, activation)

    def row_depthwise(self, x: Tensor, row: Row) -> Tensor:
        """The depthwise convolution of a row that has one, with its stride and dilation."""
        name, block = f"{row.name}_depthwise", row.block
        return self.depthwise(x, name, block.kernel, row.stride, row.rate, block.activation_name)

    def depthwise(
        self,
        x: Tensor,
        name: str,
        kernel: tuple[int, int],
        stride: int = 1,
        rate: int = 1,
        activation: str | None = None,
    ) -> Tensor:
        """One k x k filter a channel, normalization, activation."""
        x, padding = self._pad(x, name, kernel, rate)
        x = self.keras.layers.DepthwiseConv2D(
            kernel,
            strides=stride,
            padding=padding,
            dilation_rate=rate,
            use_bias=False,
            depthwise_initializer=self._initializer(),
            depthwise_regularizer=self._regularizer() if self.config.regularize_depthwise else None,
            name=name,
        )(x)
        return self._finish(x, name, True, activation)

    def squeeze_excite(self, x: Tensor, name: str, squeezed: int) -> Tensor:
        """Scales each channel by a hard-sigmoid gate, from the means of all (arXiv 1709.01507)."""
        gate = self.keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(x)
        gate = self.conv(
            gate, f"{name}_squeeze", squeezed, bias=True, normalization=False, activation="relu"
        )
        gate = self.conv(gate, f"{name}_excite", x.shape[-1], bias=True, normalization=False)
        gate = self._ramp(gate, f"{name}_excite", self.config.hard_sigmoid_slope)
        return self.keras.layers.Multiply(name=f"{name}_multiply")([x, gate])

    def pool(self, x: Tensor) -> Tensor:
        """The mean over the whole map, or over 7x7 windows (less where the map is smaller)."""
        if self.config.global_pool:
            return self.keras.layers.GlobalAveragePooling2D(keepdims=True, name="global_pool")(x)
        window = tuple(min(7, side) for side in x.shape[1:3])
        return self.keras.layers.AveragePooling2D(window, padding="valid", name="global_pool")(x)

    def activate(self, x: Tensor, name: str, activation: str) -> Tensor:
        """An activation by its name, after the layer `name`."""
        layers = self.keras.layers
        label = f"{name}_{activation}"
        if activation == "relu":
            return layers.ReLU(name=label)(x)
        if activation == "relu6":
            return layers.ReLU(6.0, name=label)(x)
        if activation == "elu":
            return layers.ELU(name=label)(x)
        if activation == "softmax":
            return layers.Softmax(name=label)(x)
        if activation == "hard_sigmoid":
            return self._ramp(x, label, self.config.hard_sigmoid_slope)
        if activation == "hard_swish":
            return layers.Multiply(name=label)([x, self._ramp(x, label, 1 / 6)])
        return layers.Activation(activation, name=label)(x)

    def _add(self, shortcut: Tensor, x: Tensor, row: Row) -> Tensor:
        """The residual sum, of rows that have one."""
        if not row.residual:
            return x
        return self.keras.layers.Add(name=f"{row.name}_add")([shortcut, x])

    def _ramp(self, x: Tensor, name: str, slope: float) -> Tensor:
        """`relu6(x + 3) * slope`, the hard sigmoid."""
        layers = self.keras.layers
        x = layers.Rescaling(1.0, 3.0, name=f"{name}_shift")(x)
        x = layers.ReLU(6.0, name=f"{name}_relu6")(x)
        return layers.Rescaling(slope, name=f"{name}_scale")(x)

    def _pad(self, x: Tensor, name: str, kernel: tuple[int, int], rate: int) -> tuple[Tensor, str]:
        """Pads explicitly if the config asks for it; returns the padding of the convolution."""
        totals = [(side - 1) * rate for side in kernel]
        if not self.config.use_explicit_padding or not any(totals):
            return x, "same"
        sides = tuple((total // 2, total - total // 2) for total in totals)
        return self.keras.layers.ZeroPadding2D(sides, name=f"{name}_pad")(x), "valid"

    def _finish(self, x: Tensor, name: str, normalization: bool, activation: str | None) -> Tensor:
        if normalization:
            x = self._normalize(x, name)
        return x if activation is None else self.activate(x, name, activation)

    def _normalize(self, x: Tensor, name: str) -> Tensor:
        layers, config = self.keras.layers, self.config
        label = f"{name}_{config.normalization_name}"
        if config.normalization_name == "layer_norm":
            return layers.LayerNormalization(epsilon=config.batch_norm_epsilon, name=label)(x)
        if config.normalization_name == "group_norm":
            channels = x.shape[-1]
            groups = max(n for n in range(1, _MOST_GROUPS + 1) if channels % n == 0)
            return layers.GroupNormalization(groups, epsilon=config.batch_norm_epsilon, name=label)(
                x
            )
        decay = config.batch_norm_decay
        return layers.BatchNormalization(
            momentum=NEW_BATCH_NORM_DECAY if decay is None else decay,
            epsilon=config.batch_norm_epsilon,
            name=label,
        )(x)

    def _initializer(self) -> Any:
        """A new one a layer: an unseeded initializer called twice may give the same values."""
        if self.config.stddev < 0:
            return self.keras.initializers.GlorotUniform()
        return self.keras.initializers.TruncatedNormal(stddev=self.config.stddev)

    def _regularizer(self) -> Any:
        decay = self.config.weight_decay
        return self.keras.regularizers.L2(decay) if decay else None
