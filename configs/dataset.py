"""What the program knows about data: how pixels become inputs, and which sets there are.

The preprocessing is a property of a model, not of a command: it is stored in the model's card and
read back by the evaluator, the converter and predict. Sources: tensorflow/models
research/slim/preprocessing (inception), official/vision/image_classification/preprocessing.py
(imagenet).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from mobilenet.errors import UsageError, one_of

from .base import MAX_CLASSES, Config, checked, flag

UNIFORM, BALANCED = "uniform", "balanced"
SAMPLINGS = (UNIFORM, BALANCED)
CROPS = ("central", "square", "center", "none")
BILINEAR = "bilinear"
ANTIALIASED_BILINEAR, ANTIALIASED_BICUBIC = "antialiased_bilinear", "antialiased_bicubic"
INTERPOLATIONS = (BILINEAR, ANTIALIASED_BILINEAR, ANTIALIASED_BICUBIC)
RANDOM = "random"  # one of the antialiased filters for each training image
TRAIN_INTERPOLATIONS = (*INTERPOLATIONS, RANDOM)
_MOST_OPERATIONS = 10
CUSTOM = "custom"  # the name of a preprocessing that was given by its numbers
FROM_METADATA = "metadata"  # that of one in the metadata of a file, which is in no list
MAX_PIXELS = 200_000_000  # the largest phone sensors take 16,320 x 12,240 pixels
_DECODED_PIXELS = 2**28 - 1  # the most that TensorFlow decodes of a BMP, the least of all formats


MAX_PIXELS_HELP = (
    "refuse images of more pixels before they are decoded; the largest phone photos have 16,320 x "
    "12,240"
)
EXIF_HELP = "turn images by the orientation in their EXIF data (default: as the model was trained)"


@dataclasses.dataclass(frozen=True)
class Preprocessing(Config):
    """How an image becomes an input: crop, half-pixel resize, `(pixel - mean) / std`.

    Attributes:
        name: what the field calls it.
        mean: subtracted from pixels 0..255; one value, or one a channel.
        std: divides after that; one value, or one a channel.
        crop: `central` cuts the share of each side (slim), `square` the centered square of side
            `min(H, W) * size / (size + 32)` (official), `center` resizes the shorter side to
            `size / crop_fraction` and cuts the centered `size` out of that (timm, torchvision),
            `none` keeps the whole image.
        crop_fraction: the share that `central` and `center` keep; 0.875 is slim's.
        interpolation: `bilinear` is TensorFlow's without antialiasing, the others are Pillow's
            filters, which average all pixels that become one.
        exif: an image file is first turned upright, by the orientation in its EXIF data.
    """

    name: str = "inception"
    mean: tuple[float, ...] = checked((127.5,))
    std: tuple[float, ...] = checked((127.5,), above=0)
    crop: str = checked("central", choices=CROPS)
    crop_fraction: float = checked(0.875, above=0, most=1)
    interpolation: str = checked(BILINEAR, choices=INTERPOLATIONS)
    exif: bool = True

    @property
    def input_range(self) -> tuple[float, float]:
        """The smallest and largest value that pixels 0 and 255 become, of all channels."""
        channels = max(len(self.mean), len(self.std))
        means, stds = (v * channels if len(v) == 1 else v for v in (self.mean, self.std))
        pairs = list(zip(means, stds, strict=True))
        return min(-mean / std for mean, std in pairs), max((255 - m) / std for m, std in pairs)

    @property
    def is_identity(self) -> bool:
        """Whether pixels are a model's inputs as they are."""
        return set(self.mean) == {0.0} and set(self.std) == {1.0}

    def has_inputs_of(self, other: Preprocessing) -> bool:
        """Whether the same pixels become the same inputs, but for the crop."""
        return (self.mean, self.std, self.interpolation) == (
            other.mean,
            other.std,
            other.interpolation,
        )

    @property
    def part(self) -> str:
        """The part of an image that the crop keeps, in words."""
        if self.crop == "central":
            return f"the central {100 * self.crop_fraction:g} % of each side"
        if self.crop == "center":
            return f"the center, {100 * self.crop_fraction:g} % of the shorter side"
        return "the whole image" if self.crop == "none" else "the central square"


PREPROCESSING = MappingProxyType(
    {
        p.name: p
        for p in (
            Preprocessing("inception"),
            Preprocessing("inception_whole", crop="none"),
            Preprocessing(
                "imagenet",
                mean=(123.675, 116.28, 103.53),
                std=(58.395, 57.12, 57.375),
                crop="square",
            ),
            Preprocessing("unit", mean=(0.0,), std=(255.0,)),
            Preprocessing("raw", mean=(0.0,), std=(1.0,)),
        )
    }
)


def choose_preprocessing(
    choice: str | Preprocessing | Sequence[Any], channels: int | None = None
) -> Preprocessing:
    """A preprocessing as callers give it.

    Args:
        choice: a name of `PREPROCESSING`; a `Preprocessing`; `(mean, std)` of pixels from 0 to 255,
            each a number or one for each channel; or their numbers as text, `"127.5,127.5"` or the
            means of all channels before one or all of their deviations.
        channels: of the model; `None` leaves the numbers unchecked.

    Raises:
        UsageError: names `preprocessing`: it is none of these, not for these channels, or for
            pixels from 0 to 1.
    """
    if isinstance(choice, Preprocessing):
        chosen = choice
    elif isinstance(choice, str) and not any(map(str.isdigit, choice)):
        chosen = PREPROCESSING[one_of("preprocessing", choice, PREPROCESSING)]
    else:
        try:
            pair = _pair_of(choice) if isinstance(choice, str) else choice
            mean, std = (_numbers(values) for values in pair)
            chosen = Preprocessing(CUSTOM, mean=mean, std=std)
        except (TypeError, ValueError):  # UsageError too, which names the field
            names = ", ".join(PREPROCESSING)
            expected = f"one of {names}, a Preprocessing, or (mean, std) of pixels from 0 to 255"
            raise UsageError("preprocessing", choice, expected) from None
        _check_pixels(chosen)
    for values in (chosen.mean, chosen.std):
        if channels is not None and len(values) not in (1, channels):
            expected = f"one number, or one for each of {channels} channels"
            raise UsageError("preprocessing", list(values), expected)
    return chosen


def choose_crop(preprocessing: Preprocessing, choice: str | float) -> Preprocessing:
    """The preprocessing with another crop.

    Args:
        preprocessing: any.
        choice: one of `CROPS`, or the share of each side that a central crop keeps, or a center
            crop if the preprocessing has one.

    Raises:
        UsageError: names `crop`: it is none of these.
    """
    if choice in CROPS:
        return preprocessing.replace(crop=choice, crop_fraction=Preprocessing.crop_fraction)
    try:
        crop = "center" if preprocessing.crop == "center" else "central"
        return preprocessing.replace(crop=crop, crop_fraction=float(choice))
    except ValueError:  # UsageError too, which names another field
        expected = f"one of {', '.join(CROPS)}, or the share of each side, such as 0.875"
        raise UsageError("crop", choice, expected) from None


def _pair_of(text: str) -> tuple[list[float], list[float]]:
    """Mean and deviation in a text of numbers; `ValueError` for another text."""
    numbers = [float(word) for word in text.split(",")]
    if len(numbers) % 2:
        raise ValueError("means without deviations")
    means = 3 if len(numbers) == 4 else len(numbers) // 2  # of three channels with one deviation
    return numbers[:means], numbers[means:]


def _numbers(values: Any) -> tuple[float, ...]:
    listed = values if isinstance(values, Iterable) else (values,)
    return tuple(float(value) for value in listed)


def _check_pixels(chosen: Preprocessing) -> None:
    """Refuses mean and deviation of pixels from 0 to 1, as torchvision states them."""
    if max(chosen.std) < 1 and max(map(abs, chosen.mean)) <= 1:
        numbers = [f"{255 * value:.6g}" for values in (chosen.mean, chosen.std) for value in values]
        got = [*chosen.mean, *chosen.std]
        expected = f"mean and std of pixels from 0 to 255, {', '.join(numbers)}"
        raise UsageError("preprocessing", got, expected, "these are of pixels from 0 to 1")


@dataclasses.dataclass(frozen=True)
class DatasetConfig(Config):
    """Which images, how they are read, how they are varied in training.

    Attributes:
        name: `digits` (embedded), `image_folder`, `image_list`, `tfrecord`, or the name of a TFDS
            image classification set.
        label_offset: label in the file minus class index in the model; slim's ImageNet records hold
            1..1000 with 0 for background, so a model of 1000 classes reads them with an offset of
            1.
        flip: random left-right mirroring in training (never for digits).
        area_min: least share of the image that a training crop covers; 1 keeps the whole image.
        aspect_max: widest aspect ratio of a training crop; its inverse is the narrowest.
        rotation: training images are rotated by up to this many degrees in both directions (digits:
            10; photos: 0).
        shift: largest translation, as a share of a side (digits: 0.1).
        zoom: largest change of size, as a share (digits: 0.1).
        shear: largest shear, in pixels per pixel (digits: 0.1).
        color: strength of the brightness (32/255) and saturation (0.5 to 1.5) change; 0 is none, 1
            has slim's ranges (saturation blends with the luma, slim's with the largest channel).
        rand_augment: operations of RandAugment (arXiv 1909.13719) on each training image, drawn
            from fourteen; 0 is off, 2 is usual.
        rand_augment_magnitude: strength of the operations from 0 to 10, as timm counts it.
        train_interpolation: the filter of training images where it is not that of the
            preprocessing; `random` draws Pillow's bilinear or bicubic one for each image.
        sampling: which images an epoch of training has: each once (`uniform`), or as many of each
            class (`balanced`): images of rare classes come several times, those of frequent classes
            not in every epoch. Of digits, folders and lists of one label an image.
        skip_corrupt: leave out images that cannot be decoded, counted, instead of stopping at the
            first.
        max_pixels: an image whose header states more pixels is refused like a corrupt one, before
            anything is decoded; bounds the memory that a small file can take.
        exif: turn images upright, by the orientation in their EXIF data, as cameras expect and
            viewers do. `None` is what the model was trained with, and True for a new model.
    """

    _former_names: ClassVar[Mapping[str, str]] = MappingProxyType({"colour": "color"})

    name: str = flag(
        "digits",
        "digits, image_folder, image_list, tfrecord, or a TFDS name such as imagenette, "
        "imagenet2012, cifar10",
        "dataset_name",
    )
    data_dir: str | None = flag(
        None,
        "where the data set lies (TFDS folder, class folders, records, or the CSV file of an "
        "image_list, with the columns file and label)",
        path=True,
    )
    preprocessing: str = flag(
        "inception", "how pixels become inputs: " + ", ".join(PREPROCESSING), choices=PREPROCESSING
    )
    label_offset: int = flag(
        0,
        "label in the records or list minus class index in the model (slim's ImageNet: 1)",
        least=0,
        most=MAX_CLASSES,
        integer=True,
    )
    flip: bool = flag(True, "mirror training images at random")
    area_min: float = flag(0.05, "least share of the image in a training crop", above=0, most=1)
    aspect_max: float = flag(4 / 3, "widest aspect ratio of a training crop", least=1)
    rotation: float = flag(
        0.0, "training images are turned by up to this many degrees", least=0, most=180
    )
    shift: float = flag(
        0.0, "training images are moved by up to this share of a side", least=0, below=1
    )
    zoom: float = flag(
        0.0, "training images are enlarged or reduced by up to this share", least=0, below=1
    )
    shear: float = flag(0.0, "training images are slanted by up to this share", least=0, below=1)
    color: float = flag(1.0, "strength of the color variation in training, 0 to 1", least=0, most=1)
    rand_augment: int = flag(
        0,
        "operations of RandAugment on each training image; 0 is off",
        least=0,
        most=_MOST_OPERATIONS,
        integer=True,
    )
    rand_augment_magnitude: float = flag(
        9.0, "strength of the operations of RandAugment, 0 to 10", least=0, most=10
    )
    train_interpolation: str | None = flag(
        None,
        "filter that resizes training images: "
        + ", ".join(TRAIN_INTERPOLATIONS)
        + "; by default that of the preprocessing",
        choices=TRAIN_INTERPOLATIONS,
    )
    sampling: str = flag(
        UNIFORM,
        "images of an epoch: uniform (each once) or balanced (as many of each class)",
        choices=SAMPLINGS,
    )
    skip_corrupt: bool = flag(False, "leave out images that cannot be decoded, and count them")
    max_pixels: int = flag(MAX_PIXELS, MAX_PIXELS_HELP, least=1, most=_DECODED_PIXELS, integer=True)
    exif: bool | None = flag(None, EXIF_HELP)

    @property
    def model_preprocessing(self) -> Preprocessing:
        """The preprocessing of a model that is trained on this data set."""
        return self.with_exif(PREPROCESSING[self.preprocessing])

    def with_exif(self, preprocessing: Preprocessing) -> Preprocessing:
        """The preprocessing of a model, with `exif` as it is set here."""
        return preprocessing if self.exif is None else preprocessing.replace(exif=self.exif)


DIGITS = DatasetConfig(
    "digits",
    preprocessing="inception_whole",
    flip=False,
    area_min=1.0,
    aspect_max=1.0,
    rotation=10.0,
    shift=0.1,
    zoom=0.1,
    shear=0.1,
    color=0.0,
)
MNIST = DIGITS.replace(name="mnist")
FOLDER = DatasetConfig("image_folder", area_min=0.25)
LIST = FOLDER.replace(name="image_list")
FILES = FOLDER.replace(name="image_files")  # a folder of images without classes, to calibrate on
RECORDS = DatasetConfig("tfrecord", label_offset=1)


KNOWN = MappingProxyType({c.name: c for c in (DIGITS, MNIST, FOLDER, LIST, FILES, RECORDS)})


def get(name: str) -> DatasetConfig:
    """The defaults of a data set by name; a name that is not ours is taken to be TFDS'."""
    return KNOWN.get(name, DatasetConfig(name))
