"""Data sets as batches: `load`, `describe`, `explain` for errors while reading; and `reencode`.

Modules are loaded when first used: `data.sources` also serves programs without TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenet.lazy import attributes

if TYPE_CHECKING:
    from mobilenet.data.datasets import describe, explain
    from mobilenet.data.pipeline import load
    from mobilenet.data.reencoding import Shards, reencode
    from mobilenet.data.sources.example import example_image
    from mobilenet.data.split import DatasetInfo

_SOURCES = {
    "DatasetInfo": "mobilenet.data.split",
    "describe": "mobilenet.data.datasets",
    "example_image": "mobilenet.data.sources.example",
    "explain": "mobilenet.data.datasets",
    "load": "mobilenet.data.pipeline",
    "reencode": "mobilenet.data.reencoding",
    "Shards": "mobilenet.data.reencoding",
}
__all__ = ["DatasetInfo", "Shards", "describe", "example_image", "explain", "load", "reencode"]

__getattr__ = attributes(__name__, _SOURCES)
