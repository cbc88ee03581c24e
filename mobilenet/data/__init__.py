"""Data sets as batches: `load`, `describe`, and `explain` for errors that come up on reading.

Loaded when first used: `data.sources` serves programs without TensorFlow too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenet.lazy import attributes

if TYPE_CHECKING:
    from mobilenet.data.datasets import describe, explain
    from mobilenet.data.example_image import example
    from mobilenet.data.pipeline import load
    from mobilenet.data.split import DatasetInfo

_SOURCES = {
    "DatasetInfo": "mobilenet.data.split",
    "describe": "mobilenet.data.datasets",
    "example": "mobilenet.data.example_image",
    "explain": "mobilenet.data.datasets",
    "load": "mobilenet.data.pipeline",
}
__all__ = ["DatasetInfo", "describe", "example", "explain", "load"]

__getattr__ = attributes(__name__, _SOURCES)
