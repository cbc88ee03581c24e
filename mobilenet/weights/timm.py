"""Weights of timm (PyTorch) in our models, strictly: every tensor is used or accounted for.

A model of timm ends with logits, and takes images by a preprocessing of its own, which goes into
the card.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.card import Card
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.models.builder import build
from mobilenet.typing import Float32Array
from mobilenet.weights import safetensors_file, timm_architecture
from mobilenet.weights.timm_architecture import STRUCTURE, Detected
from mobilenet.weights.timm_tensors import HEAD

_COUNTERS = "counters of batch norms"
_CLASSIFIER = "classifier"


@dataclasses.dataclass(frozen=True)
class Report:
    """The tensors of a file and their use; each is in `loaded` or `left_aside`.

    Attributes:
        path: as passed to the loader.
        architecture: name and tag in timm that decided what no tensor tells.
        description: of the model, in a sentence.
        loaded: tensor by weight, `<layer>/<kernel, bias, gamma, ...>`.
        left_aside: names that the model does not need, by reason.
        new: layers that keep their initial weights; only the head can be among them.
        preprocessing: how pixels become the inputs of the model.
        size: height and width of the images that it was trained on, in pixels.
        published: of these weights, in a line; empty where it is not known that they are them.
        notes: what is assumed, for the user.
    """

    path: str
    architecture: str
    description: str
    loaded: Mapping[str, str]
    left_aside: Mapping[str, tuple[str, ...]]
    new: tuple[str, ...]
    preprocessing: Preprocessing
    size: tuple[int, int]
    published: str = ""
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model from a file of timm."""

    model: Any
    config: MobileNetConfig
    report: Report

    @property
    def card(self) -> Card:
        """The card to store with the model."""
        outputs = "probabilities" if self.config.classifier_activation else "logits"
        return Card(
            architecture=self.config.to_json(),
            input_shape=tuple(self.model.input_shape[1:]),
            preprocessing=self.report.preprocessing,
            outputs=outputs if self.config.num_classes else "features",
            stage="timm",
            initial_weights=self.report.architecture,
            published=self.report.published,
            notes=(self.report.description, *self.report.notes),
        )


def load(
    path: str | os.PathLike[str],
    architecture: str | None = None,
    input_shape: Sequence[int | None] | int | None = None,
    classifier_activation: str | None = None,
) -> Loaded:
    """The weights of one of timm's MobileNets as a tf_keras model.

    Family, width, head and classes are those of the tensors. Padding, epsilon and preprocessing
    are those of a name in timm: `architecture`, else the one in the `config.json` next to the file,
    else the one that the file's name begins with.

    Args:
        path: a `.safetensors` file with timm's state dict.
        architecture: a name of timm, with or without its tag, such as `mobilenetv3_small_100`. Its
            width may differ from that of the tensors.
        input_shape: `[height, width, channels]`, or height and width, or the side of a square; when
            `None`, the size that the weights were released for.
        classifier_activation: `softmax`, `sigmoid`, or `None` for logits, as in timm.

    Raises:
        UsageError: there is no such file, it is damaged, or of another model; timm's variants with
            filtered strides (`aa`, `blur`), another depth (`d`) or head (`h`) or with attention are
            not built; or several models fit and no name says which.

    Examples:
        load("mobilenetv3_small_100.lamb_in1k.safetensors").model.predict(images)
    """
    detected = timm_architecture.detect(path, architecture)
    config = detected.config.for_loaded_weights().replace(
        classifier_activation=classifier_activation
    )
    values = safetensors_file.read_tensors(path)
    model = build(config, _shape(detected, input_shape))
    model.mobilenet_preprocessing = detected.preprocessing
    return Loaded(model, config, _fill(model, detected, values, os.fspath(path), has_head=True))


def load_into(
    model: Any,
    config: MobileNetConfig,
    path: str | os.PathLike[str],
    architecture: str | None = None,
) -> Report:
    """Fills a model to start training from; its head stays new where the class counts differ.

    Args:
        model: what `build(config)` made.
        config: its config, see `with_structure_of`.
        path, architecture: as in `load`.

    Raises:
        UsageError: see `load`; or the weights are those of another model. `model` is then as it
            was.
    """
    detected = timm_architecture.detect(path, architecture)
    channels = model.input_shape[-1]
    if channels != detected.channels:
        expected = f"{detected.channels}, as the weights of {path} take"
        raise UsageError("channels", channels, expected)
    _check_same(config, detected, os.fspath(path))
    values = safetensors_file.read_tensors(path)
    has_head = config.num_classes == detected.config.num_classes
    return _fill(model, detected, values, os.fspath(path), has_head)


def _check_same(config: MobileNetConfig, detected: Detected, path: str) -> None:
    """Checks that weights are those of the model.

    Raises:
        UsageError: they are another model's; it says what differs.
    """
    own = detected.config
    if type(config) is not type(own):
        expected = f"weights of {type(config).__name__}"
        raise UsageError(path, str(detected), expected, f"give `model_name={detected.model_name}`")
    if config.channels:
        expected = f"weights of a model with {len(config.channels)} thinned layers"
        raise UsageError(path, str(detected), expected, "thin it after its weights are loaded")
    if config.blocks != own.blocks:
        raise UsageError(path, str(detected), "weights of these blocks", "take those of timm")
    for name in ("width_multiplier", "normalization_name", *STRUCTURE):
        value, fitting = getattr(config, name), getattr(own, name)
        if value != fitting:
            expected = f"weights of a model with `{name}={value}`"
            raise UsageError(path, str(detected), expected, f"give `{name}={fitting}`")


def _fill(
    model: Any,
    detected: Detected,
    values: Mapping[str, Float32Array],
    path: str,
    has_head: bool,
) -> Report:
    """Sets the weights; only those of the head may be left out."""
    loaded: dict[str, str] = {}
    weights = {
        (layer.name, weight.name.split("/")[-1].split(":")[0]): weight
        for layer in model.layers
        for weight in layer.weights
    }
    new = {key for key in weights if key[0] == HEAD and not has_head}
    aside = [tensor.name for tensor in detected.tensors if tensor.layer == HEAD and not has_head]
    tensors = [tensor for tensor in detected.tensors if tensor.name not in aside]
    assigned = {(tensor.layer, tensor.weight): tensor for tensor in tensors}
    assert assigned.keys() == weights.keys() - new
    for key, tensor in assigned.items():
        weights[key].assign(np.ascontiguousarray(tensor.value(values[tensor.name])))
        loaded["/".join(key)] = tensor.name
    left = {_COUNTERS: detected.counters, _CLASSIFIER: tuple(aside)}
    return Report(
        path=path,
        architecture=detected.known.full_name,
        description=str(detected),
        loaded=loaded,
        left_aside={reason: names for reason, names in left.items() if names},
        new=(HEAD,) if new else (),
        preprocessing=detected.preprocessing,
        size=detected.size,
        published=str(detected.known) if detected.is_released else "",
        notes=detected.notes,
    )


def _shape(
    detected: Detected, requested: Sequence[int | None] | int | None
) -> tuple[int | None, ...]:
    """The input shape of the model to build.

    Raises:
        UsageError: it has other channels than the stem.
    """
    channels = detected.channels
    if requested is None:
        return (*detected.size, channels)
    if isinstance(requested, int):
        return requested, requested, channels
    shape = tuple(requested)
    if len(shape) == 3 and shape[2] != channels:
        raise UsageError("input_shape", shape, f"{channels} channels, as the stem has")
    return (*shape, channels) if len(shape) == 2 else shape
