"""Image classification by a flatbuffer, on every core, without TensorFlow."""

from __future__ import annotations

import collections
import copy
import os
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mobilenet import metrics
from mobilenet.configs.card import (
    CARD,
    CROP,
    OUTPUTS,
    SCALING,
    SIGMOID,
    SOFTMAX,
    Card,
    activation_of,
    checked_labels,
    class_count,
    class_numbers,
    known_activation,
)
from mobilenet.configs.dataset import MAX_PIXELS, Preprocessing
from mobilenet.errors import UsageError, one_of
from mobilenet.runtime import images, isolation, quantized_io, worker
from mobilenet.tflite import metadata, tensors
from mobilenet.tflite import model as tflite_model
from mobilenet.typing import Float32Array

MODEL, LABELS = "model.tflite", "labels.txt"
_QUANTIZED = ("int8", "uint8")
_AHEAD = 4  # items of each thread that are begun before their results are taken

T = TypeVar("T")
R = TypeVar("R")
Image = str | os.PathLike[str] | npt.NDArray[np.generic]
Ranking = list[tuple[str, float]]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ImageClassifier:
    """Classifies images by the outputs of a model, whichever way that is run.

    Attributes:
        card: the model's card, with its preprocessing and the meaning of its outputs.
        labels: class names by index.
        input_shape: `(height, width, channels)`.
        output_count: how many outputs it has; one for two classes is that of a sigmoid.
    """

    card: Card
    labels: tuple[str, ...]
    input_shape: tuple[int, int, int]
    output_count: int

    @property
    def is_named(self) -> bool:
        """Whether its classes have names of their own, or numbers alone."""
        return bool(self.card.dataset) or self.labels != class_numbers(self.output_count)

    def name_classes(self, labels: Sequence[str]) -> None:
        """Gives its classes other names.

        Args:
            labels: one an output; of one output those of both classes or of the second alone.

        Raises:
            UsageError: names `labels`: they are not as many.
        """
        self.labels = checked_labels(labels, self.output_count)
        self.card = self.card.replace(labels=self.labels)

    def run(self, pixels: Float32Array) -> Float32Array:
        """Outputs `[outputs]` of one image of the model's size, pixels 0 to 255."""
        raise NotImplementedError

    def pixels(
        self, image: Image, max_pixels: int = MAX_PIXELS, exif: bool | None = None
    ) -> Float32Array:
        """An image file or uint8 array `[H, W, C]` at the model's size: float32, 0 to 255.

        A file of more than `max_pixels` is refused before it is decoded. It is turned upright by
        the orientation in its EXIF data if `exif` says so; `None` is what the card says.
        """
        channels = self.input_shape[2]
        if not isinstance(image, np.ndarray):
            exif = self.card.preprocessing.exif if exif is None else exif
            image = images.decode(image, channels, max_pixels, exif)
        if image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
            raise UsageError("image", image.shape, f"an array of [height, width, {channels}]")
        return images.preprocess(image, self.card.preprocessing, self.input_shape[:2])

    def top_k(
        self,
        image: Image,
        k: int = 5,
        max_pixels: int = MAX_PIXELS,
        exif: bool | None = None,
    ) -> Ranking:
        """The `k` likeliest classes of an image file or array: label, probability; best first."""
        outputs = self.run(self.pixels(image, max_pixels, exif))
        return rank_classes(outputs, self.labels, k, self.card.outputs, self.card.activation)


class Classifier(ImageClassifier):
    """An image classifier in a `.tflite` file.

    Attributes:
        path: the file; `None` where its bytes were given.
        card: as given, or read from the file's folder; derived from the file itself and its TFLite
            Metadata where there is none (`card.notes` says so).
        labels: class names by index.
        input_shape: `(height, width, channels)`.
        flatbuffer: the parsed file.
        threads: how many images are processed at once.
        is_bare: there was neither a card nor a normalization in the file's metadata.
        batch: images per invocation; 1 in files of ours.

    Examples:
        >>> classifier = Classifier("runs/mobilenet_v1_digits/export")  # doctest: +SKIP
        >>> classifier.top_k("seven.png", k=3)  # doctest: +SKIP
        [('7', 0.98), ('1', 0.01), ('9', 0.004)]
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | bytes,
        threads: int | None = None,
        runtime: str = "litert",
        isolated: bool = False,
        card: Card | None = None,
    ) -> None:
        """Reads and checks the file, its card, and makes the first interpreter.

        Args:
            path: a `.tflite` file, a folder that holds `model.tflite`, or the bytes of a file.
            threads: images at once; by default one per core.
            runtime: `litert`, or `micro`, TensorFlow Lite Micro as on a microcontroller.
            isolated: each interpreter runs in a process of its own, so that a file which crashes
                it, hangs it or takes all memory costs a `UsageError` and not this process. Use True
                for files from others; False for files that you made, and on small devices, as a
                process takes some 50 MB.
            card: of the file; by default it is read from the file's folder, or from the TFLite
                Metadata in the file.

        Raises:
            UsageError: the file is malformed or no image classifier, does not fit its card, or
                crashes its isolated process.
        """
        self.path = None if isinstance(path, bytes) else resolve_flatbuffer(path)
        self._name = "flatbuffer" if self.path is None else str(self.path)
        self.threads = cores() if threads is None else threads
        if self.threads < 1:
            raise UsageError("threads", threads, "a whole number of at least 1")
        self._runtime = one_of("runtime", runtime, worker.RUNTIMES)
        self._isolated = isolated
        self.flatbuffer = tflite_model.read(path if isinstance(path, bytes) else self._name)
        source, target = _input_and_output(self.flatbuffer, self._name)
        self.batch, *shape = source.shape
        self.input_shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self._source, self._target = source, target
        self.output_count = target.elements // self.batch
        card_file = None if self.path is None else self.path.with_name(CARD)
        if card is None and card_file is not None and card_file.is_file():
            card = Card.from_file(card_file)
        self.is_bare = False
        if card is None:
            found = metadata.read(self.flatbuffer, self.input_shape[2], self.output_count)
            self.is_bare = found.preprocessing is None
            card = _derived_card(
                self.path, self.flatbuffer, found, self.input_shape, self.output_count
            )
        name = "card" if card_file is None else str(card_file)
        self.card = _checked_card(card, name, self._name, self.input_shape, self.output_count)
        self.labels = self.card.labels
        self._pool: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pool.put(self._open())

    def with_card(self, card: Card) -> Classifier:
        """The same file with another card, which shares the interpreters."""
        changed = copy.copy(self)
        changed.card, changed.labels = card, card.labels
        return changed

    def logits(self, batch: npt.NDArray[np.generic]) -> Float32Array:
        """Outputs of images that already have the model's size.

        Args:
            batch: pixels `[n, height, width, channels]`, 0 to 255, float or integer.

        Returns:
            float32 `[n, classes]`, dequantized; probabilities where `card.outputs` says so.
        """
        batch = np.asarray(batch)
        if batch.ndim != 4 or batch.shape[1:] != self.input_shape:
            raise UsageError(
                "batch", batch.shape, f"an array of [n, {', '.join(map(str, self.input_shape))}]"
            )
        groups = [batch[start : start + self.batch] for start in range(0, len(batch), self.batch)]
        rows = [np.empty((0, self.output_count), np.float32), *self.map(self._invoke, groups)]
        return np.concatenate(rows)

    def run(self, pixels: Float32Array) -> Float32Array:
        """Outputs `[classes]` of one image of the model's size; threads may call it
        concurrently.
        """
        row: Float32Array = self._invoke(pixels[None])[0]
        return row

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`work` on each item, in all threads and in order; the first error stops the rest.

        Items are taken as they are needed: there may be any number of them.
        """
        executor = ThreadPoolExecutor(self.threads)
        pending: collections.deque[Future[R]] = collections.deque()
        try:
            for item in items:
                pending.append(executor.submit(work, item))
                while pending and (len(pending) > _AHEAD * self.threads or pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _open(self) -> Any:
        return isolation.open_interpreter(
            self.flatbuffer, self._isolated, self._name, self._runtime
        )

    def _invoke(self, group: npt.NDArray[np.generic]) -> Float32Array:
        """Outputs of at most `batch` images, by an interpreter that is free or a new one."""
        try:
            runner = self._pool.get_nowait()
        except queue.Empty:
            runner = self._open()
        try:
            normalized = images.normalize(group, self.card.preprocessing)
            inputs = quantized_io.quantize(
                normalized, self._source.dtype, *quantized_io.scale_of(self._source)
            )
            missing = self.batch - len(inputs)
            if missing:
                inputs = np.concatenate([inputs, np.repeat(inputs[-1:], missing, axis=0)])
            runner.set_tensor(self.flatbuffer.inputs[0], inputs)
            runner.invoke()
            values = runner.get_tensor(self.flatbuffer.outputs[0])
        finally:
            self._pool.put(runner)
        outputs = quantized_io.dequantize(
            values.reshape(self.batch, self.output_count)[: len(group)],
            *quantized_io.scale_of(self._target),
        )
        return outputs.astype(np.float32)


def is_flatbuffer(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names a `.tflite` file, or a folder that holds `model.tflite`."""
    return Path(path).suffix == ".tflite" or (Path(path) / MODEL).is_file()


def resolve_flatbuffer(path: str | os.PathLike[str]) -> Path:
    """The file that `path` names: itself, or `model.tflite` in that folder."""
    file = Path(path) / MODEL if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UsageError(
            str(path), None, f"a .tflite file, or a folder that holds {MODEL}; there is none"
        )
    return file


def rank_classes(
    outputs: Float32Array,
    labels: Sequence[str],
    k: int,
    kind: str = "logits",
    activation: str | None = None,
) -> Ranking:
    """The best `k` classes of one image's outputs.

    Args:
        outputs: `[outputs]`.
        labels: class names by index; of one output those of both classes.
        k: how many classes.
        kind: `logits` or `probabilities`.
        activation: what turns logits into probabilities, see `configs.card.activation_of`.

    Raises:
        UsageError: `k` is below 1, or an output is not finite.
    """
    if k < 1:
        raise UsageError("k", k, "a whole number of at least 1")
    if not np.isfinite(outputs).all():
        expected, remedy = "finite numbers from the model", "its weights are damaged"
        raise UsageError("outputs", "NaN or infinity", expected, remedy)
    known = activation_of(activation, len(outputs))
    scores = metrics.probabilities_of(outputs, known, kind != "probabilities")
    best = np.argsort(-scores, kind="stable")[:k]
    return [(labels[i], float(scores[i])) for i in best]


def predict(
    paths: Iterable[Image],
    classifier: Classifier,
    k: int = 5,
    max_pixels: int = MAX_PIXELS,
    exif: bool | None = None,
) -> list[Ranking]:
    """`top_k` of several images, in all threads; one row per image, in their order."""
    return list(classifier.map(lambda path: classifier.top_k(path, k, max_pixels, exif), paths))


def _input_and_output(
    graph: tflite_model.Flatbuffer, name: str
) -> tuple[tensors.Tensor, tensors.Tensor]:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        counts = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
        raise UsageError(name, counts, "a classifier of one input and one output")
    source, target = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    if len(source.shape) != 4 or source.shape[3] not in (1, 3) or min(source.shape) < 1:
        raise UsageError(name, list(source.shape), "an input of [batch, height, width, 1 or 3]")
    if not target.shape or target.elements != source.shape[0] * target.shape[-1]:
        raise UsageError(name, list(target.shape), "an output of [batch, classes]")
    for tensor in (source, target):
        if tensor.dtype != "float32" and not (
            tensor.dtype in _QUANTIZED and tensor.scales.size == 1 and tensor.scales[0] > 0
        ):
            raise UsageError(
                name,
                tensor.dtype,
                "an input and output of float32, or int8 or uint8 with one scale",
            )
    return source, target


def _checked_card(
    card: Card, name: str, file: str, shape: tuple[int, int, int], classes: int
) -> Card:
    """The card of a file, with a label for each class.

    Raises:
        UsageError: it is of another file, or of one that has no classes.
    """
    file_name = Path(file).name
    if card.input_shape != shape:
        raise UsageError(
            f"{name} input_shape",
            list(card.input_shape),
            f"{list(shape)}, the input of {file_name}",
            "export again",
        )
    if card.outputs == "features":
        raise UsageError(
            file,
            "features",
            "a classifier",
            "export a model that has classes",
        )
    labels = card.labels or class_numbers(classes)
    if len(labels) != class_count(classes):
        raise UsageError(
            f"{name} labels",
            len(labels),
            f"{class_count(classes)}, the classes of {file_name}",
            "export again",
        )
    return card.replace(labels=labels, activation=known_activation(card.activation, classes))


def _derived_card(
    path: Path | None,
    graph: tflite_model.Flatbuffer,
    found: metadata.FileMetadata,
    shape: tuple[int, int, int],
    classes: int,
) -> Card:
    """A card for a file without one: from its tensors, its metadata and the labels file, and the
    usual preprocessing where it has none.
    """
    file = "the flatbuffer" if path is None else path.name
    names = None if path is None else path.with_name(LABELS)
    labels = found.labels
    if names is not None and names.is_file():
        labels = tuple(names.read_text(encoding="utf-8", errors="replace").splitlines())
        if len(labels) not in (classes, class_count(classes)):
            expected = f"{class_count(classes)} lines, the classes of {file}"
            raise UsageError(str(names), len(labels), expected)
    outputs = _kind_of_outputs(graph, found)
    activation = found.activation or known_activation(final_activation(graph), classes)
    scaling, origin = Preprocessing(), "assuming pixels to [-1, 1]"
    if found.preprocessing is not None:
        source = graph.tensors[graph.inputs[0]]
        scaling = found.preprocessing if found.is_own else _as_fed(found.preprocessing, source)
        origin = "the normalization of its metadata"
    assumed = () if found.is_own else (CROP,) if found.preprocessing else (SCALING, CROP)
    crop = "" if found.is_own else f"{scaling.part}, "
    unnamed = "" if labels else ", classes by number"
    of_sigmoid = " of a sigmoid" if activation == SIGMOID else ""
    note = f"no {CARD} with {file}: {origin}, {crop}{outputs}{of_sigmoid} out{unnamed}"
    return Card(
        input_shape=shape,
        preprocessing=scaling,
        assumed=assumed,
        labels=checked_labels(labels, classes) if labels else (),
        outputs=outputs,
        activation=activation,
        notes=(note,),
    )


def _kind_of_outputs(graph: tflite_model.Flatbuffer, found: metadata.FileMetadata) -> str:
    """What the outputs are, as the metadata name them or by the last operator.

    Writers of metadata name every output `probability`, that of logits too; only our files are
    taken at their word.
    """
    kind = {"probability": "probabilities"}.get(found.output, found.output)
    if kind == "logits" or (kind in OUTPUTS and found.is_own):
        return kind
    return "logits" if final_activation(graph) is None else "probabilities"


def final_activation(graph: tflite_model.Flatbuffer) -> str | None:
    """`softmax` or `sigmoid` where the outputs of a file are computed by it, else `None`."""
    names = (op.name for op in reversed(graph.operators))
    last = next((name for name in names if name not in ("QUANTIZE", "DEQUANTIZE")), "")
    return {"SOFTMAX": SOFTMAX, "LOGISTIC": SIGMOID}.get(last)


def _as_fed(scaling: Preprocessing, source: tensors.Tensor) -> Preprocessing:
    """The normalization whose quantized values are the pixels, for a uint8 input.

    The Task Library (image_preprocessor.cc) copies pixels into a uint8 input and ignores the
    normalization, so files may have any.
    """
    if source.dtype != "uint8":
        return scaling
    scale, zero_point = quantized_io.scale_of(source)
    pixels = np.array([[0.0], [255.0]])
    values = (pixels - scaling.mean) / scaling.std / scale + zero_point
    if np.abs(values - pixels).max() < 0.51:  # as for rounding a mean of 127.5
        return scaling
    return scaling.replace(mean=(float(zero_point),), std=(1 / scale,))
