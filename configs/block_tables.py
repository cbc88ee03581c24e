"""The rows of all models: one frozen dataclass a row, one table a model.

Source: tensorflow/models research/slim/models/mobilenet_v1.py and research/slim/models/mobilenet/
mobilenet_v2.py, mobilenet_v3.py; V4 as timm 1.0.29 has it (arXiv 2404.10518);
EdgeTPU V2 as in official/projects/edgetpu/vision/modeling/mobilenet_edgetpu_v2_model_blocks.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mobilenet.configs.base import Config, checked

ACTIVATIONS = ("relu", "relu6", "elu", "swish", "hard_swish", "sigmoid", "hard_sigmoid", "softmax")
BLOCK_TYPES = ("Conv", "DepSepConv", "InvertedResConv", "GlobalPooling")
_UNIVERSAL = "UniversalInvertedBottleneck"
_LARGEST_SIDE, _LARGEST_EXPANSION = 1000, 1000
_KERNEL: Mapping[str, Any] = MappingProxyType({"least": 1, "most": _LARGEST_SIDE, "integer": True})


@dataclasses.dataclass(frozen=True)
class BlockConfig(Config):
    """One row of a model.

    Attributes:
        block_type: `Conv`; `DepSepConv` (depthwise, then pointwise); `InvertedResConv` (expand,
            depthwise, project); `GlobalPooling`.
        kernel: height and width of the spatial kernel.
        stride: nominal stride of the spatial kernel.
        filters: output channels at width 1.
        activation_name: after every convolution but a projection.
        expansion_size: expanded channels over input channels; 1 leaves the expansion out.
        squeeze_factor: expanded over squeezed channels of the squeeze-excite; `None` leaves it out.
        group_size: channels that each group of a fused convolution outputs; `None` convolves all
            together. Narrowed models have fewer groups, by which their channels divide.
        depthwise: False fuses expansion and depthwise into one k x k convolution.
        residual: adds the input where the stride is 1 and the channel counts are equal.
        use_bias: a bias in a `Conv`.
        normalization: a normalization after a `Conv`.
    """

    block_type: str = checked("Conv", choices=BLOCK_TYPES)
    kernel: tuple[int, int] = checked((3, 3), **_KERNEL)
    stride: int = checked(1, least=1, integer=True)
    filters: int = checked(32, least=1, integer=True)
    activation_name: str = checked("relu6", choices=ACTIVATIONS)
    expansion_size: float = checked(6.0, least=1, most=_LARGEST_EXPANSION)
    squeeze_factor: int | None = checked(None, least=1, integer=True)
    depthwise: bool = True
    residual: bool = True
    use_bias: bool = False
    normalization: bool = True
    group_size: int | None = checked(None, least=1, integer=True)


@dataclasses.dataclass(frozen=True)
class UniversalBottleneckConfig(BlockConfig):
    """One universal inverted bottleneck of MobileNetV4: two depthwise convolutions, each optional.

    A depthwise convolution without activation, an expansion, a depthwise convolution, a projection.
    Without the second it is a ConvNext-like block, without the first an inverted bottleneck,
    without both a feed-forward block. Of the fields of `BlockConfig`, `kernel`, `squeeze_factor`,
    `depthwise`, `use_bias`, `normalization` and `group_size` are unused.

    Attributes:
        start_kernel: height and width of the depthwise convolution before the expansion; `None`
            leaves it out. It has the stride where there is no other.
        middle_kernel: of the one between expansion and projection; `None` leaves it out.
    """

    block_type: str = checked(_UNIVERSAL, choices=(_UNIVERSAL,))
    activation_name: str = checked("relu", choices=ACTIVATIONS)
    start_kernel: tuple[int, int] | None = checked(None, **_KERNEL)
    middle_kernel: tuple[int, int] | None = checked((3, 3), **_KERNEL)


def _conv(k: int, filters: int, stride: int, act: str, *, bare: bool = False) -> BlockConfig:
    """A convolution; `bare` has a bias instead of a normalization."""
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


def _uib(start: int, expansion: float, middle: int, filters: int, stride: int) -> BlockConfig:
    """A universal inverted bottleneck; a kernel of 0 leaves its depthwise convolution out."""
    return UniversalBottleneckConfig(
        stride=stride,
        filters=filters,
        expansion_size=expansion,
        start_kernel=(start, start) if start else None,
        middle_kernel=(middle, middle) if middle else None,
    )


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


def minimalistic(blocks: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
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


def edgetpu_of_timm(blocks: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
    """The rows of an EdgeTPU model as timm builds it: the first block is a convolution with its
    activation, and fused blocks are added to their input.
    """
    first = _conv(1, blocks[1].filters, 1, "relu")
    rest = (row if row.depthwise else row.replace(residual=True) for row in blocks[2:])
    return (blocks[0], first, *rest)


V4_CONV_SMALL_BLOCKS = (
    _conv(3, 32, 2, "relu"),
    _conv(3, 32, 2, "relu"),
    _conv(1, 32, 1, "relu"),
    _conv(3, 96, 2, "relu"),
    _conv(1, 64, 1, "relu"),
    #    start exp middle out s
    _uib(5, 3, 5, 96, 2),
    _uib(0, 2, 3, 96, 1),
    _uib(0, 2, 3, 96, 1),
    _uib(0, 2, 3, 96, 1),
    _uib(0, 2, 3, 96, 1),
    _uib(3, 4, 0, 96, 1),
    _uib(3, 6, 3, 128, 2),
    _uib(5, 4, 5, 128, 1),
    _uib(0, 4, 5, 128, 1),
    _uib(0, 3, 5, 128, 1),
    _uib(0, 4, 3, 128, 1),
    _uib(0, 4, 3, 128, 1),
    _conv(1, 960, 1, "relu"),
    _POOL,
    _conv(1, 1280, 1, "relu"),
)

V4_CONV_MEDIUM_BLOCKS = (
    _conv(3, 32, 2, "relu"),
    _fus(3, 4, 48, 2),
    #    start exp middle out s
    _uib(3, 4, 5, 80, 2),
    _uib(3, 2, 3, 80, 1),
    _uib(3, 6, 5, 160, 2),
    _uib(3, 4, 3, 160, 1),
    _uib(3, 4, 3, 160, 1),
    _uib(3, 4, 5, 160, 1),
    _uib(3, 4, 3, 160, 1),
    _uib(3, 4, 0, 160, 1),
    _uib(0, 2, 0, 160, 1),
    _uib(3, 4, 0, 160, 1),
    _uib(5, 6, 5, 256, 2),
    _uib(5, 4, 5, 256, 1),
    _uib(3, 4, 5, 256, 1),
    _uib(3, 4, 5, 256, 1),
    _uib(0, 4, 0, 256, 1),
    _uib(3, 4, 0, 256, 1),
    _uib(3, 2, 5, 256, 1),
    _uib(5, 4, 5, 256, 1),
    _uib(0, 4, 0, 256, 1),
    _uib(0, 4, 0, 256, 1),
    _uib(5, 2, 0, 256, 1),
    _conv(1, 960, 1, "relu"),
    _POOL,
    _conv(1, 1280, 1, "relu"),
)

V4_CONV_LARGE_BLOCKS = (
    _conv(3, 24, 2, "relu"),
    _fus(3, 4, 48, 2),
    #    start exp middle out s
    _uib(3, 4, 5, 96, 2),
    _uib(3, 4, 3, 96, 1),
    _uib(3, 4, 5, 192, 2),
    _uib(3, 4, 3, 192, 1),
    _uib(3, 4, 3, 192, 1),
    _uib(3, 4, 3, 192, 1),
    _uib(3, 4, 5, 192, 1),
    _uib(5, 4, 3, 192, 1),
    _uib(5, 4, 3, 192, 1),
    _uib(5, 4, 3, 192, 1),
    _uib(5, 4, 3, 192, 1),
    _uib(5, 4, 3, 192, 1),
    _uib(3, 4, 0, 192, 1),
    _uib(5, 4, 5, 512, 2),
    _uib(5, 4, 5, 512, 1),
    _uib(5, 4, 5, 512, 1),
    _uib(5, 4, 5, 512, 1),
    _uib(5, 4, 0, 512, 1),
    _uib(5, 4, 3, 512, 1),
    _uib(5, 4, 0, 512, 1),
    _uib(5, 4, 0, 512, 1),
    _uib(5, 4, 3, 512, 1),
    _uib(5, 4, 5, 512, 1),
    _uib(5, 4, 0, 512, 1),
    _uib(5, 4, 0, 512, 1),
    _uib(5, 4, 0, 512, 1),
    _conv(1, 960, 1, "relu"),
    _POOL,
    _conv(1, 1280, 1, "relu"),
)


def edgetpu_v2(
    stem: int, kernel: int, filters: Sequence[int], last: int, group_size: int = 64
) -> tuple[BlockConfig, ...]:
    """The rows of an EdgeTPU V2: all sizes have the same blocks.

    Args:
        stem: channels of the stem.
        kernel: its height and width.
        filters: output channels of the seven stages.
        last: channels of the last convolution.
        group_size: of the grouped convolutions.
    """
    first, second, third, fourth, fifth, sixth, seventh = filters

    def fused(expansion: int, filters: int, stride: int, grouped: bool = False) -> BlockConfig:
        row = _fus(3, expansion, filters, stride)
        return row.replace(residual=True, group_size=group_size if grouped else None)

    def separable(expansion: int, filters: int, stride: int = 1) -> BlockConfig:
        return _inv(3, expansion, filters, stride, "relu")

    return (
        _conv(kernel, stem, 2, "relu"),
        fused(1, first, 1),
        fused(8, second, 2),
        fused(4, second, 1, grouped=True),
        fused(8, third, 2),
        fused(4, third, 1, grouped=True),
        fused(4, third, 1),
        fused(4, third, 1, grouped=True),
        fused(8, fourth, 2),
        *[separable(4, fourth)] * 3,
        separable(8, fifth),
        *[separable(4, fifth)] * 3,
        separable(8, sixth, 2),
        *[separable(4, sixth)] * 3,
        separable(8, seventh),
        _conv(1, last, 1, "relu"),
    )


# timm's stem; the published one has 5x5.
EDGETPU_V2_XS_BLOCKS = edgetpu_v2(32, 3, (16, 32, 48, 96, 144, 160, 192), 1280)
EDGETPU_V2_S_BLOCKS = edgetpu_v2(64, 5, (24, 48, 64, 128, 160, 192, 256), 1280)
EDGETPU_V2_M_BLOCKS = edgetpu_v2(64, 5, (32, 64, 80, 160, 192, 240, 320), 1344)
EDGETPU_V2_L_BLOCKS = edgetpu_v2(64, 7, (32, 64, 96, 192, 240, 256, 384), 1408, 128)
