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

from mobilenet import files, metrics
from mobilenet.compression.quantization.repair import Repair
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import PREPROCESSING, DatasetConfig, Preprocessing
from mobilenet.errors import FailedProof, UsageError
from mobilenet.export import convert, metadata, verify
from mobilenet.models import counting, folder
from mobilenet.runtime.classifier import Classifier
from mobilenet.training import scoring

log = logging.getLogger("mobilenet")
VERIFY_IMAGES = 500
# One rounding apart grows with depth in a net that is hardly trained, so end-to-end agreement is
# told, not demanded.
_STRUCTURE = verify.Limits(agreement_clear=0.0)
_EXPECTED_AGREEMENT = 0.97
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

    def keep_metrics(self, scores: dict[str, float]) -> None:
        """Puts the file's own held-out figures in its card, where those of the net stood."""
        card = self.card.replace(metrics=scores)
        metadata.write_export(self.path.parent, self.path.read_bytes(), card, self.verification)


def net_figures(model: Any) -> dict[str, int]:
    """Parameters, MACs of one image and weights that are not zero."""
    count = counting.count(model)
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


def export(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    images: npt.NDArray[np.float32],
    io: str | None = None,
    limits: verify.Limits = _STRUCTURE,
) -> Export:
    """Converts a model folder and proves the file on `images` before it gets its name.

    Args:
        source: a model folder (int8 where ranges lie beside the net, float otherwise) or another
            saved net.
        target: the export folder.
        images: `[n, height, width, channels]`, preprocessed as the net takes them.
        io: type of both ends; int8 for a quantized net and float32 for a float one when `None`.
        limits: figures that the file must reach.

    Raises:
        FailedProof: the file is not what the net is; nothing is written.
        UsageError: the source cannot be read or the target not written.
    """
    net = folder.load(source)
    figures = net_figures(net.model)
    quantized = (Path(source) / "ranges.npz").is_file()
    io = io or ("int8" if quantized else "float32")
    if quantized:
        data, reference, inputs, repairs = _int8(source, images, net.card.preprocessing, io)
    else:
        data, inputs, repairs = convert.float_flatbuffer(net.model), images, []
        reference = _logits(net.model, images)
    deviations = set(net.card.preprocessing.std)
    found = verify.verify(
        data,
        reference,
        inputs,
        expect_int8=quantized,
        io=io,
        pixel_std=deviations.pop() if len(deviations) == 1 else None,
        limits=limits,
    )
    if not found.ok:
        raise FailedProof(
            str(target),
            None,
            f"a file that proves equal ({'; '.join(found.faults)})",
            "it was not written",
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
    path = metadata.write_export(target, data, net.card, found)
    return Export(path, found, tuple(repairs), figures, net.card)


def _int8(
    source: str | os.PathLike[str], images: npt.NDArray[np.float32], way: Preprocessing, io: str
) -> tuple[bytes, npt.NDArray[np.float32], npt.NDArray[np.float32], list[Repair]]:
    """File, logits of the simulated net, the images on the file's grid, and what was repaired."""
    from mobilenet.compression.quantization import scheme, stored

    wrapped = stored.load(source)
    reference = _logits(wrapped, images)
    repairs = stored.for_export(wrapped)
    return convert.int8_flatbuffer(wrapped, io), reference, scheme.to_grid(images, way), repairs


def _logits(net: Any, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    infer = scoring.inference(net)
    starts = range(0, len(images), _BATCH)
    return np.concatenate(
        [infer(tf.constant(images[start : start + _BATCH])).numpy() for start in starts]
    )


def score_file(path: Path, dataset: tf.data.Dataset, way: Preprocessing) -> metrics.Metrics:
    """Figures of a flatbuffer on batches preprocessed for its float net; all cores work."""
    classifier = Classifier(path)
    mean, std = np.asarray(way.mean, np.float32), np.asarray(way.std, np.float32)
    scores, labels = [], []
    for images, wanted in dataset:
        scores.append(classifier.logits(images.numpy() * std + mean))
        labels.append(wanted.numpy())
    return metrics.classification(np.concatenate(scores), np.concatenate(labels))
