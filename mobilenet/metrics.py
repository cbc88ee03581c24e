"""Top-1, top-5 and loss of logits, in numpy, and the mapping from the classes of the data to the
outputs of a model: one definition for Keras models and flatbuffers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.configs.card import SIGMOID, SOFTMAX
from mobilenet.errors import UsageError
from mobilenet.typing import Float64Array, FloatArray, IntArray

MAX_SIGNAL_TO_NOISE = 120.0  # dB; the precision of float32
_LEAST = 1e-12  # of a probability, for its logarithm
_IMAGENET = 1001  # classes of slim's ImageNet models; the first is background


@dataclasses.dataclass(frozen=True)
class LabelFigures:
    """Figures of one label of a sigmoid; of one output for two classes, of the second class.

    Attributes:
        positives: images that have it.
        auc: area under the receiver operating characteristic; `None` where all or no images have
            the label.
        f1: of the decision at a probability of 0.5.
    """

    positives: int
    auc: float | None
    f1: float


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Figures of a classifier on a set of images.

    Attributes:
        top1: percent of the images whose class is the likeliest; of several labels an image,
            percent of the labels decided right at a probability of 0.5.
        top5: the same among the five likeliest; of several labels as `top1`.
        loss: cross entropy in nats an image, of several labels the mean of the labels' own.
        images: their number.
        labels: of a sigmoid, the figures of each label.
    """

    top1: float
    top5: float
    loss: float
    images: int
    labels: tuple[LabelFigures, ...] = ()

    @property
    def auc(self) -> float | None:
        """The mean over the labels that have one; `None` without any."""
        return mean_of(figures.auc for figures in self.labels)

    @property
    def f1(self) -> float | None:
        """The mean over the labels; `None` without any."""
        return mean_of(figures.f1 for figures in self.labels)

    @property
    def selection(self) -> float:
        """What the best epoch is chosen by: top-1, or 100 times the AUC of several labels."""
        auc = self.auc if len(self.labels) > 1 else None
        return self.top1 if auc is None else 100 * auc

    def to_json(self) -> dict[str, float]:
        """The figures of all labels together; AUC and F1 of a sigmoid alone."""
        names = ("top1", "top5", "loss", "images", "auc", "f1")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known; `None` without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def signal_to_noise(
    reference: npt.NDArray[np.floating], noisy: npt.NDArray[np.floating]
) -> float | None:
    """Signal-to-noise ratio in dB of an array against its reference, of the same shape.

    Returns:
        `10 log10(sum reference^2 / sum (reference - noisy)^2)`, at most `MAX_SIGNAL_TO_NOISE`;
        `None` where the reference is zero or a value is not finite.
    """
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(reference - noisy, dtype=np.float64)))
    if signal == 0 or not np.isfinite([signal, noise]).all():
        return None
    if noise == 0:
        return MAX_SIGNAL_TO_NOISE
    return min(MAX_SIGNAL_TO_NOISE, 10 * float(np.log10(signal / noise)))


def probabilities_of(
    outputs: npt.NDArray[np.floating], activation: str, are_logits: bool = True
) -> npt.NDArray[np.float64]:
    """The probability of each class.

    Args:
        outputs: `[images, outputs]`.
        activation: `softmax`, or `sigmoid` of each output; see `configs.card.activation_of`.
        are_logits: the activation is still to be applied.

    Returns:
        `[images, classes]`; of one output those of both classes.
    """
    scores = np.asarray(outputs, np.float64)
    if are_logits and activation == SIGMOID:
        scores = np.exp(-np.logaddexp(0.0, -scores))
    elif are_logits:
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
    if scores.shape[-1] == 1:
        scores = np.concatenate([1 - scores, scores], axis=-1)
    return scores


def decisions(
    outputs: npt.NDArray[np.floating], activation: str, are_logits: bool = True
) -> npt.NDArray[np.generic]:
    """What a classifier decides: the likeliest class, or of a sigmoid which labels are likely.

    Args:
        outputs, activation, are_logits: as in `probabilities_of`.

    Returns:
        Class indices `[images, 1]`; of a sigmoid booleans `[images, outputs]`, probability above
        0.5.
    """
    scores = np.asarray(outputs)
    if activation == SIGMOID:
        return scores > (0.0 if are_logits else 0.5)
    best: npt.NDArray[np.generic] = scores.argmax(axis=1)[:, None]
    return best


def multi_label(
    outputs: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], probabilities: bool = False
) -> Metrics:
    """Scores the outputs of a sigmoid, each a label by itself.

    AUC and F1 are scikit-learn's; the loss is the binary cross entropy.

    Args:
        outputs: `[images, labels]`.
        labels: `[images, labels]`, 1 where an image has the label, else 0.
        probabilities: the outputs are probabilities, not logits.
    """
    from sklearn import metrics

    scores, targets = np.asarray(outputs, np.float64), np.asarray(labels).astype(bool)
    decided = decisions(scores, SIGMOID, not probabilities)
    losses = label_losses(scores, targets, probabilities)
    figures = []
    for column, target, decision in zip(scores.T, targets.T, decided.T, strict=True):
        positives = int(target.sum())
        has_both = 0 < positives < len(target)
        auc = float(metrics.roc_auc_score(target, column)) if has_both else None
        f1 = float(metrics.f1_score(target, decision, zero_division=0.0))
        figures.append(LabelFigures(positives, auc, f1))
    right = 100.0 * float(np.mean(decided == targets))
    return Metrics(right, right, float(np.mean(losses)), len(targets), tuple(figures))


def label_losses(
    outputs: FloatArray, labels: npt.NDArray[Any], probabilities: bool = False
) -> Float64Array:
    """The binary cross entropy of each label, `[images, labels]`.

    Args:
        outputs, labels, probabilities: see `multi_label`.
    """
    scores, targets = np.asarray(outputs, np.float64), np.asarray(labels).astype(bool)
    losses: Float64Array
    if probabilities:
        own = np.where(targets, scores, 1 - scores)
        losses = -np.log(np.maximum(own, _LEAST))
    else:
        losses = np.logaddexp(0.0, np.where(targets, -scores, scores))
    return losses


def classification(
    outputs: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    probabilities: bool = False,
    activation: str = SOFTMAX,
) -> Metrics:
    """Scores `[images, classes]` outputs against `[images]` class indices.

    A label counts for top-k when fewer than k classes score higher; of equal scores the lower
    index comes first, as in `argmax`. The loss is the mean cross entropy of logits, or of
    probabilities with `probabilities=True`: minus the logarithm of the label's probability, which
    is that of `activation` for logits.
    """
    ranks, losses = ranks_and_losses(outputs, labels, probabilities, activation)
    return of_ranks(ranks, losses)


def of_ranks(ranks: IntArray, losses: FloatArray) -> Metrics:
    """The figures of images by what `ranks_and_losses` gives for them."""
    return Metrics(
        top1=100.0 * float(np.mean(ranks < 1)),
        top5=100.0 * float(np.mean(ranks < 5)),
        loss=float(np.mean(losses)),
        images=len(ranks),
    )


def ranks_and_losses(
    outputs: FloatArray,
    labels: IntArray,
    probabilities: bool = False,
    activation: str = SOFTMAX,
) -> tuple[IntArray, FloatArray]:
    """The rank of each image's class among the outputs, from 0, and the loss; both `[images]`.

    Args:
        outputs, labels, probabilities, activation: see `classification`.
    """
    scores = np.asarray(outputs, np.float64)
    labels = np.asarray(labels)
    rows = np.arange(len(labels))
    own = scores[rows, labels][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    rank = np.sum((scores > own) | ((scores == own) & earlier), axis=1)
    if probabilities:
        losses = -np.log(np.maximum(own[:, 0], _LEAST))
    elif activation == SIGMOID:
        losses = np.logaddexp(0.0, -own[:, 0])
    else:
        peak = scores.max(axis=1, keepdims=True)
        losses = np.log(np.exp(scores - peak).sum(axis=1)) + peak[:, 0] - own[:, 0]
    return rank, losses


def top_classes(scores: FloatArray, k: int) -> IntArray:
    """Indices `[images, k]` of the highest scores, best first, of equal ones the lower index first.

    Args:
        scores: `[images, classes]`.
        k: how many; at most as many as there are classes.
    """
    k = min(k, scores.shape[1])
    if k == scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")
    best = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    values = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    tied = np.sum(scores >= values.min(axis=1, keepdims=True), axis=1) > k
    best[tied] = np.argsort(-scores[tied], axis=1, kind="stable")[:, :k]
    return best


@dataclasses.dataclass(frozen=True)
class ClassMapping:
    """The output of a model for each class of the data; see `match_classes`.

    Attributes:
        indices: the output of each class index of the data.
        outputs: how many outputs the model has; a model of one output and two classes gives the
            probability, or the logit, of the second class.
        background: the first output is not scored.
        note: how model and data differ, for the user; empty if they do not.
    """

    indices: tuple[int, ...]
    outputs: int
    background: bool = False
    note: str = ""

    def score(
        self,
        outputs: npt.NDArray[np.floating],
        labels: npt.NDArray[np.integer],
        probabilities: bool = False,
        activation: str = SOFTMAX,
    ) -> Metrics:
        """As `classification`, of the data's class indices; probabilities without the background
        are rescaled to a sum of 1.

        Args:
            outputs: `[images, outputs]`.
            labels: class indices `[images]`; or `[images, labels]` of 0 and 1, scored as
                `multi_label` does.
            probabilities: the outputs are probabilities, not logits.
            activation: which turns logits into probabilities.

        Raises:
            UsageError: a label is no class of the data.
        """
        labels = np.asarray(labels)
        if labels.ndim == 2:
            return multi_label(self.label_scores(outputs), labels, probabilities)
        scores, own = self.class_scores(outputs, labels, probabilities)
        if not self.is_binary:
            return classification(scores, own, probabilities, activation)
        of_second = multi_label(np.asarray(outputs), own[:, None], probabilities).labels
        return dataclasses.replace(classification(scores, own, probabilities), labels=of_second)

    @property
    def is_binary(self) -> bool:
        """Whether one output is that of two classes."""
        return self.outputs == 1 and len(self.indices) == 2

    def label_scores(self, outputs: FloatArray) -> Float64Array:
        """Outputs `[images, outputs]` as those of each label of the data, `[images, labels]`."""
        scores: Float64Array = np.asarray(outputs, np.float64)[:, list(self.indices)]
        return scores

    def class_scores(
        self, outputs: FloatArray, labels: IntArray, probabilities: bool = False
    ) -> tuple[Float64Array, IntArray]:
        """Outputs of each class, `[images, classes]`, and the class of each image among them.

        One output becomes those of two classes, to which a softmax belongs; background is left out.

        Args:
            outputs: `[images, outputs]`.
            labels: class indices `[images]` of the data.
            probabilities: the outputs are probabilities; without the background they are rescaled
                to a sum of 1.

        Raises:
            UsageError: a label is no class of the data.
        """
        labels, scores = np.asarray(labels), np.asarray(outputs, np.float64)
        check_labels(labels, len(self.indices))
        own = np.asarray(self.indices)[labels]
        if self.is_binary:
            scores = np.concatenate([1 - scores if probabilities else 0 * scores, scores], axis=1)
        elif self.background:
            scores, own = scores[:, 1:], own - 1
            if probabilities:
                scores = scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-12)
        return scores, own


def identity_mapping(classes: int) -> ClassMapping:
    """The mapping of a model whose outputs are the classes of the data, in their order."""
    return ClassMapping(tuple(range(classes)), classes)


def binary_mapping() -> ClassMapping:
    """The mapping of a model whose one output is that of the second of two classes."""
    return ClassMapping((0, 1), 1)


def check_labels(labels: npt.NDArray[np.integer], classes: int) -> None:
    """Refuses class indices that are not below `classes`.

    Raises:
        UsageError: names the range.
    """
    if labels.max() >= classes or labels.min() < 0:
        raise UsageError(
            "labels",
            [int(labels.min()), int(labels.max())],
            f"class indices 0 to {classes - 1}, as the model has {classes} classes",
            "set `num_classes` or `label_offset`",
        )


def match_classes(
    outputs: int,
    model: Sequence[str],
    classes: int,
    data: Sequence[str],
    dataset: str,
) -> ClassMapping:
    """Finds the output for each class of the data.

    Equal numbers of classes are matched by index (by name if only the order differs). An additional
    output is slim's background, at index 0. Class folders, and lists with class names, whose names
    are all among the model's classes are matched by name; a list with class indices may have fewer
    classes than the model. Top-1 is then computed over all of the model's classes.

    Args:
        outputs: how many outputs the model has.
        model: their names; empty if unknown.
        classes: how many classes the data has.
        data: their names.
        dataset: the name of the data set.

    Raises:
        UsageError: the classes do not match.
    """
    if outputs == 1 and classes == 2:
        is_reversed = bool(model) and tuple(model) == tuple(data)[::-1]
        return ClassMapping((1, 0), 1) if is_reversed else binary_mapping()
    is_list = dataset == "image_list" and _numbered(data)
    by_name = dataset == "image_folder" or (dataset == "image_list" and not is_list)
    if (
        len(model) != outputs
    ):  # numbers are names only if the counts differ by more than a background
        model = tuple(map(str, range(outputs))) if outputs > classes + 1 else ()
    data = () if is_list else data
    if outputs == classes and (not data or tuple(model) == tuple(data)):
        return identity_mapping(outputs)
    if outputs == classes + 1 and data and tuple(model[1:]) == tuple(data):
        return _without_background(outputs, classes)
    if is_list and outputs > classes:
        if _has_background(outputs, model):
            hint = f" (where the list has 1 to {outputs - 1}, give label_offset 1)"
            return _without_background(outputs, outputs - 1, hint)
        return identity_mapping(outputs)
    names = data if by_name or outputs == classes else ()  # else only the counts are compared
    shared = [label for label in names if label in model]
    if names and len(shared) == classes and _unique(model, shared):
        note = (
            f"the {classes} classes of the data are matched by name to the {outputs} of the model"
        )
        return ClassMapping(tuple(model.index(label) for label in names), outputs, note=note)
    if outputs == classes:
        differ = by_name or (model and not _numbered(model) and not _numbered(names))
        note = "class names of the model and of the data differ: classes are matched by index"
        return ClassMapping(tuple(range(outputs)), outputs, note=note if differ else "")
    nameless = not names or _numbered(model)
    if outputs == classes + 1 and not shared and (nameless or _has_background(outputs, model)):
        return _without_background(outputs, classes)
    unknown = next((label for label in names if label not in model), None)
    hint = f", or some of them by name ({unknown} is none)" if unknown is not None else ""
    raise UsageError(
        "model",
        f"{outputs} classes",
        f"the {classes} classes that {dataset} has{hint}",
        "choose the data set it was trained on",
    )


def match_labels(
    outputs: int, model: Sequence[str], data: Sequence[str], activation: str | None
) -> ClassMapping:
    """Finds the output for each label of data with any number of labels an image.

    Labels are matched by name where model and data have the same, else by index.

    Args:
        outputs: how many outputs the model has.
        model: names of its classes; empty if unknown.
        data: names of the labels.
        activation: of the model, `None` if it is not known.

    Raises:
        UsageError: they differ in number, or the model has one class an image.
    """
    expected = f"a model with {len(data)} outputs of a sigmoid, the labels of the data"
    if outputs != len(data):
        raise UsageError("model", f"{outputs} outputs", expected)
    if activation == SOFTMAX and outputs > 1:
        raise UsageError("model", "outputs of a softmax", expected)
    own = tuple(model[-outputs:])
    if set(own) == set(data) and len(set(own)) == outputs:
        return ClassMapping(tuple(own.index(label) for label in data), outputs)
    differ = bool(own) and not _numbered(own) and not _numbered(data)
    note = "label names of the model and of the data differ: labels are matched by index"
    return ClassMapping(tuple(range(outputs)), outputs, note=note if differ else "")


def _without_background(outputs: int, classes: int, hint: str = "") -> ClassMapping:
    note = (
        f"the model has {outputs} classes and the data {classes}: the first output, background, is "
        f"not scored{hint}"
    )
    return ClassMapping(tuple(range(1, classes + 1)), outputs, True, note)


def _has_background(outputs: int, model: Sequence[str]) -> bool:
    return outputs == _IMAGENET or (len(model) == outputs and model[0].lower() == "background")


def _unique(model: Sequence[str], shared: Sequence[str]) -> bool:
    """Whether each of `shared` is the name of one class alone (ImageNet has two cranes)."""
    return all(model.count(label) == 1 for label in shared) and len(set(shared)) == len(shared)


def _numbered(labels: Sequence[str]) -> bool:
    """Whether the names are the indices themselves, or there are none."""
    return all(label == str(index) for index, label in enumerate(labels))
