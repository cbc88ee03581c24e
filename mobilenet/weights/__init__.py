"""Weights from other sources than TF1 checkpoints: timm, keras.applications, TF2 checkpoints, and
released weights by name. Loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenet.lazy import attributes

if TYPE_CHECKING:
    from mobilenet.weights import timm

__all__ = ["timm"]

__getattr__ = attributes(__name__, {"timm": "mobilenet.weights.timm:"})
