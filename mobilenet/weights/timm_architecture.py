"""Which model a state dict of timm is of: family, width, head and classes from names and shapes,
the rest from a name.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilenet import strict_json
from mobilenet.configs import timm_models
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.base import MAX_CLASSES, MAX_SIDE, check_number
from mobilenet.configs.dataset import Preprocessing
from mobilenet.configs.timm_models import TimmModel
from mobilenet.errors import UsageError, one_of, shorten
from mobilenet.weights import safetensors_file, timm_tensors
from mobilenet.weights.timm_tensors import Shape, Tensor

CONFIG = "config.json"  # what timm's hub has next to the weights
STRUCTURE = (  # fields of a config that weights decide, besides model and width
    *("divisor", "finegrain_classification_mode", "widen_last", "scale_stem"),
    *("use_explicit_padding", "batch_norm_epsilon", "hard_sigmoid_slope", "blocks"),
)
_MAX_CHANNELS = 16
_COMMON_WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 1.25, 1.3, 1.4, 1.5, 2.0)
_WIDTHS = (*_COMMON_WIDTHS, *(n / 20 for n in range(1, 81)), *(n / 100 for n in range(1, 401)))

Shapes = Mapping[str, Shape]


@dataclasses.dataclass(frozen=True)
class Detected:
    """The model in a file.

    Attributes:
        config: of the model, with logits.
        tensors: what it is filled with.
        counters: tensors that no model needs, the counters of batch norms.
        channels: of its images.
        size: height and width of its images, in pixels.
        preprocessing: how pixels become its inputs.
        known: the weights of timm that decided padding, epsilon and preprocessing.
        notes: what is assumed.
    """

    config: MobileNetConfig
    tensors: tuple[Tensor, ...]
    counters: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    preprocessing: Preprocessing
    known: TimmModel
    notes: tuple[str, ...] = ()

    @property
    def model_name(self) -> str:
        """Our name of the model."""
        return self.known.model_name

    @property
    def is_released(self) -> bool:
        """Whether names and shapes are those of the weights that timm released."""
        config = self.config
        is_whole = (config.width_multiplier, config.num_classes) == (self.known.width, 1000)
        return is_whole and self.known.top1 is not None and not self.notes

    def apply_to(self, config: MobileNetConfig) -> MobileNetConfig:
        """A config with the padding, epsilon and other details of these weights.

        Its model and width stay, and of another model all.
        """
        return with_structure(config, self.config)

    def __str__(self) -> str:
        width, classes = self.config.width_multiplier, self.config.num_classes
        head = f"{classes} classes" if classes else "no classifier"
        return f"{self.known.name} of timm, width {width:g}, {head}"


def with_structure(config: MobileNetConfig, source: MobileNetConfig) -> MobileNetConfig:
    """A config with the padding, epsilon and other details of another of the same model."""
    if type(config) is not type(source):
        return config
    return config.replace(**{name: getattr(source, name) for name in STRUCTURE})


def detect(path: str | os.PathLike[str], architecture: str | None = None) -> Detected:
    """Reads the header of a file, and `config.json` next to it.

    Args:
        path: of the file.
        architecture: a name of timm; its width is that of the shapes.

    Raises:
        UsageError: the file is damaged; it is of no model of ours, or of another one than a name
            says; or several models of timm fit, of which one must be named.
    """
    path = Path(path)
    shapes = safetensors_file.read_shapes(path)
    source = _source(path, architecture)
    fitted = _fit(shapes, path)
    known, notes = _choose(source, fitted, path)
    config = known.config(fitted.width).replace(num_classes=fitted.classes)
    tensors = timm_tensors.tensors_of(config, fitted.blocks, fitted.channels)
    assert tensors is not None
    return Detected(
        config,
        tensors,
        fitted.counters,
        fitted.channels,
        source.size or (known.size, known.size),
        source.preprocessing or known.preprocessing,
        known,
        notes,
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """What a name says.

    Attributes:
        models: weights of timm that it stands for; empty without a name.
        origin: of the name, in words.
        preprocessing, size: that are stored with it.
        tag: that it has.
    """

    models: tuple[TimmModel, ...] = ()
    origin: str = ""
    preprocessing: Preprocessing | None = None
    size: tuple[int, int] | None = None
    tag: str = ""


def _source(path: Path, architecture: str | None) -> _Source:
    """`architecture`, else that in `config.json`, else that of the file."""
    stored = _stored_source(path.parent / CONFIG)
    if architecture is not None:
        models = timm_models.find(architecture)
        if stored is not None and stored.models[0].name == models[0].name:
            return dataclasses.replace(stored, origin="architecture")
        return _Source(models, "architecture", tag=architecture.partition(".")[2])
    if stored is not None:
        return stored
    models = timm_models.find_in(path.stem)
    return _Source(models, "the name of the file", tag=path.stem.partition(".")[2])


def _stored_source(path: Path) -> _Source | None:
    """What timm's `config.json` says; `None` where there is none, or another program's.

    Raises:
        UsageError: it is damaged, or of a model that is not built here.
    """
    if not path.is_file():
        return None
    stored = strict_json.read(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("architecture"), str):
        return None
    values = stored.get("pretrained_cfg", stored)
    tag = values.get("tag", "") if isinstance(values, dict) else ""
    try:
        name = stored["architecture"]
        models = timm_models.find(f"{name}.{tag}" if isinstance(tag, str) and tag else name)
        if not isinstance(values, dict):
            raise UsageError("pretrained_cfg", values, "an object")
        preprocessing = _stored_preprocessing(values)
        return _Source(models, str(path), preprocessing, _stored_size(values), tag)
    except UsageError as error:
        raise error.within(str(path)) from None


def _stored_preprocessing(values: Mapping[str, Any]) -> Preprocessing | None:
    """The preprocessing in timm's `pretrained_cfg`; `None` where it is left out."""
    if not {"mean", "std", "crop_pct", "interpolation"} <= values.keys():
        return None
    one_of("crop_mode", str(values.get("crop_mode") or "center"), ("center",))
    mean, std = (_numbers(name, values[name]) for name in ("mean", "std"))
    share = _number("crop_pct", values["crop_pct"], above=0, most=1)
    return timm_models.make_preprocessing(mean, std, share, str(values["interpolation"]))


def _numbers(name: str, value: object) -> list[float]:
    """Mean or deviation of each channel, of pixels from 0 to 255."""
    if not isinstance(value, list) or not 1 <= len(value) <= _MAX_CHANNELS:
        raise UsageError(name, value, "a number for each channel")
    return [255 * _number(name, number) for number in value]


def _number(name: str, value: object, **rule: Any) -> float:
    """A number, no list of some."""
    if not isinstance(value, (int, float)):
        raise UsageError(name, value, "a number")
    check_number(name, value, **rule)
    return float(value)


def _stored_size(values: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images in timm's `pretrained_cfg`, `[channels, height, width]`."""
    size = values.get("input_size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 3:
        raise UsageError("input_size", size, "channels, height and width")
    rule = {"least": 1, "most": MAX_SIDE, "integer": True}
    height, width = (int(_number("input_size", side, **rule)) for side in size[1:])
    return height, width


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """What names and shapes tell."""

    model_name: str
    width: float
    classes: int
    channels: int
    blocks: tuple[str, ...]
    counters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.model_name} of width {self.width:g}"


def _fit(shapes: Shapes, path: Path) -> _Fitted:
    """The model of which these are the tensors, no more and no less.

    Raises:
        UsageError: there is none.
    """
    counters = tuple(name for name in shapes if name.endswith(f".{timm_tensors.COUNTER}"))
    needed = {name: shape for name, shape in shapes.items() if name not in counters}
    blocks = timm_tensors.block_names(needed)
    channels = _axis(needed, "conv_stem.weight", 1, 4)
    classes = _axis(needed, f"{timm_tensors.CLASSIFIER}.weight", 0, 2)
    if not channels or classes > MAX_CLASSES:
        expected = f"a state dict of timm's MobileNets; its tensors are {shorten(shapes)}"
        raise UsageError(str(path), None, expected)
    closest: list[tuple[int, str]] = []
    for model_name in timm_models.OURS:
        for width in _WIDTHS:
            config = timm_models.config_of(model_name, width).replace(num_classes=classes)
            tensors = timm_tensors.tensors_of(config, blocks, channels)
            if tensors is None:
                break
            differences = _differences(needed, {t.name: t.shape for t in tensors})
            if not differences:
                return _Fitted(model_name, width, classes, channels, blocks, counters)
            text = f"{model_name} of width {width:g} differs in {len(differences)}"
            closest.append((len(differences), f"{text}: {shorten(differences)}"))
            if needed.keys() != {tensor.name for tensor in tensors}:
                break  # at any width
    nearest = f"; {min(closest)[1]}" if closest else ""
    expected = f"the tensors of one of timm's MobileNets{nearest}"
    raise UsageError(str(path), f"{len(needed)} tensors", expected)


def _axis(shapes: Shapes, name: str, axis: int, rank: int) -> int:
    """The length of an axis of a tensor; 0 without a tensor of that rank."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) == rank else 0


def _differences(shapes: Shapes, expected: Shapes) -> list[str]:
    """What is missing, left over, or of another shape."""
    missing = [f"{name} is missing" for name in expected if name not in shapes]
    left_over = [f"{name} is left over" for name in shapes if name not in expected]
    reshaped = [
        f"{name} is {list(shapes[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    return [*missing, *left_over, *reshaped]


def _choose(source: _Source, fitted: _Fitted, path: Path) -> tuple[TimmModel, tuple[str, ...]]:
    """The weights of timm that decide what shapes do not tell, and what is assumed of them.

    Raises:
        UsageError: the name is of another model; or there is none and several models fit.
    """
    if not source.models:
        return _only(fitted, path), ()
    known = source.models[0]
    if known.model_name != fitted.model_name:
        what = source.origin if source.origin == "architecture" else str(path)
        expected = f"{fitted}, as its tensors are"
        raise UsageError(what, f"{known.name} by {source.origin}", expected)
    is_known = source.preprocessing is not None or known.tag == source.tag
    others = {model.preprocessing for model in timm_models.BY_NAME[known.name]}
    if is_known or (not source.tag and len(others) == 1):
        return known, ()
    tag = f"the tag {source.tag!r} is not known" if source.tag else "it has no tag"
    return known, (f"{tag}: its preprocessing is taken to be that of {known.full_name}",)


def _only(fitted: _Fitted, path: Path) -> TimmModel:
    """The weights of timm that shapes alone decide.

    Raises:
        UsageError: there are several, with other padding, epsilon or preprocessing.
    """
    models: list[TimmModel] = []
    for is_tf in (False, True):  # any width of either has the same shapes
        kind = [m for m in timm_models.of_model(fitted.model_name) if m.is_tf == is_tf]
        models += [m for m in kind if m.width == fitted.width] or kind
    if len({(model.is_tf, model.preprocessing) for model in models}) > 1:
        names = ", ".join(dict.fromkeys(model.name for model in models))
        expected = f"a name that tells padding, epsilon and preprocessing: {names} fit"
        remedy = f"begin the file's name with it, add timm's {CONFIG}, or give `architecture`"
        raise UsageError(str(path), str(fitted), expected, remedy)
    return models[0]
