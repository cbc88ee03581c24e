"""MobileNetV1's names in TF1 checkpoints, and its loader."""

from __future__ import annotations

from mobilenet.configs.archs import MobileNetV1Config
from mobilenet.tf1_loader.family import make_loader
from mobilenet.tf1_loader.variable_names import Scopes

SCOPES = Scopes(
    "MobilenetV1",
    (
        ("Conv2d_0", "Conv2d_0"),
        ("Conv2d_{n}_depthwise", "Conv2d_{n}_depthwise"),
        ("Conv2d_{n}_pointwise", "Conv2d_{n}_pointwise"),
        ("Logits", "Logits/Conv2d_1c_1x1"),
    ),
)

load_mobilenet_v1 = make_loader("load_mobilenet_v1", "MobileNetV1", MobileNetV1Config)
