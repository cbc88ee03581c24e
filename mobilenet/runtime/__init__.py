"""A flatbuffer on any machine, by ai_edge_litert, numpy and Pillow: read, run, score."""

from __future__ import annotations

from mobilenet.runtime.classifier import Classifier, predict
from mobilenet.runtime.evaluation import evaluate
from mobilenet.runtime.flatbuffer import Flatbuffer, read
from mobilenet.runtime.interpreter import latency, make, outside, partitions

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
