"""timm's MobileNets: what a name says of weights that no tensor tells.

Two models of equal shapes differ in padding and epsilon (`mobilenetv3_small_100` and
`tf_mobilenetv3_small_100`), two sets of weights of one model in preprocessing. Source: timm 1.0.29,
timm/models/mobilenetv3.py and efficientnet.py; top-1 of its results/results-imagenet.csv.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from mobilenet.configs import archs
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.block_tables import edgetpu_of_timm
from mobilenet.configs.dataset import (
    ANTIALIASED_BICUBIC,
    ANTIALIASED_BILINEAR,
    PREPROCESSING,
    Preprocessing,
)
from mobilenet.errors import UsageError, one_of, shorten

TIMM = "timm"  # name of their preprocessing
INTERPOLATIONS = MappingProxyType(
    {"bicubic": ANTIALIASED_BICUBIC, "bilinear": ANTIALIASED_BILINEAR}
)
_TF = "tf_"  # Google's weights
_HALF = ((127.5,), (127.5,))
_IMAGENET = (PREPROCESSING["imagenet"].mean, PREPROCESSING["imagenet"].std)
_UNIT = ((0.0,), (255.0,))
_STEM_WIDTH = 0.75  # narrower V3 models of timm keep their stem
_NOT_BUILT = (  # pattern of the name, and why
    (r"mobilenetv1_\d+h", "has another head"),
    (r"mobilenetv[23](_small|_large)?_\d+d", "has more layers"),
    (r"mobilenetv3_rw", "has other blocks"),
    (r"mobilenetv4_conv_(aa|blur)_\w+", "filters before its strides"),
    (r"mobilenetv4_hybrid_\w+", "has attention"),
)


@dataclasses.dataclass(frozen=True)
class TimmModel:
    """Weights of timm, or one of its models.

    Attributes:
        name: of the model in timm, such as `mobilenetv3_small_100`.
        tag: of the weights, such as `lamb_in1k`; `untrained` where none were released.
        model_name: our model.
        width: its width multiplier.
        size: side of the images, in pixels.
        preprocessing: how pixels become its inputs.
        top1: published, in percent, at `size`; `None` where none was.
    """

    name: str
    tag: str
    model_name: str
    width: float
    size: int
    preprocessing: Preprocessing
    top1: float | None = None

    @property
    def full_name(self) -> str:
        """As on the Hugging Face Hub: name and tag."""
        return f"{self.name}.{self.tag}"

    def __str__(self) -> str:
        published = "" if self.top1 is None else f", {self.top1:g} % top-1 at {self.size} px"
        return f"{self.full_name} of timm{published}"

    @property
    def is_tf(self) -> bool:
        """Whether its weights are Google's: SAME padding, an epsilon of 1e-3."""
        return self.name.startswith(_TF)

    def config(self, width: float | None = None) -> MobileNetConfig:
        """The model, with 1000 classes and logits.

        Args:
            width: another width multiplier.
        """
        return config_of(self.model_name, self.width if width is None else width, self.is_tf)


def config_of(model_name: str, width: float, is_tf: bool = False) -> MobileNetConfig:
    """A model of ours as timm builds it, with 1000 classes and logits.

    Args:
        model_name: ours.
        width: its width multiplier.
        is_tf: with the padding and epsilon of `tf_*`.
    """
    fields: dict[str, object] = {}
    if model_name == "mobilenet_v1":
        fields["divisor"] = 8
    elif "edgetpu" in model_name:
        fields["blocks"] = edgetpu_of_timm(archs.get(model_name).blocks)
    elif "v3" in model_name:
        fields["scale_stem"] = width >= _STEM_WIDTH
    elif "v4" in model_name:
        fields["scale_stem"] = width >= 1
    return archs.get(
        model_name,
        width_multiplier=width,
        num_classes=1000,
        classifier_activation=None,
        use_explicit_padding=not is_tf,
        batch_norm_epsilon=1e-3 if is_tf else 1e-5,
        **fields,
    )


class _Weights(NamedTuple):
    """Weights of a model: tag, side, mean and std, share of the crop, interpolation, top-1."""

    tag: str
    size: int
    scaling: tuple[tuple[float, ...], tuple[float, ...]]
    share: float
    interpolation: str
    top1: float | None = None


def _models(name: str, model_name: str, width: float, *weights: _Weights) -> list[TimmModel]:
    """The weights of a model; the first ones are those that timm takes without a tag."""
    models = []
    for tag, size, (mean, std), share, interpolation, top1 in weights:
        preprocessing = make_preprocessing(mean, std, share, interpolation)
        models.append(TimmModel(name, tag, model_name, width, size, preprocessing, top1))
    return models


def make_preprocessing(
    mean: Sequence[float], std: Sequence[float], share: float, interpolation: str
) -> Preprocessing:
    """timm's evaluation transform: resize the shorter side, cut out the center, normalize.

    Args:
        mean, std: of pixels from 0 to 255.
        share: its `crop_pct`.
        interpolation: a name of timm.

    Raises:
        UsageError: a number is not legal, or the interpolation is another one.
    """
    resized = INTERPOLATIONS[one_of("interpolation", interpolation, INTERPOLATIONS)]
    means, stds = ((v[0],) if len(set(v)) == 1 else tuple(v) for v in (mean, std))
    return Preprocessing(
        TIMM, means, stds, crop="center", crop_fraction=share, interpolation=resized
    )


_V1, _V2, _SMALL, _LARGE = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
)
_V4, _EDGE = "mobilenet_v4_conv_", "mobilenet_edgetpu_v2_"
_NONE = "untrained"
_CUBIC, _LINEAR = INTERPOLATIONS
_W = _Weights
RELEASED: tuple[TimmModel, ...] = (
    *_models(
        "mobilenetv1_100", _V1, 1.0, _W("ra4_e3600_r224_in1k", 224, _HALF, 0.875, _CUBIC, 75.39)
    ),
    *_models(
        "mobilenetv1_125", _V1, 1.25, _W("ra4_e3600_r224_in1k", 224, _HALF, 0.9, _CUBIC, 76.92)
    ),
    *_models("mobilenetv2_035", _V2, 0.35, _W(_NONE, 224, _IMAGENET, 0.875, _CUBIC)),
    *_models("mobilenetv2_050", _V2, 0.5, _W("lamb_in1k", 224, _IMAGENET, 0.875, _CUBIC, 65.93)),
    *_models("mobilenetv2_075", _V2, 0.75, _W(_NONE, 224, _IMAGENET, 0.875, _CUBIC)),
    *_models("mobilenetv2_100", _V2, 1.0, _W("ra_in1k", 224, _IMAGENET, 0.875, _CUBIC, 72.91)),
    *_models("mobilenetv2_140", _V2, 1.4, _W("ra_in1k", 224, _IMAGENET, 0.875, _CUBIC, 76.53)),
    *_models("mobilenetv3_large_075", _LARGE, 0.75, _W(_NONE, 224, _IMAGENET, 0.875, _LINEAR)),
    *_models(
        "mobilenetv3_large_100",
        _LARGE,
        1.0,
        _W("ra_in1k", 224, _IMAGENET, 0.875, _CUBIC, 75.78),
        _W("ra4_e3600_r224_in1k", 224, _HALF, 0.95, _CUBIC, 76.31),
        _W("miil_in21k_ft_in1k", 224, _UNIT, 0.875, _LINEAR),
        _W("miil_in21k", 224, _UNIT, 0.875, _LINEAR),
    ),
    *_models("mobilenetv3_small_050", _SMALL, 0.5, _W("lamb_in1k", 224, _IMAGENET, 0.875, _CUBIC)),
    *_models("mobilenetv3_small_075", _SMALL, 0.75, _W("lamb_in1k", 224, _IMAGENET, 0.875, _CUBIC)),
    *_models(
        "mobilenetv3_small_100", _SMALL, 1.0, _W("lamb_in1k", 224, _IMAGENET, 0.875, _CUBIC, 67.64)
    ),
    *_models(
        "tf_mobilenetv3_large_075", _LARGE, 0.75, _W("in1k", 224, _HALF, 0.875, _LINEAR, 73.44)
    ),
    *_models(
        "tf_mobilenetv3_large_100", _LARGE, 1.0, _W("in1k", 224, _HALF, 0.875, _LINEAR, 75.51)
    ),
    *_models(
        "tf_mobilenetv3_large_minimal_100",
        f"{_LARGE}_minimalistic",
        1.0,
        _W("in1k", 224, _HALF, 0.875, _LINEAR, 72.27),
    ),
    *_models("tf_mobilenetv3_small_075", _SMALL, 0.75, _W("in1k", 224, _HALF, 0.875, _LINEAR)),
    *_models(
        "tf_mobilenetv3_small_100", _SMALL, 1.0, _W("in1k", 224, _HALF, 0.875, _LINEAR, 67.92)
    ),
    *_models(
        "tf_mobilenetv3_small_minimal_100",
        f"{_SMALL}_minimalistic",
        1.0,
        _W("in1k", 224, _HALF, 0.875, _LINEAR),
    ),
    *_models(
        "mobilenet_edgetpu_100", "mobilenet_edgetpu", 1.0, _W(_NONE, 224, _IMAGENET, 0.9, _CUBIC)
    ),
    *_models(f"{_EDGE}xs", f"{_EDGE}xs", 1.0, _W(_NONE, 224, _IMAGENET, 0.9, _CUBIC)),
    *_models(f"{_EDGE}s", f"{_EDGE}s", 1.0, _W(_NONE, 224, _IMAGENET, 0.9, _CUBIC)),
    *_models(
        f"{_EDGE}m", f"{_EDGE}m", 1.0, _W("ra4_e3600_r224_in1k", 224, _HALF, 0.9, _CUBIC, 80.12)
    ),
    *_models(f"{_EDGE}l", f"{_EDGE}l", 1.0, _W(_NONE, 224, _IMAGENET, 0.9, _CUBIC)),
    *_models(
        "mobilenetv4_conv_small_035", f"{_V4}small", 0.35, _W(_NONE, 224, _HALF, 0.875, _CUBIC)
    ),
    *_models(
        "mobilenetv4_conv_small_050",
        f"{_V4}small",
        0.5,
        _W("e3000_r224_in1k", 224, _HALF, 0.875, _CUBIC),
    ),
    *_models(
        "mobilenetv4_conv_small",
        f"{_V4}small",
        1.0,
        _W("e2400_r224_in1k", 224, _IMAGENET, 0.875, _CUBIC, 73.76),
        _W("e1200_r224_in1k", 224, _IMAGENET, 0.875, _CUBIC),
        _W("e3600_r256_in1k", 256, _HALF, 0.95, _CUBIC, 74.53),
    ),
    *_models(
        "mobilenetv4_conv_medium",
        f"{_V4}medium",
        1.0,
        _W("e500_r256_in1k", 256, _IMAGENET, 0.95, _CUBIC, 79.92),
        _W("e500_r224_in1k", 224, _IMAGENET, 0.95, _CUBIC, 79.09),
        _W("e250_r384_in12k_ft_in1k", 384, _IMAGENET, 0.95, _CUBIC),
        _W("e180_r384_in12k", 384, _IMAGENET, 1.0, _CUBIC),
        _W("e180_ad_r384_in12k", 384, _IMAGENET, 1.0, _CUBIC),
        _W("e250_r384_in12k", 384, _IMAGENET, 1.0, _CUBIC),
    ),
    *_models(
        "mobilenetv4_conv_large",
        f"{_V4}large",
        1.0,
        _W("e600_r384_in1k", 384, _IMAGENET, 0.95, _CUBIC, 82.97),
        _W("e500_r256_in1k", 256, _IMAGENET, 0.95, _CUBIC),
    ),
)
BY_NAME: Mapping[str, tuple[TimmModel, ...]] = MappingProxyType(
    {name: tuple(m for m in RELEASED if m.name == name) for name in {m.name: 0 for m in RELEASED}}
)
OURS = tuple(dict.fromkeys(model.model_name for model in RELEASED))


def of_model(model_name: str) -> list[TimmModel]:
    """timm's weights of a model of ours, by its name."""
    return [model for model in RELEASED if model.model_name == model_name]


def find(text: str) -> tuple[TimmModel, ...]:
    """The weights that a name stands for: those of its tag, else all of the model.

    Args:
        text: a name of timm, with or without tag and `timm/`.

    Raises:
        UsageError: names `architecture`: there is no such model, or it is one that is not built.
    """
    name, _, tag = text.rpartition("/")[2].partition(".")
    check_built(name)
    models = BY_NAME[one_of("architecture", name, BY_NAME)]
    return tuple(m for m in models if m.tag == tag) or models


def find_in(text: str) -> tuple[TimmModel, ...]:
    """As `find`, for a text that begins with a name, such as that of a file; empty for others.

    Raises:
        UsageError: it begins with the name of a model that is not built.
    """
    check_built(text.partition(".")[0])
    starts = (name for name in BY_NAME if re.match(rf"{name}(?![0-9A-Za-z])", text))
    longest = max(starts, key=len, default=None)
    if longest is None:
        return ()
    tag = text[len(longest) :].partition(".")[2]
    return find(f"{longest}.{tag}")


def check_built(name: str) -> None:
    """Refuses timm's variants that are not built here.

    Raises:
        UsageError: names `architecture`.
    """
    for pattern, reason in _NOT_BUILT:
        if hit := re.match(rf"({_TF})?{pattern}(?![0-9A-Za-z])", name):
            expected = f"one of {shorten(BY_NAME)}; this variant {reason} and is not built here"
            raise UsageError("architecture", hit[0], expected)
