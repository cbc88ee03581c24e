"""From a stage's model to its folder and its flatbuffer; shared by the chain and the converter."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet import console
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8.calibration import check_images
from mobilenet.compression.quantization.int8.converter_workarounds import Repair
from mobilenet.configs.card import Card
from mobilenet.configs.conversion import ConversionConfig, VerificationLimits
from mobilenet.configs.dataset import PREPROCESSING, DatasetConfig, Preprocessing
from mobilenet.configs.number_formats import POST_TRAINING
from mobilenet.configs.quantization import PostTraining
from mobilenet.errors import UsageError, VerificationError, shorten
from mobilenet.export import bundle, frozen_graph, tflite_metadata
from mobilenet.export.calibration_data import Calibration
from mobilenet.export.number_formats import Job, Made, Source, fit, make, open_source
from mobilenet.export.verification import operator_parity, verify
from mobilenet.models import counting, saving
from mobilenet.tflite import model as tflite_model

log = logging.getLogger("mobilenet")
VERIFY_IMAGES = 500
# One rounding apart grows with depth in a model that is hardly trained, so end-to-end agreement is
# reported, not demanded; structure and operators are.
_NO_LIMITS = VerificationLimits()
_AS_TRAINED = ConversionConfig()
_EXPECTED_AGREEMENT = 0.97
_COARSE = 0.9  # agreement below which a number format costs more answers than most models can spare
_SHOWN_FAULTS = 3


@dataclasses.dataclass(frozen=True)
class Export:
    """What a conversion made.

    Attributes:
        path: the flatbuffer.
        verification: its verification.
        repairs: layers that were mended for the converter.
        figures: of the model that went in, as in `model_figures`.
        card: of the model that went in.
        notes: how the file was made, where there is something to tell.
    """

    path: Path
    verification: verify.Verification
    repairs: tuple[Repair, ...]
    figures: dict[str, int]
    card: Card
    notes: tuple[str, ...] = ()

    def summary(self) -> list[tuple[str, object]]:
        """What a person wants to know of the file, a row each."""
        found = self.verification
        rows: list[tuple[str, object]] = [
            ("file", self.path),
            ("inside", found.inside),
            *(("made", note) for note in self.notes),
            ("bytes", f"{found.bytes:,} ({found.gzip_bytes:,} under gzip)"),
            ("input", f"{found.input.dtype} {list(found.input_shape)}"),
            ("output", f"{found.output.dtype} {list(found.output_shape)}, {self.card.outputs}"),
            *((("layers in float", shorten(kept)),) if (kept := self.card.keep_float) else ()),
            ("float tensors inside", found.float_tensors),
            ("delegate partitions", found.partitions),
            ("same top-1 as the model", f"{found.agreement:.2%} of {found.images} images"),
            ("outputs apart", found.apart),
            ("channels repaired", sum(repair.channels for repair in self.repairs)),
        ]
        if found.layers:
            steps = max(proof.max_steps for proof in found.layers)
            rows.append(("operators verified", f"{len(found.layers)}, {steps} steps at most"))
        return rows

    def lossy(self, count: int) -> list[tuple[str, str, str, str, str]]:
        """The layers that lose most signal: name, operator, dB in and out, likeliest cause."""

        def decibels(value: float | None) -> str:
            return "-" if value is None else f"{value:.1f}"

        return [
            (
                proof.layer,
                proof.operator,
                decibels(proof.input_signal_to_noise),
                decibels(proof.signal_to_noise),
                proof.diagnosis,
            )
            for proof in operator_parity.worst(self.verification.layers, count)
        ]

    def keep_metrics(self, scores: dict[str, float]) -> None:
        """Puts the file's own held-out figures in its card, where those of the model stood."""
        card = self.card.replace(metrics=scores)
        bundle.write_export(self.path.parent, self.path.read_bytes(), card, self.verification)


def model_figures(model: Any, input_shape: tuple[int, int, int] | None = None) -> dict[str, int]:
    """Parameters, MACs of one image (of `input_shape` where the model leaves it open) and weights
    that are not zero."""
    count = counting.count(model, input_shape)
    return {
        "params": count.params,
        "macs": count.macs,
        "nonzero_weights": counting.nonzero_weights(model),
    }


def load_trained(path: str | os.PathLike[str]) -> saving.LoadedModel:
    """A model as it was evaluated in training: with its quantizers in it where it has ranges.

    A frozen graph is a model too.
    """
    if frozen_graph.is_one(path):
        return frozen_graph.load(path)
    model = saving.load(path)
    if not int8_saving.has_ranges(path):
        return model
    return saving.LoadedModel(int8_saving.load(path), model.card)


def preprocessing_of(card: Card, data: DatasetConfig) -> Preprocessing:
    """What a model wants: as its card says, or as the data set has it where nobody wrote a card."""
    has_card = card.architecture or card.labels or card.dataset
    return card.preprocessing if has_card else PREPROCESSING[data.preprocessing]


def export(
    source: str | os.PathLike[str] | Source,
    target: str | os.PathLike[str],
    images: npt.NDArray[np.float32],
    form: ConversionConfig = _AS_TRAINED,
    limits: VerificationLimits = _NO_LIMITS,
    calibration: Calibration | None = None,
    fitting: PostTraining | None = None,
    fitted: str | os.PathLike[str] | None = None,
) -> Export:
    """Converts a model folder and verifies the file on `images` before it gets its name.

    Args:
        source: a model folder (int8 where ranges lie beside the model, float otherwise) or another
            saved model.
        target: the export folder.
        images: `[n, height, width, channels]`, preprocessed as the model takes them.
        form: number format, ends, batch, size, head and runtime of the file.
        limits: figures that the file must reach.
        calibration: what the ranges of a number format that wants some are taken from.
        fitting: how post-training int8 goes about it; by its defaults when `None`.
        fitted: a folder for the float model that it ends with and its ranges, as a stage leaves
            them.

    Raises:
        VerificationError: the file is not what the model is; nothing is written.
        UsageError: the source cannot be read or converted so, or the target not written.
    """
    opened = source if isinstance(source, Source) else open_source(source)
    form.io_type(opened.quantized)
    shape = form.input_shape(opened.net.model.input_shape[1:])
    if calibration is not None:
        check_images(calibration.images, opened.net.card.preprocessing)
    if calibration is not None and form.quantization == POST_TRAINING:
        with console.log_to_stdout():
            opened = fit(opened, calibration, fitting or PostTraining())
        form = dataclasses.replace(form, quantization=None)
    figures = model_figures(opened.net.model, shape)
    job = Job(opened, images, form, shape, calibration)
    made = make(job)
    card = opened.net.card
    card = card.replace(outputs=outputs_of(card, form), notes=(*card.notes, *made.notes))
    try:
        data, found = _proved(made, job, card, limits)
    except UsageError as error:
        if form.format is None:
            raise
        expected = f"a file of {form.quantization} that can be run and compared ({error})"
        raise VerificationError(str(target), None, expected, "it was not written") from None
    _judge(found, target, form)
    path = bundle.write_export(target, data, card, found)
    if fitted is not None and opened.fitted is not None:
        own = opened.net.card
        own = own.replace(stage="quantize", outputs=outputs_of(own, _AS_TRAINED), metrics={})
        ranges = int8_saving.ranges_of(opened.fitted.result.wrapped)
        int8_saving.save_stage(opened.net.model, Path(fitted), own, ranges)
    return Export(path, found, made.repairs, figures, card, made.notes)


def _proved(
    made: Made, job: Job, card: Card, limits: VerificationLimits
) -> tuple[bytes, verify.Verification]:
    """The file with its metadata, and what was found in it."""
    quantized = job.source.quantized
    content = tflite_model.read(made.data)
    classes = content.tensors[content.outputs[0]].shape[-1]
    data = tflite_metadata.attach(made.data, bundle.file_card(card, classes, quantized))
    deviations = set(card.preprocessing.std)
    found = verify.verify(
        data,
        made.reference,
        made.inputs,
        expect_int8=quantized,
        io=job.form.io_type(quantized),
        pixel_std=deviations.pop() if len(deviations) == 1 else None,
        limits=limits,
        simulated=made.simulated,
        plain=job.source.net.model,
        wanted=job.form.format,
        kept=made.kept,
    )
    return data, dataclasses.replace(found, faults=(*made.faults, *found.faults))


def _judge(
    found: verify.Verification, target: str | os.PathLike[str], form: ConversionConfig
) -> None:
    """Ends a conversion that is not verified, and tells what a person should know of one that
    is.
    """
    if not found.ok:
        shown = "; ".join(found.faults[:_SHOWN_FAULTS])
        more = f"; {len(found.faults)} faults in all" if len(found.faults) > _SHOWN_FAULTS else ""
        raise VerificationError(
            str(target), None, f"a file that verifies equal ({shown}{more})", "it was not written"
        )
    for line in found.warnings:
        log.warning("%s: %s", target, line)
    if form.format is not None:
        if found.agreement < _COARSE:
            log.warning(
                "%s: %s answers like the model on %0.1f %% of the images only",
                target,
                form.quantization,
                100 * found.agreement,
            )
    elif found.agreement_clear < _EXPECTED_AGREEMENT:
        log.warning(
            "%s: the file answers like the model on %0.1f %% of the clear images only; "
            "is the model trained?",
            target,
            100 * found.agreement_clear,
        )


def outputs_of(card: Card, form: ConversionConfig) -> str:
    """What the file gives: a softmax of the model is left out unless it is asked for."""
    if form.softmax:
        return "probabilities"
    return card.outputs if card.outputs == "features" else "logits"
