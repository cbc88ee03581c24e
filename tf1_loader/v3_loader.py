"""The names of MobileNetV3, small and large, in TF1 checkpoints, and its loaders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mobilenet.configs.archs import (
    MobileNetConfig,
    MobileNetV3Config,
    MobileNetV3LargeConfig,
    MobileNetV3LargeMinimalisticConfig,
    MobileNetV3SmallConfig,
    MobileNetV3SmallMinimalisticConfig,
)
from mobilenet.tf1_loader.names import Scopes

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
_SMALL = (MobileNetV3SmallConfig, MobileNetV3SmallMinimalisticConfig)
_LARGE = (MobileNetV3LargeConfig, MobileNetV3LargeMinimalisticConfig)


def load_mobilenet_v3(
    checkpoint_path: str | os.PathLike[str],
    config: MobileNetConfig | None = None,
    *,
    input_shape: Sequence[int | None] | None = None,
    use_ema: bool = True,
) -> Any:
    """The member of the V3 family (EdgeTPU included) that the config's class names, from TF1.

    Arguments and errors are those of `load_tf1_checkpoint`; without a config the net is found from
    names and shapes, and one of another family is refused.
    """
    from mobilenet.tf1_loader.loading import load_family

    return load_family(checkpoint_path, config, (MobileNetV3Config,), input_shape, use_ema)


def load_mobilenet_v3_small(
    checkpoint_path: str | os.PathLike[str],
    config: MobileNetConfig | None = None,
    *,
    input_shape: Sequence[int | None] | None = None,
    use_ema: bool = True,
) -> Any:
    """MobileNetV3-small (or minimalistic) with a TF1 checkpoint's weights, as a tf_keras model.

    Arguments and errors are those of `load_tf1_checkpoint`; without a config the net is found from
    names and shapes, and one of another family is refused.
    """
    from mobilenet.tf1_loader.loading import load_family

    return load_family(checkpoint_path, config, _SMALL, input_shape, use_ema)


def load_mobilenet_v3_large(
    checkpoint_path: str | os.PathLike[str],
    config: MobileNetConfig | None = None,
    *,
    input_shape: Sequence[int | None] | None = None,
    use_ema: bool = True,
) -> Any:
    """MobileNetV3-large (or minimalistic) with a TF1 checkpoint's weights, as a tf_keras model.

    Arguments and errors are those of `load_tf1_checkpoint`; without a config the net is found from
    names and shapes, and one of another family is refused.
    """
    from mobilenet.tf1_loader.loading import load_family

    return load_family(checkpoint_path, config, _LARGE, input_shape, use_ema)
