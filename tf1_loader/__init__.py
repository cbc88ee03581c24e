"""Weights from elsewhere into our nets, strictly: TF1 checkpoints of slim, keras.applications'
files. Loaded when first used; the names are those of tensorflow/models research/mobilenet.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilenet.tf1_loader.edgetpu_loader import load_mobilenet_edgetpu
    from mobilenet.tf1_loader.loading import Loaded, Report, load_tf1_checkpoint
    from mobilenet.tf1_loader.saving import save_keras_checkpoint
    from mobilenet.tf1_loader.tensors import end_points
    from mobilenet.tf1_loader.v1_loader import load_mobilenet_v1
    from mobilenet.tf1_loader.v2_loader import load_mobilenet_v2
    from mobilenet.tf1_loader.v3_loader import (
        load_mobilenet_v3,
        load_mobilenet_v3_large,
        load_mobilenet_v3_small,
    )

_HOMES = {
    "Loaded": "loading",
    "Report": "loading",
    "end_points": "tensors",
    "load_mobilenet_edgetpu": "edgetpu_loader",
    "load_mobilenet_v1": "v1_loader",
    "load_mobilenet_v2": "v2_loader",
    "load_mobilenet_v3": "v3_loader",
    "load_mobilenet_v3_large": "v3_loader",
    "load_mobilenet_v3_small": "v3_loader",
    "load_tf1_checkpoint": "loading",
    "save_keras_checkpoint": "saving",
}

__all__ = [
    "Loaded",
    "Report",
    "end_points",
    "load_mobilenet_edgetpu",
    "load_mobilenet_v1",
    "load_mobilenet_v2",
    "load_mobilenet_v3",
    "load_mobilenet_v3_large",
    "load_mobilenet_v3_small",
    "load_tf1_checkpoint",
    "save_keras_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mobilenet.tf1_loader' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mobilenet.tf1_loader.{_HOMES[name]}"), name)
