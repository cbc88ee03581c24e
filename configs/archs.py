"""All models: one config class each, found by name; their rows are in `block_tables`.

Source of fields and defaults: tensorflow/models research/mobilenet/configs/archs.py; width rules as
in research/slim/models.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mobilenet.configs.block_tables import (
    ACTIVATIONS,
    EDGETPU_BLOCKS,
    EDGETPU_V2_L_BLOCKS,
    EDGETPU_V2_M_BLOCKS,
    EDGETPU_V2_S_BLOCKS,
    EDGETPU_V2_XS_BLOCKS,
    V1_BLOCKS,
    V2_BLOCKS,
    V3_LARGE_BLOCKS,
    V3_SMALL_BLOCKS,
    V4_CONV_LARGE_BLOCKS,
    V4_CONV_MEDIUM_BLOCKS,
    V4_CONV_SMALL_BLOCKS,
    BlockConfig,
    UniversalBottleneckConfig,
    minimalistic,
)
from mobilenet.errors import UsageError

from .base import MAX_CLASSES, Config, checked, flag, one_of

NORMALIZATIONS = ("batch_norm", "layer_norm", "group_norm")
CLASSIFIER_ACTIVATIONS = ("softmax", "sigmoid")
OUTPUT_STRIDES = (1, 2, 4, 8, 16, 32)
# Measured in docs/training.md.
NEW_BATCH_NORM_DECAY = 0.99  # of random weights, which train for thousands of steps
LOADED_BATCH_NORM_DECAY = 0.9  # of loaded weights, which are fine-tuned for hundreds
_WIDEST = 100
_WIDTHS = "common values are 0.25, 0.5, 0.75, 1.0"


def _finegrain(default: bool) -> Any:
    return flag(default, "keep the last convolution at its full width when the model is narrowed")


def _weight_decay(default: float) -> Any:
    help = "L2 added to the loss as weight_decay * sum(w^2)"
    return flag(default, help, "std_weight_decay", least=0)


@dataclasses.dataclass(frozen=True)
class MobileNetConfig(Config):
    """A model: its rows and everything that changes how they are built. Nothing changes a config;
    `replace` makes the next.

    Attributes:
        name: name of the Keras model.
        num_classes: width of the logits; 0 or `None` ends the model with the pooled features.
        width_multiplier: factor on the channels of every row (alpha of the papers).
        min_depth: least number of channels of a scaled convolution.
        divisor: scaled channels are rounded to its multiples; 1 truncates (V1).
        output_stride: once the strides multiply to it, later ones become dilations (atrous);
            `None` keeps all.
        finegrain_classification_mode: keeps the last row unscaled below width 1.
        widen_last: whether that mode still scales the last row above width 1 (slim: V2 does; V3,
            EdgeTPU and V4 never do; keras.applications' V3 wider than 1 is this mode switched off).
        scale_stem: whether the width multiplier scales the first row as well; timm's narrow models
            keep it.
        use_explicit_padding: pads evenly and convolves VALID, instead of SAME (other alignment,
            same sizes).
        global_pool: False pools 7x7 windows (less where the map is smaller) instead of the whole
            map.
        spatial_squeeze: `[batch, classes]` instead of `[batch, 1, 1, classes]`.
        classifier_activation: `softmax`, `sigmoid`, or `None` for logits.
        dropout_keep_prob: share kept by the dropout before the logits.
        weight_decay: L2 on convolution kernels, depthwise ones only with `regularize_depthwise`.
        stddev: of the truncated normal that initializes kernels; negative selects Glorot's uniform.
        activation_name: unused by our models, whose rows carry their own; kept for models of your
            own.
        normalization_name: `batch_norm`, `layer_norm` or `group_norm` (at most 32 groups).
        batch_norm_decay: momentum of the moving statistics. `None` stands for 0.99 with random
            weights and 0.9 where weights are loaded: few steps of fine-tuning would be evaluated
            with the statistics of the former images. The published 0.9997 and 0.997 are for
            ImageNet.
        batch_norm_epsilon: added to the variance by every normalization.
        hard_sigmoid_slope: of the squeeze-excite gate; TF1 checkpoints were trained with the
            literal 0.16667.
        channels: layer name to output channels, where they differ from the width rule (thinned
            models).
        blocks: the rows.
    """

    name: str = "MobileNet"
    num_classes: int | None = flag(
        1001,
        "number of classes; 0 ends the model with the pooled features",
        least=0,
        most=MAX_CLASSES,
        integer=True,
        remedy="0 gives features",
    )
    width_multiplier: float = flag(
        1.0,
        "factor on the channels of every layer; " + _WIDTHS,
        above=0,
        most=_WIDEST,
        remedy=_WIDTHS,
    )
    min_depth: int = flag(
        8, "least number of channels of a scaled convolution", least=1, integer=True
    )
    divisor: int = checked(8, least=1, integer=True)
    output_stride: int | None = flag(
        None,
        "strides beyond this one become dilations: 8, 16, 32",
        choices=OUTPUT_STRIDES,
        remedy="leave it out to keep all strides",
    )
    finegrain_classification_mode: bool = _finegrain(False)
    widen_last: bool = True
    scale_stem: bool = True
    use_explicit_padding: bool = flag(False, "pad evenly and convolve VALID, instead of SAME")
    global_pool: bool = True
    spatial_squeeze: bool = True
    classifier_activation: str | None = checked("softmax", choices=CLASSIFIER_ACTIVATIONS)
    dropout_keep_prob: float = checked(0.8, above=0, most=1)
    weight_decay: float = _weight_decay(4e-5)
    stddev: float = flag(
        0.09,
        "standard deviation of new kernels; negative selects Glorot's uniform",
        "truncated_normal_stddev",
        remedy="a negative value selects Glorot's uniform",
    )
    regularize_depthwise: bool = flag(False, "apply the L2 to depthwise kernels as well")
    activation_name: str = checked("relu6", choices=ACTIVATIONS)
    normalization_name: str = flag(
        "batch_norm", "one of " + ", ".join(NORMALIZATIONS), choices=NORMALIZATIONS
    )
    batch_norm_decay: float | None = flag(
        None,
        "momentum of the batch normalization's moving statistics; by default 0.9 with "
        "--init_checkpoint, else 0.99 or less in a short run; ImageNet: as published",
        least=0,
        below=1,
    )
    batch_norm_epsilon: float = checked(0.001, above=0)
    hard_sigmoid_slope: float = checked(1 / 6, above=0)
    channels: dict[str, int] = checked({}, least=1, integer=True)
    blocks: tuple[BlockConfig, ...] = ()

    def for_loaded_weights(self) -> MobileNetConfig:
        """The config of a model whose weights are loaded: its own momentum where it has one."""
        if self.batch_norm_decay is not None:
            return self
        return self.replace(batch_norm_decay=LOADED_BATCH_NORM_DECAY)


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
    blocks: tuple[BlockConfig, ...] = minimalistic(V3_SMALL_BLOCKS)


@dataclasses.dataclass(frozen=True)
class MobileNetV3LargeMinimalisticConfig(MobileNetV3Config):
    """MobileNetV3-large with 3x3 kernels, ReLU and no squeeze-excite."""

    name: str = "MobileNetV3LargeMinimalistic"
    blocks: tuple[BlockConfig, ...] = minimalistic(V3_LARGE_BLOCKS)


@dataclasses.dataclass(frozen=True)
class MobileNetEdgeTPUConfig(MobileNetV3Config):
    """MobileNet-EdgeTPU: early blocks fuse expansion and depthwise into one convolution."""

    name: str = "MobileNetEdgeTPU"
    blocks: tuple[BlockConfig, ...] = EDGETPU_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetV4Config(MobileNetConfig):
    """What the convolutional MobileNetV4 share (arXiv 2404.10518).

    Weights of timm were trained with `use_explicit_padding` and a `batch_norm_epsilon` of 1e-5.
    """

    name: str = "MobileNetV4"
    finegrain_classification_mode: bool = _finegrain(True)
    widen_last: bool = False
    scale_stem: bool = False
    weight_decay: float = _weight_decay(2e-5)


@dataclasses.dataclass(frozen=True)
class MobileNetV4ConvSmallConfig(MobileNetV4Config):
    """MobileNetV4-Conv-Small."""

    name: str = "MobileNetV4ConvSmall"
    blocks: tuple[BlockConfig, ...] = V4_CONV_SMALL_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetV4ConvMediumConfig(MobileNetV4Config):
    """MobileNetV4-Conv-Medium."""

    name: str = "MobileNetV4ConvMedium"
    blocks: tuple[BlockConfig, ...] = V4_CONV_MEDIUM_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetV4ConvLargeConfig(MobileNetV4Config):
    """MobileNetV4-Conv-Large."""

    name: str = "MobileNetV4ConvLarge"
    blocks: tuple[BlockConfig, ...] = V4_CONV_LARGE_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetEdgeTPUV2Config(MobileNetConfig):
    """What the MobileNet-EdgeTPU V2 share: early blocks with grouped convolutions."""

    name: str = "MobileNetEdgeTPUV2"
    finegrain_classification_mode: bool = _finegrain(True)
    widen_last: bool = False
    weight_decay: float = _weight_decay(2e-5)


@dataclasses.dataclass(frozen=True)
class MobileNetEdgeTPUV2XSConfig(MobileNetEdgeTPUV2Config):
    """MobileNet-EdgeTPU V2 XS."""

    name: str = "MobileNetEdgeTPUV2XS"
    blocks: tuple[BlockConfig, ...] = EDGETPU_V2_XS_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetEdgeTPUV2SConfig(MobileNetEdgeTPUV2Config):
    """MobileNet-EdgeTPU V2 S."""

    name: str = "MobileNetEdgeTPUV2S"
    blocks: tuple[BlockConfig, ...] = EDGETPU_V2_S_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetEdgeTPUV2MConfig(MobileNetEdgeTPUV2Config):
    """MobileNet-EdgeTPU V2 M."""

    name: str = "MobileNetEdgeTPUV2M"
    blocks: tuple[BlockConfig, ...] = EDGETPU_V2_M_BLOCKS


@dataclasses.dataclass(frozen=True)
class MobileNetEdgeTPUV2LConfig(MobileNetEdgeTPUV2Config):
    """MobileNet-EdgeTPU V2 L."""

    name: str = "MobileNetEdgeTPUV2L"
    blocks: tuple[BlockConfig, ...] = EDGETPU_V2_L_BLOCKS


ALL: Mapping[str, type[MobileNetConfig]] = MappingProxyType(
    {
        "mobilenet_v1": MobileNetV1Config,
        "mobilenet_v2": MobileNetV2Config,
        "mobilenet_v3_small": MobileNetV3SmallConfig,
        "mobilenet_v3_large": MobileNetV3LargeConfig,
        "mobilenet_v3_small_minimalistic": MobileNetV3SmallMinimalisticConfig,
        "mobilenet_v3_large_minimalistic": MobileNetV3LargeMinimalisticConfig,
        "mobilenet_edgetpu": MobileNetEdgeTPUConfig,
        "mobilenet_edgetpu_v2_xs": MobileNetEdgeTPUV2XSConfig,
        "mobilenet_edgetpu_v2_s": MobileNetEdgeTPUV2SConfig,
        "mobilenet_edgetpu_v2_m": MobileNetEdgeTPUV2MConfig,
        "mobilenet_edgetpu_v2_l": MobileNetEdgeTPUV2LConfig,
        "mobilenet_v4_conv_small": MobileNetV4ConvSmallConfig,
        "mobilenet_v4_conv_medium": MobileNetV4ConvMediumConfig,
        "mobilenet_v4_conv_large": MobileNetV4ConvLargeConfig,
    }
)


def get(name: str, **overrides: Any) -> MobileNetConfig:
    """The config of a model by its name, with fields replaced.

    Raises:
        UsageError: no such model or field (the nearest name is offered), or a value that breaks the
        field's rule.

    Examples:
        >>> get("mobilenet_v3_small", width_multiplier=0.75).width_multiplier
        0.75
    """
    return ALL[one_of("model_name", name, ALL)]().replace(**overrides)


def config_of(name_or_config: object, fields: Mapping[str, Any]) -> MobileNetConfig:
    """The config of a model by its name, or one that there is, with fields replaced.

    Raises:
        UsageError: it is neither; or see `get`.
    """
    if isinstance(name_or_config, MobileNetConfig):
        return name_or_config.with_values(fields)
    if not isinstance(name_or_config, str):
        expected = "the name of a model or a config of `mobilenet.configs.archs`"
        raise UsageError("name_or_config", type(name_or_config).__name__, expected)
    return ALL[one_of("name_or_config", name_or_config, ALL)]().with_values(fields)


def names(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern, as in `names("*v3*")`."""
    return [name for name in ALL if fnmatch.fnmatchcase(name, pattern)]


def name_of(config: MobileNetConfig) -> str:
    """The name in `ALL` of the class of a config, or of the nearest class above it.

    Raises:
        UsageError: it is of none.
    """
    known = {kind: name for name, kind in ALL.items()}
    for kind in type(config).__mro__:
        if kind in known:
            return known[kind]
    expected = "a config of one of the models of `list_models()`"
    raise UsageError("model", type(config).__name__, expected)


__all__ = [
    "ACTIVATIONS",
    "ALL",
    "BlockConfig",
    "MobileNetConfig",
    "MobileNetEdgeTPUConfig",
    "MobileNetEdgeTPUV2Config",
    "MobileNetEdgeTPUV2LConfig",
    "MobileNetEdgeTPUV2MConfig",
    "MobileNetEdgeTPUV2SConfig",
    "MobileNetEdgeTPUV2XSConfig",
    "MobileNetV1Config",
    "MobileNetV2Config",
    "MobileNetV3Config",
    "MobileNetV3LargeConfig",
    "MobileNetV3LargeMinimalisticConfig",
    "MobileNetV3SmallConfig",
    "MobileNetV3SmallMinimalisticConfig",
    "MobileNetV4Config",
    "MobileNetV4ConvLargeConfig",
    "MobileNetV4ConvMediumConfig",
    "MobileNetV4ConvSmallConfig",
    "UniversalBottleneckConfig",
    "config_of",
    "get",
    "name_of",
    "names",
]
