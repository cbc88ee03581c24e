"""Presets of the variation of training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mobilenet.errors import UsageError

if TYPE_CHECKING:
    from .run import RunConfig

NONE, LIGHT, MEDIUM, STRONG, AUTO = "none", "light", "medium", "strong", "auto"
NAMES = (NONE, LIGHT, MEDIUM, STRONG, AUTO)
# Training images from which on `auto` takes a preset: photos of one's own, some 10,000, ImageNet.
FROM_IMAGES = ((100_000, STRONG), (5_000, MEDIUM), (0, LIGHT))
_FOR_PHOTOS = ("digits", "mnist")  # data sets that are none


@dataclasses.dataclass(frozen=True)
class Preset:
    """Values of fields of a run's config.

    Attributes:
        images: of `DatasetConfig`.
        batches: of the `TrainConfig` of float training; later stages are short.
    """

    images: Mapping[str, Any]
    batches: Mapping[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """By path of the field."""
        images = {f"dataset.{name}": value for name, value in self.images.items()}
        return images | {f"train.{name}": value for name, value in self.batches.items()}


def _preset(
    area_min: float,
    color: float = 0.0,
    operations: int = 0,
    magnitude: float = 9.0,
    mixing: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Preset:
    images = {
        "area_min": area_min,
        "aspect_max": 1.0 if area_min == 1 else 4 / 3,
        "flip": area_min < 1,
        "color": color,
        "rand_augment": operations,
        "rand_augment_magnitude": magnitude,
        **dict.fromkeys(("rotation", "shift", "zoom", "shear"), 0.0),
    }
    batches = dict(zip(("mixup", "cutmix", "random_erasing"), mixing, strict=True))
    return Preset(MappingProxyType(images), MappingProxyType(batches))


# Light: what was best on 650 photos (docs/fine_tuning.md). Magnitude 6 is that of procedure A3 of
# "ResNet strikes back" (arXiv 2110.00476), mixup of 0.1 with CutMix of 1 that of A2 and A3;
# magnitude 8, erasing of 0.25 and crops from 0.08 on are those of timm's MobileNetV4.
PRESETS = MappingProxyType(
    {
        NONE: _preset(1.0),
        LIGHT: _preset(0.25, color=1.0),
        MEDIUM: _preset(0.2, operations=2, magnitude=6.0),
        STRONG: _preset(0.08, operations=2, magnitude=8.0, mixing=(0.1, 1.0, 0.25)),
    }
)


def by_size(images: int) -> str:
    """The preset that `auto` takes for so many training images."""
    return next(name for least, name in FROM_IMAGES if images >= least)


def apply(config: RunConfig, usual: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The config with values of a preset, where it does not differ from its recipe.

    Args:
        config: of a run.
        usual: that of its recipe.
        values: by path.

    Raises:
        UsageError: the data are no photos, or a value contradicts another one.
    """
    if config.dataset.name in _FOR_PHOTOS:
        got, expected = config.augmentation, f"no preset for {config.dataset.name}"
        raise UsageError("augmentation", got, expected, "they are of photos; leave it out")
    for path, value in values.items():
        part, _, field = path.partition(".")
        own = getattr(config, part)
        if getattr(own, field) == getattr(getattr(usual, part), field):
            config = config.replace(**{part: own.replace(**{field: value})})
    return config


def values_of(config: RunConfig) -> dict[str, Any]:
    """The values of a config that presets set, by path."""
    paths = (path.split(".") for path in PRESETS[NONE].values)
    return {f"{part}.{name}": getattr(getattr(config, part), name) for part, name in paths}
