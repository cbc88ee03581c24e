"""The seven nets as tables: one frozen row a block, one config class a net, found by name.

Sources: tensorflow/models research/slim/nets/mobilenet_v1.py and research/slim/nets/mobilenet/mobilenet_v2.py,
mobilenet_v3.py (tables, width rules); research/mobilenet/configs/archs.py (fields and defaults).
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mobilenet.errors import UsageError

from .base import Config, flag, number, one_of

ACTIVATIONS = ("relu", "relu6", "elu", "swish", "hard_swish", "sigmoid", "hard_sigmoid", "softmax")
NORMALIZATIONS = ("batch_norm", "layer_norm", "group_norm")
BLOCK_TYPES = ("Conv", "DepSepConv", "InvertedResConv", "GlobalPooling")
CLASSIFIER_ACTIVATIONS = ("softmax", "sigmoid")
OUTPUT_STRIDES = (1, 2, 4, 8, 16, 32)
_WIDTHS = "common values are 0.25, 0.5, 0.75, 1.0"


@dataclasses.dataclass(frozen=True)
class BlockConfig(Config):
    """One row of a net.

    Attributes:
        block_type: `Conv`; `DepSepConv` (depthwise, then pointwise); `InvertedResConv` (expand, depthwise,
            project); `GlobalPooling`.
        kernel: height and width of the spatial kernel.
        stride: nominal stride of the spatial kernel.
        filters: output channels at width 1.
        activation_name: after every convolution but a projection.
        expansion_size: expanded channels over input channels; 1 leaves the expansion out.
        squeeze_factor: expanded over squeezed channels of the squeeze-excite; `None` leaves it out.
        depthwise: False fuses expansion and depthwise into one k x k convolution.
        residual: adds the input where the stride is 1 and the channel counts are equal.
        use_bias: a bias in a `Conv`.
        normalization: a normalization after a `Conv`.
    """

    block_type: str = "Conv"
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    filters: int = 32
    activation_name: str = "relu6"
    expansion_size: float = 6.0
    squeeze_factor: int | None = None
    depthwise: bool = True
    residual: bool = True
    use_bias: bool = False
    normalization: bool = True

    def __post_init__(self) -> None:
        one_of("block_type", self.block_type, BLOCK_TYPES)
        one_of("activation_name", self.activation_name, ACTIVATIONS)
        for side in self.kernel:
            number("kernel", side, least=1, integer=True)
        number("stride", self.stride, least=1, integer=True)
        number("filters", self.filters, least=1, integer=True)
        number("expansion_size", self.expansion_size, least=1)
        if self.squeeze_factor is not None:
            number("squeeze_factor", self.squeeze_factor, least=1, integer=True)


def _conv(k: int, filters: int, stride: int, act: str, *, bare: bool = False) -> BlockConfig:
    """A convolution; `bare` has a bias in place of a normalization."""
    return BlockConfig("Conv", (k, k), stride, filters, act, use_bias=bare, normalization=not bare)


def _sep(filters: int, stride: int) -> BlockConfig:
    return BlockConfig("DepSepConv", (3, 3), stride, filters, "relu6")


def _inv(
    k: int,
    expansion: float,
    filters: int,
    stride: int,
    act: str = "relu6",
    se: int = 0,
    residual: bool = True,
) -> BlockConfig:
    return BlockConfig(
        "InvertedResConv", (k, k), stride, filters, act, expansion, se or None, True, residual
    )


def _fus(k: int, expansion: float, filters: int, stride: int) -> BlockConfig:
    return BlockConfig("InvertedResConv", (k, k), stride, filters, "relu", expansion, None, False)


_POOL = BlockConfig("GlobalPooling")

V1_BLOCKS = (
    _conv(3, 32, 2, "relu6"),
    #  out  s
    _sep(64, 1),
    _sep(128, 2),
    _sep(128, 1),
    _sep(256, 2),
    _sep(256, 1),
    _sep(512, 2),
    _sep(512, 1),
    _sep(512, 1),
    _sep(512, 1),
    _sep(512, 1),
    _sep(512, 1),
    _sep(1024, 2),
    _sep(1024, 1),
)

V2_BLOCKS = (
    _conv(3, 32, 2, "relu6"),
    #  k exp out s
    _inv(3, 1, 16, 1),
    _inv(3, 6, 24, 2),
    _inv(3, 6, 24, 1),
    _inv(3, 6, 32, 2),
    _inv(3, 6, 32, 1),
    _inv(3, 6, 32, 1),
    _inv(3, 6, 64, 2),
    _inv(3, 6, 64, 1),
    _inv(3, 6, 64, 1),
    _inv(3, 6, 64, 1),
    _inv(3, 6, 96, 1),
    _inv(3, 6, 96, 1),
    _inv(3, 6, 96, 1),
    _inv(3, 6, 160, 2),
    _inv(3, 6, 160, 1),
    _inv(3, 6, 160, 1),
    _inv(3, 6, 320, 1),
    _conv(1, 1280, 1, "relu6"),
)

V3_LARGE_BLOCKS = (
    _conv(3, 16, 2, "hard_swish"),
    #  k  exp  out s  activation  se
    _inv(3, 1.0, 16, 1, "relu"),
    _inv(3, 4.0, 24, 2, "relu"),
    _inv(3, 3.0, 24, 1, "relu"),
    _inv(5, 3.0, 40, 2, "relu", 4),
    _inv(5, 3.0, 40, 1, "relu", 4),
    _inv(5, 3.0, 40, 1, "relu", 4),
    _inv(3, 6.0, 80, 2, "hard_swish"),
    _inv(3, 2.5, 80, 1, "hard_swish"),
    _inv(3, 184 / 80, 80, 1, "hard_swish"),
    _inv(3, 184 / 80, 80, 1, "hard_swish"),
    _inv(3, 6.0, 112, 1, "hard_swish", 4),
    _inv(3, 6.0, 112, 1, "hard_swish", 4),
    _inv(5, 6.0, 160, 2, "hard_swish", 4),
    _inv(5, 6.0, 160, 1, "hard_swish", 4),
    _inv(5, 6.0, 160, 1, "hard_swish", 4),
    _conv(1, 960, 1, "hard_swish"),
    _POOL,
    _conv(1, 1280, 1, "hard_swish", bare=True),
)

V3_SMALL_BLOCKS = (
    _conv(3, 16, 2, "hard_swish"),
    #  k  exp   out s  activation  se
    _inv(3, 1.0, 16, 2, "relu", 4),
    _inv(3, 72 / 16, 24, 2, "relu"),
    _inv(3, 88 / 24, 24, 1, "relu"),
    _inv(5, 4.0, 40, 2, "hard_swish", 4),
    _inv(5, 6.0, 40, 1, "hard_swish", 4),
    _inv(5, 6.0, 40, 1, "hard_swish", 4),
    _inv(5, 3.0, 48, 1, "hard_swish", 4),
    _inv(5, 3.0, 48, 1, "hard_swish", 4),
    _inv(5, 6.0, 96, 2, "hard_swish", 4),
    _inv(5, 6.0, 96, 1, "hard_swish", 4),
    _inv(5, 6.0, 96, 1, "hard_swish", 4),
    _conv(1, 576, 1, "hard_swish"),
    _POOL,
    _conv(1, 1024, 1, "hard_swish", bare=True),
)


def _minimalistic(blocks: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
    """The same dimensions with kernels of at most 3x3, ReLU everywhere and no squeeze-excite."""
    return tuple(
        b.replace(kernel=(min(b.kernel[0], 3),) * 2, activation_name="relu", squeeze_factor=None)
        for b in blocks
    )


EDGETPU_BLOCKS = (
    _conv(3, 32, 2, "relu"),
    #  k exp out s
    _fus(1, 1, 16, 1),
    _fus(3, 8, 32, 2),
    _fus(3, 4, 32, 1),
    _fus(3, 4, 32, 1),
    _fus(3, 4, 32, 1),
    _fus(3, 8, 48, 2),
    _fus(3, 4, 48, 1),
    _fus(3, 4, 48, 1),
    _fus(3, 4, 48, 1),
    _inv(3, 8, 96, 2, "relu"),
    _inv(3, 4, 96, 1, "relu"),
    _inv(3, 4, 96, 1, "relu"),
    _inv(3, 4, 96, 1, "relu"),
    _inv(3, 8, 96, 1, "relu", residual=False),
    _inv(3, 4, 96, 1, "relu"),
    _inv(3, 4, 96, 1, "relu"),
    _inv(3, 4, 96, 1, "relu"),
    _inv(5, 8, 160, 2, "relu"),
    _inv(5, 4, 160, 1, "relu"),
    _inv(5, 4, 160, 1, "relu"),
    _inv(5, 4, 160, 1, "relu"),
    _inv(3, 8, 192, 1, "relu"),
    _conv(1, 1280, 1, "relu"),
)


def _finegrain(default: bool) -> Any:
    return flag(default, "keep the last convolution at its full width when the net is narrowed")


def _weight_decay(default: float) -> Any:
    return flag(default, "L2 added to the loss as weight_decay * sum(w^2)", "std_weight_decay")


@dataclasses.dataclass(frozen=True)
class MobileNetConfig(Config):
    """A net: its rows and everything that changes how they are built. Nothing changes a config; `replace` makes the next.

    Attributes:
        name: name of the Keras model.
        num_classes: width of the logits; 0 or `None` ends the net with the pooled features.
        width_multiplier: factor on the channels of every row (alpha of the papers).
        min_depth: least number of channels of a scaled convolution.
        divisor: scaled channels are rounded to its multiples; 1 truncates (V1).
        output_stride: once the strides multiply to it, later ones become dilations (atrous); `None` keeps all.
        finegrain_classification_mode: keeps the last row unscaled below width 1.
        widen_last: whether that mode still scales the last row above width 1 (slim: V2 does, V3 and EdgeTPU
            never do; keras.applications' V3 wider than 1 is this mode switched off).
        use_explicit_padding: pads evenly and convolves VALID, in place of SAME (other alignment, same sizes).
        global_pool: False pools 7x7 windows (less where the map is smaller) in place of the whole map.
        spatial_squeeze: `[batch, classes]` in place of `[batch, 1, 1, classes]`.
        classifier_activation: `softmax`, `sigmoid`, or `None` for logits.
        dropout_keep_prob: share kept by the dropout before the logits.
        weight_decay: L2 on convolution kernels, depthwise ones only with `regularize_depthwise`.
        stddev: of the truncated normal that initializes kernels; negative selects Glorot's uniform.
        activation_name: unused by the seven nets, whose rows carry their own; kept for nets of your own.
        normalization_name: `batch_norm`, `layer_norm` or `group_norm` (at most 32 groups).
        batch_norm_decay: momentum of the moving statistics.
        batch_norm_epsilon: added to the variance by every normalization.
        hard_sigmoid_slope: of the squeeze-excite gate; TF1 checkpoints were trained with the literal 0.16667.
        channels: layer name to output channels, where they differ from the width rule (thinned nets).
        blocks: the rows.
    """

    name: str = "MobileNet"
    num_classes: int | None = flag(
        1001, "number of classes; 0 ends the net with the pooled features"
    )
    width_multiplier: float = flag(1.0, "factor on the channels of every layer; " + _WIDTHS)
    min_depth: int = flag(8, "least number of channels of a scaled convolution")
    divisor: int = 8
    output_stride: int | None = flag(None, "strides beyond this one become dilations: 8, 16, 32")
    finegrain_classification_mode: bool = _finegrain(False)
    widen_last: bool = True
    use_explicit_padding: bool = flag(False, "pad evenly and convolve VALID, in place of SAME")
    global_pool: bool = True
    spatial_squeeze: bool = True
    classifier_activation: str | None = "softmax"
    dropout_keep_prob: float = 0.8
    weight_decay: float = _weight_decay(4e-5)
    stddev: float = flag(
        0.09,
        "standard deviation of new kernels; negative selects Glorot's uniform",
        "truncated_normal_stddev",
    )
    regularize_depthwise: bool = flag(False, "apply the L2 to depthwise kernels as well")
    activation_name: str = "relu6"
    normalization_name: str = flag("batch_norm", "one of " + ", ".join(NORMALIZATIONS))
    batch_norm_decay: float = flag(
        0.9997, "momentum of the batch normalization's moving statistics"
    )
    batch_norm_epsilon: float = 0.001
    hard_sigmoid_slope: float = 1 / 6
    channels: dict[str, int] = dataclasses.field(default_factory=dict, hash=False)
    blocks: tuple[BlockConfig, ...] = ()

    def __post_init__(self) -> None:
        number("--width_multiplier", self.width_multiplier, above=0, remedy=_WIDTHS)
        if self.num_classes is not None:
            number(
                "--num_classes", self.num_classes, least=0, integer=True, remedy="0 gives features"
            )
        number("min_depth", self.min_depth, least=1, integer=True)
        number("divisor", self.divisor, least=1, integer=True)
        if self.output_stride not in (None, *OUTPUT_STRIDES):
            raise UsageError(
                "--output_stride",
                self.output_stride,
                f"one of {OUTPUT_STRIDES}",
                "leave it out to keep all strides",
            )
        if self.classifier_activation is not None:
            one_of("classifier_activation", self.classifier_activation, CLASSIFIER_ACTIVATIONS)
        number("dropout_keep_prob", self.dropout_keep_prob, above=0, most=1)
        number("--std_weight_decay", self.weight_decay, least=0)
        number(
            "--truncated_normal_stddev",
            self.stddev,
            remedy="a negative value selects Glorot's uniform",
        )
        one_of("activation_name", self.activation_name, ACTIVATIONS)
        one_of("normalization_name", self.normalization_name, NORMALIZATIONS)
        number("--batch_norm_decay", self.batch_norm_decay, least=0, below=1)
        number("batch_norm_epsilon", self.batch_norm_epsilon, above=0)
        number("hard_sigmoid_slope", self.hard_sigmoid_slope, above=0)
        for layer, count in self.channels.items():
            number(f"channels of {layer}", count, least=1, integer=True)
        object.__setattr__(self, "channels", dict(self.channels))


@dataclasses.dataclass(frozen=True)
class MobileNetV1Config(MobileNetConfig):
    """MobileNetV1 (arXiv 1704.04861). Its width rule truncates, without a divisor."""

    name: str = "MobileNetV1"
    divisor: int = 1
    weight_decay: float = _weight_decay(2e-5)
    blocks: tuple[BlockConfig, ...] = V1_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetV2Config(MobileNetConfig):
    """MobileNetV2 (arXiv 1801.04381)."""

    name: str = "MobileNetV2"
    finegrain_classification_mode: bool = _finegrain(True)
    weight_decay: float = _weight_decay(2e-5)
    blocks: tuple[BlockConfig, ...] = V2_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetV3Config(MobileNetConfig):
    """What the V3 family and EdgeTPU share (arXiv 1905.02244)."""

    name: str = "MobileNetV3"
    finegrain_classification_mode: bool = _finegrain(True)
    widen_last: bool = False
    weight_decay: float = _weight_decay(2e-5)


@dataclasses.dataclass(frozen=True)
class MobileNetV3SmallConfig(MobileNetV3Config):
    """MobileNetV3-small."""

    name: str = "MobileNetV3Small"
    blocks: tuple[BlockConfig, ...] = V3_SMALL_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetV3LargeConfig(MobileNetV3Config):
    """MobileNetV3-large."""

    name: str = "MobileNetV3Large"
    blocks: tuple[BlockConfig, ...] = V3_LARGE_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetV3SmallMinimalisticConfig(MobileNetV3Config):
    """MobileNetV3-small with 3x3 kernels, ReLU and no squeeze-excite."""

    name: str = "MobileNetV3SmallMinimalistic"
    blocks: tuple[BlockConfig, ...] = _minimalistic(V3_SMALL_BLOCKS)


@dataclasses.dataclass(frozen=True)
class MobileNetV3LargeMinimalisticConfig(MobileNetV3Config):
    """MobileNetV3-large with 3x3 kernels, ReLU and no squeeze-excite."""

    name: str = "MobileNetV3LargeMinimalistic"
    blocks: tuple[BlockConfig, ...] = _minimalistic(V3_LARGE_BLOCKS)


@dataclasses.dataclass(frozen=True)
class MobileNetEdgeTPUConfig(MobileNetV3Config):
    """MobileNet-EdgeTPU: early blocks fuse expansion and depthwise into one convolution."""

    name: str = "MobileNetEdgeTPU"
    blocks: tuple[BlockConfig, ...] = EDGETPU_BLOCKS


ALL: Mapping[str, type[MobileNetConfig]] = MappingProxyType(
    {
        "mobilenet_v1": MobileNetV1Config,
        "mobilenet_v2": MobileNetV2Config,
        "mobilenet_v3_small": MobileNetV3SmallConfig,
        "mobilenet_v3_large": MobileNetV3LargeConfig,
        "mobilenet_v3_small_minimalistic": MobileNetV3SmallMinimalisticConfig,
        "mobilenet_v3_large_minimalistic": MobileNetV3LargeMinimalisticConfig,
        "mobilenet_edgetpu": MobileNetEdgeTPUConfig,
    }
)


def get(name: str, **overrides: Any) -> MobileNetConfig:
    """The config of a net by its name, with fields replaced.

    Raises:
        UsageError: no such net or field (the nearest name is offered), or a value that breaks the field's rule.

    Example:
        >>> get("mobilenet_v3_small", width_multiplier=0.75).width_multiplier
        0.75
    """
    return ALL[one_of("--model_name", name, ALL)]().replace(**overrides)


def names(pattern: str = "*") -> list[str]:
    """Names of the nets that match a shell pattern, as in `names("*v3*")`."""
    return [name for name in ALL if fnmatch.fnmatchcase(name, pattern)]
