"""Weights of keras.applications' MobileNet V1, V2 and V3 into our models, strictly.

Every layer of the model must have weights in the file, and every layer of the file one in the
model. Only the head may be new: when the file was saved without its top, has a head of its own, or
another number of classes. The V3 models of keras.applications rescale pixels 0..255 inside; ours
take [-1, 1], so the weights are the same and the input is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet.configs import archs
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.errors import UsageError, shorten
from mobilenet.models import hdf5
from mobilenet.models.layer_plan import layer_channels
from mobilenet.weights import numbered_layers

Arrays = list[npt.NDArray[Any]]
_WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 1.3, 1.4)
_HEAD = ("Conv_2", "Logits")  # what a file without its top lacks
_FAMILIES: Mapping[type[MobileNetConfig], str] = MappingProxyType(
    {
        archs.MobileNetV1Config: "v1",
        archs.MobileNetV2Config: "v2",
        archs.MobileNetV3Config: "v3",
    }
)
_LOGITS = ("conv_preds", "predictions", "Logits")


def _numbered_remedy() -> str:
    return (
        "give the `model_name` and `width_multiplier` that it was trained with; save another model "
        "whole, as .keras, and give it as `model`"
    )


@dataclasses.dataclass(frozen=True)
class Report:
    """The layers that were loaded from a weight file.

    Attributes:
        loaded: layers of the model that took their weights from the file.
        new: layers that keep their initial weights; only the head can be among them.
        unused: layers of the file that the model lacks; only a head can be among them.
        matched: `names`, or `order` where the file's names are not those of keras.applications.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    matched: str


def load_weights(model: Any, path_h5: str | os.PathLike[str], config: MobileNetConfig) -> Report:
    """Puts the weights of a `.h5` file into `model`; all of them or, if any does not fit, none.

    Args:
        model: built by `build(config)`.
        path_h5: a `.h5` file of keras.applications with or without top, of weights alone or a whole
            model; or a `.weights.h5` file of such a model or of ours.
        config: the config that the model was built from.

    Raises:
        UsageError: not such a file, or it does not fit; the message counts the mismatches and names
            the likely cause.
    """
    path = Path(path_h5)
    with _opened(path) as file:
        is_numbered = numbered_layers.is_numbered(file)
        numbered = numbered_layers.read(file) if is_numbered else {}
        stored = {} if is_numbered else _read(file, path)
    if not is_numbered:
        _family(config)
        return assign_weights(model, stored, str(path), config)
    theirs, left_over = numbered_layers.by_layers(numbered, model)
    return _assign(model, theirs, lambda _: left_over, str(path), config, _numbered_remedy, "order")


def layer_names(path_h5: str | os.PathLike[str]) -> list[str]:
    """Names of the layers with weights of a whole model in a `.h5` file; none of weights alone.

    Raises:
        UsageError: see `load_weights`.
    """
    path = Path(path_h5)
    with _opened(path) as file:
        return list(_read(file, path)) if "model_weights" in file else []


def are_names_of(names: Iterable[str], model: Any, config: MobileNetConfig) -> bool:
    """Whether layers are named as in keras.applications, rather than as in our model.

    Args:
        names: of the layers that have weights.
        model, config: ours, which they may go into.
    """
    if not _has_family(config):
        return False
    ours = {layer.name for layer in model.layers if layer.weights}
    theirs = {_their_name(name, config) for name in ours}
    listed = set(names)
    return len(listed & theirs) > len(listed & ours)


def assign_weights(
    model: Any, stored: Mapping[str, Arrays], source: str, config: MobileNetConfig
) -> Report:
    """Puts the weights of a keras.applications model into `model`, all of them or none.

    Args:
        model: built by `build(config)`.
        stored: the weights by layer, in the order of the layers.
        source: where they come from, for errors.
        config: the config that the model was built from.

    Raises:
        UsageError: names `source`; see `load_weights`.
    """
    ours = [layer.name for layer in model.layers if layer.weights]
    theirs, matched = _match(stored, ours, config)

    def own_head(left_over: Mapping[str, Arrays]) -> list[str]:
        return _own_head(left_over, stored, config, matched)

    suggestion = functools.partial(_suggest_config, stored, config)
    return _assign(model, theirs, own_head, source, config, suggestion, matched)


def _assign(
    model: Any,
    theirs: dict[str, Arrays],
    own_head: Callable[[Mapping[str, Arrays]], list[str]],
    source: str,
    config: MobileNetConfig,
    suggestion: Callable[[], str],
    matched: str,
) -> Report:
    """Puts weights under the names of our layers into `model`, all of them or none.

    Args:
        model, source, config: see `assign_weights`.
        theirs: the weights; those of our layers are removed from it.
        own_head: which of those that remain are a head that is not ours.
        suggestion: what to do where they do not fit.
        matched: see `Report`.
    """
    ours = {layer.name: layer for layer in model.layers if layer.weights}
    new: list[str] = []
    problems: list[str] = []
    values: dict[str, Arrays] = {}
    has_top = "Logits" in theirs
    for name, layer in ours.items():
        shapes = [tuple(weight.shape) for weight in layer.weights]
        arrays = theirs.pop(name, None)
        if arrays is None:
            is_head = name in _HEAD if _has_family(config) else name == "Logits"
            if is_head and not has_top:
                new.append(name)
            else:
                problems.append(f"{name}: missing in the file")
            continue
        fitted = _fitted(arrays, shapes)
        if fitted is not None:
            values[name] = fitted
        elif name == "Logits" and _other_classes(arrays, shapes):
            new.append(name)
        else:
            got = " ".join(str(list(array.shape)) for array in arrays)
            expected = " ".join(str(list(shape)) for shape in shapes)
            problems.append(f"{name}: file {got}, model {expected}")
    unused = own_head(theirs)
    unused += [name for name in theirs if name == "Logits" and not config.num_classes]
    problems += [f"{name}: left over in the file" for name in theirs if name not in unused]
    if problems:
        raise UsageError(
            source,
            None,
            f"weights of {type(config).__name__}(width_multiplier={config.width_multiplier}); "
            f"{len(problems)} of {len(ours)} layers do not: {shorten(problems)}",
            suggestion(),
        )
    for name, arrays in values.items():
        ours[name].set_weights(arrays)
    return Report(tuple(values), tuple(new), tuple(unused), matched)


def _own_head(
    left_over: Mapping[str, Arrays],
    stored: Mapping[str, Arrays],
    config: MobileNetConfig,
    matched: str,
) -> list[str]:
    """Layers that follow the last convolution of the body: a head that is not ours."""
    body = [_their_name(name, config) for name in layer_channels(config) if name not in _HEAD]
    order = list(stored)
    last = max((order.index(name) for name in body if name in stored), default=len(order))
    return [n for n in left_over if matched == "names" and n in order and order.index(n) > last]


def _read(file: Any, path: Path) -> dict[str, Arrays]:
    """Arrays by layer name, in the file's order; layers without weights are left out."""
    root = file.get("model_weights", file)
    if "layer_names" not in root.attrs:
        expected = "a .h5 or .weights.h5 file of Keras; it has neither layer_names nor layers"
        raise UsageError(str(path), None, expected)
    stored: dict[str, Arrays] = {}
    for name in _strings(root.attrs, "layer_names"):
        group = root[name]
        weights = _strings(group.attrs, "weight_names")
        inner = list(dict.fromkeys(weight.rpartition("/")[0] for weight in weights))
        for layer in inner:  # several where the layer is a model
            arrays = [
                np.asarray(group[weight])
                for weight in weights
                if weight.rpartition("/")[0] == layer
            ]
            stored[name if len(inner) == 1 else layer] = arrays
    return stored


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A checked HDF5 file.

    Raises:
        UsageError: there is none, or reading it fails.
    """
    if not path.is_file():
        raise UsageError(str(path), None, "a .h5 weight file; there is none")
    try:
        with hdf5.open_checked(path) as (file, _):
            yield file
    except UsageError:
        raise
    except Exception as error:  # whatever h5py makes of a damaged file
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            str(path), None, f"a whole .h5 file ({reason})", "download or save it again"
        ) from None


def _strings(attributes: Any, name: str) -> list[str]:
    """A list of names, which Keras splits over `name0`, `name1`, ... where it is long."""
    chunks = [attributes[name]] if name in attributes else []
    while f"{name}{len(chunks)}" in attributes:
        chunks.append(attributes[f"{name}{len(chunks)}"])
    return [
        item.decode() if isinstance(item, bytes) else str(item)
        for chunk in chunks
        for item in chunk
    ]


def _match(
    stored: Mapping[str, Arrays], ours: list[str], config: MobileNetConfig
) -> tuple[dict[str, Arrays], str]:
    """The file's arrays under our names: by name, or by order where no name is known."""
    names = {_their_name(name, config): name for name in ours}
    names.update(dict.fromkeys(_LOGITS, "Logits"))
    known = [name for name in stored if name in names]
    if known or len(stored) > len(ours):
        return {names.get(name, name): arrays for name, arrays in stored.items()}, "names"
    body = ours[: len(stored)]
    return dict(zip(body, stored.values(), strict=True)), "order"


def _their_name(name: str, config: MobileNetConfig) -> str:
    """The layer of keras.applications that corresponds to ours."""
    conv = name.removesuffix("_batch_norm")
    norm = conv != name
    family = _family(config)
    if family == "v1":
        conv = "conv1" if conv == "Conv2d_0" else conv
        if conv.startswith("Conv2d_"):
            _, number, kind = conv.split("_")
            conv = f"conv_{'dw' if kind == 'depthwise' else 'pw'}_{number}"
        return f"{conv}_bn" if norm else conv
    if family == "v2":
        if conv == "Conv":
            return "bn_Conv1" if norm else "Conv1"
        if conv == "Conv_1":
            return "Conv_1_bn" if norm else "Conv_1"
        parts = conv.split("_")
        if len(parts) == 4:  # expanded_conv_<n>_<part>
            conv = f"block_{parts[2]}_{parts[3]}"
        return f"{conv}_BN" if norm else conv
    for ending, theirs in (
        ("_squeeze_excite_squeeze", "/squeeze_excite/Conv"),
        ("_squeeze_excite_excite", "/squeeze_excite/Conv_1"),
        ("_expand", "/expand"),
        ("_depthwise", "/depthwise"),
        ("_project", "/project"),
    ):
        if conv.endswith(ending):
            conv = conv.removesuffix(ending) + theirs
            break
    return f"{conv}/BatchNorm" if norm else conv


def _fitted(arrays: Arrays, shapes: list[tuple[int, ...]]) -> Arrays | None:
    """The arrays in the model's shapes (a dense kernel becomes a 1x1 convolution's), or `None`."""
    if len(arrays) != len(shapes):
        return None
    fitted = []
    for array, shape in zip(arrays, shapes, strict=True):
        if array.shape != shape and array.shape != shape[2:]:
            return None
        fitted.append(array.reshape(shape))
    return fitted


def _other_classes(arrays: Arrays, shapes: list[tuple[int, ...]]) -> bool:
    """Whether kernel and bias differ from the model's in the number of classes alone."""
    return (
        [array.ndim for array in arrays] in ([4, 1], [2, 1])
        and arrays[0].shape[-2] == shapes[0][-2]
        and arrays[0].shape[-1] == arrays[1].shape[0] != shapes[1][0]
    )


def _suggest_config(stored: Mapping[str, Arrays], config: MobileNetConfig) -> str:
    """The published model that the file fits, as advice."""
    for kind in archs.ALL.values():
        for width in (config.width_multiplier, *_WIDTHS):
            candidate = kind(width_multiplier=width)
            if _has_family(candidate) and _fits(stored, candidate):
                return f"the file fits {kind.__name__}(width_multiplier={width})"
    return "no published model of keras.applications fits it"


def _fits(stored: Mapping[str, Arrays], config: MobileNetConfig) -> bool:
    """Whether the convolutions of the body have the candidate's output channels."""
    expected = layer_channels(config)
    expected.pop("Conv_2", None)
    widths = {name: arrays[0].shape[-1] for name, arrays in stored.items() if arrays[0].ndim == 4}
    if any(widths.get(_their_name(name, config)) != count for name, count in expected.items()):
        return False
    squeezes = sum("squeeze_excite" in name for name in stored)
    return squeezes == 2 * sum(name.endswith("_squeeze") for name in expected)


def _has_family(config: MobileNetConfig) -> bool:
    """Whether keras.applications has the model."""
    return isinstance(config, tuple(_FAMILIES)) and not isinstance(
        config, archs.MobileNetEdgeTPUConfig
    )


def _family(config: MobileNetConfig) -> str:
    if not _has_family(config):
        raise UsageError(
            "config",
            type(config).__name__,
            "MobileNet V1, V2 or V3",
            "keras.applications has no EdgeTPU and no V4",
        )
    return next(family for kind, family in _FAMILIES.items() if isinstance(config, kind))
