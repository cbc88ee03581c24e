"""The conversion of a model to each number format, before its verification."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np

from mobilenet import metrics
from mobilenet.compression.quantization.int8 import float_layers, scheme
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8.converter_workarounds import Repair
from mobilenet.configs.card import SIGMOID, activation_of
from mobilenet.configs.conversion import ConversionConfig
from mobilenet.configs.number_formats import FLOAT32, FORMATS, INT8
from mobilenet.errors import UsageError
from mobilenet.export import freeze, tflite_converter
from mobilenet.export.calibration_data import Calibration, require_calibration
from mobilenet.export.rewrites import ai_edge, dynamic_range, float_fallback
from mobilenet.export.source import Source
from mobilenet.models.graph import inference
from mobilenet.runtime import images as image_ops
from mobilenet.tflite import model as tflite_model
from mobilenet.typing import Float32Array


@dataclasses.dataclass(frozen=True)
class ConversionJob:
    """What is converted, and how.

    Attributes:
        source: the model.
        images: `[n, height, width, channels]`, held out, preprocessed for the model.
        config: number format, input and output types, batch, size and target of the file.
        shape: `[height, width, channels]` of the file.
        calibration: images for the activation ranges, where the number format has some.
    """

    source: Source
    images: Float32Array
    config: ConversionConfig
    shape: tuple[int, int, int]
    calibration: Calibration | None = None

    @property
    def activation(self) -> str:
        """What turns the model's logits into probabilities."""
        return activation_of(self.source.card.activation, self.source.model.output_shape[-1])


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A converted file that is still to be verified.

    Attributes:
        data: its bytes.
        reference: `[n, classes]`, the outputs that are expected for `inputs`.
        inputs: the job's images as the file takes them.
        simulated: the model with fake quantization that the operators are compared with, if any.
        float_layers: what computes in float inside an int8 file.
        repairs: layers that were changed to avoid faults of the converter.
        faults: what was wrong during conversion.
        notes: how the file was made, a line each.
    """

    data: bytes
    reference: Float32Array
    inputs: Float32Array
    simulated: Any = None
    float_layers: float_fallback.FloatLayers = float_fallback.NO_FLOAT_LAYERS
    repairs: tuple[Repair, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def convert(job: ConversionJob) -> Conversion:
    """Converts a model to the number format of its config, or as it was trained.

    Raises:
        UsageError: it cannot be converted to that format.
    """
    as_trained = INT8 if job.source.quantized else FLOAT32
    return CONVERTERS[job.config.number_format or as_trained](job)


def _convert_int8(job: ConversionJob) -> Conversion:
    prepared, config = prepare_int8(job), job.config
    data = tflite_converter.int8_flatbuffer(
        prepared.simulated,
        config.io or INT8,
        config.batch,
        job.shape,
        config.target,
        prepared.float_layers,
    )
    return dataclasses.replace(prepared, data=data)


def prepare_int8(job: ConversionJob) -> Conversion:
    """What an int8 file of a quantized model must compute; without its bytes."""
    source, config = job.source, job.config
    fitted = source.fitted
    notes: tuple[str, ...] = ()
    wrapped = source.with_quantizers(config.target)
    simulated = freeze.with_activation(wrapped, config.activation)
    reference = _outputs(simulated, job.images)
    if fitted is not None:
        notes = (
            fitted.calibration_note,
            _agreement_note(fitted.original, job, reference),
        )
    repairs = int8_saving.prepare_export(wrapped, source.repair)
    floats = float_fallback.FloatLayers(
        float_layers.folded_kernels(wrapped), float_layers.find_all_float_layers(wrapped)
    )
    inputs = scheme.file_inputs(wrapped, job.images)
    return Conversion(b"", reference, inputs, simulated, floats, tuple(repairs), notes=notes)


def _agreement_note(original: Any, job: ConversionJob, outputs: Float32Array) -> str:
    """How often the quantized model decides as the float model that it was made from."""
    expected = metrics.decisions(_outputs(original, job.images), job.activation)
    decided = metrics.decisions(outputs, job.activation, job.config.activation is None)
    agreement = float(np.mean((expected == decided).all(axis=1)))
    what = "labels" if job.activation == SIGMOID else "top-1"
    return f"the float model's {what} on {agreement:.1%} of {len(job.images)} held-out images"


def _float_flatbuffer(job: ConversionJob) -> bytes:
    return tflite_converter.float_flatbuffer(
        job.source.model, job.config.batch, job.shape, job.config.activation
    )


def compared_with_float(
    job: ConversionJob, data: bytes, faults: tuple[str, ...] = (), notes: tuple[str, ...] = ()
) -> Conversion:
    """A file whose outputs are compared with those of the float model."""
    copy = freeze.float32_copy(job.source.model)
    model = freeze.with_activation(copy, job.config.activation)
    return Conversion(data, _outputs(model, job.images), job.images, faults=faults, notes=notes)


def _convert_float32(job: ConversionJob) -> Conversion:
    return compared_with_float(job, _float_flatbuffer(job))


def _convert_dynamic_range(job: ConversionJob) -> Conversion:
    data = _float_flatbuffer(job)
    noise = dynamic_range.noise_images(dynamic_range.NOISE_IMAGES, job.shape)
    inputs = image_ops.normalize(noise, job.source.card.preprocessing)
    quantized = dynamic_range.quantize_kernels(data, inputs)
    faults = dynamic_range.find_faults(tflite_model.read(data), tflite_model.read(quantized))
    note = f"no calibration data; biases corrected for rounding on {len(noise)} images of noise"
    return compared_with_float(job, quantized, tuple(faults), (note,))


def _convert_float16(job: ConversionJob) -> Conversion:
    config, model = job.config, job.source.model
    data = tflite_converter.float16_flatbuffer(model, config.batch, job.shape, config.activation)
    return compared_with_float(job, data)


def _convert_int16x8(job: ConversionJob) -> Conversion:
    config, model = job.config, job.source.model
    calibration = require_calibration(job.calibration, config.number_format)
    try:
        data = tflite_converter.int16x8_flatbuffer(
            model, calibration.images, config.batch, job.shape, config.activation
        )
    except RuntimeError as error:
        raise UsageError(
            "number_format",
            config.number_format,
            f"a model of operators with 16-bit kernels ({error})",
        ) from error
    return compared_with_float(job, data, notes=(f"calibrated on {calibration.summary}",))


def _convert_with_ai_edge(job: ConversionJob) -> Conversion:
    name = job.config.number_format
    assert name is not None
    calibration = None
    if FORMATS[name].calibrated:
        calibration = require_calibration(job.calibration, name)
    images = None if calibration is None else calibration.images
    data = ai_edge.apply_recipe(_float_flatbuffer(job), name, images)
    notes = () if calibration is None else (f"calibrated on {calibration.summary}",)
    return compared_with_float(job, data, notes=notes)


def _outputs(model: Any, images: Float32Array) -> Float32Array:
    """Outputs `[n, classes]` of a model in inference mode."""
    return inference.run(inference.compile_model(model), images)


CONVERTERS: MappingProxyType[str, Callable[[ConversionJob], Conversion]] = MappingProxyType(
    {
        INT8: _convert_int8,
        FLOAT32: _convert_float32,
        "dynamic_range": _convert_dynamic_range,
        "float16": _convert_float16,
        "int16x8": _convert_int16x8,
        "edge_dynamic": _convert_with_ai_edge,
        "edge_weights": _convert_with_ai_edge,
        "edge_static": _convert_with_ai_edge,
        "edge_int4": _convert_with_ai_edge,
    }
)
