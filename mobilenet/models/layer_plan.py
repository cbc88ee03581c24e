"""From a config to the rows of the model: names, strides, dilations and channels, without a
framework.

The width rule gives nominal channels; `config.channels` then replaces some of them. Residual
connections and expansions follow the nominal channels, so that a thinned model has the structure
of the original.
"""

from __future__ import annotations

import dataclasses

from mobilenet.configs.archs import BlockConfig, MobileNetConfig, UniversalBottleneckConfig
from mobilenet.errors import UsageError, one_of

MAX_ROWS = 128  # the deepest published MobileNet has 31


@dataclasses.dataclass(frozen=True)
class Row:
    """One block of the model.

    Attributes:
        block: the row of the config.
        name: slim's scope.
        stride: stride of the spatial kernel.
        rate: dilation of the spatial kernel.
        expanded: channels of the expansion; 0 when there is none.
        squeezed: channels of the squeeze; 0 when there is no squeeze-excite.
        filters: output channels.
        residual: whether the block adds its input.
        groups: of the expansion; 1 where all channels are convolved together.
    """

    block: BlockConfig
    name: str
    stride: int
    rate: int
    expanded: int
    squeezed: int
    filters: int
    residual: bool
    groups: int = 1


def make_divisible(value: float, divisor: int = 8, least: int | None = None) -> int:
    """Rounds to a multiple of `divisor` (ties up), never below `least` nor by more than 10 % down.

    Source: tensorflow/models research/slim/models/mobilenet/mobilenet.py.
    """
    rounded = max(
        divisor if least is None else least, int(value + divisor / 2) // divisor * divisor
    )
    return rounded + divisor if rounded < 0.9 * value else rounded


def plan_rows(config: MobileNetConfig) -> tuple[Row, ...]:
    """The rows of a model.

    Raises:
        UsageError: the config has no rows or too many, or `channels` names no layer of the model or
            breaks a residual sum.
    """
    if not config.blocks:
        raise UsageError("blocks", (), "a config with rows", "take one of mobilenet.list_models()")
    rows: list[Row] = []
    legal: list[str] = []  # layers whose channel count `channels` may set
    nominal = actual = 0
    last = ""  # the layer that sets the width of what comes next
    current_stride = rate = 1
    for index, (block, name) in enumerate(zip(config.blocks, _names(config.blocks), strict=True)):
        if block.block_type == "GlobalPooling":
            rows.append(Row(block, name, 1, 1, 0, 0, actual, False))
            continue
        stride, row_rate = block.stride, 1
        if config.output_stride is not None and current_stride == config.output_stride:
            stride, row_rate = 1, rate
            rate *= block.stride
        else:
            current_stride *= block.stride
        before, before_layer = (nominal, actual), last
        nominal = _width(config, index)
        last = _output_layer(block, name)
        legal.append(last)
        actual = config.channels.get(last, nominal)
        expanded = squeezed = 0
        residual = False
        if _is_bottleneck(block):
            expanded, squeezed = _inner_channels(config, block, name, before[0], legal)
            residual = block.residual and stride == 1 and before[0] == nominal
        if residual and before[1] != actual:
            raise UsageError(
                f"channels of {last}",
                actual,
                f"{before[1]}, as {before_layer}, which is added to it",
                "set both to the same number",
            )
        groups = _groups(block, before[1], expanded)
        rows.append(
            Row(block, name, stride, row_rate, expanded, squeezed, actual, residual, groups)
        )
    for name in config.channels:
        one_of("channels", name, legal)
    if len(rows) > MAX_ROWS:
        raise UsageError("blocks", len(rows), f"at most {MAX_ROWS} rows")
    return tuple(rows)


def _inner_channels(
    config: MobileNetConfig, block: BlockConfig, name: str, channels: int, legal: list[str]
) -> tuple[int, int]:
    """Expanded and squeezed channels of a bottleneck; 0 where there are none.

    Args:
        config, block, name: the model, the row and its scope.
        channels: of the row's input, by the width rule.
        legal: gets the names of the layers that set them.
    """
    inner, expanded, squeezed = channels, 0, 0
    if block.expansion_size != 1:
        inner = make_divisible(channels * block.expansion_size)
        legal.append(f"{name}_expand")
        expanded = config.channels.get(legal[-1], inner)
    if block.squeeze_factor is not None and block.block_type == "InvertedResConv":
        legal.append(f"{name}_squeeze_excite_squeeze")
        squeezed = config.channels.get(legal[-1], make_divisible(inner / block.squeeze_factor))
    return expanded, squeezed


def _groups(block: BlockConfig, channels: int, expanded: int) -> int:
    """Groups of a fused convolution: of the row's size, fewer where the channels do not divide."""
    if block.group_size is None or block.depthwise or not expanded:
        return 1
    most = max(1, expanded // block.group_size)
    return max(n for n in range(1, most + 1) if channels % n == 0 and expanded % n == 0)


def layer_channels(config: MobileNetConfig) -> dict[str, int]:
    """Output channels by layer, of every convolution that sets its own: the depthwise ones, the
    gate's second and the classifier follow others.
    """
    channels: dict[str, int] = {}
    for row in plan_rows(config):
        if row.block.block_type == "GlobalPooling":
            continue
        channels[_output_layer(row.block, row.name)] = row.filters
        if row.expanded:
            channels[f"{row.name}_expand"] = row.expanded
        if row.squeezed:
            channels[f"{row.name}_squeeze_excite_squeeze"] = row.squeezed
    return channels


def count_parameters(config: MobileNetConfig, channels: int = 3) -> int:
    """Weights of the model, moving statistics included, before anything is built.

    Args:
        config: the model's config.
        channels: of the input image.
    """
    # Scale and offset, and of batch norms mean and variance.
    norm = 4 if config.normalization_name == "batch_norm" else 2
    total = 0
    for row in plan_rows(config):
        kernel = row.block.kernel[0] * row.block.kernel[1]
        if row.block.block_type == "GlobalPooling":
            continue
        if row.block.block_type == "Conv":
            each = kernel * channels + row.block.use_bias + norm * row.block.normalization
            total += each * row.filters
        elif row.block.block_type == "DepSepConv":
            total += (kernel + norm) * channels + (channels + norm) * row.filters
        elif isinstance(row.block, UniversalBottleneckConfig):
            total += _universal_parameters(row, row.block, channels, norm)
        else:
            total += _inverted_residual_parameters(row, channels, norm)
        channels = row.filters
    return total + (channels + 1) * (config.num_classes or 0)


def _inverted_residual_parameters(row: Row, channels: int, norm: int) -> int:
    kernel, total = row.block.kernel[0] * row.block.kernel[1], 0
    if row.expanded:
        taps = 1 if row.block.depthwise else kernel
        total += (taps * channels // row.groups + norm) * row.expanded
    inner = row.expanded or channels
    if row.block.depthwise:
        total += (kernel + norm) * inner
    if row.squeezed:
        total += (2 * inner + 1) * row.squeezed + inner
    return total + (inner + norm) * row.filters


def _universal_parameters(
    row: Row, block: UniversalBottleneckConfig, channels: int, norm: int
) -> int:
    inner, total = row.expanded or channels, 0
    if row.expanded:
        total += (channels + norm) * row.expanded
    for kernel, width in ((block.start_kernel, channels), (block.middle_kernel, inner)):
        if kernel is not None:
            total += (kernel[0] * kernel[1] + norm) * width
    return total + (inner + norm) * row.filters


def min_input_side(rows: tuple[Row, ...]) -> int:
    """The least height and width that the strides can halve: their product."""
    product = 1
    for row in rows:
        product *= row.stride
    return product


def _names(blocks: tuple[BlockConfig, ...]) -> list[str]:
    """Slim's scopes: V1 counts all rows, the others count each kind, the first without a number."""
    if any(block.block_type == "DepSepConv" for block in blocks):
        return [f"Conv2d_{index}" for index in range(len(blocks))]
    roots = {"Conv": "Conv", "GlobalPooling": "global_pool"}
    names: list[str] = []
    seen: dict[str, int] = {}
    for block in blocks:
        root = "expanded_conv" if _is_bottleneck(block) else roots[block.block_type]
        count = seen.get(root, 0)
        seen[root] = count + 1
        names.append(f"{root}_{count}" if count else root)
    return names


def _output_layer(block: BlockConfig, name: str) -> str:
    if _is_bottleneck(block):
        return f"{name}_project"
    return {"Conv": name, "DepSepConv": f"{name}_pointwise"}[block.block_type]


def _is_bottleneck(block: BlockConfig) -> bool:
    """Whether a row expands and projects."""
    return block.block_type == "InvertedResConv" or isinstance(block, UniversalBottleneckConfig)


def _width(config: MobileNetConfig, index: int) -> int:
    """Output channels of a row by the width rule.

    In slim a narrowed model in finegrain mode keeps its last row; above width 1, V2 scales it and
    V3 does not.
    """
    filters, alpha = config.blocks[index].filters, config.width_multiplier
    if index == 0 and not config.scale_stem:
        return filters
    is_last = index == len(config.blocks) - 1
    if config.finegrain_classification_mode and is_last and (alpha < 1 or not config.widen_last):
        return filters
    if config.divisor == 1:
        return max(int(filters * alpha), config.min_depth)
    return make_divisible(filters * alpha, config.divisor, config.min_depth)
