"""The verification of a flatbuffer: its structure, and its outputs against the Keras model's."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.configs.card import SIGMOID, SOFTMAX, TensorType
from mobilenet.configs.conversion import VerificationLimits
from mobilenet.configs.number_formats import Format
from mobilenet.data.in_memory import evenly_spaced
from mobilenet.errors import UsageError
from mobilenet.export.rewrites import float_fallback
from mobilenet.export.verification import operator_parity
from mobilenet.export.verification.operator_parity import OperatorParity
from mobilenet.export.verification.structure import (
    FLOAT_STEP,
    check_rescaling,
    format_faults,
    inner_float_tensors,
    io_of,
    output_step,
    structure_faults,
)
from mobilenet.metrics import decisions, signal_to_noise
from mobilenet.runtime import interpreter
from mobilenet.runtime.quantized_io import run
from mobilenet.tflite import model as tflite_model
from mobilenet.typing import FloatArray

__all__ = ["Verification", "gzip_size", "run", "structure_faults", "verify"]


CLEAR_STEPS = 2.0  # a Keras margin of more output steps than this is no tie
# Single-step flips grow with depth: on pure noise MobileNetV2 agrees on 0.976 of the clear images.
EXPECTED = VerificationLimits(min_clear_agreement=0.97)
DEGENERATE_SHARE = 0.95  # of the images; less is expected of a file that agrees (`EXPECTED`)
DEGENERATE_SHARE_OF_MANY = 0.9  # of three classes or more
DEGENERATE_IMAGES = 10  # fewer may well be of one class
_CONSTANT = 1e-4  # of the largest output; rounding in float32 is a thousandth of it
OPERATOR_IMAGES = 8  # an operator rounds hundreds of codes of each


@dataclasses.dataclass(frozen=True)
class Verification:
    """The contents of a flatbuffer and its comparison with the Keras model.

    Attributes:
        operators: operator name to count.
        float_tensors: float tensors inside the file, without its input and output.
        quantized: the file was expected to be int8 inside.
        contents: its number format, in words.
        input_shape: `[batch, height, width, channels]`.
        output_shape: `[batch, classes]`.
        input, output: types and quantization of the file's input and output.
        partitions: parts that XNNPACK runs as one; 1 is best.
        images: images compared.
        agreement: share of them with the same top-1, or of a sigmoid with the same labels.
        clear_images: images whose Keras margin exceeds two output steps.
        agreement_clear: share of those that agree; 1 when there are none.
        mean_steps, max_steps: difference of the outputs in steps of theirs (0.001 for a float
            file).
        signal_to_noise: of the outputs, in dB; `None` where the model's outputs are all 0.
        degenerate: why the agreement means nothing: the model decides alike on nearly all images,
            or has constant outputs; empty where it means something.
        bytes: size of the file.
        gzip_bytes: its size under gzip, level 9.
        faults: what is wrong, one line each; empty for a good file.
        warnings: what costs time but is not wrong.
        layers: each operator against its simulated layer; empty for a float file.
    """

    operators: Mapping[str, int]
    float_tensors: int
    quantized: bool
    contents: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input: TensorType
    output: TensorType
    partitions: int
    images: int
    agreement: float
    clear_images: int
    agreement_clear: float
    mean_steps: float
    max_steps: float
    signal_to_noise: float | None
    degenerate: str
    bytes: int
    gzip_bytes: int
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    layers: tuple[OperatorParity, ...] = ()

    def __str__(self) -> str:
        parts = [
            self.contents,
            f"{self.bytes:,} bytes",
            f"{self.partitions} delegate partition{'s' * (self.partitions != 1)}",
            f"same outcome as the model on {self.agreement:.2%} of {self.images} images",
        ]
        if self.layers:
            steps = max(layer.max_steps for layer in self.layers)
            parts.append(f"{len(self.layers)} operators verified, {steps} steps apart at most")
        return "; ".join([*parts, *self.faults, *self.warnings])

    @property
    def ok(self) -> bool:
        """No fault was found."""
        return not self.faults

    @property
    def same_decision(self) -> str:
        """The agreement in words, or why there is none."""
        if self.degenerate:
            return f"not comparable: {self.degenerate}"
        return f"{self.agreement:.2%} of {self.images} images"

    @property
    def output_difference(self) -> str:
        """The difference of the outputs in words: in steps, or in their own unit and dB."""
        if self.output.scale or self.contents == "float32":
            return f"{self.mean_steps:.3g} steps, {self.max_steps:.3g} at most"
        mean, most = FLOAT_STEP * self.mean_steps, FLOAT_STEP * self.max_steps
        ratio = "" if self.signal_to_noise is None else f" ({self.signal_to_noise:.1f} dB)"
        return f"{mean:.3g}, {most:.3g} at most{ratio}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `report.json`."""
        return {
            **dataclasses.asdict(self),
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "operators": dict(self.operators),
            "input": self.input.to_json(),
            "output": self.output.to_json(),
            "ok": self.ok,
        }


def verify(
    data: bytes,
    reference_logits: FloatArray,
    inputs: FloatArray,
    *,
    expect_int8: bool,
    io: str = "float32",
    pixel_std: float | None = 127.5,
    limits: VerificationLimits = EXPECTED,
    threads: int = 1,
    simulated: Any = None,
    plain: Any = None,
    number_format: Format | None = None,
    float_layers: float_fallback.FloatLayers = float_fallback.NO_FLOAT_LAYERS,
    pixel_zero: int = 128,
    activation: str = SOFTMAX,
    are_logits: bool = True,
) -> Verification:
    """Reads a flatbuffer, runs it on `inputs` and compares it with the model that it was made from.

    Args:
        data: the file.
        reference_logits: `[images, classes]`, outputs of the model (the one with fake quantization
            for an int8 file).
        inputs: `[images, height, width, channels]`, preprocessed for this file.
        expect_int8: whether the file must be int8 inside.
        io: the type that its input and output must have.
        pixel_std: of the preprocessing, the inverse of an int8 input's step; `None` for several.
        limits: figures that the file must reach.
        threads: of the interpreter.
        simulated, plain: for a verification of each operator, the model that was converted, with
            fake quantization, and its float model.
        number_format: the number format that a file made from a float model must have.
        float_layers: what must compute in float inside an int8 file.
        pixel_zero: the pixel that is zero for an int8 file.
        activation, are_logits: what the outputs mean, see `metrics.decisions`.

    Raises:
        UsageError: no sound flatbuffer that can run, or images and logits do not fit it.
    """
    content = tflite_model.read(data)
    check_rescaling(content)
    faults = structure_faults(content, expect_int8, io, pixel_std, float_layers, pixel_zero)
    faults += [] if number_format is None else format_faults(content, number_format)
    runner = interpreter.make_interpreter(content, threads)
    logits = run(runner, inputs)
    reference = _matching_reference(logits, reference_logits)
    layers, layer_faults = _verify_operators(content, simulated, plain, inputs, limits)
    faults += layer_faults
    compared = _compare(reference, logits, output_step(content), activation, are_logits)
    faults += _limit_faults(compared, limits)
    partitions, warnings = _count_partitions(runner)
    if limits.max_partitions is not None and partitions > limits.max_partitions:
        faults, warnings = faults + warnings, []
    return Verification(
        quantized=expect_int8,
        **_describe(content, expect_int8, number_format, float_layers),
        partitions=partitions,
        bytes=len(data),
        gzip_bytes=gzip_size(data),
        faults=tuple(faults),
        warnings=tuple(warnings),
        layers=layers,
        **compared,
    )


def _verify_operators(
    content: tflite_model.Flatbuffer,
    simulated: Any,
    plain: Any,
    inputs: FloatArray,
    limits: VerificationLimits,
) -> tuple[tuple[OperatorParity, ...], list[str]]:
    """Compares each operator with its simulated layer, where there is one; lists the faults."""
    if simulated is None:
        return (), []
    layers, faults = operator_parity.compare_operators(content, simulated, plain, _sample(inputs))
    return layers, faults + operator_parity.step_faults(layers, limits.max_operator_steps)


def _matching_reference(logits: FloatArray, reference_logits: FloatArray) -> FloatArray:
    """The model's outputs in the shape of the file's."""
    reference = np.asarray(reference_logits, np.float64).reshape(len(reference_logits), -1)
    if reference.shape != logits.shape:
        raise UsageError("reference logits", reference.shape, f"{logits.shape}, as the file gives")
    return reference


def _sample(inputs: FloatArray) -> FloatArray:
    """A few of the images, sampled evenly."""
    sample: FloatArray = inputs[evenly_spaced(len(inputs), OPERATOR_IMAGES)]
    return sample


def _count_partitions(runner: Any) -> tuple[int, list[str]]:
    """Parts that the delegate takes; a warning unless it is one, and what it leaves out."""
    partitions = interpreter.partitions(runner)
    if partitions == 0:
        return 0, ["no delegate partition: reference kernels run all of it, many times slower"]
    if partitions == 1:
        return partitions, []
    outside = collections.Counter(interpreter.outside(runner))
    names = ", ".join(f"{count} {name}" for name, count in sorted(outside.items()))
    line = f"{partitions} delegate partitions instead of 1 (outside: {names or 'none'})"
    return partitions, [line]


def _describe(
    content: tflite_model.Flatbuffer,
    int8: bool,
    number_format: Format | None,
    float_layers: float_fallback.FloatLayers,
) -> dict[str, Any]:
    count = len(float_layers.kernels)
    int8_contents = f"int8, {count} layer{'s' * (count > 1)} in float" if count else "int8"
    source, sink = content.tensors[content.inputs[0]], content.tensors[content.outputs[0]]
    contents = int8_contents if int8 else "float32"
    if number_format is not None:
        contents = number_format.contents
    return {
        "contents": contents,
        "operators": dict(collections.Counter(op.name for op in content.operators)),
        "float_tensors": len(inner_float_tensors(content)),
        "input_shape": tuple(source.shape),
        "output_shape": tuple(sink.shape),
        "input": io_of(source),
        "output": io_of(sink),
    }


def gzip_size(data: bytes) -> int:
    """Size under gzip at level 9: the download size of a sparse or clustered file."""
    return len(gzip.compress(data, compresslevel=9, mtime=0))


def _compare(
    reference: FloatArray, logits: FloatArray, step: float, activation: str, are_logits: bool
) -> dict[str, Any]:
    if activation == SIGMOID:
        margin = np.abs(reference - (0.0 if are_logits else 0.5)).min(axis=1)
    else:
        best = np.sort(reference, axis=1)
        margin = best[:, -1] - best[:, -2] if reference.shape[1] > 1 else np.zeros(len(best))
    clear = margin > CLEAR_STEPS * step
    expected, decided = (
        decisions(outputs, activation, are_logits) for outputs in (reference, logits)
    )
    same = (expected == decided).all(axis=1)
    steps = np.abs(reference - logits) / step
    return {
        "images": len(same),
        "agreement": float(same.mean()),
        "clear_images": int(clear.sum()),
        "agreement_clear": float(same[clear].mean()) if clear.any() else 1.0,
        "mean_steps": float(steps.mean()),
        "max_steps": float(steps.max()),
        "signal_to_noise": signal_to_noise(reference, logits),
        "degenerate": find_degenerate(reference, expected),
    }


def find_degenerate(reference: FloatArray, decided: npt.NDArray[Any]) -> str:
    """Why the agreement with these outputs means nothing, in words; empty where it means something.

    Where the model decides alike on more than `DEGENERATE_SHARE` of the images, or gives one of
    three classes or more to `DEGENERATE_SHARE_OF_MANY` of them, a file that ignores its input
    agrees on as many. Images of one class alone are a sound reason, images that the model takes in
    another form the usual one. Of fewer than `DEGENERATE_IMAGES` nothing is said.

    Args:
        reference: outputs of the model, `[images, outputs]`.
        decided: its class or labels for each image, `[images, ...]`.
    """
    count = len(reference)
    if count < DEGENERATE_IMAGES or not np.isfinite(reference).all():
        return ""
    if np.ptp(reference, axis=0).max() <= _CONSTANT * np.abs(reference).max():
        return f"the model has the same outputs for all {count} images"
    _, counts = np.unique(decided.reshape(count, -1), axis=0, return_counts=True)
    most = int(counts.max())
    of_many = decided.ndim == 1 and reference.shape[-1] > 2
    if most <= (DEGENERATE_SHARE_OF_MANY if of_many else DEGENERATE_SHARE) * count:
        return ""
    return f"the model decides alike on {most} of {count} images"


def _limit_faults(compared: dict[str, Any], limits: VerificationLimits) -> list[str]:
    faults = []
    most = math.inf if limits.max_mean_steps is None else limits.max_mean_steps
    for name, text, least in (
        ("agreement", "all", limits.min_agreement),
        ("agreement_clear", "clear", limits.min_clear_agreement),
    ):
        if compared[name] < least:
            images = compared["images" if text == "all" else "clear_images"]
            faults.append(
                f"agreement on {images} {text} images {compared[name]:.4f}, below {least:g}"
            )
    if not np.isfinite(compared["mean_steps"]):
        faults.append("logits that are not finite, of the file or of the model it was made from")
    elif compared["mean_steps"] > most:
        mean = compared["mean_steps"]
        faults.append(f"logits differ by {mean:.3g} output steps on average, above {most:g}")
    return faults
