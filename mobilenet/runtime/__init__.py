"""A flatbuffer on any machine, by ai_edge_litert, numpy and Pillow: read, run, score."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilenet.runtime.classifier import Classifier, predict
    from mobilenet.runtime.evaluation import evaluate
    from mobilenet.runtime.flatbuffer import Flatbuffer, read
    from mobilenet.runtime.interpreter import latency, make, outside, partitions

_HOMES = {
    "Classifier": "classifier",
    "Flatbuffer": "flatbuffer",
    "evaluate": "evaluation",
    "latency": "interpreter",
    "make": "interpreter",
    "outside": "interpreter",
    "partitions": "interpreter",
    "predict": "classifier",
    "read": "flatbuffer",
}
__all__ = [
    "Classifier",
    "Flatbuffer",
    "evaluate",
    "latency",
    "make",
    "outside",
    "partitions",
    "predict",
    "read",
]


def __getattr__(name: str) -> Any:
    """Loads a name when it is first used: a child process of `isolation` needs half of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value
