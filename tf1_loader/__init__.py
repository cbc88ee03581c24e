"""Weights from elsewhere into our models, strictly: TF1 checkpoints of slim, keras.applications'
files. Loaded when first used; the names are those of tensorflow/models research/mobilenet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenet.lazy import attributes

if TYPE_CHECKING:
    from mobilenet.tf1_loader.edgetpu_loader import load_mobilenet_edgetpu
    from mobilenet.tf1_loader.graph_end_points import end_points
    from mobilenet.tf1_loader.loading import Loaded, Report, load_tf1_checkpoint
    from mobilenet.tf1_loader.tf2_formats import save_keras_checkpoint
    from mobilenet.tf1_loader.v1_loader import load_mobilenet_v1
    from mobilenet.tf1_loader.v2_loader import load_mobilenet_v2
    from mobilenet.tf1_loader.v3_loader import (
        load_mobilenet_v3,
        load_mobilenet_v3_large,
        load_mobilenet_v3_small,
    )

_SOURCES = {
    "Loaded": "mobilenet.tf1_loader.loading",
    "Report": "mobilenet.tf1_loader.loading",
    "end_points": "mobilenet.tf1_loader.graph_end_points",
    "load_mobilenet_edgetpu": "mobilenet.tf1_loader.edgetpu_loader",
    "load_mobilenet_v1": "mobilenet.tf1_loader.v1_loader",
    "load_mobilenet_v2": "mobilenet.tf1_loader.v2_loader",
    "load_mobilenet_v3": "mobilenet.tf1_loader.v3_loader",
    "load_mobilenet_v3_large": "mobilenet.tf1_loader.v3_loader",
    "load_mobilenet_v3_small": "mobilenet.tf1_loader.v3_loader",
    "load_tf1_checkpoint": "mobilenet.tf1_loader.loading",
    "save_keras_checkpoint": "mobilenet.tf1_loader.tf2_formats",
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


__getattr__ = attributes(__name__, _SOURCES)
