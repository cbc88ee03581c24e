"""Released weights by name: Google's checkpoints of `released_models`, the weight files of
keras.applications, and those of timm.

A name is that of Google's archive; the first release of V1, whose archives are named as those of
the second, has its date before it, and the files of keras.applications have `keras/`. timm's
weights have their name on its hub.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterator, Sequence

from mobilenet.configs import released_models, timm_models
from mobilenet.configs.dataset import Preprocessing
from mobilenet.configs.released_models import FLOAT, QUANTIZED
from mobilenet.errors import UsageError, one_of

IMAGENET = "imagenet"  # stands for the best weights of a model
GOOGLE, KERAS, TIMM = SOURCES = ("google", "keras", "timm")
_BACKGROUND = 1001  # classes of Google's models: output 0 is the background
_FIRST_V1 = "2018_02_22"
_KERAS_PAGE = "tf_keras.applications"
_TIMM_PAGE = "timm results/results-imagenet.csv"
_HUB = "https://huggingface.co"
_IMAGENET_1000 = "in1k"  # ends the tags of weights of 1000 classes
# Where two sources have weights of the same figure: a file is smaller than an archive.
_PREFERENCE = (KERAS, GOOGLE, TIMM)


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
        preprocessing: how pixels become their inputs.
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
    preprocessing: Preprocessing = Preprocessing()

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
    for weights in _google():
        is_copied = weights.kind == FLOAT and not weights.name.startswith(_FIRST_V1)
        if not is_copied or weights.model_name == "mobilenet_edgetpu":
            continue
        file, top1 = _keras_file(weights)
        yield dataclasses.replace(
            weights,
            name=f"keras/{weights.name}",
            source=KERAS,
            num_classes=_BACKGROUND - 1,
            file=f"keras/{file}",
            address="",
            top1=top1,
            page=_KERAS_PAGE,
        )


def _keras_file(google: ReleasedWeights) -> tuple[str, float | None]:
    """The file of keras.applications with the weights of Google's, and its published accuracy."""
    width, size = google.width, google.image_size
    if google.model_name == "mobilenet_v1":
        top1 = _KERAS_V1_TOP1.get((width, size))
        return f"mobilenet_{_KERAS_V1_WIDTHS[width]}_{size}_tf.h5", top1
    if google.model_name == "mobilenet_v2":
        return (
            f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{width}_{size}.h5",
            google.top1,
        )
    kind = google.model_name.removeprefix("mobilenet_v3_")
    top1 = _KERAS_V3_TOP1[google.model_name, width]
    return f"weights_mobilenet_v3_{kind}_224_{width}_float.h5", top1


# Parameters and, at 224 pixels, MACs in millions of timm 1.0.29's models.
_TIMM_COUNTS = {
    "mobilenetv1_100": (4.231976, 568.740352),
    "mobilenetv1_125": (6.270840, 879.516800),
    "mobilenetv2_050": (1.968680, 97.131840),
    "mobilenetv2_100": (3.504872, 300.774272),
    "mobilenetv2_140": (6.108776, 582.195824),
    "mobilenetv3_large_100": (5.483032, 216.589760),
    "mobilenetv3_small_050": (1.593224, 24.188688),
    "mobilenetv3_small_075": (2.041872, 43.399344),
    "mobilenetv3_small_100": (2.542856, 56.510400),
    "tf_mobilenetv3_large_075": (3.993528, 154.560624),
    "tf_mobilenetv3_large_100": (5.483032, 216.589760),
    "tf_mobilenetv3_large_minimal_100": (3.924288, 209.136704),
    "tf_mobilenetv3_small_075": (2.041872, 43.399344),
    "tf_mobilenetv3_small_100": (2.542856, 56.510400),
    "tf_mobilenetv3_small_minimal_100": (2.044736, 52.288448),
    "mobilenet_edgetpu_v2_m": (8.462888, 1835.637440),
    "mobilenetv4_conv_small_050": (2.238952, 64.741408),
    "mobilenetv4_conv_small": (3.774024, 186.005568),
    "mobilenetv4_conv_medium": (9.715512, 827.649984),
    "mobilenetv4_conv_large": (32.590864, 2171.341312),
}
_TIMM_MACS = {  # at other sizes
    ("mobilenetv4_conv_small", 256): 242.178048,
    ("mobilenetv4_conv_medium", 256): 1080.244224,
    ("mobilenetv4_conv_medium", 384): 2427.413504,
    ("mobilenetv4_conv_large", 256): 2835.269632,
    ("mobilenetv4_conv_large", 384): 6376.220672,
}


def _timm() -> Iterator[ReleasedWeights]:
    for model in timm_models.RELEASED:
        if not model.tag.endswith(_IMAGENET_1000):  # untrained, or of other classes
            continue
        params, macs = _TIMM_COUNTS[model.name]
        yield ReleasedWeights(
            name=f"timm/{model.full_name}",
            source=TIMM,
            model_name=model.model_name,
            width=model.width,
            image_size=model.size,
            kind=FLOAT,
            num_classes=_BACKGROUND - 1,
            file=f"timm/{model.full_name}.safetensors",
            address=f"{_HUB}/timm/{model.full_name}/resolve/main/model.safetensors",
            macs_million=_TIMM_MACS.get((model.name, model.size), macs),
            params_million=params,
            top1=model.top1,
            page=_TIMM_PAGE,
            preprocessing=model.preprocessing,
        )


ALL: tuple[ReleasedWeights, ...] = (*_google(), *_keras(), *_timm())
_BY_NAME = {weights.name: weights for weights in ALL}
HEADERS = ("weights", "px", "MACs M", "params M", "top-1 %")


def find(name: str) -> ReleasedWeights | None:
    """The weights of a name, if there are any."""
    return _BY_NAME.get(name)


def get(name: str, parameter: str = "weights") -> ReleasedWeights:
    """The weights of a name.

    Args:
        name: as in `names()`.
        parameter: its name in errors.

    Raises:
        UsageError: there are none; the nearest name is shown.
    """
    return _BY_NAME[one_of(parameter, name, _BY_NAME)]


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

    Weights whose inputs are in [-1, 1], as those of the model, are preferred; then those with a
    published accuracy, then those of the nearest image size.

    Args:
        model_name: one of `archs.ALL`.
        width: the width multiplier.
        image_size: the longer side of its images; weights of the nearest size are taken.
        num_classes: of the model; one of 1001 classes has the background, which only Google's
            weights have. 0 for any.

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
    usual = Preprocessing()
    return min(
        fitting or of_width,
        key=lambda w: (
            (w.preprocessing.mean, w.preprocessing.std) != (usual.mean, usual.std),
            w.top1 is None,
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
    "TIMM",
    "ReleasedWeights",
    "WeightNames",
    "best",
    "find",
    "get",
    "names",
    "rows",
]
