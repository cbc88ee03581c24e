"""Data sets as batches: `load`, `describe`, and `explain` for errors that come up on reading."""

from __future__ import annotations

from mobilenet.data.example import example
from mobilenet.data.order import DatasetInfo
from mobilenet.data.pipeline import load
from mobilenet.data.sources import describe, explain

__all__ = ["DatasetInfo", "describe", "example", "explain", "load"]
