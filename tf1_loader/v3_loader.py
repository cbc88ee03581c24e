"""The names of MobileNetV3, small and large, in TF1 checkpoints, and its loaders."""

from __future__ import annotations

from mobilenet.configs.archs import (
    MobileNetV3Config,
    MobileNetV3LargeConfig,
    MobileNetV3LargeMinimalisticConfig,
    MobileNetV3SmallConfig,
    MobileNetV3SmallMinimalisticConfig,
)
from mobilenet.tf1_loader.family import make_loader
from mobilenet.tf1_loader.variable_names import Scopes

SCOPES = Scopes(
    "MobilenetV3",
    (
        ("Conv", "Conv"),
        ("Conv_1", "Conv_1"),
        ("Conv_2", "Conv_2"),
        ("expanded_conv_depthwise", "expanded_conv/depthwise"),
        ("expanded_conv_project", "expanded_conv/project"),
        ("expanded_conv_squeeze_excite_squeeze", "expanded_conv/squeeze_excite/Conv"),
        ("expanded_conv_squeeze_excite_excite", "expanded_conv/squeeze_excite/Conv_1"),
        ("expanded_conv_{n}_expand", "expanded_conv_{n}/expand"),
        ("expanded_conv_{n}_depthwise", "expanded_conv_{n}/depthwise"),
        ("expanded_conv_{n}_project", "expanded_conv_{n}/project"),
        ("expanded_conv_{n}_squeeze_excite_squeeze", "expanded_conv_{n}/squeeze_excite/Conv"),
        ("expanded_conv_{n}_squeeze_excite_excite", "expanded_conv_{n}/squeeze_excite/Conv_1"),
        ("Logits", "Logits/Conv2d_1c_1x1"),
    ),
)

load_mobilenet_v3 = make_loader(
    "load_mobilenet_v3", "A member of the V3 family, EdgeTPU included,", MobileNetV3Config
)
load_mobilenet_v3_small = make_loader(
    "load_mobilenet_v3_small",
    "MobileNetV3-small, minimalistic or not,",
    MobileNetV3SmallConfig,
    MobileNetV3SmallMinimalisticConfig,
)
load_mobilenet_v3_large = make_loader(
    "load_mobilenet_v3_large",
    "MobileNetV3-large, minimalistic or not,",
    MobileNetV3LargeConfig,
    MobileNetV3LargeMinimalisticConfig,
)
