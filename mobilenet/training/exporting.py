"""From a stage's net to its folder and its flatbuffer; shared by the chain and the converter."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mobilenet import files
from mobilenet.compression.quantization.repair import Repair
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import PREPROCESSING, DatasetConfig, Preprocessing
from mobilenet.errors import FailedProof, UsageError
from mobilenet.export import convert, freeze, metadata, operators, task_metadata, verify
from mobilenet.export.form import DEFAULT, Form
from mobilenet.models import counting, folder
from mobilenet.runtime import flatbuffer
from mobilenet.training import scoring

log = logging.getLogger("mobilenet")
VERIFY_IMAGES = 500
# One rounding apart grows with depth in a net that is hardly trained, so end-to-end agreement is
# told, not demanded; structure and operators are.
STRUCTURE = verify.Limits(agreement_clear=0.0)
_EXPECTED_AGREEMENT = 0.97
_SHOWN_FAULTS = 3
_BATCH = 32
_Ranges = dict[str, npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Export:
    """What a conversion made.

    Attributes:
        path: the flatbuffer.
        verification: its proof.
        repairs: layers that were mended for the converter.
        figures: of the net that went in, as in `net_figures`.
        card: of the net that went in.
    """

    path: Path
    verification: verify.Verification
    repairs: tuple[Repair, ...]
    figures: dict[str, int]
    card: Card

    def summary(self) -> list[tuple[str, object]]:
        """What a person wants to know of the file, a row each."""
        found = self.verification
        rows: list[tuple[str, object]] = [
            ("file", self.path),
            ("bytes", f"{found.bytes:,} ({found.gzip_bytes:,} under gzip)"),
            ("input", f"{found.input.dtype} {list(found.input_shape)}"),
            ("output", f"{found.output.dtype} {list(found.output_shape)}, {self.card.outputs}"),
            ("float tensors inside", found.float_tensors),
            ("delegate partitions", found.partitions),
            ("same top-1 as the net", f"{found.agreement:.2%} of {found.images} images"),
            ("outputs apart", f"{found.mean_steps:.3g} steps, {found.max_steps:.3g} at most"),
            ("channels repaired", sum(repair.channels for repair in self.repairs)),
        ]
        if found.layers:
            steps = max(proof.max_steps for proof in found.layers)
            rows.append(("operators proved", f"{len(found.layers)}, {steps} steps at most"))
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
            for proof in operators.worst(self.verification.layers, count)
        ]

    def keep_metrics(self, scores: dict[str, float]) -> None:
        """Puts the file's own held-out figures in its card, where those of the net stood."""
        card = self.card.replace(metrics=scores)
        metadata.write_export(self.path.parent, self.path.read_bytes(), card, self.verification)


def net_figures(model: Any, input_shape: tuple[int, int, int] | None = None) -> dict[str, int]:
    """Parameters, MACs of one image (of `input_shape` where the net leaves it open) and weights
    that are not zero."""
    count = counting.count(model, input_shape)
    return {
        "params": count.params,
        "macs": count.macs,
        "nonzero_weights": counting.nonzero_weights(model),
    }


def ranges_of(net: Any) -> _Ranges | None:
    """The activation ranges of a quantized net, `None` for a plain one."""
    if not hasattr(net, "phase"):
        return None
    from mobilenet.compression.quantization import scheme

    return scheme.get_ranges(net)


def save_stage(plain: Any, target: Path, card: Card, ranges: _Ranges | None) -> None:
    """Writes the folder of a stage: net, card, ranges of a quantized net; whole or not at all."""
    with files.replacing(target) as temporary:
        folder.save(plain, temporary, card)
        if ranges is not None:
            from mobilenet.compression.quantization import stored

            stored.save_ranges(temporary, ranges)


def load_trained(path: str | os.PathLike[str]) -> folder.Net:
    """A net as it was evaluated in training: with its quantizers in it where it has ranges."""
    net = folder.load(path)
    if not (Path(path) / "ranges.npz").is_file():
        return net
    from mobilenet.compression.quantization import stored

    return folder.Net(stored.load(path), net.card)


def preprocessing_of(card: Card, data: DatasetConfig) -> Preprocessing:
    """What a net wants: as its card says, or as the data set has it where nobody wrote a card."""
    has_card = card.architecture or card.labels or card.dataset
    return card.preprocessing if has_card else PREPROCESSING[data.preprocessing]


def check_place(target: str | os.PathLike[str]) -> None:
    """Refuses, before the work of a conversion, a place where the result cannot be written.

    Raises:
        UsageError: a file is in its way, or the folder above cannot be written.
    """
    above = next(place for place in Path(target).absolute().parents if place.exists())
    try:
        if Path(target).exists() and not Path(target).is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file is in its place")
        os.rmdir(tempfile.mkdtemp(prefix=".writing-", dir=above))
    except OSError as error:
        wanted = f"a folder that can be written ({error.strerror})"
        raise UsageError("--output", str(target), wanted, "choose another folder") from None


@dataclasses.dataclass(frozen=True)
class Source:
    """A saved net that is to be converted.

    Attributes:
        path: where it was read.
        net: the float net and its card.
        quantized: ranges lie beside it.
    """

    path: Path
    net: folder.Net
    quantized: bool


def open_source(path: str | os.PathLike[str]) -> Source:
    """Reads a net once, for what is asked about it and for its conversion.

    Raises:
        UsageError: see `folder.load`.
    """
    return Source(Path(path), folder.load(path), (Path(path) / "ranges.npz").is_file())


@dataclasses.dataclass(frozen=True)
class _Converted:
    """A file that is still to be proved, and what it must say to `inputs`."""

    data: bytes
    reference: npt.NDArray[np.float32]
    inputs: npt.NDArray[np.float32]
    simulated: Any = None
    repairs: tuple[Repair, ...] = ()


def export(
    source: str | os.PathLike[str] | Source,
    target: str | os.PathLike[str],
    images: npt.NDArray[np.float32],
    form: Form = DEFAULT,
    limits: verify.Limits = STRUCTURE,
) -> Export:
    """Converts a model folder and proves the file on `images` before it gets its name.

    Args:
        source: a model folder (int8 where ranges lie beside the net, float otherwise) or another
            saved net.
        target: the export folder.
        images: `[n, height, width, channels]`, preprocessed as the net takes them.
        form: ends, batch, size, head and runtime of the file.
        limits: figures that the file must reach.

    Raises:
        FailedProof: the file is not what the net is; nothing is written.
        UsageError: the source cannot be read or the target not written.
    """
    opened = source if isinstance(source, Source) else open_source(source)
    net, quantized = opened.net, opened.quantized
    io, shape = form.ends(quantized), form.shape(net.model.input_shape[1:])
    figures = net_figures(net.model, shape)
    made = (_int8 if quantized else _float)(opened, images, form, shape)
    card = net.card.replace(outputs=_outputs(net.card, form))
    content = flatbuffer.read(made.data)
    sink = content.tensors[content.outputs[0]]
    data = task_metadata.attach(made.data, metadata.file_card(card, sink.shape[-1], quantized))
    deviations = set(card.preprocessing.std)
    found = verify.verify(
        data,
        made.reference,
        made.inputs,
        expect_int8=quantized,
        io=io,
        pixel_std=deviations.pop() if len(deviations) == 1 else None,
        limits=limits,
        simulated=made.simulated,
        plain=net.model,
    )
    _judge(found, target)
    path = metadata.write_export(target, data, card, found)
    return Export(path, found, made.repairs, figures, card)


def _judge(found: verify.Verification, target: str | os.PathLike[str]) -> None:
    """Ends a conversion that is not proved, and tells what a person should know of one that is."""
    if not found.ok:
        shown = "; ".join(found.faults[:_SHOWN_FAULTS])
        more = f"; {len(found.faults)} faults in all" if len(found.faults) > _SHOWN_FAULTS else ""
        raise FailedProof(
            str(target), None, f"a file that proves equal ({shown}{more})", "it was not written"
        )
    for line in found.warnings:
        log.warning("%s: %s", target, line)
    if found.agreement_clear < _EXPECTED_AGREEMENT:
        log.warning(
            "%s: the file answers like the net on %.1f %% of the clear images only; "
            "is the net trained?",
            target,
            100 * found.agreement_clear,
        )


def _outputs(card: Card, form: Form) -> str:
    """What the file gives: a softmax of the net is left out unless it is asked for."""
    if form.softmax:
        return "probabilities"
    return card.outputs if card.outputs == "features" else "logits"


def _int8(
    source: Source, images: npt.NDArray[np.float32], form: Form, shape: tuple[int, int, int]
) -> _Converted:
    from mobilenet.compression.quantization import scheme, stored

    wrapped = stored.load(source.path, source.net, form.target)
    simulated = freeze.with_softmax(wrapped) if form.softmax else wrapped
    reference = _answers(simulated, images)
    repairs = stored.for_export(wrapped)
    data = convert.int8_flatbuffer(simulated, form.ends(True), form.batch, shape, form.target)
    inputs = scheme.to_grid(images, source.net.card.preprocessing)
    return _Converted(data, reference, inputs, simulated, tuple(repairs))


def _float(
    source: Source, images: npt.NDArray[np.float32], form: Form, shape: tuple[int, int, int]
) -> _Converted:
    model = source.net.model
    data = convert.float_flatbuffer(model, form.batch, shape, form.softmax)
    copy = freeze.float32_copy(model)
    reference = _answers(freeze.with_softmax(copy) if form.softmax else copy, images)
    return _Converted(data, reference, images)


def _answers(net: Any, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    infer = scoring.inference(net)
    starts = range(0, len(images), _BATCH)
    return np.concatenate(
        [infer(tf.constant(images[start : start + _BATCH])).numpy() for start in starts]
    )
