"""MobileNetV2's names in TF1 checkpoints, and its loader."""

from __future__ import annotations

from mobilenet.configs.archs import MobileNetV2Config
from mobilenet.tf1_loader.family import make_loader
from mobilenet.tf1_loader.variable_names import Scopes

SCOPES = Scopes(
    "MobilenetV2",
    (
        ("Conv", "Conv"),
        ("Conv_1", "Conv_1"),
        ("expanded_conv_depthwise", "expanded_conv/depthwise"),
        ("expanded_conv_project", "expanded_conv/project"),
        ("expanded_conv_{n}_expand", "expanded_conv_{n}/expand"),
        ("expanded_conv_{n}_depthwise", "expanded_conv_{n}/depthwise"),
        ("expanded_conv_{n}_project", "expanded_conv_{n}/project"),
        ("Logits", "Logits/Conv2d_1c_1x1"),
    ),
)

load_mobilenet_v2 = make_loader("load_mobilenet_v2", "MobileNetV2", MobileNetV2Config)
