"""The kinds of file that a saved model can become, each before its verification."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.compression.quantization.int8 import float_layers, scheme
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8.converter_workarounds import Repair
from mobilenet.compression.quantization.post_training import pipeline as post_training_pipeline
from mobilenet.configs.conversion import ConversionConfig
from mobilenet.configs.number_formats import POST_TRAINING
from mobilenet.configs.quantization import PostTraining
from mobilenet.errors import UsageError
from mobilenet.export import freeze, tflite_converter
from mobilenet.export.calibration_data import Calibration
from mobilenet.export.rewrites import ai_edge, dynamic_range, float_fallback, offsets
from mobilenet.models import saving
from mobilenet.models.graph import inference
from mobilenet.runtime import images as pixels
from mobilenet.tflite import model as tflite_model

Images = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A float model after post-training int8.

    Attributes:
        result: the model with its quantizers, and the steps.
        original: the float model before, in float32 and without softmax.
        told: what it was calibrated on.
    """

    result: post_training_pipeline.Quantized
    original: Any
    told: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A saved model that is to be converted.

    Attributes:
        path: where it was read.
        model: the float model and its card.
        quantized: ranges lie beside it, or it was fitted.
        fitted: what post-training int8 made of it.
    """

    path: Path
    net: saving.LoadedModel
    quantized: bool
    fitted: Fitted | None = None


def open_source(path: str | os.PathLike[str]) -> Source:
    """Reads a model once, for what is asked about it and for its conversion.

    Raises:
        UsageError: see `folder.load`.
    """
    return Source(Path(path), saving.load(path), int8_saving.has_ranges(path))


def fit(source: Source, calibration: Calibration, config: PostTraining) -> Source:
    """Post-training int8 of a float model; the result converts as a model that was trained for it.

    Raises:
        UsageError: see `chain.quantize`; or the model has ranges already.
    """
    if source.quantized:
        raise UsageError(
            "--quantization",
            POST_TRAINING,
            "a float model; this one has ranges and becomes int8 as it was trained",
            "leave it out, or give the folder of an earlier stage",
        )
    original = freeze.float32_copy(source.net.model)
    card = source.net.card
    result = post_training_pipeline.quantize(
        original, card.preprocessing, calibration.images, config
    )
    floats = float_layers.find_float_layers(result.wrapped)
    card = card.replace(
        notes=(*card.notes, *result.notes),
        keep_float=floats,
        calibration=result.calibration.replace(source=calibration.source),
        quantization_steps=result.steps,
    )
    fitted = Fitted(result, original, f"calibrated on {calibration.told}")
    return Source(source.path, saving.LoadedModel(result.plain, card), True, fitted)


@dataclasses.dataclass(frozen=True)
class Job:
    """A conversion.

    Attributes:
        source: the model.
        images: `[n, height, width, channels]`, held out, preprocessed as the model takes them.
        form: what the file is to look like.
        shape: `[height, width, channels]` of the file.
        calibration: what ranges are taken from, where the number format has some.
    """

    source: Source
    images: Images
    form: ConversionConfig
    shape: tuple[int, int, int]
    calibration: Calibration | None = None

    def calibrated(self) -> Calibration:
        """The calibration images.

        Raises:
            UsageError: there are none.
        """
        if self.calibration is None:
            raise UsageError(
                "calibration images", None, f"images, as {self.form.quantization} takes ranges"
            )
        return self.calibration


@dataclasses.dataclass(frozen=True)
class Made:
    """A file that is still to be verified.

    Attributes:
        data: its bytes.
        reference: `[n, classes]`, what it must say to `inputs`.
        inputs: the job's images as the file takes them.
        simulated: the model whose layers the operators must equal, where there is one.
        kept: what computes in float inside an int8 file.
        repairs: layers that were mended for the converter.
        faults: what was found wrong while it was made.
        notes: what a person should know of it, a line each.
    """

    data: bytes
    reference: Images
    inputs: Images
    simulated: Any = None
    kept: float_fallback.Kept = float_fallback.NOTHING
    repairs: tuple[Repair, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def make(job: Job) -> Made:
    """Converts a model: in the number format that is asked for, else as it was trained.

    Raises:
        UsageError: it cannot be converted so.
    """
    if job.form.quantization is not None:
        return MAKERS[job.form.quantization](job)
    return _int8(job) if job.source.quantized else _after_training(job, _float_file(job))


def _int8(job: Job) -> Made:
    source, form = job.source, job.form
    fitted = source.fitted
    notes: tuple[str, ...] = ()
    if fitted is None:
        wrapped = int8_saving.load(source.path, source.net, form.target)
    elif form.target == "xnnpack":
        wrapped = fitted.result.wrapped
    else:
        ranges = scheme.get_ranges(fitted.result.wrapped)
        wrapped = int8_saving.assembled(source.net, ranges, form.target)
    simulated = freeze.with_softmax(wrapped) if form.softmax else wrapped
    reference = _answers(simulated, job.images)
    if fitted is not None:
        notes = (fitted.told, _against(fitted.original, job.images, reference))
    repairs = int8_saving.for_export(wrapped, fitted is None or fitted.result.repair)
    ends, batch = form.io_type(True), form.batch
    floats = float_fallback.Kept(
        float_layers.folded_kernels(wrapped), float_layers.find_all_float_layers(wrapped)
    )
    data = tflite_converter.int8_flatbuffer(simulated, ends, batch, job.shape, form.target, floats)
    inputs = scheme.to_grid(job.images, source.net.card.preprocessing)
    return Made(data, reference, inputs, simulated, floats, tuple(repairs), notes=notes)


def _against(original: Any, images: Images, said: Images) -> str:
    """How the fitted model answers beside the float model that it was made from."""
    wanted = _answers(original, images)
    same = float(np.mean(wanted.argmax(axis=1) == said.argmax(axis=1)))
    return f"the float model's top-1 on {same:.1%} of {len(images)} held-out images"


def _float_file(job: Job) -> bytes:
    return tflite_converter.float_flatbuffer(
        job.source.net.model, job.form.batch, job.shape, job.form.softmax
    )


def _after_training(
    job: Job, data: bytes, faults: tuple[str, ...] = (), notes: tuple[str, ...] = ()
) -> Made:
    """A file that is to answer like the float model."""
    copy = freeze.float32_copy(job.source.net.model)
    model = freeze.with_softmax(copy) if job.form.softmax else copy
    return Made(data, _answers(model, job.images), job.images, faults=faults, notes=notes)


def _weights(job: Job) -> Made:
    data = _float_file(job)
    noise = offsets.noise_pictures(offsets.PICTURES, job.shape)
    seen = pixels.normalise(noise, job.source.net.card.preprocessing)
    made = dynamic_range.quantize(data, seen)
    faults = dynamic_range.faults(tflite_model.read(data), tflite_model.read(made))
    note = f"without data; biases take back what rounding adds on {len(noise)} pictures of noise"
    return _after_training(job, made, tuple(faults), (note,))


def _float16(job: Job) -> Made:
    form, model = job.form, job.source.net.model
    data = tflite_converter.float16_flatbuffer(model, form.batch, job.shape, form.softmax)
    return _after_training(job, data)


def _int16x8(job: Job) -> Made:
    form, model, seen = job.form, job.source.net.model, job.calibrated()
    try:
        data = tflite_converter.int16x8_flatbuffer(
            model, seen.images, form.batch, job.shape, form.softmax
        )
    except RuntimeError as error:
        raise UsageError(
            "--quantization",
            form.quantization,
            f"a model of operators with 16-bit kernels ({error})",
        ) from error
    return _after_training(job, data, notes=(f"calibrated on {seen.told}",))


def _edge(job: Job) -> Made:
    assert job.form.format is not None and job.form.quantization is not None
    seen = job.calibrated() if job.form.format.calibrated else None
    images = None if seen is None else seen.images
    data = ai_edge.quantize(_float_file(job), job.form.quantization, images)
    notes = () if seen is None else (f"calibrated on {seen.told}",)
    return _after_training(job, data, notes=notes)


def _answers(model: Any, images: Images) -> Images:
    return inference.run(inference.compile_model(model), images)


MAKERS: MappingProxyType[str, Callable[[Job], Made]] = MappingProxyType(
    {
        "weights": _weights,
        "float16": _float16,
        "int16x8": _int16x8,
        "edge_dynamic": _edge,
        "edge_weights": _edge,
        "edge_static": _edge,
        "edge_int4": _edge,
    }
)
