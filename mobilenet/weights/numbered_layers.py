"""`.weights.h5` files, in which Keras numbers the layers of each class instead of naming them.

`layers/conv2d_1/vars/0` is the kernel of the second convolution, in the order of `model.layers`. A
model that is called as a layer has `layers` of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mobilenet.models.keras3 import snake_case
from mobilenet.typing import Array

Numbered = dict[str, list[tuple[str, list[Array]]]]  # class to its layers: name and arrays
_NUMBER = re.compile(r"(.+?)_(\d+)")
_LAYERS = "layers"


def is_numbered(file: Any) -> bool:
    """Whether an open HDF5 file has such layers."""
    return _LAYERS in file


def read(file: Any) -> Numbered:
    """The weights of an open HDF5 file whose headers are checked, by the class of their layer.

    Layers of a model called as a layer come before those around it, which are its head.
    """
    found: Numbered = {}
    for kind, path, arrays in _layers(file[_LAYERS]):
        found.setdefault(kind, []).append((path, arrays))
    return found


def _layers(group: Any) -> Iterator[tuple[str, str, list[Array]]]:
    names = sorted(group, key=_position)
    for name in (name for name in names if _LAYERS in group[name]):
        yield from _layers(group[name][_LAYERS])
    for name in names:
        stored = group[name].get("vars", {})
        arrays = [np.asarray(stored[key]) for key in sorted(stored, key=int)]
        if arrays:
            yield _position(name)[0], name, arrays


def _inputs(arrays: list[Array]) -> int:
    """Inputs of a dense layer."""
    return int(arrays[0].shape[0])


def _position(name: str) -> tuple[str, int]:
    """Class and number of a layer."""
    match = _NUMBER.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


def by_layers(numbered: Numbered, model: Any) -> tuple[dict[str, list[Array]], list[str]]:
    """The arrays under the names of a model's layers, and the names of those that are left over.

    A lone dense layer that fits is the classifier, which in this library's models is a 1x1
    convolution.
    """
    waiting = {kind: list(layers) for kind, layers in numbered.items()}
    named: dict[str, list[Array]] = {}
    ours = [layer for layer in model.layers if layer.weights]
    for layer in ours:
        layers = waiting.get(snake_case(type(layer).__name__))
        if layers:
            named[layer.name] = layers.pop(0)[1]
    dense, classifier = waiting.get("dense", []), ours[-1]
    is_missing = classifier.name not in named and len(dense) == 1
    if is_missing and _inputs(dense[0][1]) == classifier.weights[0].shape[-2]:
        named[classifier.name] = dense.pop()[1]
    return named, [path for layers in waiting.values() for path, _ in layers]
