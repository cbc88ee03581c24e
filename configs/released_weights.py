"""Released weights by name: Google's checkpoints of `released_models` and the weight files of
keras.applications.

A name is that of Google's archive; the first release of V1, whose archives are named as those of
the second, has its date before it, and the files of keras.applications have `keras/`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterator, Sequence

from mobilenet.configs import released_models
from mobilenet.configs.released_models import FLOAT, QUANTIZED
from mobilenet.errors import UsageError, one_of

IMAGENET = "imagenet"  # stands for the best weights of a model
GOOGLE, KERAS = SOURCES = ("google", "keras")
_BACKGROUND = 1001  # classes of Google's models: output 0 is the background
_FIRST_V1 = "2018_02_22"
_KERAS_PAGE = "tf_keras.applications"
# Where two sources have weights of the same figure: a file is smaller than an archive.
_PREFERENCE = (KERAS, GOOGLE)


@dataclasses.dataclass(frozen=True)
class ReleasedWeights:
    """Weights that can be fetched by their name.

    Attributes:
        name: of the weights.
        source: who released them, one of `SOURCES`.
        model_name: ours, as in `archs.ALL`.
        width: the width multiplier.
        image_size: side of the images that they were trained on, in pixels.
        kind: `float` or `quantized` (trained with fake quantization).
        num_classes: outputs; of 1001 the first is the background.
        file: its path in the cache, with `/`.
        address: of the file; empty where tf_keras has it.
        macs_million, params_million: as published for the model.
        top1: published accuracy on ImageNet's validation images in percent, if any was.
        page: where it was published.
    """

    name: str
    source: str
    model_name: str
    width: float
    image_size: int
    kind: str
    num_classes: int
    file: str
    address: str
    macs_million: float
    params_million: float
    top1: float | None
    page: str

    @property
    def megabytes(self) -> str:
        """The size of its file in words, as far as the number of weights tells it."""
        extent = "at least" if self.source == GOOGLE else "about"
        return f"{extent} {4 * self.params_million:.0f} MB"

    def __str__(self) -> str:
        """Its name and accuracy, in one line."""
        if self.top1 is None:
            return f"{self.name}: no accuracy was published"
        return f"{self.name}: top-1 {self.top1:g} % (ImageNet validation; {self.page})"


class WeightNames(list[str]):
    """Names of released weights; `str()` shows them with their figures as a table."""

    def __str__(self) -> str:
        from mobilenet import text_tables

        return text_tables.table(HEADERS, rows(self))


# Of keras.applications' V1, by width and image size; no others were published.
_KERAS_V1_TOP1 = {
    (1.0, 224): 70.6,
    (1.0, 192): 69.1,
    (1.0, 160): 67.2,
    (1.0, 128): 64.4,
    (0.75, 224): 68.4,
    (0.5, 224): 63.7,
    (0.25, 224): 50.6,
}
_KERAS_V1_WIDTHS = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0", 0.25: "2_5"}
_KERAS_V3_TOP1 = {
    ("mobilenet_v3_large", 1.0): 75.6,
    ("mobilenet_v3_large", 0.75): 73.3,
    ("mobilenet_v3_small", 1.0): 68.1,
    ("mobilenet_v3_small", 0.75): 65.4,
    ("mobilenet_v3_large_minimalistic", 1.0): 72.3,
    ("mobilenet_v3_small_minimalistic", 1.0): 61.9,
}


def _google() -> Iterator[ReleasedWeights]:
    for release in released_models.ALL:
        first = f"mobilenet_v1_{_FIRST_V1}" in release.archive
        name = f"{_FIRST_V1}/{release.name}" if first else release.name
        # The checkpoint of EdgeTPU is float; its accuracy is that of 8-bit files.
        kind = FLOAT if release.model_name == "mobilenet_edgetpu" else release.kind
        yield ReleasedWeights(
            name=name,
            source=GOOGLE,
            model_name=release.model_name,
            width=release.width,
            image_size=release.image_size,
            kind=kind,
            num_classes=_BACKGROUND,
            file=f"{name}.tgz",
            address=release.archive,
            macs_million=release.macs_million,
            params_million=release.params_million,
            top1=release.top1,
            page=release.source,
        )


def _keras() -> Iterator[ReleasedWeights]:
    for release in released_models.ALL:
        is_copied = release.kind == FLOAT and _FIRST_V1 not in release.archive
        if not is_copied:
            continue
        file, top1 = _keras_file(release)
        yield ReleasedWeights(
            name=f"keras/{release.name}",
            source=KERAS,
            model_name=release.model_name,
            width=release.width,
            image_size=release.image_size,
            kind=FLOAT,
            num_classes=_BACKGROUND - 1,
            file=f"keras/{file}",
            address="",
            macs_million=release.macs_million,
            params_million=release.params_million,
            top1=top1,
            page=_KERAS_PAGE,
        )


def _keras_file(release: released_models.Release) -> tuple[str, float | None]:
    """The file of keras.applications with the weights of a model, and its published accuracy."""
    width, size = release.width, release.image_size
    if release.model_name == "mobilenet_v1":
        top1 = _KERAS_V1_TOP1.get((width, size))
        return f"mobilenet_{_KERAS_V1_WIDTHS[width]}_{size}_tf.h5", top1
    if release.model_name == "mobilenet_v2":
        return (
            f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{width}_{size}.h5",
            release.top1,
        )
    kind = release.model_name.removeprefix("mobilenet_v3_")
    top1 = _KERAS_V3_TOP1[release.model_name, width]
    return f"weights_mobilenet_v3_{kind}_224_{width}_float.h5", top1


ALL: tuple[ReleasedWeights, ...] = (*_google(), *_keras())
HEADERS = ("weights", "px", "MACs M", "params M", "top-1 %")


def find(name: str) -> ReleasedWeights | None:
    """The weights of a name, if there are any."""
    return next((weights for weights in ALL if weights.name == name), None)


def get(name: str, parameter: str = "weights") -> ReleasedWeights:
    """The weights of a name.

    Args:
        name: as in `names()`.
        parameter: its name in errors.

    Raises:
        UsageError: there are none; the nearest name is shown.
    """
    one_of(parameter, name, names())
    return next(weights for weights in ALL if weights.name == name)


def names(pattern: str = "*") -> WeightNames:
    """Names of the weights that match a shell pattern.

    Args:
        pattern: of the name, of what follows its last `/`, or of the model's name.
    """
    return WeightNames(
        weights.name
        for weights in ALL
        if any(
            fnmatch.fnmatchcase(text, pattern)
            for text in (weights.name, weights.name.rpartition("/")[2], weights.model_name)
        )
    )


def rows(listed: Sequence[str]) -> list[list[str]]:
    """Rows of a table of weights, in the order of `HEADERS`; weights that were not published
    anywhere are `-`.
    """
    table = []
    for name in listed:
        weights = get(name)
        top1 = "-" if weights.top1 is None else f"{weights.top1:.1f}"
        figures = [f"{weights.image_size}", f"{weights.macs_million:.0f}"]
        table.append([name, *figures, f"{weights.params_million:.2f}", top1])
    return table


def best(model_name: str, width: float, image_size: int, num_classes: int) -> ReleasedWeights:
    """The float weights of a model with the best published accuracy.

    Args:
        model_name: one of `archs.ALL`.
        width: the width multiplier.
        image_size: the longer side of its images; weights of the nearest size are taken.
        num_classes: of the model; one of 1001 classes has the background, which only Google's
            weights have.

    Raises:
        UsageError: none were released; the message has the widths of which there are some.
    """
    released = [w for w in ALL if w.model_name == model_name and w.kind == FLOAT]
    of_width = [weights for weights in released if math.isclose(weights.width, width)]
    if not of_width:
        widths = ", ".join(f"{w:g}" for w in sorted({weights.width for weights in released}))
        expected = f"released weights of {model_name} of width {width:g}"
        remedy = f"`width_multiplier` can be {widths}" if widths else "none are released"
        raise UsageError("weights", IMAGENET, expected, remedy)
    has_background = num_classes == _BACKGROUND
    fitting = [w for w in of_width if w.num_classes == _BACKGROUND] if has_background else of_width
    return min(
        fitting or of_width,
        key=lambda w: (
            abs(math.log(w.image_size / image_size)),
            -w.image_size,
            -(w.top1 or 0),
            _PREFERENCE.index(w.source),
        ),
    )


__all__ = [
    "ALL",
    "FLOAT",
    "GOOGLE",
    "HEADERS",
    "IMAGENET",
    "KERAS",
    "QUANTIZED",
    "SOURCES",
    "ReleasedWeights",
    "WeightNames",
    "best",
    "find",
    "get",
    "names",
    "rows",
]
