"""The released models of Google: what was published for each, where it lies, and what is wrong
there.

Figures as printed on two pages of tensorflow/models: research/mobilenet/README.md (V1 of
2018_08_02, V2, V3, EdgeTPU) and research/slim/models/mobilenet_v1.md (V1 of 2018_02_22). All are of
one crop of ILSVRC-2012 validation images. Where a figure does not fit the model, a note says so.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import MappingProxyType

from mobilenet.errors import one_of

FLOAT, QUANTIZED = KINDS = ("float", "quantized")

_PAGE = "tensorflow/models research/mobilenet/README.md"
_SLIM_PAGE = "tensorflow/models research/slim/models/mobilenet_v1.md"
_V1_ROOT = "http://download.tensorflow.org/models/mobilenet_v1"
_V2_ROOT = "https://storage.googleapis.com/mobilenet_v2/checkpoints"
_V3_ROOT = "https://storage.googleapis.com/mobilenet_v3/checkpoints"
_EDGETPU_ROOT = "https://storage.cloud.google.com/mobilenet_edgetpu/checkpoints"

# Errors of the pages, and on what basis they count.
_V1_PARAMS = (
    "params: kernels and biases of 1001 classes and three values a normalized channel (no gamma)"
)
_V1_STEM = "MACs leave out the first convolution: with it 325, 239, 166 and 107 at 224 to 128"
_V1_MISPRINTS = {
    (0.25, 192): "MACs: printed 34, the model has 30.2; a misprint",
    (0.5, 224): "MACs: printed 150, the model has 149.498",
}
_V1_LABEL = "the page's row is labelled 0.50, the file 0.5"
_V1_QUANT_NEW = "top-1 and top-5 of the TFLite file; 2018_02_22 states other figures for its own"
_V1_QUANT_OLD = "top-1 and top-5 before the quantizers were mended; 2018_08_02 states other figures"
_V2_BASIS = "MACs are cut to whole millions; params leave out batch normalization"
_V2_QUANT = "no accuracy or latency was published: the page's are those of the float model"
_V3_BASIS = "params leave out batch normalization"
_V3_SMALL = {
    1.0: "66 M MACs and 2.9 M params do not match the model: it has 56.5 and 2.54 (2.9 is that of "
    "an earlier head of 1280 channels)",
    0.75: "2.4 M params do not match the model, which has 2.04 and 43.4 M MACs (44 and 2.4 are "
    "those of an earlier head of 1280 channels)",
}
_V3_SMALL_MINIMALISTIC = "65 M MACs do not match the model: it has 52.3"
_EDGETPU = (
    "accuracy and latency of 8-bit files made after training; the archive's checkpoint is float"
)
_EDGETPU_BASIS = "MACs and params are cut, not rounded; params leave out batch normalization"
_PROSE_V1 = "the page's prose says 71 %"
_PROSE_V2 = "the page's prose says 72 %"
_PROSE_V3 = "the page's prose says 75.1 % and about 215 M MACs"


@dataclasses.dataclass(frozen=True)
class Release:
    """One released model, as its page has it.

    Attributes:
        name: of the archive, without `.tgz`; both V1 releases use the same names.
        model_name: ours, as in `archs.ALL`.
        width: the width multiplier.
        image_size: side of the images it was trained on, in pixels.
        kind: `float` or `quantized` (what the accuracy is of).
        archive: address of the archive with the checkpoint.
        macs_million, params_million: as printed.
        top1, top5: percent; `None` where none was published.
        latency_ms: milliseconds an image by device, large core where it is a CPU.
        source: repository and path of the page.
        notes: errors of the page, and what its figures count.
    """

    name: str
    model_name: str
    width: float
    image_size: int
    kind: str
    archive: str
    macs_million: int
    params_million: float
    top1: float | None
    top5: float | None
    latency_ms: Mapping[str, float]
    source: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Its name and accuracy, in one line."""
        if self.top1 is None:
            return f"{self.name}: no accuracy was published"
        top5 = "" if self.top5 is None else f", top-5 {self.top5} %"
        return f"{self.name}: top-1 {self.top1} %{top5} (ImageNet validation; {self.source})"


# width, params in millions, then by image size: MACs in millions, top-1 and top-5 of the float
# model, of the quantized model of 2018_08_02, of the quantized model of 2018_02_22.
_V1 = (
    (
        1.0,
        4.24,
        (224, 569, 70.9, 89.9, 70.1, 88.9, 69.7, 89.5),
        (192, 418, 70.0, 89.2, 69.2, 88.3, 69.0, 88.9),
        (160, 291, 68.0, 87.7, 67.2, 86.7, 67.3, 87.7),
        (128, 186, 65.2, 85.8, 63.4, 84.2, 64.0, 85.5),
    ),
    (
        0.75,
        2.59,
        (224, 317, 68.4, 88.2, 66.8, 87.0, 67.9, 88.1),
        (192, 233, 67.2, 87.3, 66.1, 86.4, 66.2, 87.1),
        (160, 162, 65.3, 86.0, 62.3, 83.8, 63.9, 85.5),
        (128, 104, 62.1, 83.9, 55.8, 78.8, 59.8, 82.8),
    ),
    (
        0.5,
        1.34,
        (224, 150, 63.3, 84.9, 60.7, 83.2, 62.2, 84.5),
        (192, 110, 61.7, 83.6, 60.0, 82.2, 60.4, 83.2),
        (160, 77, 59.1, 81.9, 57.7, 80.4, 57.7, 81.3),
        (128, 49, 56.3, 79.4, 54.5, 77.7, 54.9, 78.9),
    ),
    (
        0.25,
        0.47,
        (224, 41, 49.8, 74.2, 48.0, 72.8, 48.2, 73.8),
        (192, 34, 47.7, 72.3, 46.0, 71.2, 45.8, 71.9),
        (160, 21, 45.5, 70.3, 43.4, 68.5, 43.5, 69.1),
        (128, 14, 41.5, 66.3, 39.5, 64.4, 39.9, 65.8),
    ),
)

# width, params in millions, then: image size, MACs in millions, top-1, top-5, ms on a Pixel 1.
_V2 = (
    (1.4, 6.06, (224, 582, 75.0, 92.5, 138.0)),
    (1.3, 5.34, (224, 509, 74.4, 92.1, 123.0)),
    (
        1.0,
        3.47,
        (224, 300, 71.8, 91.0, 73.8),
        (192, 221, 70.7, 90.1, 55.1),
        (160, 154, 68.8, 89.0, 40.2),
        (128, 99, 65.3, 86.9, 27.6),
        (96, 56, 60.3, 83.2, 17.6),
    ),
    (
        0.75,
        2.61,
        (224, 209, 69.8, 89.6, 55.8),
        (192, 153, 68.7, 88.9, 41.6),
        (160, 107, 66.4, 87.3, 30.4),
        (128, 69, 63.2, 85.3, 21.9),
        (96, 39, 58.8, 81.6, 14.2),
    ),
    (
        0.5,
        1.95,
        (224, 97, 65.4, 86.4, 28.7),
        (192, 71, 63.9, 85.4, 21.1),
        (160, 50, 61.0, 83.2, 14.9),
        (128, 32, 57.7, 80.8, 9.9),
        (96, 18, 51.2, 75.8, 6.4),
    ),
    (
        0.35,
        1.66,
        (224, 59, 60.3, 82.9, 19.7),
        (192, 43, 58.2, 81.2, 14.6),
        (160, 30, 55.7, 79.1, 10.5),
        (128, 20, 50.8, 75.0, 6.9),
        (96, 11, 45.5, 70.4, 4.5),
    ),
)

# model, width, kind, MACs and params in millions, top-1, ms on a Pixel 1, 2 and 3; all at 224.
_V3 = (
    ("large", 1.0, FLOAT, 217, 5.4, 75.2, 51.2, 61.0, 44.0),
    ("large", 1.0, QUANTIZED, 217, 5.4, 73.9, 44.0, 42.5, 32.0),
    ("large", 0.75, FLOAT, 155, 4.0, 73.3, 39.8, 48.0, 34.0),
    ("small", 1.0, FLOAT, 66, 2.9, 67.5, 15.8, 19.4, 14.4),
    ("small", 1.0, QUANTIZED, 66, 2.9, 64.9, 15.5, 15.0, 10.7),
    ("small", 0.75, FLOAT, 44, 2.4, 65.4, 12.8, 15.9, 11.6),
    ("large-minimalistic", 1.0, FLOAT, 209, 3.9, 72.3, 44.1, 51.0, 35.0),
    ("large-minimalistic", 1.0, QUANTIZED, 209, 3.9, 71.3, 37.0, 35.0, 27.0),
    ("small-minimalistic", 1.0, FLOAT, 65, 2.0, 61.9, 12.2, 15.1, 11.0),
)

# width, MACs and params in millions, top-1, ms on a Pixel 4's Edge TPU and CPU; all at 224.
_EDGE = ((0.75, 624, 2.9, 73.5, 3.1, 13.8), (1.0, 990, 4.0, 75.6, 3.6, 20.6))


def _v1(date: str, source: str, place: int) -> Iterator[Release]:
    """The rows of one release; `place` is where its quantized accuracy stands in a table row."""
    of_quantized = _V1_QUANT_NEW if date == "2018_08_02" else _V1_QUANT_OLD
    for width, params, *rows in _V1:
        for size, macs, *accuracies in rows:
            notes = [_V1_PARAMS]
            notes += [_V1_STEM] * (width == 0.75) + [_V1_LABEL] * (width == 0.5)
            notes += [note for key, note in _V1_MISPRINTS.items() if key == (width, size)]
            for kind, at in ((FLOAT, 0), (QUANTIZED, place)):
                name = f"mobilenet_v1_{width}_{size}" + "_quant" * (kind == QUANTIZED)
                own = [of_quantized] if kind == QUANTIZED else []
                own += [_PROSE_V1] * ((width, size, kind) == (1.0, 224, FLOAT))
                yield Release(
                    name,
                    "mobilenet_v1",
                    width,
                    int(size),
                    kind,
                    f"{_V1_ROOT}_{date}/{name}.tgz",
                    int(macs),
                    params,
                    accuracies[at],
                    accuracies[at + 1],
                    MappingProxyType({}),
                    source,
                    (*notes, *own),
                )


def _v2() -> Iterator[Release]:
    for width, params, *rows in _V2:
        for size, macs, top1, top5, ms in rows:
            model = ("mobilenet_v2", width, int(size))
            prose = (_PROSE_V2,) if model[1:] == (1.0, 224) else ()
            name = f"mobilenet_v2_{width}_{size}"
            yield Release(
                name,
                *model,
                FLOAT,
                f"{_V2_ROOT}/{name}.tgz",
                int(macs),
                params,
                top1,
                top5,
                MappingProxyType({"Pixel 1": ms}),
                _PAGE,
                (_V2_BASIS, *prose),
            )
            name = f"quantized_v2_{size}_{round(100 * width)}"
            yield Release(
                name,
                *model,
                QUANTIZED,
                f"{_V2_ROOT}/{name}.tgz",
                int(macs),
                params,
                None,
                None,
                MappingProxyType({}),
                _PAGE,
                (_V2_BASIS, _V2_QUANT),
            )


def _v3() -> Iterator[Release]:
    devices = ("Pixel 1", "Pixel 2", "Pixel 3")
    for model, width, kind, macs, params, top1, *ms in _V3:
        notes = [_V3_BASIS]
        notes += [_V3_SMALL[width]] * (model == "small")
        notes += [_V3_SMALL_MINIMALISTIC] * (model == "small-minimalistic")
        notes += [_PROSE_V3] * ((model, width, kind) == ("large", 1.0, FLOAT))
        name = f"v3-{model}_224_{width}_{'float' if kind == FLOAT else 'uint8'}"
        yield Release(
            name,
            f"mobilenet_v3_{model.replace('-', '_')}",
            width,
            224,
            kind,
            f"{_V3_ROOT}/{name}.tgz",
            macs,
            params,
            top1,
            None,
            MappingProxyType(dict(zip(devices, ms, strict=True))),
            _PAGE,
            tuple(notes),
        )


def _edgetpu() -> Iterator[Release]:
    for width, macs, params, top1, accelerator, cpu in _EDGE:
        name = f"mobilenet_edgetpu_224_{width}"
        yield Release(
            name,
            "mobilenet_edgetpu",
            width,
            224,
            QUANTIZED,
            f"{_EDGETPU_ROOT}/{name}.tgz",
            macs,
            params,
            top1,
            None,
            MappingProxyType({"Pixel 4 Edge TPU": accelerator, "Pixel 4 CPU": cpu}),
            _PAGE,
            (_EDGETPU_BASIS, _EDGETPU),
        )


# The newer V1 release stands before the older one, so that it is found first.
ALL: tuple[Release, ...] = (
    *_v1("2018_08_02", _PAGE, 2),
    *_v1("2018_02_22", _SLIM_PAGE, 4),
    *_v2(),
    *_v3(),
    *_edgetpu(),
)

# Of a file or folder name: the model, and its width and image size in either order.
_NAME = re.compile(
    r"(?:^|[^a-z0-9])(?P<net>mobilenet_v1|mobilenet_v2|float_v2|quantized_v2"
    r"|v3[-_](?:large|small)(?:[-_]minimalistic)?|mobilenet_edgetpu)"
    r"_(?P<first>\d+(?:\.\d+)?)_(?P<second>\d+(?:\.\d+)?(?![\d]))(?P<rest>.*)",
    re.IGNORECASE,
)
# Those that Google has put on the Hugging Face Hub too.
_HUB_NAMES = (
    *("mobilenet_v1_0.75_192", "mobilenet_v1_1.0_224", "mobilenet_v2_0.35_96"),
    *("mobilenet_v2_0.75_160", "mobilenet_v2_1.0_224", "mobilenet_v2_1.4_224"),
)
_LEAST_SIZE = 32  # of the two numbers in a name, what is below this is the width


def find(model_name: str, width: float, image_size: int, kind: str = FLOAT) -> Release | None:
    """The release of a model, the newest where there are several; `None` where there is none.

    EdgeTPU has `quantized` rows alone: no accuracy of the float models was published.
    """
    one_of("kind", kind, KINDS)
    for release in ALL:
        fits = (release.model_name, release.image_size, release.kind)
        if fits == (model_name, image_size, kind) and math.isclose(release.width, width):
            return release
    return None


def of_path(path: str | os.PathLike[str]) -> Release | None:
    """The release that an archive's, checkpoint's or folder's name stands for, if any.

    The name itself is read first, then the two folders above (`v3-small_224_1.0_float/ema/model`).
    Names verify nothing: compare with the model that was found in the file.
    """
    text = os.fspath(path).replace("\\", "/")
    for part in PurePath(text).parts[:-4:-1]:
        match = _NAME.search(part)
        if match is None:
            continue
        model, rest = match["net"].lower(), match["rest"].lower()
        width, size = sorted((float(match["first"]), float(match["second"])))
        if model == "quantized_v2":
            lower, upper = float(match["first"]), float(match["second"])
            width, size = upper / 100, lower  # image size, then percent
        quantized = model == "quantized_v2" or rest.startswith(("_quant", "_uint8"))
        kind = QUANTIZED if quantized or model == "mobilenet_edgetpu" else FLOAT
        name = model.replace("-", "_").replace("float_", "").replace("quantized_", "")
        name = name if name.startswith("mobilenet") else f"mobilenet_{name}"
        if size < _LEAST_SIZE or size != int(size):
            return None
        found = find(name, width, int(size), kind)
        older = [r for r in ALL if found and r.name == found.name and r is not found]
        return older[0] if older and "2018_02_22" in text else found
    return None


def hub_repository(name: str) -> str | None:
    """The repository of a release on the Hugging Face Hub, which of timm's weights is their name;
    `None` where there is none.
    """
    if name.startswith("timm/"):
        return name
    return f"google/{name}" if name in _HUB_NAMES else None


def rows() -> tuple[list[str], list[list[str]]]:
    """Headers and rows of a table of all releases; numbers in the last but one column point to
    `footnotes`.
    """
    numbers = {note: str(number) for number, note in enumerate(_notes(), 1)}
    headers = ["net", "width", "size", "kind", "MACs M", "params M", "top-1 %", "top-5 %"]
    headers += ["ms an image", "notes", "archive"]

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    table = []
    for r in ALL:
        latency = ", ".join(f"{device} {ms:g}" for device, ms in r.latency_ms.items())
        figures = [f"{r.macs_million}", f"{r.params_million:g}", text(r.top1), text(r.top5)]
        marks = " ".join(numbers[note] for note in r.notes)
        table.append(
            [r.model_name, f"{r.width:g}", f"{r.image_size}", r.kind, *figures]
            + [latency or "-", marks or "-", r.archive]
        )
    return headers, table


def footnotes() -> list[str]:
    """One line a note, in the order of the numbers that `rows` gives."""
    return [f"{number}  {note}" for number, note in enumerate(_notes(), 1)]


def _notes() -> list[str]:
    return list(dict.fromkeys(note for release in ALL for note in release.notes))
