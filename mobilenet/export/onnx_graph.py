"""A float model as an ONNX file (the extra `[onnx]`), once its outputs under ONNX Runtime equal the
model's.

Written from the layers: batch norms are folded into the convolutions before them, and tensors are
`[batch, channels, height, width]` inside, with one transposition after the input.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tf_keras

from mobilenet import files
from mobilenet.configs.card import Card
from mobilenet.configs.conversion import ONNX
from mobilenet.errors import UsageError
from mobilenet.export import bundle, freeze, tflite_metadata
from mobilenet.export.frozen_graph import verify
from mobilenet.models.graph.calls import Call, CallList
from mobilenet.models.graph.variables import check_finite
from mobilenet.typing import Array, Float32Array

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxruntime")
TOLERANCE = 1e-4  # of the largest output
_OPSET = 17  # ONNX Runtime 1.12 and later
_IR_VERSION = 8
_IDENTITY = (
    *("ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"),
    "SpatialDropout2D",
)
_BINARY = MappingProxyType(
    {"Add": "Add", "Multiply": "Mul", "Subtract": "Sub", "Maximum": "Max", "Minimum": "Min"}
)
_FUNCTIONS = MappingProxyType(
    {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "elu": "Elu", "softplus": "Softplus"}
)
_SWISH = ("swish", "silu")
_POOLS = MappingProxyType({"AveragePooling2D": "AveragePool", "MaxPooling2D": "MaxPool"})
_GLOBAL_POOLS = MappingProxyType(
    {"GlobalAveragePooling2D": "GlobalAveragePool", "GlobalMaxPooling2D": "GlobalMaxPool"}
)


def load_package(name: str) -> Any:
    """`onnx` or `onnxruntime`, imported.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        expected = f"{name}, which is not installed"
        raise UsageError("format", ONNX, expected, "pip install onnx onnxruntime") from None


def check_target(target: str | os.PathLike[str]) -> None:
    """Refuses a folder that cannot be written, or holds other files; see `files.check_target`."""
    files.check_target(target, "target", replaces=(FILE, "an ONNX export"))


def serialize(
    model: Any,
    batch: int | None,
    shape: tuple[int, int, int],
    output: str = "logits",
) -> bytes:
    """An ONNX file of one input `images`, `[batch, height, width, channels]` as of the model.

    Args:
        model: float model of plain layers, see `frozen_graph.reference_model`.
        batch: images per call; `None` leaves it open.
        shape: `[height, width, channels]`.
        output: name of the output.

    Raises:
        UsageError: a layer is of a class that is not written, which is named; a weight is not
            finite; or the package is not installed.
    """
    load_package("onnx")
    check_finite(model)
    return _Writer(_of_size(model, shape), output).file(batch, shape)


def _of_size(model: Any, shape: tuple[int, int, int]) -> Any:
    """The model with a fixed size, on which paddings depend."""
    if tuple(model.inputs[0].shape[1:]) == shape:
        return model
    inputs = tf_keras.Input(shape)
    return freeze.float32_copy(tf_keras.Model(inputs, model(inputs)), logits=False)


class _Writer:
    """The nodes and constants of a model, in execution order."""

    def __init__(self, model: Any, output: str) -> None:
        self._helper = load_package("onnx").helper
        self._calls = CallList(model)
        self._output = output
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._names: dict[Call, str] = {}
        self._folded: dict[Call, Call] = {}  # by batch norm, the layer that it is folded into
        for call in self._calls.calls:
            self._names[call] = self._write(call)

    def file(self, batch: int | None, shape: tuple[int, int, int]) -> bytes:
        onnx, helper = load_package("onnx"), self._helper
        (last,) = self._calls.outputs
        result, size = self._names[last.call], _shape(last.call)
        if len(size) == 3:
            result = self.node("Transpose", [result], "outputs", perm=[0, 2, 3, 1])
        self.node("Identity", [result], self._output, exact=True)
        rows: Any = "batch" if batch is None else batch
        values = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [rows, *sides])
            for name, sides in ((tflite_metadata.IMAGES, shape), (self._output, size))
        ]
        name = self._calls.model.name
        graph = helper.make_graph(self._nodes, name, values[:1], values[1:], self._constants)
        opset = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name="mobilenet")
        model.ir_version = _IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))

    def node(
        self, operator: str, inputs: list[str], name: str, exact: bool = False, **fields: Any
    ) -> str:
        """Adds a node; returns the name of its output."""
        output = name if exact else f"{name}:{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(operator, inputs, [output], output, **fields))
        return output

    def constant(self, value: Any, name: str, dtype: Any = np.float32) -> str:
        """Adds a constant; returns its name."""
        label = f"{name}/{len(self._constants)}"
        array = np.ascontiguousarray(np.asarray(value, dtype))
        self._constants.append(load_package("onnx").numpy_helper.from_array(array, label))
        return label

    def _write(self, call: Call) -> str:
        kind, name = call.kind.__name__, str(call.layer.name)
        sources = [self._names[tensor.call] for tensor in call.inputs]
        if kind == "InputLayer":
            return self.node("Transpose", [tflite_metadata.IMAGES], name, perm=[0, 3, 1, 2])
        if kind in _IDENTITY or call in self._folded:
            return sources[0]
        if kind in _BINARY and len({len(_shape(t.call)) for t in call.inputs}) == 1:
            return self._join(_BINARY[kind], sources, name)
        writer = _WRITERS.get(kind)
        if writer is None:
            raise _unknown(call)
        return writer(self, call, sources, name)

    def _join(self, operator: str, sources: list[str], name: str) -> str:
        result = sources[0]
        for other in sources[1:]:
            result = self.node(operator, [result, other], name)
        return result

    def convolution(self, call: Call, sources: list[str], name: str) -> str:
        layer = call.layer
        _check_channels_last(call)
        is_depthwise = call.kind.__name__ == "DepthwiseConv2D"
        kernel = np.asarray(layer.depthwise_kernel if is_depthwise else layer.kernel, np.float64)
        height, width, inputs, outputs = kernel.shape
        groups = inputs if is_depthwise else int(layer.groups)
        if is_depthwise:
            kernel = kernel.transpose(2, 3, 0, 1).reshape(inputs * outputs, 1, height, width)
        else:
            kernel = kernel.transpose(3, 2, 0, 1)
        bias = np.asarray(layer.bias, np.float64) if layer.use_bias else np.zeros(len(kernel))
        kernel, bias = self._fold(call, kernel, bias)
        arguments = [*sources, self.constant(kernel, name), self.constant(bias, name)]
        fields: dict[str, Any] = {"group": groups, "dilations": list(layer.dilation_rate)}
        fields |= _window(call, (height, width), tuple(layer.dilation_rate))
        result = self.node("Conv", arguments, name, **fields)
        return self.activate(result, layer.activation, call, name)

    def _fold(self, call: Call, kernel: Array, bias: Array) -> tuple[Array, Array]:
        """Kernel and bias with the batch norm after the layer, if it takes only that."""
        norm = self._calls.only_consumer(call)
        is_linear = _function(call.layer.activation) == "linear"
        if norm is None or not is_linear or norm.kind.__name__ != "BatchNormalization":
            return kernel, bias
        self._folded[norm] = call
        factor, offset = _affine(norm)
        return kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1)), bias * factor + offset

    def dense(self, call: Call, sources: list[str], name: str) -> str:
        layer = call.layer
        if len(_shape(call.inputs[0].call)) != 1:
            raise _unknown(call)
        kernel = np.asarray(layer.kernel, np.float64).T
        bias = np.asarray(layer.bias, np.float64) if layer.use_bias else np.zeros(len(kernel))
        kernel, bias = self._fold(call, kernel, bias)
        arguments = [*sources, self.constant(kernel, name), self.constant(bias, name)]
        result = self.node("Gemm", arguments, name, transB=1)
        return self.activate(result, layer.activation, call, name)

    def batch_norm(self, call: Call, sources: list[str], name: str) -> str:
        factor, offset = _affine(call)
        return self.scale(sources[0], factor, offset, call, name)

    def scale(self, source: str, factor: Any, offset: Any, call: Call, name: str) -> str:
        """Multiplies by one value, or one a channel, and adds another."""
        rank = len(_shape(call))
        for operator, value, neutral in (("Mul", factor, 1.0), ("Add", offset, 0.0)):
            values = np.asarray(value, np.float64).reshape(-1)
            if not np.all(values == neutral):
                shaped = values.reshape(1, -1, *[1] * (rank - 1))
                source = self.node(operator, [source, self.constant(shaped, name)], name)
        return source

    def rescaling(self, call: Call, sources: list[str], name: str) -> str:
        return self.scale(sources[0], call.layer.scale, call.layer.offset, call, name)

    def normalization(self, call: Call, sources: list[str], name: str) -> str:
        layer = call.layer
        if getattr(layer, "invert", False):
            raise _unknown(call)
        mean, variance = (np.asarray(x, np.float64) for x in (layer.mean, layer.variance))
        factor = 1 / np.maximum(np.sqrt(variance), 1e-7)
        return self.scale(sources[0], factor, -mean * factor, call, name)

    def relu(self, call: Call, sources: list[str], name: str) -> str:
        layer = call.layer
        slope, most = float(layer.negative_slope), layer.max_value
        if float(layer.threshold) or (slope and most is not None):
            raise _unknown(call)
        if slope:
            return self.node("LeakyRelu", sources, name, alpha=slope)
        return self._clip(sources[0], name, most)

    def _clip(self, source: str, name: str, most: float | None) -> str:
        if most is None:
            return self.node("Relu", [source], name)
        limits = [self.constant(value, name) for value in (0.0, most)]
        return self.node("Clip", [source, *limits], name)

    def activation(self, call: Call, sources: list[str], name: str) -> str:
        return self.activate(sources[0], call.layer.activation, call, name)

    def softmax(self, call: Call, sources: list[str], name: str) -> str:
        if call.layer.axis not in (-1, len(_shape(call))):
            raise _unknown(call)
        return self.node("Softmax", sources, name, axis=1)

    def activate(self, source: str, activation: Any, call: Call, name: str) -> str:
        """Adds an activation function."""
        function = _function(activation)
        if function == "linear":
            return source
        if function == "relu6":
            return self._clip(source, name, 6.0)
        if function in _SWISH:
            gate = self.node("Sigmoid", [source], name)
            return self.node("Mul", [source, gate], name)
        if function == "softmax":
            return self.node("Softmax", [source], name, axis=1)
        if function == "hard_sigmoid":
            return self.node("HardSigmoid", [source], name, alpha=0.2, beta=0.5)
        if function not in _FUNCTIONS:
            raise _unknown(call)
        return self.node(_FUNCTIONS[function], [source], name)

    def global_pool(self, call: Call, sources: list[str], name: str) -> str:
        _check_channels_last(call)
        pooled = self.node(_GLOBAL_POOLS[call.kind.__name__], sources, name)
        return pooled if call.layer.keepdims else self.node("Flatten", [pooled], name, axis=1)

    def pool(self, call: Call, sources: list[str], name: str) -> str:
        _check_channels_last(call)
        size = tuple(call.layer.pool_size)
        fields = _window(call, size, (1, 1))
        return self.node(_POOLS[call.kind.__name__], sources, name, **fields)

    def zero_padding(self, call: Call, sources: list[str], name: str) -> str:
        _check_channels_last(call)
        (top, bottom), (left, right) = call.layer.padding
        pads = self.constant([0, 0, top, left, 0, 0, bottom, right], name, np.int64)
        return self.node("Pad", [*sources, pads], name)

    def concatenate(self, call: Call, sources: list[str], name: str) -> str:
        rank = len(_shape(call))
        if call.layer.axis not in (-1, rank):
            raise _unknown(call)
        return self.node("Concat", sources, name, axis=1)

    def reshape(self, call: Call, sources: list[str], name: str) -> str:
        before, after, result = _shape(call.inputs[0].call), _shape(call), sources[0]
        if {len(before), len(after)} - {1, 3}:
            raise _unknown(call)
        if len(before) == 3 and math.prod(before[:2]) > 1:
            result = self.node("Transpose", [result], name, perm=[0, 2, 3, 1])
        moved = len(after) == 3 and math.prod(after[:2]) > 1
        ordered = after if moved or len(after) == 1 else (after[2], *after[:2])
        target = self.constant([-1, *ordered], name, np.int64)
        result = self.node("Reshape", [result, target], name)
        return self.node("Transpose", [result], name, perm=[0, 3, 1, 2]) if moved else result


_WRITERS: MappingProxyType[str, Callable[[_Writer, Call, list[str], str], str]] = MappingProxyType(
    {
        **dict.fromkeys(("Conv2D", "DepthwiseConv2D"), _Writer.convolution),
        **dict.fromkeys(_POOLS, _Writer.pool),
        **dict.fromkeys(_GLOBAL_POOLS, _Writer.global_pool),
        **dict.fromkeys(("Flatten", "Reshape"), _Writer.reshape),
        "Activation": _Writer.activation,
        "BatchNormalization": _Writer.batch_norm,
        "Concatenate": _Writer.concatenate,
        "Dense": _Writer.dense,
        "Normalization": _Writer.normalization,
        "ReLU": _Writer.relu,
        "Rescaling": _Writer.rescaling,
        "Softmax": _Writer.softmax,
        "ZeroPadding2D": _Writer.zero_padding,
    }
)


def _unknown(call: Call) -> UsageError:
    got = f"layer {call.layer.name} of class {call.kind.__qualname__}"
    return UsageError("model", got, "layers that an ONNX file is written of", "`format=tflite`")


def _check_channels_last(call: Call) -> None:
    if getattr(call.layer, "data_format", "channels_last") != "channels_last":
        raise _unknown(call)


def _shape(call: Call) -> tuple[int, ...]:
    """The shape of an output without its batch."""
    return tuple(call.outputs[0].shape[1:])


def _function(activation: Any) -> str:
    return str(getattr(activation, "__name__", "linear"))


def _affine(norm: Call) -> tuple[Array, Array]:
    """Factor and offset of each channel of a batch norm in inference."""
    layer = norm.layer
    if [*layer.axis] != [len(_shape(norm))]:
        raise _unknown(norm)
    mean, variance = (np.asarray(x, np.float64) for x in (layer.moving_mean, layer.moving_variance))
    factor = 1 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        factor = factor * np.asarray(layer.gamma, np.float64)
    beta = np.asarray(layer.beta, np.float64) if layer.center else np.zeros_like(mean)
    return factor, beta - mean * factor


def _window(call: Call, size: tuple[int, ...], dilation: tuple[int, ...]) -> dict[str, Any]:
    """Size, strides and padding of a convolution or pool; SAME pads more at the end."""
    sides, strides = _shape(call.inputs[0].call)[:2], tuple(call.layer.strides)
    pads = []
    for side, kernel, stride, rate in zip(sides, size, strides, dilation, strict=True):
        reach = (kernel - 1) * rate + 1
        total = max((-(-side // stride) - 1) * stride + reach - side, 0)
        total = total if call.layer.padding == "same" else 0
        pads.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = pads
    return {
        "kernel_shape": list(size),
        "strides": list(strides),
        "pads": [top, left, bottom, right],
    }


def write(
    target: str | os.PathLike[str], data: bytes, card: Card, model: Any, images: Float32Array
) -> tuple[Path, float]:
    """Writes `model.onnx`, `card.json` and `labels.txt`, once ONNX Runtime has run the file.

    Args:
        target: the folder; an older export of this kind is replaced.
        data: from `serialize`.
        card: of the model, `outputs` as the file has them.
        model: that the file was written of.
        images: `[n, height, width, channels]`, preprocessed.

    Returns:
        The path of the file, and the largest difference of an output over the largest output.

    Raises:
        VerificationError: the outputs differ by more than `TOLERANCE`; nothing is left.
        UsageError: the folder cannot be written or holds other things.
    """
    check_target(target)
    runtime = load_package("onnxruntime")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (source,), (sink,) = session.get_inputs(), session.get_outputs()

    def run(batch: Any) -> Any:
        inputs = np.asarray(batch, np.float32)
        if isinstance(source.shape[0], str):
            return session.run(None, {source.name: inputs})[0]
        size = source.shape[0]
        padded = np.concatenate([inputs, np.repeat(inputs[-1:], -len(inputs) % size, axis=0)])
        parts = [padded[i : i + size] for i in range(0, len(padded), size)]
        rows = [session.run(None, {source.name: part})[0] for part in parts]
        return np.concatenate(rows)[: len(inputs)]

    path = Path(target) / FILE
    difference = verify(path, run, model, images, TOLERANCE)
    note = f"ONNX: input {source.name}, output {sink.name}"
    shape = tuple(source.shape[1:])
    with files.replacing(target) as temporary:
        temporary.mkdir()
        (temporary / FILE).write_bytes(data)
        bundle.write_float_card(temporary, card, shape, sink.shape[-1], note)
    return path, difference
