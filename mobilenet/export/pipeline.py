"""Conversion of a saved model to the folder of a verified flatbuffer or frozen graph.

The trainer's last stage and the converter both call it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilenet import console
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8.calibration import check_images
from mobilenet.compression.quantization.int8.converter_workarounds import Repair
from mobilenet.configs.card import Card
from mobilenet.configs.conversion import ConversionConfig, VerificationLimits
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.configs.number_formats import AS_TRAINED, FLOAT32, FORMATS, INT8
from mobilenet.configs.quantization import PostTraining
from mobilenet.data import arrays
from mobilenet.errors import UsageError, VerificationError, shorten
from mobilenet.export import bundle, frozen_graph, number_formats, tflite_metadata
from mobilenet.export.calibration_data import Calibration, require_calibration
from mobilenet.export.source import (
    Source,
    model_figures,
    open_source,
    preprocessing_of,
    quantize_source,
)
from mobilenet.export.verification import operator_parity, verify
from mobilenet.models.frozen_graph import INPUT, OUTPUT
from mobilenet.tflite import model as tflite_model

log = logging.getLogger("mobilenet")
VERIFY_IMAGES = 500
# One rounding apart grows with depth in a model that is hardly trained, so end-to-end agreement is
# reported, not demanded; structure and operators are.
_NO_LIMITS = VerificationLimits()
_AS_TRAINED = ConversionConfig()
_EXPECTED_AGREEMENT = 0.97
_LOW_AGREEMENT = 0.9  # below, a number format loses more top-1 accuracy than most uses can spare
_SHOWN_FAULTS = 3


@dataclasses.dataclass(frozen=True)
class Export:
    """The result of a conversion.

    Attributes:
        path: the flatbuffer.
        verification: its comparison with the model.
        repairs: layers that were changed to avoid faults of the converter.
        figures: of the model that was converted, as in `model_figures`.
        card: of the model that was converted.
        notes: how the file was made, where that needs a remark.
    """

    path: Path
    verification: verify.Verification
    repairs: tuple[Repair, ...]
    figures: dict[str, int]
    card: Card
    notes: tuple[str, ...] = ()

    def summary(self) -> list[tuple[str, object]]:
        """Rows of a table about the file: what, value."""
        verified = self.verification
        floats = self.card.keep_float
        rows: list[tuple[str, object]] = [
            ("file", self.path),
            ("contents", verified.contents),
            *(("note", note) for note in self.notes),
            ("bytes", f"{verified.bytes:,} ({verified.gzip_bytes:,} under gzip)"),
            ("input", f"{verified.input.dtype} {list(verified.input_shape)}"),
            (
                "output",
                f"{verified.output.dtype} {list(verified.output_shape)}, {self.card.outputs}",
            ),
            *((("layers in float", shorten(floats)),) if floats else ()),
            ("float tensors inside", verified.float_tensors),
            ("delegate partitions", verified.partitions),
            (
                "same top-1 as the model",
                f"{verified.agreement:.2%} of {verified.images} images",
            ),
            ("output difference", verified.output_difference),
            ("channels repaired", sum(repair.channels for repair in self.repairs)),
        ]
        if verified.layers:
            steps = max(layer.max_steps for layer in verified.layers)
            rows.append(
                ("operators verified", f"{len(verified.layers)}, {steps} steps apart at most")
            )
        return rows

    def noisiest_layers(self, count: int) -> list[tuple[str, str, str, str, str]]:
        """The layers that add most noise: name, operator, dB before and after, likeliest cause."""

        def decibels(value: float | None) -> str:
            return "-" if value is None else f"{value:.1f}"

        return [
            (
                layer.layer,
                layer.operator,
                decibels(layer.input_signal_to_noise),
                decibels(layer.signal_to_noise),
                layer.diagnosis,
            )
            for layer in operator_parity.noisiest(self.verification.layers, count)
        ]

    def write_metrics(self, scores: dict[str, float]) -> None:
        """Writes the file's own held-out figures to its card, instead of those of the model."""
        card = self.card.replace(metrics=scores)
        bundle.write_export(self.path.parent, self.path.read_bytes(), card, self.verification)


def export(
    source: str | os.PathLike[str] | Source,
    target: str | os.PathLike[str],
    images: npt.NDArray[np.float32],
    config: ConversionConfig = _AS_TRAINED,
    limits: VerificationLimits = _NO_LIMITS,
    calibration: Calibration | None = None,
    post_training: PostTraining | None = None,
    fitted_folder: str | os.PathLike[str] | None = None,
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

    Raises:
        VerificationError: the file differs from the model; nothing is written.
        UsageError: the source cannot be read or converted, or the target not written.
    """
    opened = source if isinstance(source, Source) else open_source(source)
    config = config.resolve(opened.quantized)
    shape = config.input_shape(opened.model.input_shape[1:])
    if calibration is not None:
        check_images(calibration.images, opened.card.preprocessing)
    if config.number_format == INT8 and not opened.quantized:
        calibration = require_calibration(calibration, INT8)
        with console.log_to_stdout():
            opened = quantize_source(opened, calibration, post_training or PostTraining())
    ranges_dropped = config.number_format == FLOAT32 and opened.quantized
    if ranges_dropped:
        opened = _float_source(opened)
    figures = model_figures(opened.model, shape)
    job = number_formats.ConversionJob(opened, images, config, shape, calibration)
    conversion = number_formats.convert(job)
    if ranges_dropped:
        note = "the float model; its ranges are left out"
        conversion = dataclasses.replace(conversion, notes=(note, *conversion.notes))
    card = opened.card.replace(
        outputs=output_kind(opened.card, config), notes=(*opened.card.notes, *conversion.notes)
    )
    try:
        data, verification = _verify(conversion, job, card, limits)
    except UsageError as error:
        if config.number_format in AS_TRAINED:
            raise
        expected = f"a file of {config.number_format} that can be run and compared ({error})"
        raise VerificationError(str(target), None, expected, "it was not written") from None
    _raise_or_warn(verification, target, config)
    path = bundle.write_export(target, data, card, verification)
    if fitted_folder is not None and opened.fitted is not None:
        fitted_card = opened.card.replace(
            stage="quantize", outputs=output_kind(opened.card, _AS_TRAINED), metrics={}
        )
        ranges = int8_saving.ranges_of(opened.fitted.result.wrapped)
        int8_saving.save_stage(opened.model, Path(fitted_folder), fitted_card, ranges)
    return Export(path, verification, conversion.repairs, figures, card, conversion.notes)


def _float_source(source: Source) -> Source:
    """The float model of a quantized one."""
    card = source.card.replace(keep_float=())
    loaded = dataclasses.replace(source.loaded, card=card)
    return dataclasses.replace(source, loaded=loaded, quantized=False)


def _verify(
    conversion: number_formats.Conversion,
    job: number_formats.ConversionJob,
    card: Card,
    limits: VerificationLimits,
) -> tuple[bytes, verify.Verification]:
    """The file with its metadata, and its verification."""
    quantized = job.source.quantized
    name = job.config.number_format or FLOAT32
    content = tflite_model.read(conversion.data)
    classes = content.tensors[content.outputs[0]].shape[-1]
    data = tflite_metadata.attach(conversion.data, bundle.file_card(card, classes, quantized))
    deviations = set(card.preprocessing.std)
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
    )
    faults = (*conversion.faults, *verification.faults)
    return data, dataclasses.replace(verification, faults=faults)


def _raise_or_warn(
    verification: verify.Verification, target: str | os.PathLike[str], config: ConversionConfig
) -> None:
    """Refuses a file with faults; logs what is unusual about one without."""
    if not verification.ok:
        faults = verification.faults
        shown = "; ".join(faults[:_SHOWN_FAULTS])
        more = f"; {len(faults)} faults in all" if len(faults) > _SHOWN_FAULTS else ""
        raise VerificationError(
            str(target), None, f"a file that equals its model ({shown}{more})", "it was not written"
        )
    for line in verification.warnings:
        log.warning("%s: %s", target, line)
    if config.number_format not in AS_TRAINED:
        if verification.agreement < _LOW_AGREEMENT:
            log.warning(
                "%s: %s has the same top-1 as the model on only %0.1f %% of the images",
                target,
                config.number_format,
                100 * verification.agreement,
            )
    elif verification.agreement_clear < _EXPECTED_AGREEMENT:
        log.warning(
            "%s: the file has the same top-1 as the model on only %0.1f %% of the clear images; "
            "is the model trained?",
            target,
            100 * verification.agreement_clear,
        )


def output_kind(card: Card, config: ConversionConfig) -> str:
    """The outputs of the file; a softmax of the model is left out unless it is asked for."""
    if config.softmax:
        return "probabilities"
    return card.outputs if card.outputs == "features" else "logits"


def export_frozen_graph(
    source: str | os.PathLike[str] | Source,
    target: str | os.PathLike[str],
    config: ConversionConfig,
    batch: int | None,
    images: int,
    data_of: Callable[[str], DatasetConfig],
) -> list[tuple[str, object]]:
    """Freezes a saved model and verifies the file before it gets its name.

    Of a quantized folder the float model is frozen, without its ranges.

    Args:
        source: a model folder or another saved model.
        target: the folder that is written.
        config: image size and output activation.
        batch: images per call; `None` leaves it open.
        images: how many held-out images it is verified on.
        data_of: gives the data set, from the name of the one that the model was trained on.

    Returns:
        Rows of a table about the file: what, value.

    Raises:
        VerificationError: the file's outputs differ from the model's; nothing is written.
        UsageError: the model cannot be read or frozen, or the target not written.
    """
    frozen_graph.check_target(target)
    opened = source if isinstance(source, Source) else open_source(source)
    card, shape = opened.card, config.input_shape(opened.model.input_shape[1:])
    data = data_of(card.dataset)
    inputs = arrays.load_images(data, "test", shape, preprocessing_of(card, data), images)
    content = frozen_graph.serialize_graph(opened.model, batch, shape, config.softmax)
    card = card.replace(outputs=output_kind(card, config))
    model = frozen_graph.reference_model(opened.model, config.softmax)
    path, difference = frozen_graph.write_frozen_graph(target, content, card, model, inputs)
    notes = [("note", "the float model, without its ranges")] if opened.quantized else []
    classes = model.output_shape[-1]
    return [
        ("file", path),
        *notes,
        ("bytes", f"{len(content):,}"),
        ("input", f"{INPUT}:0, float32 {[batch or -1, *shape]}"),
        ("output", f"{OUTPUT}:0, float32 {[batch or -1, classes]}, {card.outputs}"),
        ("output difference", f"{difference:.1e} of the largest, on {len(inputs)} images"),
    ]
