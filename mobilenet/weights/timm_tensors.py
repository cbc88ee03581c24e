"""The tensors of timm's state dicts: their names and shapes for a model of ours, and the weights
that they fill.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

from mobilenet.configs.archs import MobileNetConfig, UniversalBottleneckConfig
from mobilenet.models.layer_plan import Row, plan_rows
from mobilenet.typing import Float32Array

HEAD = "Logits"
CLASSIFIER = "classifier"
_POOLING = "GlobalPooling"
COUNTER = "num_batches_tracked"  # of a batch norm; not used in inference
_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")
# Axes of a layer's kernel in those of timm.
_DENSE = (2, 3, 1, 0)  # [outputs, inputs, height, width]
_DEPTHWISE = (2, 3, 0, 1)  # [channels, 1, height, width]
_NORM = (  # Keras' weights and PyTorch's
    ("gamma", "weight"),
    ("beta", "bias"),
    ("moving_mean", "running_mean"),
    ("moving_variance", "running_var"),
)
_MOST_BLOCKS = 10_000

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of timm and the weight that it fills.

    Attributes:
        name: in the state dict.
        shape: there.
        layer, weight: of our model, such as `Conv` and `kernel`.
        axes: of the tensor, in the order of the weight; empty for vectors.
    """

    name: str
    shape: Shape
    layer: str
    weight: str
    axes: Shape = ()

    def value(self, stored: Float32Array) -> Float32Array:
        """The weight."""
        if not self.axes:
            return stored
        if stored.ndim == 2:  # a dense kernel
            stored = stored[:, :, None, None]
        ordered: Float32Array = stored.transpose(self.axes)
        return ordered


def block_names(names: Iterable[str]) -> tuple[str, ...]:
    """The blocks in the names of tensors, such as `blocks.0.0`, in the order of the model."""
    hits = {hit for name in names if (hit := _BLOCK.match(name))}
    numbers = {(int(hit[1]), int(hit[2])) for hit in hits if len(hit[0]) < 32}
    return tuple(f"blocks.{stage}.{block}" for stage, block in sorted(numbers)[:_MOST_BLOCKS])


def tensors_of(
    config: MobileNetConfig, blocks: Sequence[str], channels: int = 3
) -> tuple[Tensor, ...] | None:
    """The tensors of a model, those of the classifier last.

    Args:
        config: of the model, with its classes.
        blocks: of the state dict, see `block_names`.
        channels: of the images.

    Returns:
        `None` where the model has another number of blocks.
    """
    stem, *rows = (row for row in plan_rows(config) if row.block.block_type != _POOLING)
    heads = [rows.pop()] if len(rows) == len(blocks) + 1 and _is_conv(rows[-1]) else []
    if len(rows) != len(blocks):
        return None
    convolutions = [_plain(stem, "conv_stem", "bn1", channels)]
    inputs = stem.filters
    for row, name in zip(rows, blocks, strict=True):
        convolutions += _block(row, name, inputs)
        inputs = row.filters
    is_v4 = any(isinstance(row.block, UniversalBottleneckConfig) for row in rows)
    norm = "norm_head" if is_v4 else "bn2"
    for row in heads:
        convolutions.append(_plain(row, "conv_head", norm, inputs))
        inputs = row.filters
    tensors = [tensor for convolution in convolutions for tensor in convolution.tensors()]
    if config.num_classes:
        shape = (config.num_classes, inputs)
        tensors.append(Tensor(f"{CLASSIFIER}.weight", shape, HEAD, "kernel", _DENSE))
        tensors.append(Tensor(f"{CLASSIFIER}.bias", shape[:1], HEAD, "bias"))
    return tuple(tensors)


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """A convolution and what follows it.

    Attributes:
        layer: of our model.
        name: of timm's module.
        norm: of its normalization; empty where it has a bias instead.
        inputs, outputs: channels; of a grouped convolution, the inputs of a group.
        kernel: height and width.
        depthwise: one filter a channel.
    """

    layer: str
    name: str
    norm: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    depthwise: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """Its kernel, and its bias or the four vectors of its normalization."""
        shape = (self.outputs, 1 if self.depthwise else self.inputs, *self.kernel)
        weight, axes = ("depthwise_kernel", _DEPTHWISE) if self.depthwise else ("kernel", _DENSE)
        yield Tensor(f"{self.name}.weight", shape, self.layer, weight, axes)
        vector = (self.outputs,)
        if not self.norm:
            yield Tensor(f"{self.name}.bias", vector, self.layer, "bias")
            return
        for weight, name in _NORM:
            yield Tensor(f"{self.norm}.{name}", vector, f"{self.layer}_batch_norm", weight)


def _is_conv(row: Row) -> bool:
    return row.block.block_type == "Conv"


def _plain(row: Row, name: str, norm: str, inputs: int) -> _Convolution:
    """The convolution of a `Conv` row."""
    norm = norm if row.block.normalization else ""
    return _Convolution(row.name, name, norm, inputs, row.filters, row.block.kernel)


def _block(row: Row, name: str, inputs: int) -> Iterator[_Convolution]:
    """The convolutions of a block, in any order."""
    if isinstance(row.block, UniversalBottleneckConfig):
        yield from _universal(row, row.block, name, inputs)
    elif row.block.block_type == "InvertedResConv":
        yield from _bottleneck(row, name, inputs)
    elif row.block.block_type == "DepSepConv":
        yield from _separable(row, name, inputs)
    else:
        yield _plain(row, f"{name}.conv", f"{name}.bn1", inputs)


def _separable(row: Row, name: str, inputs: int) -> Iterator[_Convolution]:
    modules = _Modules(row.name, name)
    yield modules.depthwise("depthwise", "conv_dw", "bn1", inputs, row.block.kernel)
    yield modules.pointwise("pointwise", "conv_pw", "bn2", inputs, row.filters)


def _bottleneck(row: Row, name: str, inputs: int) -> Iterator[_Convolution]:
    """Expansion, depthwise convolution, squeeze-excite and projection, as far as there are such."""
    modules, inner, norms = _Modules(row.name, name), row.expanded or inputs, iter(("1", "2", "3"))
    kernel = row.block.kernel
    if row.expanded and row.block.depthwise:
        yield modules.pointwise("expand", "conv_pw", f"bn{next(norms)}", inputs, inner)
    elif row.expanded:
        names = f"{row.name}_expand", f"{name}.conv_exp", f"{name}.bn{next(norms)}"
        yield _Convolution(*names, inputs // row.groups, inner, kernel)
    if row.block.depthwise:
        yield modules.depthwise("depthwise", "conv_dw", f"bn{next(norms)}", inner, kernel)
    if row.squeezed:
        gate = _Modules(f"{row.name}_squeeze_excite", f"{name}.se")
        yield gate.pointwise("squeeze", "conv_reduce", "", inner, row.squeezed)
        yield gate.pointwise("excite", "conv_expand", "", row.squeezed, inner)
    project = "conv_pwl" if row.expanded else "conv_pw"
    yield modules.pointwise("project", project, f"bn{next(norms)}", inner, row.filters)


def _universal(
    row: Row, block: UniversalBottleneckConfig, name: str, inputs: int
) -> Iterator[_Convolution]:
    inner, modules = row.expanded or inputs, _Modules(row.name, name)
    if block.start_kernel is not None:
        names = "start_depthwise", "dw_start.conv", "dw_start.bn"
        yield modules.depthwise(*names, inputs, block.start_kernel)
    if row.expanded:
        yield modules.pointwise("expand", "pw_exp.conv", "pw_exp.bn", inputs, inner)
    if block.middle_kernel is not None:
        yield modules.depthwise("depthwise", "dw_mid.conv", "dw_mid.bn", inner, block.middle_kernel)
    yield modules.pointwise("project", "pw_proj.conv", "pw_proj.bn", inner, row.filters)


@dataclasses.dataclass(frozen=True)
class _Modules:
    """The layers of a block of ours and the modules of timm's."""

    row: str
    block: str

    def depthwise(
        self, layer: str, name: str, norm: str, channels: int, kernel: tuple[int, int]
    ) -> _Convolution:
        return self._convolution(layer, name, norm, channels, channels, kernel, True)

    def pointwise(
        self, layer: str, name: str, norm: str, inputs: int, outputs: int
    ) -> _Convolution:
        return self._convolution(layer, name, norm, inputs, outputs, (1, 1), False)

    def _convolution(
        self,
        layer: str,
        name: str,
        norm: str,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        depthwise: bool,
    ) -> _Convolution:
        layer, name = f"{self.row}_{layer}", f"{self.block}.{name}"
        norm = norm and f"{self.block}.{norm}"
        return _Convolution(layer, name, norm, inputs, outputs, kernel, depthwise)
