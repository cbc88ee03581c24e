"""Conversion of a model to a verified flatbuffer, in memory or written; or to a frozen graph."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from mobilenet import console
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.compression.quantization.int8.calibration import CALIBRATION, check_images
from mobilenet.configs.card import Card, StageFigures
from mobilenet.configs.conversion import (
    C_ARRAY,
    FROZEN_GRAPH,
    ONNX,
    TFLITE,
    ConversionConfig,
    VerificationLimits,
)
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.configs.number_formats import AS_TRAINED, FLOAT32, FORMATS, INT8
from mobilenet.configs.quantization import PostTraining
from mobilenet.data import arrays
from mobilenet.errors import UsageError, VerificationError
from mobilenet.export import (
    bundle,
    c_array,
    frozen_graph,
    number_formats,
    onnx_graph,
    tflite_metadata,
)
from mobilenet.export.calibration_data import Calibration, require_calibration
from mobilenet.export.converted_file import ConvertedFile
from mobilenet.export.rewrites import dynamic_range
from mobilenet.export.source import Source, model_figures, open_source, quantize_source
from mobilenet.export.verification import verify
from mobilenet.models import input_preprocessing
from mobilenet.models.frozen_graph import INPUT, OUTPUT
from mobilenet.runtime import images as image_ops
from mobilenet.tflite import model as tflite_model
from mobilenet.typing import Float32Array

log = logging.getLogger("mobilenet")
VERIFY_IMAGES = 500
# One rounding apart grows with depth in a model that is hardly trained, so end-to-end agreement is
# reported, not demanded; structure and operators are.
_NO_LIMITS = VerificationLimits()
_AS_TRAINED = ConversionConfig()
_EXPECTED_AGREEMENT = 0.97
_LOW_AGREEMENT = 0.9  # below, a number format loses more top-1 accuracy than most uses can spare
_SHOWN_FAULTS = 3
_NOISE_IMAGES = 16


@dataclasses.dataclass(frozen=True)
class Export:
    """The result of a conversion that was written.

    Attributes:
        path: the flatbuffer.
        file: its content, verification and card.
        sources: C++ sources next to it, if any.
    """

    path: Path
    file: ConvertedFile
    sources: c_array.Sources | None = None

    def summary(self) -> list[tuple[str, object]]:
        """Rows of a table about the file: what, value."""
        sources = [] if self.sources is None else self.sources.summary()
        return [("file", self.path), *self.file.summary(), *sources]

    def write_figures(self, stage: StageFigures) -> None:
        """Writes the file's own held-out figures to its card, instead of those of the model."""
        stages = (*self.file.card.stages, stage)
        card = self.file.card.replace(metrics=stage.metrics, stages=stages)
        texts = {} if self.sources is None else self.sources.texts
        file = self.file
        bundle.write_export(self.path.parent, file.content, card, file.verification, texts)


def export(
    source: str | os.PathLike[str] | Source,
    target: str | os.PathLike[str],
    images: Float32Array,
    config: ConversionConfig = _AS_TRAINED,
    limits: VerificationLimits = _NO_LIMITS,
    calibration: Calibration | None = None,
    post_training: PostTraining | None = None,
    fitted_folder: str | os.PathLike[str] | None = None,
    file_format: str = TFLITE,
) -> Export:
    """Converts a saved model and verifies the file on `images` before it gets its name.

    Args:
        source: a model folder (int8 if it has activation ranges, float otherwise) or another
            saved model.
        target: the export folder.
        images: `[n, height, width, channels]`, preprocessed for the model.
        config: number format, input and output types, batch, size and target of the file.
        limits: figures that the file must reach.
        calibration: images for the activation ranges of a number format that has some.
        post_training: steps of post-training int8 quantization; the defaults when `None`.
        fitted_folder: where the float model after post-training quantization and its ranges are
            written, as by a stage; nowhere when `None`.
        file_format: `tflite`, or `c_array` for C++ sources too.

    Raises:
        VerificationError: the file differs from the model; nothing is written.
        UsageError: the source cannot be read or converted, or the target not written.
    """
    opened = source if isinstance(source, Source) else open_source(source)
    config = config.resolve(opened.quantized)
    config.input_shape(opened.model.input_shape[1:])
    if calibration is not None:
        check_images(calibration.images, opened.card.preprocessing, CALIBRATION)
    if config.number_format == INT8 and not opened.quantized:
        calibration = require_calibration(calibration, INT8)
        with console.log_to_stdout():
            opened = quantize_source(opened, calibration, post_training or PostTraining())
    try:
        file = convert(opened, images, config, limits, calibration, str(target))
    except VerificationError as error:
        raise VerificationError(error.what, None, error.expected, "it was not written") from None
    sources = c_array.write_sources(file.content, file.card) if file_format == C_ARRAY else None
    texts = {} if sources is None else sources.texts
    path = bundle.write_export(target, file.content, file.card, file.verification, texts)
    if fitted_folder is not None and opened.fitted is not None:
        quantized = opened.fitted.quantized
        int8_saving.save_stage(
            quantized.float_model, fitted_folder, quantized.card, quantized.ranges
        )
    return Export(path, file, sources)


def convert(
    source: Source,
    images: Float32Array | None,
    config: ConversionConfig = _AS_TRAINED,
    limits: VerificationLimits = _NO_LIMITS,
    calibration: Calibration | None = None,
    name: str = "file",
) -> ConvertedFile:
    """Converts a model in memory and verifies the file on `images`; writes nothing.

    Args:
        source: the model; quantized for an int8 file.
        images: `[n, height, width, channels]`, preprocessed for the model; `None` verifies the
            file on noise, on which the agreement of top-1 says little.
        config: number format, input and output types, batch, size and target of the file.
        limits: figures that the file must reach.
        calibration: images for the activation ranges of a number format that has some.
        name: of the file, in messages.

    Raises:
        VerificationError: the file differs from the model.
        UsageError: the model cannot be converted.
    """
    config = config.resolve(source.quantized)
    shape = config.input_shape(source.model.input_shape[1:])
    ranges_dropped = config.number_format == FLOAT32 and source.quantized
    if ranges_dropped:
        source = source.without_quantizers()
    source = _with_activation(source, config)
    figures = model_figures(source.model, shape)
    verified_on = _noise(shape, source.card) if images is None else images
    job = number_formats.ConversionJob(source, verified_on, config, shape, calibration)
    conversion = number_formats.convert(job)
    notes = (
        *(("the float model; its ranges are left out",) if ranges_dropped else ()),
        *conversion.notes,
        *((f"verified on {len(verified_on)} images of noise",) if images is None else ()),
    )
    card = source.card.replace(
        outputs=output_kind(source.card, config),
        notes=(*source.card.notes, *notes),
    )
    if source.quantized:
        pixels = scheme.file_preprocessing(source.model, card.preprocessing)
        card = card.replace(preprocessing=pixels, assumed=card.assumed)
    try:
        data, verification = _verify(conversion, job, card, limits)
    except UsageError as error:
        if config.number_format in AS_TRAINED:
            raise
        expected = f"a file of {config.number_format} that can be run and compared ({error})"
        raise VerificationError(name, None, expected) from None
    raise_faults(verification, name)
    for line in verification.warnings:
        log.warning("%s: %s", name, line)
    if images is not None:
        _warn_of_disagreement(verification, name, config, card)
        if verification.degenerate:
            card = card.replace(notes=(*card.notes, _degenerate_note(verification)))
    card = bundle.export_card(card, verification)
    return ConvertedFile(
        data, verification, card, conversion.repairs, notes, MappingProxyType(figures)
    )


def _with_activation(source: Source, config: ConversionConfig) -> Source:
    """The source whose card has the activation of the file, where the model's is not known.

    Raises:
        UsageError: the model has another.
    """
    own = source.card.activation
    config.check_activation(own, source.model.output_shape[-1])
    if own is not None or config.activation is None:
        return source
    card = source.card.replace(activation=config.activation)
    return dataclasses.replace(source, loaded=dataclasses.replace(source.loaded, card=card))


def _noise(shape: tuple[int, int, int], card: Card) -> Float32Array:
    """Images of noise that use the range of the model's inputs."""
    pixels = dynamic_range.noise_images(_NOISE_IMAGES, shape)
    return image_ops.normalize(pixels, card.preprocessing)


def _verify(
    conversion: number_formats.Conversion,
    job: number_formats.ConversionJob,
    card: Card,
    limits: VerificationLimits,
) -> tuple[bytes, verify.Verification]:
    """The file with its metadata, and its verification."""
    content = tflite_model.read(conversion.data)
    classes = content.tensors[content.outputs[0]].shape[-1]
    file_card = bundle.file_card(card, classes, job.source.quantized)
    data = tflite_metadata.attach(conversion.data, file_card)
    return data, compare(data, conversion, job, limits)


def compare(
    data: bytes,
    conversion: number_formats.Conversion,
    job: number_formats.ConversionJob,
    limits: VerificationLimits,
) -> verify.Verification:
    """Compares a file with the model that it was made from.

    Args:
        data: the file.
        conversion: what the model computes.
        job: the model, and the form of the file.
        limits: figures that the file must reach.

    Raises:
        UsageError: see `verify.verify`.
    """
    quantized = job.source.quantized
    name = job.config.number_format or FLOAT32
    pixels = scheme.file_preprocessing(job.source.model, job.source.card.preprocessing)
    deviations = set(pixels.std)
    verification = verify.verify(
        data,
        conversion.reference,
        conversion.inputs,
        expect_int8=quantized,
        io=job.config.io or "float32",
        pixel_std=deviations.pop() if len(deviations) == 1 else None,
        limits=limits,
        simulated=conversion.simulated,
        plain=job.source.model,
        number_format=None if name in AS_TRAINED else FORMATS[name],
        float_layers=conversion.float_layers,
        pixel_zero=round(pixels.mean[0]),
        activation=job.activation,
        are_logits=job.config.activation is None,
    )
    faults = (*conversion.faults, *verification.faults)
    return dataclasses.replace(verification, faults=faults)


def raise_faults(verification: verify.Verification, name: str) -> None:
    """Refuses a file with faults.

    Raises:
        VerificationError: names `name`, and the first faults.
    """
    if not verification.ok:
        faults = verification.faults
        shown = "; ".join(faults[:_SHOWN_FAULTS])
        more = f"; {len(faults)} faults in all" if len(faults) > _SHOWN_FAULTS else ""
        raise VerificationError(name, None, f"a file that equals its model ({shown}{more})")


def _warn_of_disagreement(
    verification: verify.Verification, name: str, config: ConversionConfig, card: Card
) -> None:
    """Logs that the file decides otherwise than the model on many images, or all alike."""
    decided = card.decided
    if verification.degenerate:
        log.warning("%s: %s", name, _degenerate_note(verification))
    elif config.number_format not in AS_TRAINED:
        if verification.agreement < _LOW_AGREEMENT:
            log.warning(
                "%s: %s has the same %s as the model on only %0.1f %% of the images",
                name,
                config.number_format,
                decided,
                100 * verification.agreement,
            )
    elif verification.agreement_clear < _EXPECTED_AGREEMENT:
        log.warning(
            "%s: the file has the same %s as the model on only %0.1f %% of the clear images; "
            "is the model trained?",
            name,
            decided,
            100 * verification.agreement_clear,
        )


def _degenerate_note(verification: verify.Verification) -> str:
    return (
        f"{verification.degenerate}, so there is no agreement to state; are they of several "
        "classes, and preprocessed as the model takes them?"
    )


def output_kind(card: Card, config: ConversionConfig) -> str:
    """The outputs of the file; the model's activation is left out unless it is asked for."""
    if config.activation:
        return "probabilities"
    return card.outputs if card.outputs == "features" else "logits"


def export_float_graph(
    source: str | os.PathLike[str] | Source,
    target: str | os.PathLike[str],
    config: ConversionConfig,
    batch: int | None,
    images: int,
    data_of: Callable[[str], DatasetConfig],
    preprocessing: input_preprocessing.Choice = None,
    crop: input_preprocessing.Crop = None,
    file_format: str = FROZEN_GRAPH,
) -> list[tuple[str, object]]:
    """Writes a saved model as a frozen graph or ONNX, verified before the file gets its name.

    Of a quantized folder the float model is written, without its ranges.

    Args:
        source: a model folder or another saved model.
        target: the folder that is written.
        config: image size and output activation.
        batch: images per call; `None` leaves it open.
        images: how many held-out images it is verified on.
        data_of: gives the data set, from the name of the one that the model was trained on.
        preprocessing, crop: see `Source.with_preprocessing`.
        file_format: `frozen_graph` or `onnx`.

    Returns:
        Rows of a table about the file: what, value.

    Raises:
        VerificationError: the file's outputs differ from the model's; nothing is written.
        UsageError: the model cannot be read or written so, or the target not written.
    """
    check_float_target(target, file_format)
    opened = source if isinstance(source, Source) else open_source(source)
    shape, data = config.input_shape(opened.model.input_shape[1:]), data_of(opened.card.dataset)
    card = opened.with_preprocessing(preprocessing, crop, data).card
    inputs = arrays.load_images(data, "test", shape, card.preprocessing, images)
    config.check_activation(card.activation, opened.model.output_shape[-1])
    card = card.replace(outputs=output_kind(card, config))
    model = frozen_graph.reference_model(opened.model, config.activation)
    if file_format == ONNX:
        content = onnx_graph.serialize(model, batch, shape, card.outputs)
        path, difference = onnx_graph.write(target, content, card, model, inputs)
        source_name, sink_name = tflite_metadata.IMAGES, card.outputs
    else:
        content = frozen_graph.serialize_graph(opened.model, batch, shape, config.activation)
        path, difference = frozen_graph.write_frozen_graph(target, content, card, model, inputs)
        source_name, sink_name = f"{INPUT}:0", f"{OUTPUT}:0"
    notes = [("note", "the float model, without its ranges")] if opened.quantized else []
    classes = model.output_shape[-1]
    return [
        ("file", path),
        *notes,
        ("bytes", f"{len(content):,}"),
        ("input", f"{source_name}, float32 {[batch or -1, *shape]}"),
        ("output", f"{sink_name}, float32 {[batch or -1, classes]}, {card.outputs}"),
        ("output difference", f"{difference:.1e} of the largest, on {len(inputs)} images"),
    ]


def check_float_target(target: str | os.PathLike[str], file_format: str) -> None:
    """Refuses a target that cannot be written, and packages that are not installed.

    Args:
        target: the folder.
        file_format: `frozen_graph` or `onnx`.

    Raises:
        UsageError: see `frozen_graph.check_target` and `onnx_graph.load_package`.
    """
    if file_format == FROZEN_GRAPH:
        frozen_graph.check_target(target)
        return
    for name in onnx_graph.PACKAGES:
        onnx_graph.load_package(name)
    onnx_graph.check_target(target)
