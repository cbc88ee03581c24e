"""MobileNetV1's names in TF1 checkpoints, and its loader."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mobilenet.configs.archs import MobileNetConfig, MobileNetV1Config
from mobilenet.tf1_loader.names import Scopes

SCOPES = Scopes(
    "MobilenetV1",
    (
        ("Conv2d_0", "Conv2d_0"),
        ("Conv2d_{n}_depthwise", "Conv2d_{n}_depthwise"),
        ("Conv2d_{n}_pointwise", "Conv2d_{n}_pointwise"),
        ("Logits", "Logits/Conv2d_1c_1x1"),
    ),
)


def load_mobilenet_v1(
    checkpoint_path: str | os.PathLike[str],
    config: MobileNetConfig | None = None,
    *,
    input_shape: Sequence[int | None] | None = None,
    use_ema: bool = True,
) -> Any:
    """MobileNetV1 with a TF1 checkpoint's weights, as a tf_keras model.

    Arguments and errors are those of `load_tf1_checkpoint`; without a config the net is found from
    names and shapes, and one of another family is refused.
    """
    from mobilenet.tf1_loader.loading import load_family

    return load_family(checkpoint_path, config, (MobileNetV1Config,), input_shape, use_ema)
