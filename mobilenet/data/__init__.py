"""Data sets as batches: `load`, `describe`, and `explain` for errors while reading.

Modules are loaded when first used: `data.sources` also serves programs without TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenet.lazy import attributes

if TYPE_CHECKING:
    from mobilenet.data.datasets import describe, explain
    from mobilenet.data.pipeline import load
    from mobilenet.data.sources.example import example_image
    from mobilenet.data.split import DatasetInfo

_SOURCES = {
    "DatasetInfo": "mobilenet.data.split",
    "describe": "mobilenet.data.datasets",
    "example_image": "mobilenet.data.sources.example",
    "explain": "mobilenet.data.datasets",
    "load": "mobilenet.data.pipeline",
}
__all__ = ["DatasetInfo", "describe", "example_image", "explain", "load"]

__getattr__ = attributes(__name__, _SOURCES)
