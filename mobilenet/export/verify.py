"""The proof of a flatbuffer: what is inside it, and whether it says what the Keras net says."""

from __future__ import annotations

import collections
import dataclasses
import gzip
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.configs.card import Edge
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.runtime import flatbuffer, interpreter, parts

Floats = npt.NDArray[np.floating]

CLEAR_STEPS = 2.0  # a Keras margin of more output steps than this is no tie
FLOAT_STEP = 1e-3  # "step" of a file whose logits are float
_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}
_CHANCE = 4  # fewer channels may share a bias code by chance
_EDGE_OPERATORS = ("QUANTIZE", "DEQUANTIZE")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a file must reach; a figure that misses its limit is a fault.

    Attributes:
        agreement: least share of images with the same top-1 as the Keras net.
        agreement_clear: the same among images whose Keras margin exceeds two output steps.
            Single-step flips grow with depth: on pure noise V2 keeps .976.
        mean_steps: largest mean difference of a logit, in output steps.
        partitions: most delegate partitions; `None` only warns from the second on.
    """

    agreement: float = 0.0
    agreement_clear: float = 0.97
    mean_steps: float = float("inf")
    partitions: int | None = None


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was found in a flatbuffer and how it compares with the Keras net.

    Attributes:
        operators: operator name to count.
        float_tensors: float tensors inside the file (its two ends are not inside).
        quantized: the file was expected to be int8 inside.
        input_shape: `[batch, height, width, channels]`.
        output_shape: `[batch, classes]`.
        input, output: the ends of the file.
        partitions: parts that XNNPACK runs as one; 1 is best.
        images: images compared.
        agreement: share of them with the same top-1.
        clear_images: images whose Keras margin exceeds two output steps.
        agreement_clear: share of those with the same top-1; 1 when there are none.
        mean_steps, max_steps: difference of the logits in output steps (0.001 for a float file).
        bytes: size of the file.
        gzip_bytes: its size under gzip, level 9.
        faults: what is wrong, one line each; empty for a good file.
        warnings: what costs time but is not wrong.
    """

    operators: Mapping[str, int]
    float_tensors: int
    quantized: bool
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input: Edge
    output: Edge
    partitions: int
    images: int
    agreement: float
    clear_images: int
    agreement_clear: float
    mean_steps: float
    max_steps: float
    bytes: int
    gzip_bytes: int
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """No fault was found."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Plain values for `report.json`."""
        return {
            **dataclasses.asdict(self),
            "operators": dict(self.operators),
            "input": self.input.to_json(),
            "output": self.output.to_json(),
            "ok": self.ok,
        }


def verify(
    data: bytes,
    reference_logits: Floats,
    inputs: Floats,
    *,
    expect_int8: bool,
    io: str = "float32",
    pixel_std: float | None = 127.5,
    limits: Limits = Limits(),
    threads: int = 1,
) -> Verification:
    """Reads a flatbuffer, runs it on `inputs` and compares it with the net that it was made from.

    Args:
        data: the file.
        reference_logits: `[images, classes]`, the Keras net's answer to the same `inputs`; for an
            int8 file that of the net with fake quantization.
        inputs: `[images, height, width, channels]`, preprocessed for this file:
            `(pixel - 128) / 127.5` where it is int8 inside.
        expect_int8: the inside must be int8, weights per channel.
        io: type of both ends (`int8`, `uint8`, `float32`).
        pixel_std: deviation of the preprocessing, whose inverse is the step of an int8 input;
            `None` where the channels differ and the range was taken from data.
        limits: figures that the file must reach.
        threads: of the interpreter.

    Raises:
        UsageError: the bytes are no sound flatbuffer, or images and logits do not fit it.
    """
    content = flatbuffer.read(data)
    faults = structure_faults(content, expect_int8, io, pixel_std)
    runner = interpreter.make(content, threads)
    partitions = interpreter.partitions(runner)
    logits = run(runner, inputs)
    reference = np.asarray(reference_logits, np.float64).reshape(len(reference_logits), -1)
    if reference.shape != logits.shape:
        raise UsageError("reference logits", reference.shape, f"{logits.shape}, as the file gives")
    compared = _compare(reference, logits, output_step(content))
    faults += _limit_faults(compared, limits)
    spread = [f"{partitions} delegate partitions instead of 1"] if partitions > 1 else []
    if limits.partitions is not None and partitions > limits.partitions:
        faults, spread = faults + spread, []
    source, sink = content.tensors[content.inputs[0]], content.tensors[content.outputs[0]]
    return Verification(
        operators=dict(collections.Counter(op.name for op in content.operators)),
        float_tensors=len(inner_float_tensors(content)),
        quantized=expect_int8,
        input_shape=tuple(source.shape),
        output_shape=tuple(sink.shape),
        input=_edge(source),
        output=_edge(sink),
        partitions=partitions,
        bytes=len(data),
        gzip_bytes=gzip_size(data),
        faults=tuple(faults),
        warnings=tuple(spread),
        **compared,
    )


def gzip_size(data: bytes) -> int:
    """Size under gzip at level 9: what a sparse or clustered file costs on its way to a device."""
    return len(gzip.compress(data, compresslevel=9, mtime=0))


def run(runner: Any, inputs: Floats) -> Floats:
    """Runs an interpreter on images and gives its logits.

    Args:
        runner: an interpreter with its tensors allocated.
        inputs: `[images, height, width, channels]`, float, preprocessed for the file.

    Returns:
        Float `[images, classes]`; codes are made and read with the scales of the file's two ends.

    Raises:
        UsageError: the images do not have the file's shape, or there are none.
    """
    source, sink = runner.get_input_details()[0], runner.get_output_details()[0]
    batch, *image = (int(size) for size in source["shape"])
    if inputs.ndim != 4 or list(inputs.shape[1:]) != image or not len(inputs):
        raise UsageError("inputs", inputs.shape, f"images of shape {tuple(image)}, one at least")
    codes = _quantize(inputs, source)
    rows = []
    for start in range(0, len(codes), batch):
        block = codes[start : start + batch]
        filled = np.resize(block, (batch, *image))
        runner.set_tensor(source["index"], filled)
        runner.invoke()
        rows.append(
            _dequantize(runner.get_tensor(sink["index"]), sink).reshape(batch, -1)[: len(block)]
        )
    return np.concatenate(rows)


def structure_faults(
    content: flatbuffer.Flatbuffer, expect_int8: bool, io: str, pixel_std: float | None = 127.5
) -> list[str]:
    """Lists what is wrong inside a file, without running it."""
    one_of("io", io, ("int8", "uint8", "float32"))
    faults = []
    if len(content.inputs) != 1 or len(content.outputs) != 1:
        faults.append(
            f"{len(content.inputs)} inputs and {len(content.outputs)} outputs instead of one each"
        )
    for end, index in (("input", content.inputs[0]), ("output", content.outputs[0])):
        dtype = content.tensors[index].dtype
        if dtype != io:
            faults.append(f"{end} is {dtype} instead of {io}")
    if not expect_int8:
        return faults
    names = inner_float_tensors(content)
    if names:
        faults.append(f"{len(names)} float tensors inside: {shorten(names)}")
    floats = [op.name for op in content.operators if _is_float(op, content)]
    if floats:
        faults.append(f"float operators: {shorten(floats)}")
    if pixel_std is not None:
        faults += _input_grid_faults(content, pixel_std)
    for op in content.operators:
        if op.name in _CHANNEL_AXIS:
            faults += _convolution_faults(op, content)
    return faults


def inner_float_tensors(content: flatbuffer.Flatbuffer) -> list[str]:
    """Names of the float tensors that are not an end of the file."""
    ends = {*content.inputs, *content.outputs}
    return [_name(tensor) for tensor in content.float_tensors() if tensor.index not in ends]


def output_step(content: flatbuffer.Flatbuffer) -> float:
    """The logit that one int8 code is worth; `FLOAT_STEP` where the file computes them in float."""
    sink = content.outputs[0]
    for op in content.operators:
        if op.name == "DEQUANTIZE" and sink in op.outputs:
            sink = op.inputs[0]
    return _edge(content.tensors[sink]).scale or FLOAT_STEP


def _is_float(op: parts.Operator, content: flatbuffer.Flatbuffer) -> bool:
    ends = {*content.inputs, *content.outputs}
    floats = {tensor.index for tensor in content.float_tensors()}
    touched = floats.intersection(op.inputs + op.outputs)
    return bool(touched) and not (op.name in _EDGE_OPERATORS and touched <= ends)


def _input_grid_faults(content: flatbuffer.Flatbuffer, std: float) -> list[str]:
    """The code of a pixel must be the pixel minus 128: other grids put pixels between two codes."""
    source = content.inputs[0]
    if content.tensors[source].dtype != "int8":  # then the first operator makes the codes
        readers = [op for op in content.operators if op.name == "QUANTIZE" and source in op.inputs]
        source = readers[0].outputs[0] if readers else source
    edge = _edge(content.tensors[source])
    if abs(edge.scale * std - 1) > 1e-6 or edge.zero_point != 0:
        found = f"input scale {edge.scale:.8g} and zero point {edge.zero_point}"
        return [f"{found} instead of 1/{std:g} and 0"]
    return []


def _convolution_faults(op: parts.Operator, content: flatbuffer.Flatbuffer) -> Iterator[str]:
    kernel = content.tensors[op.inputs[1]]
    axis = _CHANNEL_AXIS[op.name]
    channels, scales = kernel.shape[axis], np.asarray(kernel.scales, np.float64)
    if kernel.dtype != "int8":
        return  # told as a float operator
    if len(scales) != channels or (channels > 1 and kernel.quantized_dimension != axis):
        yield f"{_name(kernel)} has {len(scales)} scales for {channels} channels"
    if len(op.inputs) < 3 or op.inputs[2] < 0 or content.tensors[op.inputs[2]].dtype != "int32":
        return
    bias = content.tensors[op.inputs[2]].data
    if bias is None:
        return
    largest = np.iinfo(np.int32).max
    saturated = int(np.count_nonzero(np.abs(bias.astype(np.int64)) >= largest))
    if saturated:
        yield f"{_name(kernel)}: {saturated} biases out of int32's range (channels hardly weighted)"
    elif len(bias) >= _CHANCE and bias[0] and np.ptp(bias) == 0 and np.ptp(scales) > 0:
        yield f"{_name(kernel)}: one bias code for all channels, whose scales differ"


def _compare(reference: Floats, logits: Floats, step: float) -> dict[str, Any]:
    best = np.sort(reference, axis=1)
    margin = best[:, -1] - best[:, -2] if reference.shape[1] > 1 else np.zeros(len(best))
    clear = margin > CLEAR_STEPS * step
    same = reference.argmax(axis=1) == logits.argmax(axis=1)
    steps = np.abs(reference - logits) / step
    return {
        "images": len(same),
        "agreement": float(same.mean()),
        "clear_images": int(clear.sum()),
        "agreement_clear": float(same[clear].mean()) if clear.any() else 1.0,
        "mean_steps": float(steps.mean()),
        "max_steps": float(steps.max()),
    }


def _limit_faults(compared: dict[str, Any], limits: Limits) -> list[str]:
    faults = []
    for name, text in (("agreement", "all"), ("agreement_clear", "clear")):
        least = getattr(limits, name)
        if compared[name] < least:
            images = compared["images" if text == "all" else "clear_images"]
            faults.append(
                f"top-1 agreement on {images} {text} images {compared[name]:.4f}, below {least:g}"
            )
    if not np.isfinite(compared["mean_steps"]):
        faults.append("logits that are not finite, of the file or of the net it was made from")
    elif compared["mean_steps"] > limits.mean_steps:
        mean = compared["mean_steps"]
        faults.append(
            f"logits differ by {mean:.3g} output steps on average, above {limits.mean_steps:g}"
        )
    return faults


def _quantize(values: Floats, detail: dict[str, Any]) -> npt.NDArray[Any]:
    scale, zero = detail["quantization"]
    if not scale:
        return values.astype(detail["dtype"])
    ends = np.iinfo(detail["dtype"])
    codes: npt.NDArray[Any] = np.clip(np.round(values / scale) + zero, ends.min, ends.max)
    return codes.astype(detail["dtype"])


def _dequantize(codes: npt.NDArray[Any], detail: dict[str, Any]) -> Floats:
    scale, zero = detail["quantization"]
    real: Floats = (codes.astype(np.float64) - zero) * (scale or 1.0)
    return real


def _name(tensor: parts.Tensor) -> str:
    """The first of the names that the converter joins when it fuses layers."""
    return tensor.name.split(";")[0]


def _edge(tensor: parts.Tensor) -> Edge:
    if not len(tensor.scales):
        return Edge(tensor.dtype)
    return Edge(tensor.dtype, float(tensor.scales[0]), int(tensor.zero_points[0]))
