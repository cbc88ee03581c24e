"""The functions of the public API: each takes models and arrays in memory, or paths, and calls the
package that does the work.

Nothing heavy is imported before a function needs it: `import mobilenet` does not wait for
TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from mobilenet.configs.archs import MobileNetConfig
    from mobilenet.typing import KerasModel


def build(
    name_or_config: str | MobileNetConfig,
    input_shape: int | Sequence[int | None] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    keras: Any = None,
    **fields: Any,
) -> KerasModel:
    """Builds a MobileNet from stock Keras layers.

    Args:
        name_or_config: one of `list_models()`, such as `"mobilenet_v2"`, or a config of
            `mobilenet.configs.archs`.
        input_shape: `(height, width, channels)`, or one number for square RGB images. 224 when left
            out, as in the papers. Height and width may be `None` unless `global_pool` is off.
        weights: path of the weights to start from: a model folder, a `.keras` file, a SavedModel, a
            checkpoint of TF1 or TF2, or a `.h5` file of keras.applications. They are matched by
            layer; the head stays new where the number of classes differs. Random when left out.
        keras: the package of the layers: `tf_keras` when left out, or Keras 3's `keras`. Only
            tf_keras models can be pruned, quantized and converted.
        **fields: fields of the config that differ from its own, such as `width_multiplier=0.35`,
            `num_classes=10` or `classifier_activation=None`, which gives logits.

    Returns:
        A functional model from images `[batch, height, width, channels]`, in [-1, 1], to
        probabilities `[batch, num_classes]`; to logits without a `classifier_activation`, to
        features with `num_classes=0`.

    Raises:
        UsageError: there is no such model, field or file of weights; a value is not legal; the
            input is too small for the strides; or the weights are another model's.

    Example:
        >>> import mobilenet
        >>> model = mobilenet.build("mobilenet_v2", 96, width_multiplier=0.35, num_classes=10)
        >>> model.output_shape
        (None, 10)
    """
    from mobilenet.configs import archs
    from mobilenet.models import builder

    config = archs.config_of(name_or_config, fields)
    shape = builder.IMAGENET_SHAPE if input_shape is None else input_shape
    if weights is None:
        return cast("KerasModel", builder.build(config, shape, keras))
    from mobilenet.training import initial_weights

    return initial_weights.build(config, shape, weights, keras)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that `build` knows.

    Args:
        pattern: a shell pattern; all names by default.

    Example:
        >>> list_models("*v3*minimalistic")
        ['mobilenet_v3_large_minimalistic', 'mobilenet_v3_small_minimalistic']
    """
    from mobilenet.configs import archs

    return archs.names(pattern)


def list_weights(pattern: str = "*") -> list[str]:
    """Names of the released weights whose published figures the library knows.

    `python -m mobilenet.tf1_loader --list` shows their accuracy, size and address. V1 was released
    twice under the same names, which are listed once.

    Args:
        pattern: a shell pattern; all names by default.

    Example:
        >>> list_weights("mobilenet_v2_1.[34]*")
        ['mobilenet_v2_1.4_224', 'mobilenet_v2_1.3_224']
    """
    from mobilenet.configs import released_models

    return released_models.names(pattern)
