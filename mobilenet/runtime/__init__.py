"""Runs and scores flatbuffers on any machine, with ai_edge_litert, numpy and Pillow alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenet.lazy import attributes

if TYPE_CHECKING:
    from mobilenet.runtime.classifier import Classifier, predict
    from mobilenet.runtime.evaluation import evaluate
    from mobilenet.runtime.interpreter import latency, make_interpreter, outside, partitions
    from mobilenet.tflite.model import Flatbuffer, read

_SOURCES = {
    "Classifier": "mobilenet.runtime.classifier",
    "Flatbuffer": "mobilenet.tflite.model",
    "evaluate": "mobilenet.runtime.evaluation",
    "latency": "mobilenet.runtime.interpreter",
    "make_interpreter": "mobilenet.runtime.interpreter",
    "outside": "mobilenet.runtime.interpreter",
    "partitions": "mobilenet.runtime.interpreter",
    "predict": "mobilenet.runtime.classifier",
    "read": "mobilenet.tflite.model",
}
__all__ = [
    "Classifier",
    "Flatbuffer",
    "evaluate",
    "latency",
    "make_interpreter",
    "outside",
    "partitions",
    "predict",
    "read",
]


__getattr__ = attributes(__name__, _SOURCES)  # a child process of `isolation` needs half of these
