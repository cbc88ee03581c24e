"""MobileNetV2's names in TF1 checkpoints, and its loader."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mobilenet.configs.archs import MobileNetConfig, MobileNetV2Config
from mobilenet.tf1_loader.names import Scopes

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


def load_mobilenet_v2(
    checkpoint_path: str | os.PathLike[str],
    config: MobileNetConfig | None = None,
    *,
    input_shape: Sequence[int | None] | None = None,
    use_ema: bool = True,
) -> Any:
    """MobileNetV2 with a TF1 checkpoint's weights, as a tf_keras model.

    Arguments and errors are those of `load_tf1_checkpoint`; without a config the net is found from
    names and shapes, and one of another family is refused.
    """
    from mobilenet.tf1_loader.loading import load_family

    return load_family(checkpoint_path, config, (MobileNetV2Config,), input_shape, use_ema)
