"""One builder for all models: walks the rows of a config and adds the head."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Sequence
from typing import Any

from mobilenet.configs import archs
from mobilenet.configs.archs import MobileNetConfig
from mobilenet.configs.base import MAX_SIDE
from mobilenet.configs.dataset import Preprocessing
from mobilenet.errors import UsageError
from mobilenet.models.blocks import BlockBuilder, Tensor
from mobilenet.models.layer_plan import Row, count_parameters, min_input_side, plan_rows

IMAGENET_SHAPE = (224, 224, 3)
MAX_PARAMETERS = 1 << 29  # 2 GiB of float32; the largest published model has 11 million


def build(
    config: MobileNetConfig,
    input_shape: int | Sequence[int | None] = IMAGENET_SHAPE,
    keras: Any = None,
) -> Any:
    """Builds a model from its config.

    Args:
        config: of the model.
        input_shape: `[height, width, channels]`; height and width may be `None` with `global_pool`.
            One number is the side of a square RGB image.
        keras: the package of the layers: `tf_keras` by default, or Keras 3's `keras`. The order of
            the weights is the same, so `get_weights()` of one goes into `set_weights()` of the
            other.

    Returns:
        A functional model from images in [-1, 1] to `[batch, num_classes]` probabilities (logits
        when `classifier_activation` is `None`), or to the pooled features when there are no
        classes. Features of V3 include its last convolution, which comes after the pooling.

    Raises:
        UsageError: the input is too small for the strides, or the config does not describe a model.

    Examples:
        >>> build(archs.MobileNetV2Config(width_multiplier=0.35, num_classes=10), (96, 96,
        3)).output_shape (None, 10)
    """
    if not isinstance(config, MobileNetConfig):
        raise UsageError(
            "config", type(config).__name__, "a MobileNetConfig", "archs.get(name) returns one"
        )
    if keras is None:
        keras = importlib.import_module("tf_keras")
    rows = plan_rows(config)
    shape = _checked_shape(config, rows, input_shape)
    blocks = BlockBuilder(config, keras)
    image = keras.layers.Input(shape, name="input")
    x = image
    for row in rows:
        x = blocks.block(x, row)
    if all(row.block.block_type != "GlobalPooling" for row in rows):
        x = blocks.pool(x)
    model = keras.Model(image, _head(x, blocks), name=config.name)
    model.mobilenet_config = config
    model.mobilenet_preprocessing = Preprocessing()
    return model


def config_of(model: Any) -> MobileNetConfig | None:
    """The config that rebuilds a model, if `build` made it or its card stores the config."""
    config = getattr(model, "mobilenet_config", None)
    return config if isinstance(config, MobileNetConfig) else None


def _head(x: Tensor, blocks: BlockBuilder) -> Tensor:
    """Dropout, the 1x1 convolution of the classifier, and its activation."""
    config, layers = blocks.config, blocks.keras.layers
    if config.num_classes:
        rate = 1 - config.dropout_keep_prob
        x = layers.Dropout(rate, name="dropout")(x)
        x = blocks.conv(x, "Logits", config.num_classes, bias=True, normalization=False)
    if config.spatial_squeeze:
        if tuple(x.shape[1:3]) != (1, 1):
            raise UsageError(
                "spatial_squeeze",
                True,
                f"a pooled map of 1x1, not {x.shape[1]}x{x.shape[2]}",
                "set it False or global_pool True",
            )
        x = layers.Flatten(name="squeeze")(x)
    if not config.num_classes or config.classifier_activation is None:
        return x
    # float32: probabilities in half precision would lose the small ones
    if config.classifier_activation == "softmax":
        return layers.Softmax(dtype="float32", name="Predictions")(x)
    return layers.Activation(config.classifier_activation, dtype="float32", name="Predictions")(x)


def _checked_shape(
    config: MobileNetConfig, rows: tuple[Row, ...], input_shape: int | Sequence[int | None]
) -> tuple[int | None, ...]:
    shape = _shape_of(input_shape)
    if len(shape) != 3 or shape[2] is None or any(side is not None and side < 1 for side in shape):
        raise UsageError(
            "input_shape", input_shape, "[height, width, channels]", "such as (224, 224, 3)"
        )
    least = min_input_side(rows)
    if any(side is not None and side < least for side in shape[:2]):
        raise UsageError(
            "input_shape",
            shape,
            f"height and width of at least {least}, the product of the strides",
            f"use {least} or more",
        )
    if any(side is not None and side > MAX_SIDE for side in shape):
        raise UsageError("input_shape", shape, f"sides of at most {MAX_SIDE}")
    parameters = count_parameters(config, shape[2])
    if parameters > MAX_PARAMETERS:
        raise UsageError(
            "width_multiplier, num_classes and channels",
            f"{parameters} parameters",
            f"a model of at most {MAX_PARAMETERS}",
        )
    if None in shape[:2] and not config.global_pool:
        raise UsageError("input_shape", shape, "a fixed height and width, since global_pool is off")
    return shape


def _shape_of(input_shape: int | Sequence[int | None]) -> tuple[int | None, ...]:
    """The shape that an argument means; empty if it is none."""
    try:
        if not isinstance(input_shape, Sequence):
            side = operator.index(input_shape)
            return side, side, 3
        return tuple(None if side is None else operator.index(side) for side in input_shape)
    except TypeError:
        return ()


def _of_kind(config: MobileNetConfig | None, *names: str) -> MobileNetConfig:
    """The config, or the default of the first name; refuses a config of another model."""
    if config is None:
        return archs.get(names[0])
    kinds = tuple(archs.ALL[name] for name in names)
    if not isinstance(config, kinds):
        raise UsageError(
            "config", type(config).__name__, " or ".join(kind.__name__ for kind in kinds)
        )
    return config


def mobilenet_v1(
    config: MobileNetConfig | None = None, input_shape: Sequence[int | None] = IMAGENET_SHAPE
) -> Any:
    """MobileNetV1; see `build`."""
    return build(_of_kind(config, "mobilenet_v1"), input_shape)


def mobilenet_v2(
    config: MobileNetConfig | None = None, input_shape: Sequence[int | None] = IMAGENET_SHAPE
) -> Any:
    """MobileNetV2; see `build`."""
    return build(_of_kind(config, "mobilenet_v2"), input_shape)


def mobilenet_v3_small(
    config: MobileNetConfig | None = None, input_shape: Sequence[int | None] = IMAGENET_SHAPE
) -> Any:
    """MobileNetV3-small or its minimalistic twin; see `build`."""
    return build(
        _of_kind(config, "mobilenet_v3_small", "mobilenet_v3_small_minimalistic"), input_shape
    )


def mobilenet_v3_large(
    config: MobileNetConfig | None = None, input_shape: Sequence[int | None] = IMAGENET_SHAPE
) -> Any:
    """MobileNetV3-large or its minimalistic twin; see `build`."""
    return build(
        _of_kind(config, "mobilenet_v3_large", "mobilenet_v3_large_minimalistic"), input_shape
    )


def mobilenet_v3(
    config: MobileNetConfig, input_shape: Sequence[int | None] = IMAGENET_SHAPE
) -> Any:
    """The member of the V3 family (EdgeTPU included) that the config's class names; see `build`."""
    return build(_of_kind(config, *archs.names("*v3*"), "mobilenet_edgetpu"), input_shape)


def mobilenet_edgetpu(
    config: MobileNetConfig | None = None, input_shape: Sequence[int | None] = IMAGENET_SHAPE
) -> Any:
    """MobileNet-EdgeTPU; see `build`."""
    return build(_of_kind(config, "mobilenet_edgetpu"), input_shape)
